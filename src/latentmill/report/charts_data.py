"""The charts that know what a dataset is: source sizes with their buckets, images per bucket, channels of latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from latentmill.report.charts import ROW, beside, steps
from latentmill.report.facts import BucketFacts, ChannelFacts, SizeFacts
from latentmill.report.svg import FIRST, GRID, INK, QUIET, SECOND, axes, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ASPECTS = ((1, 2), (2, 3), (1, 1), (3, 2), (2, 1))  # width to height
_TICKS = tuple(2**power for power in range(21))
_APART = 46, 20  # pixels from one tick to the next, at least, on the x and the y axis
_ASPECT_APART = 64, 30  # pixels of a power of two from which all aspects are told, and those of whole numbers
_DOTS = (
    (1, 1.0),
    (2, 1.4),
    (5, 2.0),
    (20, 2.8),
    (100, 4.0),
    (1000, 5.6),
)  # images of one size, and how much larger their dot is
MOST_BUCKETS = 40  # rows that a chart has at most; its table has all


def sizes(facts: SizeFacts, table: Sequence[tuple[int, int]], label: str) -> Markup:
    """Width over height of the sources, both in powers of two, so that equal shapes lie on one diagonal.

    Images of one size are one dot, the larger the more they are. table: buckets, (height, width), drawn as squares.
    """

    def paint(figure: Figure, narrow: bool) -> None:
        drawn = axes(figure, left=46, bottom=46, top=12, right=14)
        _limits(drawn, figure, facts, table)
        _diagonals(drawn)
        _dots(drawn, facts)
        _squares(drawn, table)
        drawn.set_xlabel("width, pixels")
        beside(drawn, "height, pixels", (0, 1), (6, -6), coordinates="axes fraction")

    return chart(paint, label, wide=(720, 440), narrow=(320, 320))


def buckets(facts: Sequence[BucketFacts], label: str) -> Markup:
    """Images of each bucket as bars, beside them the share of pixels that cropping takes, or how much is stretched."""
    shown = facts[:MOST_BUCKETS]
    stretched = not any(bucket.lost for bucket in facts) and any(bucket.stretched for bucket in facts)
    shares = [bucket.stretched if stretched else bucket.lost for bucket in shown]
    names = [_size(bucket.size) for bucket in shown]

    def paint(figure: Figure, narrow: bool) -> None:
        width = 320 if narrow else 720
        split = width - (96 if narrow else 210)
        left = axes(figure, left=92, right=width - split + 62, top=26, bottom=4)
        right = axes(figure, left=split, right=44, top=26, bottom=4)
        left.barh(range(len(names)), [bucket.images for bucket in shown], height=0.62, color=FIRST)
        left.set_xlim(0, max(bucket.images for bucket in shown))
        left.set_yticks(range(len(names)), names, color=INK)
        for place, bucket in enumerate(shown):
            beside(left, f"{bucket.images:,}", (bucket.images, place), (6, 0))
        _shares(right, shares)
        for drawn, text in ((left, "images"), (right, "stretched by" if stretched else "cropped away")):
            drawn.set_ylim(len(names) - 0.5, -0.5)
            drawn.grid(False)
            drawn.xaxis.set_visible(False)
            drawn.spines["bottom"].set_visible(False)
            beside(drawn, text, (0, 1), (0, 12), coordinates="axes fraction")

    height = ROW * len(shown) + 30
    return chart(paint, label, wide=(720, height), narrow=(320, height))


def channels(facts: Sequence[ChannelFacts], label: str) -> Markup:
    """A histogram of each channel, and under it two lines: mean and deviation as they are, and as recorded."""
    per_row = {False: min(4, len(facts)), True: min(2, len(facts))}
    tall = 132

    def paint(figure: Figure, narrow: bool) -> None:
        width = 320 if narrow else 720
        cell = width / per_row[narrow]
        lines = math.ceil(len(facts) / per_row[narrow])
        for place, channel in enumerate(facts):
            row, column = divmod(place, per_row[narrow])
            drawn = axes(
                figure, left=int(column * cell) + 6, right=int(width - (column + 1) * cell) + 10,
                top=row * tall + 22, bottom=(lines - row - 1) * tall + 22,
            )  # fmt: skip
            _channel(drawn, channel)

    heights = {narrow: tall * math.ceil(len(facts) / count) for narrow, count in per_row.items()}
    return chart(paint, label, wide=(720, heights[False]), narrow=(320, heights[True]))


def _limits(drawn: Axes, figure: Figure, facts: SizeFacts, table: Sequence[tuple[int, int]]) -> None:
    """The same scale both ways, with all dots and squares well inside."""
    ends = np.array([[*facts.widths, *(w for _, w in table)], [*facts.heights, *(h for h, _ in table)]], float)
    low, high = np.log2(ends.min(axis=1)), np.log2(ends.max(axis=1))
    box = drawn.get_position()
    pixels = np.array([box.width, box.height]) * figure.get_size_inches()
    middle, half = (low + high) / 2, pixels * max(float(np.max((high - low) / pixels)) / 2 * 1.12, 1.0 / pixels.min())
    drawn.set_xscale("log", base=2)
    drawn.set_yscale("log", base=2)
    drawn.set_xlim(2 ** (middle[0] - half[0]), 2 ** (middle[0] + half[0]))
    drawn.set_ylim(2 ** (middle[1] - half[1]), 2 ** (middle[1] + half[1]))
    drawn.minorticks_off()
    limits = (drawn.set_xticks, drawn.get_xlim()), (drawn.set_yticks, drawn.get_ylim())
    for (set_ticks, (start, end)), apart in zip(limits, _APART, strict=True):
        inside = [tick for tick in _TICKS[:: math.ceil(apart / _octave(drawn))] if start <= tick <= end]
        set_ticks(inside, [str(tick) for tick in inside])


def _octave(drawn: Axes) -> float:
    """Pixels from a length to twice that."""
    left, right = drawn.get_xlim()
    return float(drawn.get_window_extent().width) / math.log2(right / left)


def _diagonals(drawn: Axes) -> None:
    """Equal shapes, named where they leave the axes."""
    left, right = drawn.get_xlim()
    bottom, top = drawn.get_ylim()
    octave = _octave(drawn)
    aspects = _ASPECTS if octave >= _ASPECT_APART[0] else _ASPECTS[::2] if octave >= _ASPECT_APART[1] else ((1, 1),)
    for wide, high in aspects:
        aspect = wide / high
        start, end = max(left, bottom * aspect), min(right, top * aspect)
        if start >= end:
            continue
        drawn.plot([start, end], [start / aspect, end / aspect], color=GRID, linewidth=1)
        at_top = end < right
        drawn.annotate(
            f"{wide}:{high}", (end, end / aspect), (-4 if at_top else -6, -14 if at_top else -12),
            textcoords="offset points", color=QUIET,  ha="right", fontsize=11,
        )  # fmt: skip


def _dots(drawn: Axes, facts: SizeFacts) -> None:
    """All dots of one diameter are one path: lines of no length with round ends."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    pairs, counts = np.unique(np.stack([facts.widths, facts.heights], axis=1), axis=0, return_counts=True)
    smallest = 8.0 if len(pairs) <= 100 else 5.0 if len(pairs) <= 1000 else 3.5
    limits = np.array([least for least, _ in _DOTS])
    classes = np.searchsorted(limits, counts, side="right") - 1
    for number, (_, larger) in enumerate(_DOTS):
        points = pairs[classes == number].astype(float)
        if len(points):
            codes = np.tile([Path.MOVETO, Path.LINETO], len(points))
            path = Path(points.repeat(2, axis=0), codes)
            drawn.add_patch(
                PathPatch(
                    path,
                    facecolor="none",
                    edgecolor=FIRST,
                    linewidth=smallest * larger,
                    capstyle="round",
                    alpha=0.55,
                    zorder=3,
                )
            )


def _squares(drawn: Axes, table: Sequence[tuple[int, int]]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not table:
        return
    points = np.array([(width, height) for height, width in table], float)
    codes = np.tile([Path.MOVETO, Path.LINETO], len(points))
    path = Path(points.repeat(2, axis=0), codes)
    drawn.add_patch(PathPatch(path, facecolor="none", edgecolor=SECOND, linewidth=7, capstyle="projecting", zorder=4))
    height, width = max(table, key=lambda size: (size[1], -size[0]))
    drawn.annotate(
        _size(table[0]) if len(table) == 1 else "buckets", (width, height), (9, -4), textcoords="offset points",
        color=SECOND, fontweight="bold",
    )  # fmt: skip


def _shares(drawn: Axes, shares: Sequence[float | None]) -> None:
    known = [(share, place) for place, share in enumerate(shares) if share is not None]
    drawn.set_yticks([])
    drawn.set_xlim(0, max([share for share, _ in known], default=0) or 1)
    for share, place in known:
        drawn.barh([place], [share], height=0.26, color=SECOND)
        beside(drawn, f"{share:.1%}", (share, place), (6, 0))


def _channel(drawn: Axes, facts: ChannelFacts) -> None:
    edges, counts = facts.histogram.edges, facts.histogram.counts
    top = max(float(np.max(counts, initial=0)), 1.0)
    steps(drawn, edges, counts)
    drawn.set(xlim=(edges[0], edges[-1]), ylim=(-0.42 * top, top * 1.04), yticks=[])
    drawn.grid(False)
    drawn.spines["bottom"].set_visible(False)
    drawn.plot([edges[0], edges[-1]], [0, 0], color=GRID, linewidth=1)
    drawn.locator_params(axis="x", nbins=3)
    _interval(drawn, facts.mean, facts.std, -0.15 * top, FIRST)
    if facts.recorded_scale:
        _interval(drawn, facts.recorded_shift or 0.0, 1 / facts.recorded_scale, -0.32 * top, SECOND)
    drawn.annotate(
        f"channel {facts.channel}", (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=INK
    )


def _interval(drawn: Axes, mean: float, std: float, height: float, colour: str) -> None:
    """Mean and one deviation to both sides, as far as the axes reach."""
    low, high = drawn.get_xlim()
    ends = np.clip([mean - std, mean + std], low, high)
    drawn.plot(ends, [height, height], color=colour, linewidth=3, solid_capstyle="round")
    if low <= mean <= high:
        drawn.plot([mean, mean], [height, height], color=colour, linewidth=9, solid_capstyle="round")


def _size(size: tuple[int, int]) -> str:
    """Width and height, as people name sizes."""
    return f"{size[1]} × {size[0]}"
