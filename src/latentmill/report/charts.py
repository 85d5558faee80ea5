"""The plain charts of a report: bars, a histogram, a curve, ranks; each as a part of a page, in two sizes.

Values are written beside what they belong to, so that no legend is needed. Every chart wants a table of its numbers
beside it (`shell.figure(..., numbers=...)`): a screen reader says its label alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from latentmill.records import Array
from latentmill.report.svg import FIRST, FIRST_SOFT, INK, QUIET, SECOND, SECOND_SOFT, axes, chart, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 24  # pixels from one bar to the next
_LETTER = 6.9  # pixels of one, at 12 pixels, as wide as most fonts make them
_NAME = (230, 118)  # pixels that names take at most, wide and narrow


@dataclass(frozen=True)
class Mark:
    """A place on the x axis to be told: a line with text beside it. second: in the second colour."""

    place: float
    text: str
    second: bool = False


def bars(names: Sequence[str], values: Sequence[float], label: str, *, texts: Sequence[str] | None = None) -> Markup:
    """Horizontal bars from 0, in the order given. texts: what stands at the ends, else the values."""
    ends = [f"{value:,.4g}" for value in values] if texts is None else list(texts)

    def paint(figure: Figure, narrow: bool) -> None:
        room = int(min(_NAME[narrow], max(map(len, names), default=0) * _LETTER + 12))
        drawn = axes(figure, left=room, right=int(max(map(len, ends), default=0) * _LETTER) + 14, bottom=4, top=4)
        places = range(len(names))
        drawn.barh(places, values, height=0.62, color=FIRST)
        drawn.set(xlim=(0, max([*values, 1e-9])), ylim=(len(names) - 0.5, -0.5))
        drawn.set_yticks(places, [shortened(name, int((room - 10) / _LETTER)) for name in names], color=INK)
        drawn.xaxis.set_visible(False)
        drawn.grid(False)
        drawn.spines["bottom"].set_visible(False)
        for place, value, text in zip(places, values, ends, strict=True):
            beside(drawn, text, (value, place), (6, 0))

    height = ROW * max(len(names), 1) + 8
    return chart(paint, label, wide=(720, height), narrow=(320, height))


def histogram(
    edges: Array, counts: Array, label: str, *, unit: str, marks: Sequence[Mark] = (), beyond: float = math.inf
) -> Markup:
    """Counts between edges (one more edge than counts). beyond: what lies right of it has the second colour."""

    def paint(figure: Figure, narrow: bool) -> None:
        drawn = axes(figure, left=52, top=14 + 18 * len(marks), bottom=46)
        past = edges[:-1] >= beyond
        for chosen, colours in ((~past, (FIRST, FIRST_SOFT)), (past, (SECOND, SECOND_SOFT))):
            if chosen.any():
                own = np.flatnonzero(chosen)
                steps(drawn, edges[own[0] : own[-1] + 2], counts[own], *colours)
        drawn.set(xlim=(edges[0], edges[-1]), ylim=(0, max(float(counts.max(initial=0)) * 1.02, 1)))
        drawn.set_xlabel(unit)
        whole_ticks(drawn, 4, x=False)
        drawn.locator_params(axis="y", integer=True)
        drawn.locator_params(axis="x", nbins=4 if narrow else 8)
        named(drawn, marks)

    return chart(paint, label, wide=(720, 260 + 18 * len(marks)), narrow=(320, 220 + 18 * len(marks)))


def curve(x: Array, y: Array, label: str, *, x_unit: str, y_unit: str) -> Markup:
    """A line of y over x with the area under it, from 0."""

    def paint(figure: Figure, narrow: bool) -> None:
        drawn = axes(figure, left=58, top=26, bottom=46, right=12)
        drawn.fill_between(x, y, 0, color=FIRST_SOFT, linewidth=0)
        drawn.plot(x, y, color=FIRST, linewidth=2)
        drawn.set(xlim=(x[0], max(x[-1], x[0] + 1e-9)), ylim=(0, max(float(np.max(y)) * 1.05, 1e-9)))
        drawn.set_xlabel(x_unit)
        drawn.locator_params(axis="x", nbins=4 if narrow else 8)
        whole_ticks(drawn, 4, x=False)
        beside(drawn, y_unit, (0, 1), (-50, 16), coordinates="axes fraction")

    return chart(paint, label, wide=(720, 260), narrow=(320, 220))


def ranks(values: Array, label: str, *, x_unit: str, y_unit: str) -> Markup:
    """Very many values, highest first, as one area; the first, the middle and the last are told."""
    ordered = np.sort(values)[::-1]

    def paint(figure: Figure, narrow: bool) -> None:
        drawn = axes(figure, left=58, top=26, bottom=46, right=12)
        steps(drawn, np.arange(len(ordered) + 1), ordered)
        middle = float(np.median(ordered))
        drawn.plot([0, len(ordered)], [middle, middle], color=SECOND, linewidth=1.5, dashes=(3, 3))
        drawn.set(xlim=(0, len(ordered)), ylim=(0, max(float(ordered[0]) * 1.08, 1)))
        beside(drawn, f"median {middle:,.0f}", (len(ordered), middle), (-4, 9), right=True)
        drawn.set_xlabel(x_unit)
        drawn.locator_params(axis="x", nbins=4 if narrow else 8)
        whole_ticks(drawn, 4, x=True)
        beside(drawn, y_unit, (0, 1), (-50, 16), coordinates="axes fraction")

    return chart(paint, label, wide=(720, 260), narrow=(320, 220))


def steps(drawn: Axes, edges: Array, counts: Array, colour: str = FIRST, soft: str = FIRST_SOFT) -> None:
    """A histogram as one area and its outline, two paths whatever the number of bins."""
    drawn.stairs(counts, edges, fill=True, color=soft, linewidth=0)
    drawn.stairs(counts, edges, color=colour, linewidth=1.25)


def named(drawn: Axes, marks: Sequence[Mark]) -> None:
    """Marks as lines, with their texts above the axes, each on a line of its own so that none hides another."""
    low, high = drawn.get_xlim()
    for line, mark in enumerate(marks):
        colour = SECOND if mark.second else INK
        place = min(max(mark.place, low), high)
        drawn.plot([place, place], [0, drawn.get_ylim()[1]], color=colour, linewidth=1.5)
        side = "right" if place > (low + high) / 2 else "left"
        text = f"{mark.text} →" if mark.place > high else mark.text
        drawn.annotate(
            plain(text), (place, 1), (-2 if side == "right" else 2, 8 + 18 * (len(marks) - 1 - line)),
            xycoords=("data", "axes fraction"), textcoords="offset points", color=colour, ha=side,
        )  # fmt: skip


def beside(
    drawn: Axes,
    text: str,
    place: tuple[float, float],
    offset: tuple[float, float],
    *,
    coordinates: str = "data",
    right: bool = False,
) -> None:
    """Quiet text at an offset in pixels from a place."""
    drawn.annotate(
        plain(text), place, offset, xycoords=coordinates, textcoords="offset points", color=QUIET, va="center",
        ha="right" if right else "left",
    )  # fmt: skip


def whole_ticks(drawn: Axes, most: int, *, x: bool) -> None:
    """Few ticks on the y axis, written as 1,000; with `x` on the x axis too."""
    drawn.locator_params(axis="y", nbins=most)
    for axis in (drawn.yaxis, drawn.xaxis) if x else (drawn.yaxis,):
        axis.set_major_formatter(lambda value, _: f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}")


def shortened(text: str, letters: int) -> str:
    """A name with its middle left out where it is longer."""
    text = plain(text)
    if len(text) <= letters:
        return text
    tail = max((letters - 1) // 2, 1)
    return f"{text[: max(letters - 1 - tail, 1)]}…{text[-tail:]}"
