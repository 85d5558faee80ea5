"""The table of a comparison, for the terminal and the page alike: a line a VAE, the best of each column marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latentmill.comparing.result import PSNR, Candidate, Comparison, Metric, best_of
from latentmill.estimate import human

BEST = "*"  # behind the best value of a column
LEGEND = f"{BEST} the best of its column."


@dataclass(frozen=True)
class Column:
    """value: what is compared, None where nothing is better or worse; unknown values are None too."""

    heading: str
    cell: Callable[[Candidate], str]
    value: Callable[[Candidate], float | None] | None = None
    higher: bool = True


def columns(found: Comparison) -> list[Column]:
    """Those that there is something to say in."""
    shown = [Column("VAE", lambda each: each.name)]
    shown += [_of_metric(metric) for metric in found.metrics]
    shown += [
        Column("latent", lambda each: " x ".join(map(str, each.latents.shape))),
        Column("bytes/image", lambda each: human(each.bytes_float16), lambda each: each.bytes_float16, higher=False),
        Column("encode/s", lambda each: f"{each.encode.rate:,.3g}", lambda each: each.encode.rate),
        Column("decode/s", lambda each: f"{each.decode.rate:,.3g}", lambda each: each.decode.rate),
    ]
    if any(each.encode_memory is not None for each in found.candidates):
        shown.append(Column("memory", _memory, lambda each: each.encode_memory, higher=False))
    if any(notes(each) for each in found.candidates):
        shown.append(Column("notes", lambda each: "; ".join(notes(each))))
    return shown


def lines(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings, and cells as text; best values have BEST behind them."""
    shown = columns(found)
    best = [
        best_of(found.candidates, column.value, higher=column.higher) if column.value else set() for column in shown
    ]
    ranked = sorted(found.candidates, key=lambda each: -each.spread(PSNR).median)
    cells = [
        [column.cell(each) + (BEST if each.name in names else "") for column, names in zip(shown, best, strict=True)]
        for each in ranked
    ]
    return [column.heading for column in shown], cells


def explained(metrics: Sequence[Metric]) -> str:
    """What the columns mean, in a few sentences."""
    measures = ". ".join(f"{metric.name}: {metric.what}" for metric in metrics)
    return (
        f"{measures}. Each: the median and, in brackets, what the worst 5 % of the photos are beyond. bytes/image: the "
        "mean in float16; moments take twice as much, float32 twice again. encode/s, decode/s: images a second. "
        "memory: about, at the peak of encoding."
    )


def notes(each: Candidate) -> list[str]:
    """What else is to be known of a VAE."""
    latents, told = each.latents, []
    if latents.dead:
        told.append(f"dead channels: {', '.join(map(str, latents.dead))}")
    if each.recomputed:
        told.append(f"{each.recomputed} overflowed and were computed again in float32")
    if each.tiled:
        told.append(f"{each.tiled} encoded in tiles")
    if each.failed:
        told.append(f"{len(each.failed)} failed")
    if each.divided:
        told.append(f"encoded at {each.divided[1]}x{each.divided[0]}")
    if each.decode_batch:
        told.append(f"decoded {each.decode_batch} at a time, for want of memory")
    return told


def figure(value: float, metric: Metric) -> str:
    return f"{value:.{metric.digits}f}"


def _of_metric(metric: Metric) -> Column:
    def cell(each: Candidate) -> str:
        spread = each.spread(metric)
        return f"{figure(spread.median, metric)} ({figure(spread.worst, metric)})"

    name = f"{metric.name}, {metric.unit}" if metric.unit else metric.name
    return Column(name, cell, lambda each: each.spread(metric).median, metric.higher)


def _memory(each: Candidate) -> str:
    return "–" if each.encode_memory is None else human(each.encode_memory)
