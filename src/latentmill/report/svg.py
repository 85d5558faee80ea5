"""Matplotlib's drawings as SVG that lies in a page: small, without styles or ids, in the page's colours and fonts.

The page's Content-Security-Policy allows no `style` attribute, so each becomes attributes of its own (`fill`, `stroke`,
...), which take the page's colours as `var(--...)`: a chart follows the light and the dark theme. Nothing is clipped: a
painter keeps to its axes. Nothing depends on the time or on chance: the same facts are the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup, escape

from latentmill.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a painter draws with, and the page's name for it. Any other colours would do, as long as all are different.
INK, QUIET, GRID = "#010101", "#010102", "#010103"
FIRST, SECOND, FIRST_SOFT, SECOND_SOFT = "#010104", "#010105", "#010106", "#010107"
_PAGE_COLOURS = {
    INK: "var(--ink)",
    QUIET: "var(--quiet)",
    GRID: "var(--grid)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    FIRST_SOFT: "var(--first-soft)",
    SECOND_SOFT: "var(--second-soft)",
}
_SETTINGS: dict[Any, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "latentmill",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelsize": 12.0,
    "axes.unicode_minus": True,
    "font.size": 12.0,
    "font.family": ["DejaVu Sans"],
    "grid.color": GRID,
    "grid.linewidth": 1.0,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 12.0,
    "ytick.labelsize": 12.0,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "path.simplify": False,
    "xtick.major.pad": 8.0,
    "ytick.major.pad": 6.0,
}
_PIXELS_PER_INCH = 72  # of an SVG's units, as Matplotlib counts them
_TEXT_STYLE = ("font-size", "font-weight", "text-anchor")
_LINE_STYLE = ("stroke", "stroke-width", "stroke-opacity", "stroke-linecap", "stroke-linejoin", "stroke-dasharray")
_PLACING = ("d", "x", "y", "transform")
_KEPT = ("fill", "fill-opacity", "fill-rule", "opacity", *_LINE_STYLE, *_TEXT_STYLE)
_SVG = "{http://www.w3.org/2000/svg}"
_NUMBER = re.compile(r"-?\d+\.\d+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_POINT = re.compile(r"M(-?[\d.]+ -?[\d.]+)L\1(?=M|$)")  # a line of no length: a dot
_UPRIGHT = re.compile(r"rotate\(-?0 .*\)")

Size = tuple[int, int]
Paint = Callable[["Figure", bool], None]


def chart(paint: Paint, label: str, *, wide: Size = (720, 280), narrow: Size = (320, 240)) -> Markup:
    """A chart as the page shows it, for a desktop and for a phone: text keeps its size, the drawing takes what is left.

    paint(figure, narrow) draws; both sizes are (width, height) in CSS pixels. label: what a screen reader says.
    Raises ConfigError without Matplotlib.
    """
    drawn = (("wide", _drawn(paint, wide, False, label)), ("narrow", _drawn(paint, narrow, True, label)))
    return Markup("").join(Markup('<div class="chart {}">{}</div>').format(name, svg) for name, svg in drawn)


def axes(figure: Figure, *, left: int = 8, right: int = 8, top: int = 8, bottom: int = 26) -> Axes:
    """Axes that leave these margins, in CSS pixels."""
    width, height = (side * _PIXELS_PER_INCH for side in figure.get_size_inches())
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )


def plain(text: str) -> str:
    """Text that XML can hold: control characters and halves of pairs become a mark."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def require_matplotlib(extra: str = "report") -> None:
    """Raises ConfigError where charts cannot be drawn, before the work is done. extra: the one that brings what can."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ConfigError(f"the page's charts need Matplotlib: pip install 'latentmill[{extra}]'") from None


def _drawn(paint: Paint, size: Size, narrow: bool, label: str) -> Markup:
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # only measured here, drawn by the browser
        figure = Figure(figsize=(size[0] / _PIXELS_PER_INCH, size[1] / _PIXELS_PER_INCH), dpi=_PIXELS_PER_INCH)
        paint(figure, narrow)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _cleaned(buffer.getvalue(), size, label)


def _cleaned(text: str, size: Size, label: str) -> Markup:
    """Matplotlib's file as a part of the page."""
    content = "".join(_element(child) for child in ElementTree.fromstring(text))
    return Markup(
        '<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(*size, *size, plain(label), Markup(content))  # fmt: skip


def _element(element: ElementTree.Element) -> str:
    """One element and what is in it, without what has no use in a page."""
    tag = element.tag.removeprefix(_SVG)
    if tag in ("metadata", "defs", "style", "use"):  # ticks, of no length, are the only `use`
        return ""
    inner = "".join(_element(child) for child in element)
    attributes = _attributes(element)
    unseen = tag == "path" and attributes.get("fill") == "none" and "stroke" not in attributes
    if unseen or (tag == "g" and not inner):
        return ""
    given = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    if tag == "g" and not given:
        return inner
    if tag == "text":
        inner = str(escape(element.text or ""))
    return f"<{tag}{given}>{inner}</{tag}>" if inner else f"<{tag}{given}/>"


def _attributes(element: ElementTree.Element) -> dict[str, str]:
    given: dict[str, str] = {
        name: element.attrib[name] for name in ("d", "x", "y", "transform") if name in element.attrib
    }
    if "d" in given:
        given["d"] = _shorter(given["d"])
    for declaration in element.attrib.get("style", "").split(";"):
        name, _, value = declaration.partition(":")
        if name.strip() in _KEPT:
            given[name.strip()] = _PAGE_COLOURS.get(value.strip(), value.strip())
    if element.tag == f"{_SVG}text":
        given.setdefault("fill", _PAGE_COLOURS[INK])
    if _UPRIGHT.fullmatch(given.get("transform", "")):
        del given["transform"]
    return {
        name: _NUMBER.sub(_rounded, value) if name in ("x", "y", "transform") else value
        for name, value in given.items()
    }


def _shorter(path: str) -> str:
    path = re.sub(r"\s*([MLCQZz])\s*", r"\1", _NUMBER.sub(_rounded, path))
    return _POINT.sub(r"M\1h0", path.replace("\n", " ").strip())


def _rounded(match: re.Match[str]) -> str:
    """A tenth of a pixel is more than a screen shows."""
    return f"{round(float(match[0]), 1) + 0.0:.1f}".removesuffix(".0")
