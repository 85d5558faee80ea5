"""Parts of what a notebook displays: HTML that holds all it needs, without script, in light and dark.

It takes the notebook's own colours and fonts, so nothing of it sets a background. Every text is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from latentmill.wording import printable

if TYPE_CHECKING:
    from latentmill.report.facts import Picture

_LONGEST = 600  # characters of a value
# Twice the class, and `table` named: more specific than what notebooks say of tables.
_STYLE = """<style>
.latentmill.latentmill{font:13px/1.5 system-ui,sans-serif;color:inherit;max-width:64rem}
.latentmill.latentmill header{font-weight:600;font-size:14px;margin:0 0 .4em}
.latentmill.latentmill header small{font-weight:400;opacity:.75;margin-left:.6em;overflow-wrap:anywhere}
.latentmill.latentmill dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.1em 1em;margin:.3em 0}
.latentmill.latentmill dt{opacity:.7;font-weight:400;margin:0;padding:0}
.latentmill.latentmill dd{margin:0;padding:0;overflow-wrap:anywhere}
.latentmill.latentmill table{border-collapse:collapse;margin:.4em 0;display:block;overflow-x:auto;border:0;
color:inherit;font:inherit}
.latentmill.latentmill table tr,.latentmill.latentmill table th{background:none;color:inherit}
.latentmill.latentmill table :is(th,td){text-align:left;padding:.15em .8em .15em 0;border:0;vertical-align:top;
max-width:28rem;overflow-wrap:anywhere;white-space:normal}
.latentmill.latentmill table th{font-weight:600;border-bottom:1px solid rgba(128,128,128,.45);white-space:nowrap}
.latentmill.latentmill table .n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.latentmill.latentmill .grid{display:flex;flex-wrap:wrap;gap:.7em;margin:.5em 0;align-items:flex-start}
.latentmill.latentmill figure{margin:0;padding:0}
.latentmill.latentmill figcaption{font-size:11px;line-height:1.35;opacity:.8;overflow-wrap:anywhere;padding-top:.2em}
.latentmill.latentmill img{display:block;max-width:100%;height:auto;margin:0;border-radius:3px}
.latentmill.latentmill img.px{image-rendering:pixelated}
.latentmill.latentmill meter{width:7em;height:.8em;vertical-align:middle}
.latentmill.latentmill pre{font:12px/1.45 ui-monospace,monospace;background:none;color:inherit;margin:.3em 0;
white-space:pre-wrap;overflow-wrap:anywhere}
.latentmill.latentmill summary{cursor:pointer}
.latentmill.latentmill .bad{font-weight:600;border-left:3px solid #d33;padding-left:.6em}
.latentmill.latentmill .warn{border-left:3px solid #c80;padding-left:.6em}
.latentmill.latentmill .good{border-left:3px solid #2a2;padding-left:.6em}
</style>"""


class Html(str):
    """Text that is HTML already; all other is escaped."""

    __slots__ = ()


class Figure(NamedTuple):
    """A picture of a grid. width: in CSS pixels, as it is shown. pixelated: enlarge it without blurring."""

    picture: Picture
    caption: str
    width: int
    pixelated: bool = False


def text(value: object) -> Html:
    """Anything as escaped text; very long ones are cut, which an ellipsis tells."""
    if isinstance(value, Html):
        return value
    told = printable(str(value))
    return Html(escape(told if len(told) <= _LONGEST else f"{told[:_LONGEST]}…"))


def page(title: str, subtitle: object, *parts: str) -> str:
    """The whole of what is displayed."""
    small = f"<small>{text(subtitle)}</small>" if subtitle != "" else ""
    return f'<div class="latentmill">{_STYLE}<header>{text(title)}{small}</header>{"".join(parts)}</div>'


def facts(rows: Mapping[str, object]) -> Html:
    """Names and values; those with an empty value are left out."""
    cells = (f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows.items() if value not in ("", None))
    return Html(f"<dl>{''.join(cells)}</dl>")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> Html:
    """numbers: the headings of columns of numbers."""
    marks = [' class="n"' if heading in numbers else "" for heading in headings]
    head = "".join(f"<th{mark}>{text(each)}</th>" for each, mark in zip(headings, marks, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{mark}>{text(cell)}</td>' for cell, mark in zip(row, marks, strict=True))}</tr>"
        for row in rows
    )
    return Html(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def grid(figures: Iterable[Figure]) -> Html:
    """Pictures beside each other, with what is told below each."""
    cells = []
    for each in figures:
        source = f"data:{each.picture.media_type};base64,{base64.b64encode(each.picture.data).decode()}"
        mark = ' class="px"' if each.pixelated else ""
        cells.append(
            f'<figure style="width:{each.width}px"><img{mark} src="{source}" alt="{text(each.picture.alt)}" '
            f'width="{each.width}"><figcaption>{text(each.caption)}</figcaption></figure>'
        )
    return Html(f'<div class="grid">{"".join(cells)}</div>')


def share(value: float, of: float, what: str) -> Html:
    """A bar that shows a part of the whole."""
    return Html(f'<meter min="0" max="{of:g}" value="{value:g}" title="{text(what)}"></meter>')


def line(value: object, mark: str = "") -> Html:
    """A line of its own. mark: `good`, `warn` or `bad`."""
    named = f' class="{mark}"' if mark else ""
    return Html(f"<div{named}>{text(value)}</div>")


def folded(summary: str, *parts: str) -> Html:
    """What is shown when it is clicked on."""
    return Html(f"<details><summary>{text(summary)}</summary>{''.join(parts)}</details>")


def verbatim(value: str) -> Html:
    """Lines as they are."""
    return Html(f"<pre>{escape(_lines(value))}</pre>")


def _lines(value: str) -> str:
    return "\n".join(printable(each) for each in value.splitlines())
