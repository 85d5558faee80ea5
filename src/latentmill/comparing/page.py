"""A comparison as a page to look at: the reading, the table, charts, worst cases side by side, latents, conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from latentmill.comparing import charts
from latentmill.comparing.cases import AMPLIFIED, SIDE, difference
from latentmill.comparing.overview import LEGEND, explained, figure, lines
from latentmill.comparing.result import PSNR, Candidate, Case, Comparison, Metric
from latentmill.estimate import human
from latentmill.formats.metadata import ModelInfo
from latentmill.report import shell
from latentmill.report.facts import Row
from latentmill.report.pictures import picture

_QUALITY = 95  # of the JPEGs: what they lose is far below what a VAE does
_CONTENTS = (
    ("reading", "What it says"),
    ("quality", "What comes back"),
    ("worst", "Worst cases"),
    ("latents", "Latents"),
    ("conditions", "Conditions"),
)


def page(found: Comparison) -> str:
    """The whole page, as text."""
    parts = (_reading(found), _quality(found), _worst(found), _latents(found), _conditions(found))
    body = shell.joined(
        *(shell.section(place, heading, part) for (place, heading), part in zip(_CONTENTS, parts, strict=True))
    )
    used = found.conditions
    lead = f"{used.used:,} of {used.listed:,} photos of {used.source}, {used.size[1]}x{used.size[0]} pixels"
    version = used.versions.get("latentmill", "")
    return shell.document(
        "VAEs compared", body, lead=lead, contents=_CONTENTS, footer=f"Made by latentmill {version} compare-vae"
    )


def overview(found: Comparison) -> Markup:
    """The table of the terminal."""
    headings, cells = lines(found)
    return shell.table(headings, cells, caption=f"VAEs by the median of PSNR. {LEGEND}")


def _reading(found: Comparison) -> Markup:
    parts = [shell.paragraph(found.reading), overview(found), shell.paragraph(explained(found.metrics), quiet=True)]
    if found.failures:
        failed = shell.bullets(f"{name}: {reason}" for name, reason in found.failures)
        parts.append(shell.section("failed", "Left out", failed, level=3))
    return shell.joined(*parts)


def _quality(found: Comparison) -> Markup:
    ranked = sorted(found.candidates, key=lambda each: -each.spread(PSNR).median)
    parts = [
        shell.paragraph(
            "Pictures are decoded, in float32, from the mean of the posterior, without a draw, and compared with the "
            "very crops that were encoded."
        )
    ]
    best = "the higher and the further left, the more a byte keeps"
    parts.append(
        shell.figure(
            charts.against_bytes(ranked, PSNR, f"Median PSNR over bytes an image; {best}"),
            "Quality against size",
            text=f"The dot is the median PSNR, the line ends at the worst 5 % of the photos; {best}.",
            numbers=_bytes_table(ranked),
        )
    )
    for metric in found.metrics:
        label = f"{metric.name} of every photo by VAE; {metric.what}"
        drawn = charts.distribution(ranked, metric, label)
        numbers = _scores_table(found, ranked, metric)
        parts.append(shell.figure(drawn, f"{metric.name} of every photo", text=f"{metric.what}.", numbers=numbers))
    return shell.joined(*parts)


def _bytes_table(candidates: Sequence[Candidate]) -> Markup:
    kinds = list(dict.fromkeys(kind for each in candidates for kind in each.bytes_stored))
    rows = [[each.name, *(each.bytes_stored.get(kind) for kind in kinds)] for each in candidates]
    return shell.table(["VAE", *kinds], rows, caption="Bytes of one image's file, by what is stored")


def _scores_table(found: Comparison, ranked: Sequence[Candidate], metric: Metric) -> Markup:
    rows = [
        [key, *(_number(each.scores[metric.name][number]) for each in ranked)] for number, key in enumerate(found.keys)
    ]
    return shell.table(["photo", *(each.name for each in ranked)], rows, caption=f"{metric.name} of every photo")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _worst(found: Comparison) -> Markup:
    if not found.worst:
        return shell.paragraph("No photo was decoded by every VAE, so there is nothing to lay side by side.")
    whys = list(dict.fromkeys(case.why for case in found.worst))
    groups = [
        shell.Group(why.capitalize().replace("psnr", "PSNR").replace("vae", "VAE"),
                    tuple(_card(found, case) for case in found.worst if case.why == why))
        for why in whys
    ]  # fmt: skip
    text = (
        f"Pixel for pixel, of large photos the {SIDE}x{SIDE} where the VAEs err most, the same for each. Differences "
        f"are drawn {AMPLIFIED} times as large as they are, for every VAE alike: black is equal."
    )
    return shell.joined(shell.paragraph(text), shell.gallery("Worst cases", groups))


def _card(found: Comparison, case: Case) -> shell.Card:
    key = found.keys[case.number]
    views = [shell.View("Original crop", picture(case.crop, f"{key}, the original crop", quality=_QUALITY), base=True)]
    scores = {each.name: each.scores for each in found.candidates}
    for name, restored in case.restored.items():
        note = ", ".join(_scored(metric, scores[name][metric.name][case.number]) for metric in found.metrics)
        shown = picture(restored, f"{key}, as {name} gives it back", quality=_QUALITY)
        views.append(shell.View(name, shown, note, compare=True))
    for name, restored in case.restored.items():
        error = picture(difference(case.crop, restored), f"{key}, what {name} changed, {AMPLIFIED} times", quality=85)
        views.append(shell.View(f"{name}: difference ×{AMPLIFIED}", error))
    order = {f"PSNR of {each.name}": float(each.scores[PSNR.name][case.number]) for each in found.candidates}
    height, width = case.crop.shape[:2]
    whole = (height, width) == found.conditions.size
    detail = "" if whole else f"{width}x{height} pixels at {case.at[1]}, {case.at[0]}"
    return shell.Card(key, tuple(views), detail=detail, sort=order)


def _scored(metric: Metric, value: float) -> str:
    return f"{metric.name} {figure(value, metric)} {metric.unit}".strip()


def _latents(found: Comparison) -> Markup:
    text = (
        "Of all encoded photos. deviation: of draws from the posterior, which is what a trainer gets. scale and shift: "
        "of this sample, what brings draws to mean 0 and deviation 1, as (z - shift) * scale; a model that was trained "
        "with the recorded ones needs those. A dead channel is constant, or more than 99 % noise."
    )
    headings = ["VAE", "C x h x w", "mean", "deviation", "scale", "shift", "recorded", "after it: mean", "deviation",
                "dead channels"]  # fmt: skip
    rows = [_latent_row(each) for each in found.candidates]
    details = [shell.details(f"Channels of {each.name}", _channels(each)) for each in found.candidates]
    table = shell.table(headings, rows, caption="Latents by VAE")
    return shell.joined(shell.paragraph(text), table, *details)


def _latent_row(each: Candidate) -> list[shell.Cell]:
    latents = each.latents
    scale, shift = latents.suggested
    return [
        each.name, " x ".join(map(str, latents.shape)), latents.overall_mean, latents.overall_std, scale, shift,
        recorded(each.info), *latents.normalised, ", ".join(map(str, latents.dead)) or "none",
    ]  # fmt: skip


def recorded(info: ModelInfo) -> str:
    """The normalisation that the model brings, in words."""
    known = info.normalization
    if known is not None and known.kind != "scale-shift":
        over = f" over {known.patch}x{known.patch} positions" if known.patch > 1 else ""
        return f"{known.kind}{over}"
    shift = f", shift {info.shift_factor:g}" if info.shift_factor else ""
    return f"scale {info.scaling_factor or 1:g}{shift}"


def _channels(each: Candidate) -> Markup:
    latents = each.latents
    rows = [
        [channel, float(mean), float(std), float(sampled), "dead" if channel in latents.dead else ""]
        for channel, (mean, std, sampled) in enumerate(zip(latents.mean, latents.std, latents.std_sampled, strict=True))
    ]
    headings = ["channel", "mean", "deviation of the mean", "deviation of draws", ""]
    return shell.table(headings, rows, caption=f"Channels of {each.name}, as the VAE gives them")


def _conditions(found: Comparison) -> Markup:
    used = found.conditions
    rows = [
        Row("Source", used.source, f"{used.used:,} of {used.listed:,} photos, evenly spread"),
        Row("Crop", f"{used.transform}, {used.size[1]}x{used.size[0]}"),
        Row("Machine", used.machine),
        Row("Computed", f"{used.device}, {used.dtype}, batches of {used.batch_size}, {used.threads} threads",
            "each VAE in turn with a part of the photos, its first batch not counted; medians"),
        Row("Pixel range", f"{used.pixel_range[0]:g} to {used.pixel_range[1]:g}"),
        Row("Versions", ", ".join(f"{name} {text}" for name, text in used.versions.items())),
        Row("Took", f"{used.seconds:,.0f} s"),
    ]  # fmt: skip
    parts = [shell.properties(rows), _costs(found)]
    if used.left_out:
        parts.append(shell.details(f"{len(used.left_out)} photos that could not be used",
                                   shell.bullets(f"{key}: {reason}" for key, reason in used.left_out)))  # fmt: skip
    return shell.joined(*parts)


def _costs(found: Comparison) -> Markup:
    rows: list[list[shell.Cell]] = [
        [each.name, 1000 * each.encode.median, 1000 * each.decode.median, _size(each.encode_memory),
         _size(each.decode_memory), each.recomputed, len(each.failed)]
        for each in found.candidates
    ]  # fmt: skip
    headings = ["VAE", "encode, ms an image", "decode, ms an image", "memory to encode", "memory to decode",
                "computed again in float32", "failed"]  # fmt: skip
    return shell.table(headings, rows, caption="Time and memory by VAE (memory: about, at the peak, weights included)")


def _size(value: int | None) -> str | None:
    return None if value is None else human(value)
