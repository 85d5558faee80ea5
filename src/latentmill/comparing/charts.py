"""The charts of a comparison: quality against bytes, and every photo's score by VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from latentmill.comparing.result import Candidate, Metric
from latentmill.estimate import human
from latentmill.records import Array
from latentmill.report.charts import beside, shortened
from latentmill.report.svg import FIRST, INK, QUIET, SECOND, axes, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 44  # pixels from one VAE to the next
_LETTER = 6.9  # pixels of one
_APART = 15.0  # pixels from one name to the next
_MOST_LETTERS = {False: 34, True: 16}
_BYTES = tuple(step * 10**power for power in range(1, 9) for step in (1, 2, 5))


def against_bytes(candidates: Sequence[Candidate], metric: Metric, label: str) -> Markup:
    """The median of a measure over the bytes of an image (log scale), with a line to the worst 5 %."""
    known = [each for each in candidates if np.isfinite(each.spread(metric).median)]

    def paint(figure: Figure, narrow: bool) -> None:
        drawn = axes(figure, left=52, top=30, bottom=46, right=16)
        sizes = [each.bytes_float16 for each in known]
        spreads = [each.spread(metric) for each in known]
        for size, spread in zip(sizes, spreads, strict=True):
            drawn.plot([size, size], [spread.median, spread.worst], color=QUIET, linewidth=1.5)
            _dots(drawn, [size], [spread.median], 9.0)
        drawn.set_xscale("log")
        drawn.set_xlim(min(sizes) / 1.6, max(sizes) * (4.5 if narrow else 2.2))
        _byte_ticks(drawn, narrow)
        drawn.set_xlabel("bytes an image, the mean in float16")
        drawn.margins(y=0.12)
        beside(drawn, _unit(metric), (0, 1), (-44, 16), coordinates="axes fraction")
        _names(drawn, known, sizes, [spread.median for spread in spreads], narrow)

    return chart(paint, label, wide=(720, 340), narrow=(320, 300))


def distribution(candidates: Sequence[Candidate], metric: Metric, label: str) -> Markup:
    """A dot for each photo, a line of dots a VAE; the median is marked and told."""

    def paint(figure: Figure, narrow: bool) -> None:
        room = int(min(110 if narrow else 240, max(len(each.name) for each in candidates) * _LETTER + 12))
        drawn = axes(figure, left=room, right=14, top=4, bottom=46)
        for place, each in enumerate(candidates):
            values = each.scores[metric.name]
            values = values[np.isfinite(values)]
            heights = place + 0.12 + 0.26 * _scattered(len(values))
            _dots(drawn, values, heights, 4.0)
            if len(values):
                middle = float(np.median(values))
                drawn.plot([middle, middle], [place - 0.02, place + 0.42], color=SECOND, linewidth=2.5)
                right = middle > sum(drawn.get_xlim()) / 2
                beside(drawn, f"{middle:.{metric.digits}f}", (middle, place - 0.2), (0, 0), right=right)
        names = [shortened(each.name, int((room - 10) / _LETTER)) for each in candidates]
        drawn.set_yticks(range(len(names)), names, color=INK)
        drawn.set_ylim(len(names) - 0.5, -0.5)
        drawn.grid(False, axis="y")
        drawn.grid(True, axis="x")
        drawn.locator_params(axis="x", nbins=4 if narrow else 8)
        drawn.set_xlabel(f"{_unit(metric)} of each photo, {'higher' if metric.higher else 'lower'} is better")

    height = _ROW * len(candidates) + 54
    return chart(paint, label, wide=(720, height), narrow=(320, height))


def _unit(metric: Metric) -> str:
    return f"{metric.name}, {metric.unit}" if metric.unit else metric.name


def _dots(drawn: Axes, x: ArrayLike, y: ArrayLike, size: float) -> None:
    """Round dots of so many pixels, in one path: lines of no length with round ends."""
    across, down = (np.repeat(np.asarray(each, float), 3) for each in (x, y))
    across[2::3] = np.nan
    drawn.plot(across, down, color=FIRST, linewidth=size, solid_capstyle="round")


def _scattered(count: int) -> Array:
    """Heights 0..1 that keep near dots apart: the fractional parts of multiples of the golden ratio."""
    found: Array = np.arange(count) * 0.6180339887 % 1
    return found


def _byte_ticks(drawn: Axes, narrow: bool) -> None:
    low, high = drawn.get_xlim()
    ticks = [size for size in _BYTES if low <= size <= high]
    ticks = ticks[:: -(-len(ticks) // (3 if narrow else 7)) or 1]
    drawn.set_xticks(ticks, [human(size) for size in ticks])
    drawn.minorticks_off()


def _names(
    drawn: Axes, candidates: Sequence[Candidate], sizes: Sequence[int], values: Sequence[float], narrow: bool
) -> None:
    """Names beside the dots, moved down where another name stands."""
    taken: list[tuple[float, float, float]] = []
    for place in np.argsort(values)[::-1]:
        x, y = drawn.transData.transform((sizes[place], values[place]))
        name = shortened(candidates[place].name, _MOST_LETTERS[narrow])
        lower = 0.0
        while any(x < end and start < x + len(name) * _LETTER and abs(y - lower - other) < _APART
                  for start, end, other in taken):  # fmt: skip
            lower += 3.0
        taken.append((x, x + len(name) * _LETTER, y - lower))
        beside(drawn, name, (sizes[place], values[place]), (9, -lower))
