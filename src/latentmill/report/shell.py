"""The page that every report is put into: one HTML file that needs no network, and the parts that it is made of.

Text is escaped wherever it is put in; only `Markup` is not, which the parts return. The style sheet and the script lie
in the page, and its Content-Security-Policy allows these two by their hashes and pictures in `data:` addresses: nothing
else loads or runs, wherever the page is opened. Without JavaScript everything is there but the controls.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from latentmill.report.facts import Caption, Picture, Row

ASSETS = Path(__file__).with_name("assets")

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # which HTML does not allow

Cell = str | Markup | int | float | None
State = Literal["good", "warning", "bad"]


@dataclass(frozen=True)
class View:
    """One picture of several of the same thing. label: what is seen, as `Model input`. note: under it, as `31.2 dB`.

    compare: whether it can be laid over the card's base picture, which it then has the size of.
    """

    label: str
    picture: Picture
    note: str = ""
    compare: bool = False
    base: bool = False


@dataclass(frozen=True)
class Card:
    """One sample: its pictures, and what to know of it. Cards of a gallery are filtered and sorted by these fields.

    detail: a line under the title. badge: a word or two beside it. sort: numbers by the name of the order, as
    {"PSNR": 31.2}; a card without one comes last. groups: what it is filtered by, as {"Bucket": "512 x 512"}.
    """

    title: str
    views: tuple[View, ...]
    detail: str = ""
    badge: str = ""
    captions: tuple[Caption, ...] = ()
    sort: dict[str, float] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Cards under one heading, in the order of the page."""

    heading: str
    cards: tuple[Card, ...]
    lead: str = ""


class Pictures:
    """The pictures of a page: one that is told of twice is put into the page once, and drawn from there.

    Tell all of them first (`add`), then draw (`picture`), then put `sprite()` into the page.
    """

    def __init__(self, pictures: Iterable[Picture] = ()) -> None:
        self._times: dict[bytes, int] = {}
        self._shared: dict[bytes, tuple[str, Picture]] = {}
        for picture in pictures:
            self.add(picture)

    def add(self, picture: Picture) -> None:
        digest = _digest(picture)
        self._times[digest] = self._times.get(digest, 0) + 1

    def shared(self, picture: Picture) -> str | None:
        """The id of the picture in the sprite; None where it is used once, and so needs none."""
        digest = _digest(picture)
        if self._times.get(digest, 0) < 2:
            return None
        return self._shared.setdefault(digest, (f"picture-{len(self._shared) + 1}", picture))[0]

    def sprite(self) -> Markup:
        return _parts("sprite", list(self._shared.values())) if self._shared else Markup("")


def document(
    title: str, body: Markup, *, lead: str = "", contents: Sequence[tuple[str, str]] = (), footer: str = ""
) -> str:
    """A whole page, as text. contents: (id, heading) of the sections that the table of contents names."""
    style, script = _asset("style.css"), _asset("script.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = template("document.html").render(
        title=title, body=body, lead=lead, contents=contents, footer=footer, policy=policy,
        style=Markup(style), script=Markup(script),
    )  # fmt: skip
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", page).encode("utf-8", "backslashreplace").decode()


def section(identity: str, heading: str, body: Markup, *, level: int = 2, lead: str = "") -> Markup:
    """A part of the page under a heading of this level (2 to 4). identity: its id, of the page's own making."""
    return _parts("section", identity, heading, body, level, lead)


def paragraph(text: str, *, quiet: bool = False) -> Markup:
    return _parts("paragraph", text, quiet)


def bullets(items: Iterable[str]) -> Markup:
    return _parts("bullets", list(items))


def joined(*parts: Markup) -> Markup:
    """Parts one after the other."""
    return Markup("\n").join(parts)


def verdict(state: State, headline: str, detail: str = "") -> Markup:
    """The answer to `is it sound`, big: a sign, a colour and words, none of which has to be seen for the others."""
    return _parts("verdict", state, headline, detail)


def key_figures(figures: Sequence[tuple[str, str]]) -> Markup:
    """A few large values with their names, as [("images", "1,281,167")]."""
    return _parts("key_figures", figures)


def properties(rows: Sequence[Row]) -> Markup:
    """Names and values, one a line, with what to know of them."""
    return _parts("properties", rows)


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, caption: str, hidden: bool = False) -> Markup:
    """A table. The first cell of a row is its heading; a column of numbers is set to the right; None is a dash.

    hidden: the caption is for screen readers alone, as where a heading says the same.
    """
    lines = [list(row) for row in rows]
    numeric = [_is_numeric([line[place] for line in lines]) for place in range(len(headings))]
    return _parts("table", headings, lines, numeric, caption, hidden)


def figure(content: Markup, heading: str, *, text: str | Markup = "", numbers: Markup | None = None) -> Markup:
    """Something to look at, with what it shows in words. numbers: a table of the same, which a person can open."""
    return _parts("figure", content, heading, text, numbers)


def key(number: Literal[1, 2], text: str) -> Markup:
    """Words for what a chart draws in its first or second colour, with a dot of it."""
    return _parts("key", number, text)


def details(summary: str, body: Markup) -> Markup:
    """What a person opens to see."""
    return _parts("details", summary, body)


def picture(shown: Picture, pictures: Pictures | None = None) -> Markup:
    """One picture, without a way to enlarge it (`gallery` has one)."""
    return _parts("picture", shown, pictures)


def gallery(
    name: str, groups: Sequence[Group], *, level: int = 3, pictures: Pictures | None = None, tiles: bool = False
) -> Markup:
    """Cards, with controls to filter, sort, enlarge and compare. name: what it is, for screen readers; unique.

    tiles: small pictures side by side, which can be enlarged, and no other controls.
    """
    cards = [card for group in groups for card in group.cards]
    orders = sorted({order for card in cards for order in card.sort})
    filters = {name: sorted({card.groups[name] for card in cards if name in card.groups}) for name in _names(cards)}
    filters = {name: values for name, values in filters.items() if len(values) > 1}
    return _parts("gallery", name, groups, len(cards), orders, filters, level, pictures, tiles)


def template(name: str) -> Template:
    return _environment().get_template(name)


def _names(cards: Iterable[Card]) -> list[str]:
    return list(dict.fromkeys(name for card in cards for name in card.groups))


def _parts(macro: str, *given: object) -> Markup:
    part: Markup = getattr(template("parts.html").module, macro)(*given)
    return part


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["address"] = _address
    environment.filters["cell"] = _cell
    environment.filters["numbers"] = _numbers
    return environment


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    """As a Content-Security-Policy names the text of one element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _digest(picture: Picture) -> bytes:
    return hashlib.sha256(picture.data).digest()


def _address(picture: Picture) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"


def _numbers(sort: dict[str, float]) -> dict[str, float]:
    """Without what JSON cannot hold: no value (NaN) sorts last, an infinite one beyond all others."""
    return {name: min(max(value, -1e9), 1e9) for name, value in sort.items() if not math.isnan(value)}


def _is_numeric(column: Sequence[Cell]) -> bool:
    return any(isinstance(cell, int | float) for cell in column)


def _cell(value: Cell) -> str:
    """A value as a table shows it: whole numbers in groups of three digits, others with four significant ones."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "∞" if value == float("inf") else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value
