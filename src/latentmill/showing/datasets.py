"""A dataset as a person looks at it: what it holds, how it is normalised, and a few of its samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from latentmill.errors import ConfigError, LatentmillError
from latentmill.formats.metadata import READ_ERRORS, ModelInfo
from latentmill.formats.payload import ARRAY_ERRORS
from latentmill.loaders_variants import told_variant
from latentmill.outputs.common import model_line
from latentmill.showing.colours import spread_over
from latentmill.showing.display import displayed
from latentmill.showing.page import Html, facts, folded, grid, line, page, share, table
from latentmill.showing.samples import View, drawn, figure_of, views
from latentmill.wording import counted, printable

if TYPE_CHECKING:
    from latentmill.loaders import LatentDataset
    from latentmill.loaders_sample import Sample

_SHOWN = 12  # samples beside the figures
_WIDTH, _PREVIEW = 160, 96  # CSS pixels
_MOST = 12  # buckets or classes in a table
_COLUMNS = 4
_LONGEST_CAPTION = 140
_UNREADABLE = (*READ_ERRORS, *ARRAY_ERRORS, LatentmillError, KeyError)


def show(dataset: LatentDataset, count: int, decode: bool, device: str) -> Image.Image | None:
    """See `LatentDataset.show`."""
    if count < 1:
        raise ConfigError(f"n must be 1 or more. Found: {count}")
    cells = [(_lines(sample), view) for sample in _some(dataset, count) for view in _views(sample, decode, device)]
    html = page(
        "LatentDataset", f"{len(cells):,} of {counted(len(dataset), 'samples')}",
        grid(figure_of(view, lines[0], _WIDTH, " · ".join(lines)) for lines, view in cells), line(_how(cells)),
    )  # fmt: skip
    return None if displayed(html) else drawn(cells, _WIDTH, _COLUMNS)


def dataset_html(dataset: LatentDataset) -> str:
    """The dataset as a notebook displays it."""
    return page("LatentDataset", dataset.path, facts(_facts(dataset)), *_tables(dataset), _previews(dataset))


def dataset_text(dataset: LatentDataset) -> str:
    """A short block."""
    names = ("samples", "model", "latent", "normalised", "buckets", "pixels", "text", "vision", "variants")
    told = _facts(dataset)
    lines = [f"  {name:<10}  {printable(str(told[name]))}" for name in names if told[name]]
    return "\n".join([f"LatentDataset({str(dataset.path)!r})", *lines])


def _facts(dataset: LatentDataset) -> dict[str, object]:
    metadata = dataset.metadata
    latent, model, counts = metadata.latent, metadata.model, metadata.counts
    assert latent is not None and model is not None
    missing = [f"{number:,} {word}" for number, word in ((counts.rejected, "rejected"), (counts.skipped, "skipped"))
               if number]  # fmt: skip
    return {
        "samples": f"{len(dataset):,}" + (f" ({', '.join(missing)})" if missing else ""),
        "model": f"{model.name}{_revision(model)}: {model_line(model)}",
        "latent": f"{_shape(latent.shape)}, stored as {latent.statistic} in {latent.dtype}"
        + (f"; read: {_posterior(dataset.posterior)}" if latent.statistic == "moments" else ""),
        "normalised": _normalised(dataset),
        "buckets": _bucket_line(dataset),
        "pixels": str(dataset.images) if dataset.images is not None else "",
        "text": ", ".join(f"{name} ({text.info.width} wide)" for name, text in dataset.text.items()),
        "caption dropout": f"{dataset.caption_dropout:.0%}" if dataset.caption_dropout else "",
        "vision": ", ".join(f"{name} ({each[0].info.width} wide)" for name, each in dataset.vision.items()),
        "variants": ", ".join(map(told_variant, dataset.variants)) if len(dataset.variants) > 1 else "",
        "left out": f"{len(dataset.left_out):,} without text features" if dataset.left_out else "",
        "notes": ", ".join(f"{count:,} {note}" for note, count in metadata.notes.items()),
    }


def _revision(model: ModelInfo) -> str:
    return f" @ {model.revision[:12]}" if model.revision else ""


def _posterior(posterior: str) -> str:
    return "a fresh draw at every access" if posterior == "sample" else "their mean"


def _shape(shape: Sequence[int | None]) -> str:
    return f"({', '.join('*' if side is None else str(side) for side in shape)})"


def _normalised(dataset: LatentDataset) -> str:
    """The formula, in words of a trainer."""
    if dataset.normalize == "none":
        return "not: z as the VAE gave it"
    if dataset.normalize == "channel":
        return "(z - mean) / std by this dataset's own channels"
    model = dataset.metadata.model
    assert model is not None
    kind = model.normalization.kind if model.normalization is not None else "scale-shift"
    if kind != "scale-shift":
        return f"by the model's own statistics ({kind})"
    shift, scale = model.shift_factor, model.scaling_factor if model.scaling_factor is not None else 1.0
    return f"(z - {shift:g}) * {scale:g}" if shift else f"z * {scale:g}"


def _counted_buckets(dataset: LatentDataset) -> list[tuple[tuple[int, int], int]]:
    """(height, width) and samples, most first."""
    pairs = dataset.buckets
    if not len(pairs) or not np.any(pairs.strides[0]):
        return [((int(pairs[0][0]), int(pairs[0][1])), len(pairs))] if len(pairs) else []
    codes, counts = np.unique((pairs[:, 0] << 32) | pairs[:, 1], return_counts=True)
    found = [((int(code) >> 32, int(code) & 0xFFFFFFFF), int(n)) for code, n in zip(codes, counts, strict=True)]
    return sorted(found, key=lambda each: -each[1])


def _bucket_line(dataset: LatentDataset) -> str:
    found = _counted_buckets(dataset)
    first = ", ".join(f"{height}x{width}" for (height, width), _ in found[:3])
    if len(found) < 2:
        return f"one, {first} (height x width)"
    return f"{len(found)} (height x width): {first}{', …' if len(found) > 3 else ''}"


def _tables(dataset: LatentDataset) -> Iterator[Html]:
    found = _counted_buckets(dataset)
    if len(found) > 1:
        most = found[0][1]
        rows = [(f"{h} x {w}", f"{n:,}", share(n, most, f"{n:,} samples")) for (h, w), n in found[:_MOST]]
        yield _folded(f"{len(found)} buckets", ("height x width", "samples", ""), rows, len(found))
    labels, counts = np.unique(dataset.labels, return_counts=True)
    if len(labels) > 1 or (len(labels) and labels[0] >= 0):
        order = np.argsort(-counts, kind="stable")[:_MOST]
        rows = [
            (dataset.origin.label_name(int(labels[i])) or "none", f"{counts[i]:,}",
             share(int(counts[i]), int(counts.max()), f"{counts[i]:,} samples")) for i in order
        ]  # fmt: skip
        yield _folded(f"{len(labels)} classes", ("class", "samples", ""), rows, len(labels))
    if (statistics := dataset.metadata.statistics) is not None:
        each = zip(statistics.mean, statistics.std, statistics.std_sampled, strict=True)
        values = [(n, f"{mean:.4f}", f"{std:.4f}", f"{drawn:.4f}") for n, (mean, std, drawn) in enumerate(each)]
        headings = ("channel", "mean", "deviation", "of draws")
        yield folded("channels, as stored", table(headings, values, headings))


def _folded(summary: str, headings: Sequence[str], rows: Sequence[tuple[str, str, Html]], total: int) -> Html:
    more = [line(f"and {total - len(rows):,} more")] if total > len(rows) else []
    return folded(summary, table(headings, rows, ("samples",)), *more)


def _some(dataset: LatentDataset, count: int) -> Iterator[Sample]:
    """A few samples, evenly spread. The draws that follow are those that would have come without looking."""
    with torch.random.fork_rng(devices=[]):
        for position in spread_over(len(dataset), count):
            yield dataset[position]


def _views(sample: Sample, decode: bool = False, device: str = "auto") -> list[View]:
    """The image where there is one, else the latent; or what the VAE makes of it, where asked."""
    found = views(sample, decode, device)
    if decode:
        return [found[-1]]
    return found[:1]


def _lines(sample: Sample) -> list[str]:
    """Key, label and captions."""
    origin, label = sample.origin, sample["label"]
    name = origin.label_name(label) if origin is not None else ""
    captions = [text for text in sample.get("captions", {}).values() if text]
    captions = [text if len(text) <= _LONGEST_CAPTION else f"{text[:_LONGEST_CAPTION]}…" for text in captions]
    return [printable(each) for each in (str(sample["key"]), *([name] if name else []), *dict.fromkeys(captions))]


def _how(cells: Sequence[tuple[list[str], View]]) -> str:
    """What of the pictures is no picture."""
    titles = (view.title.partition(": ")[2] for _, view in cells if view.small)
    return next((f"latents: {how}" for how in titles), "")


def _previews(dataset: LatentDataset) -> Html:
    """A few samples; where one cannot be read, that is said instead."""
    cells: list[tuple[list[str], View]] = []
    try:
        cells += [(_lines(sample)[:2], view) for sample in _some(dataset, _SHOWN) for view in _views(sample)]
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return line(f"samples cannot be read ({reason}): latentmill verify {dataset.path}", "bad")
    figures = [figure_of(view, lines[0], _PREVIEW, " · ".join(lines)) for lines, view in cells]
    return Html(grid(figures) + line(_how(cells)))
