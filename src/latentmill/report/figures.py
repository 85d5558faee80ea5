"""The figures of a report: each chart with what it shows in words, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup

from latentmill.records import Array
from latentmill.report import charts, charts_data, shell
from latentmill.report.cards import size
from latentmill.report.facts import (
    BucketFacts,
    CaptionFacts,
    ClassFacts,
    DatasetFacts,
    LatentFacts,
    Quality,
    SpeedFacts,
)
from latentmill.wording import counted, printable

_BINS = 40
_ROWS = 20  # of a table that tells a histogram or a curve
_MOST_CLASSES = 30  # that are drawn by name
_NO_FOLDER = "(no folder)"  # the class of what lies in the source itself
_AROUND = 20  # of more classes: the largest and the smallest in the table
_QUANTILES = (("smallest", 0.0), ("5 %", 0.05), ("half below", 0.5), ("95 %", 0.95), ("largest", 1.0))


def distribution(facts: DatasetFacts) -> list[Markup]:
    """Sizes, buckets, quality, latents, captions, classes: those that there are."""
    found = [
        *_sizes(facts),
        *_buckets(facts.buckets),
        *_qualities(facts.qualities),
        *(_latents(facts.latents) if facts.latents else ()),
        *(part for captions in facts.captions for part in _captions(captions)),
        *(_classes(facts.classes) if facts.classes else ()),
    ]
    return found


def speed(facts: SpeedFacts) -> list[Markup]:
    """Time per stage, and throughput over time."""
    return [*_stages(facts), *_timeline(facts)]


def _sizes(facts: DatasetFacts) -> Iterator[Markup]:
    sizes = facts.sizes
    if sizes is None or not len(sizes.widths):
        return
    table = facts.bucket_table or tuple(dict.fromkeys(_targets(facts)))
    columns = {"width": sizes.widths, "height": sizes.heights, "width / height": sizes.widths / sizes.heights}
    numbers = _quantiles(columns, "Sizes of the source images, in pixels")
    heading = "Sizes of the source images"
    told = [shell.key(1, f"{_sample(len(sizes.widths), sizes.of)}, larger dots where many have one size.")]
    if table:
        what = "the size" if len(table) == 1 else f"the {len(table)} buckets"
        told.append(shell.key(2, f"{what} that they are brought to."))
    drawn = charts_data.sizes(sizes, table, f"Scatter chart: {heading}")
    yield shell.figure(drawn, heading, text=Markup(" ").join(told), numbers=numbers)


def _targets(facts: DatasetFacts) -> Iterator[tuple[int, int]]:
    """The sizes that images are brought to, where there is no table of them."""
    yield from (bucket.size for bucket in facts.buckets)
    yield from (shown.bucket for shown in facts.shown if shown.bucket)


def _buckets(facts: Sequence[BucketFacts]) -> Iterator[Markup]:
    facts = [bucket for bucket in facts if bucket.images]
    if len(facts) < 2:
        return
    ordered = sorted(facts, key=lambda bucket: (-bucket.images, bucket.size))
    columns = (
        ("cropped away", [_share(bucket.lost) for bucket in ordered]),
        ("stretched", [_share(bucket.stretched) for bucket in ordered]),
        ("scaled up", [bucket.upscaled for bucket in ordered]),
    )
    kept = [(name, values) for name, values in columns if any(value is not None for value in values)]
    rows = [
        [size(bucket.size), bucket.images, *(values[place] for _, values in kept)]
        for place, bucket in enumerate(ordered)
    ]
    numbers = shell.table(["bucket", "images", *(name for name, _ in kept)], rows, caption="Buckets, the fullest first")
    drawn = charts_data.buckets(ordered, "Bar chart: images of each bucket, and pixels that cropping takes")
    yield shell.figure(drawn, "Images per bucket", text=_bucket_text(ordered), numbers=numbers)


def _bucket_text(facts: Sequence[BucketFacts]) -> str:
    images = sum(bucket.images for bucket in facts)
    told = f"{counted(images, 'images')} in {counted(len(facts), 'buckets')}."
    lost = _average([(bucket.lost, bucket.images) for bucket in facts])
    stretched = _average([(bucket.stretched, bucket.images) for bucket in facts])
    if lost is not None and (lost or not stretched):
        told += f" Cropping takes {lost:.1%} of their pixels on average."
    if stretched:
        told += f" One side is stretched by {stretched:.1%} on average against the other."
    if len(facts) > charts_data.MOST_BUCKETS:
        told += f" Drawn are the {charts_data.MOST_BUCKETS} fullest; the table has all."
    return told


def _average(pairs: Sequence[tuple[float | None, int]]) -> float | None:
    """Of (value, how many images have it); None where none is known."""
    known = [(value, images) for value, images in pairs if value is not None]
    return sum(value * images for value, images in known) / sum(images for _, images in known) if known else None


def _qualities(facts: Sequence[Quality]) -> Iterator[Markup]:
    psnr = np.array([quality.psnr for quality in facts], float)
    ssim = np.array([quality.ssim for quality in facts if np.isfinite(quality.ssim)], float)
    finite = psnr[np.isfinite(psnr)]
    if len(finite) < 2 or not len(ssim):
        return
    counts, edges = np.histogram(finite, bins=min(_BINS, max(5, len(finite) // 2)))
    median = float(np.median(finite))
    numbers = _quantiles({"PSNR, dB": finite, "SSIM": ssim}, "Quality of the reconstructions")
    marks = [charts.Mark(median, f"half are below {median:.1f} dB")]
    drawn = charts.histogram(edges, counts, "Histogram: PSNR of the reconstructions", unit="PSNR, dB", marks=marks)
    text = f"How near {counted(len(facts), 'reconstructions')} are to what was encoded. Right is better."
    yield shell.figure(drawn, "Quality of the reconstructions", text=text, numbers=numbers)


def _latents(facts: LatentFacts) -> Iterator[Markup]:
    if not facts.channels:
        return
    rows = [
        [
            channel.channel, channel.mean, channel.std, channel.recorded_scale, channel.recorded_shift,
            channel.suggested_scale, channel.suggested_shift,
        ]
        for channel in facts.channels
    ]  # fmt: skip
    headings = [
        "channel",
        "mean",
        "deviation",
        "scale recorded",
        "shift recorded",
        "scale suggested",
        "shift suggested",
    ]
    numbers = shell.table(headings, rows, caption="Latents by channel; normalised = (latent - shift) × scale")
    drawn = charts_data.channels(facts.channels, "Histograms: values of the latents, channel by channel")
    told = [_normalised(facts), shell.key(1, "This data: mean, and one deviation to each side.")]
    if any(channel.recorded_scale for channel in facts.channels):
        told.append(shell.key(2, "What the recorded scale and shift make 0, and one deviation to each side."))
    yield shell.figure(drawn, "Values of the latents", text=Markup(" ").join(told), numbers=numbers)


def _normalised(facts: LatentFacts) -> Markup:
    where = "Over the whole dataset" if facts.whole_dataset else f"Over {counted(facts.files, 'sampled files')}"
    suggested = f"a scale of {facts.overall_scale:.4g} and a shift of {facts.overall_shift:.4g}"
    told = f"{where}, {suggested} would give mean 0 and deviation 1."
    if facts.recorded_scale is not None and facts.overall_scale:
        after = facts.recorded_scale / facts.overall_scale
        shift = "" if facts.recorded_shift is None else f" and a shift of {facts.recorded_shift:.4g}"
        told += f" Recorded is a scale of {facts.recorded_scale:.4g}{shift}, which gives deviation {after:.3f}."
    return Markup("{}").format(told)


def _captions(facts: CaptionFacts) -> Iterator[Markup]:
    if not len(facts.lengths):
        return
    longest = int(max(facts.lengths.max(), min(facts.max_length, 2 * int(facts.lengths.max()))))
    width = max(1, -(-(longest + 1) // _BINS))
    edges = np.arange(0, longest + 1 + width, width)
    edges = np.unique(np.append(edges, facts.max_length + 1)) if facts.max_length < edges[-1] else edges
    counts, _ = np.histogram(facts.lengths, bins=edges)
    cut = facts.truncated / facts.of if facts.of else 0.0
    numbers = _quantiles({"tokens": facts.lengths}, "Tokens of a caption")
    heading = f"Caption lengths: {printable(facts.label)}" if facts.label else "Caption lengths"
    lost = f"Longer than {facts.max_length}, so that their end is lost: {facts.truncated:,} ({cut:.1%})."
    fate = lost if facts.truncated else f"None is longer than the {facts.max_length} that fit."
    text = f"Tokens of {_sample(len(facts.lengths), facts.of, 'captions')} for {printable(facts.encoder)}. {fate}"
    marks = [charts.Mark(facts.max_length + 1, f"max_length {facts.max_length}", second=True)]
    drawn = charts.histogram(
        edges, counts, f"Histogram: {heading}", unit="tokens", marks=marks, beyond=facts.max_length + 1
    )
    yield shell.figure(drawn, heading, text=text, numbers=numbers)


def _classes(facts: ClassFacts) -> Iterator[Markup]:
    if not len(facts.counts):
        return
    names = [printable(name) or _NO_FOLDER for name in facts.names]
    order = np.argsort(-facts.counts, kind="stable")
    few = len(names) <= _MOST_CLASSES
    told = [*order] if len(order) <= 2 * _AROUND else [*order[:_AROUND], *order[-_AROUND:]]
    caption = "Images by class" if len(told) == len(order) else f"The {_AROUND} largest and {_AROUND} smallest classes"
    numbers = shell.table(["class", "images"], [[names[at], int(facts.counts[at])] for at in told], caption=caption)
    label = f"Images of each of {_classes_of(names)}"
    if few:
        drawn = charts.bars([names[at] for at in order], facts.counts[order].tolist(), f"Bar chart: {label}")
    else:
        drawn = charts.ranks(facts.counts, f"Area chart: {label}", x_unit="classes, the largest first", y_unit="images")
    yield shell.figure(drawn, "Images per class", text=_balance(facts, names, order), numbers=numbers)


def _balance(facts: ClassFacts, names: Sequence[str], order: Array) -> str:
    most, least = int(facts.counts[order[0]]), int(facts.counts[order[-1]])
    if most == least:
        return f"{_classes_of(names)} of {counted(most, 'images')} each."
    empty = int((facts.counts == 0).sum())
    told = (
        f"{_classes_of(names)}. The largest, {names[order[0]]}, has {counted(most, 'images')}; "
        f"the smallest, {names[order[-1]]}, has {counted(least, 'images')}."
    )
    return f"{told} {empty:,} classes have none." if empty > 1 else told


def _classes_of(names: Sequence[str]) -> str:
    return "1 class" if len(names) == 1 else f"{len(names):,} classes"


def _stages(facts: SpeedFacts) -> Iterator[Markup]:
    if not facts.stages:
        return
    total = sum(seconds for _, seconds in facts.stages) or 1.0
    names = [name for name, _ in facts.stages]
    seconds = [value for _, value in facts.stages]
    texts = [f"{_time(value)}, {value / total:.0%}" for value in seconds]
    rows: list[list[shell.Cell]] = [[name, value, f"{value / total:.1%}"] for name, value in facts.stages]
    numbers = shell.table(["stage", "seconds", "share"], rows, caption="Time per stage, summed over workers")
    drawn = charts.bars(names, seconds, "Bar chart: time per stage", texts=texts)
    text = (
        f"Summed over {counted(facts.workers, 'workers')}, in the order of the data flow. What follows the model runs "
        "in a second thread, beside the rest."
    )
    yield shell.figure(drawn, "Time per stage", text=text, numbers=numbers)


def _timeline(facts: SpeedFacts) -> Iterator[Markup]:
    times, rates = _rates(np.asarray(facts.timeline, float))
    if len(times) < 3:
        return
    step = max(1, len(times) // _ROWS)
    rows = [[float(times[at]), float(rates[at])] for at in range(0, len(times), step)]
    numbers = shell.table(["seconds", "images/s"], rows, caption="Throughput over time")
    drawn = charts.curve(
        times, rates, "Line chart: throughput over time", x_unit="seconds since the first batch", y_unit="images/s"
    )
    average = facts.images / facts.seconds if facts.seconds else 0.0
    done = f"{counted(facts.images, 'images')} in {_time(facts.seconds)}"
    text = f"Images finished per second. {done}, {average:,.3g} images/s on average."
    yield shell.figure(drawn, "Throughput over time", text=text, numbers=numbers)


def _rates(timeline: Array) -> tuple[Array, Array]:
    """From (seconds, images so far) to at most 60 stretches of equal time: their middles and rates."""
    if timeline.ndim != 2 or len(timeline) < 3 or timeline[-1, 0] <= timeline[0, 0]:
        return np.zeros(0), np.zeros(0)
    ends = np.linspace(timeline[0, 0], timeline[-1, 0], min(60, len(timeline)) + 1)
    done = np.interp(ends, timeline[:, 0], timeline[:, 1])
    return (ends[:-1] + ends[1:]) / 2, np.diff(done) / np.diff(ends)


def _quantiles(columns: dict[str, Array], caption: str) -> Markup:
    rows = [[name, *(_quantile(values, part) for _, part in _QUANTILES)] for name, values in columns.items()]
    return shell.table(["measure", *(name for name, _ in _QUANTILES)], rows, caption=caption)


def _time(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _quantile(values: Array, part: float) -> float | int:
    value = float(np.quantile(values, part))
    return int(value) if value.is_integer() else value


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def _sample(count: int, of: int, what: str = "images") -> str:
    """How many of how many are drawn."""
    return counted(count, what) if count >= of else f"{count:,} of {counted(of, what)}, sampled"
