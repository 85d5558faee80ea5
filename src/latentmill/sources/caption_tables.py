"""What the rows of a table say of captioned images: paths, captions under their names, sizes.

A row of a wrong shape refuses the table, with its line. A caption that is no text, or not UTF-8, is a fault of that
caption alone.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentmill.errors import ConfigError, SourceError
from latentmill.files import printable
from latentmill.sources.caption_files import Table, read_cells, short
from latentmill.sources.caption_rows import NOT_UTF8, PROMPT, CaptionedImage, is_utf8, numbered

_PATH_COLUMNS = ("path", "file_name", "image", "image_path", "filename")
_RESERVED = ("path", "width", "height", "ratio")  # columns of PixArt's JSON that are no captions
_CAPTION_COLUMN = re.compile(r"(?:sharegpt4v|.*prompt|.*caption)(?:_\d+)?|caption.*", re.DOTALL)
_LEAVES_ROOT = re.compile(r"/|[A-Za-z]:[/\\]|(.*/)?\.\.(/|\Z)|.*[\\\0]", re.DOTALL)
_SHOWN = 3


def read_table(
    path: Path,
    path_column: str | None,
    caption_columns: Mapping[str, str] | Sequence[str] | None,
    with_captions: bool = True,
) -> tuple[list[CaptionedImage], list[str], list[str]]:
    """Rows in the table's order, caption names and warnings. Raises SourceError, ConfigError."""
    table = read_cells(path)
    if not table.rows:
        raise SourceError(f"{path} holds no rows")
    columns = table.columns()
    key_column = _path_column(table, columns, path_column)
    captions = _caption_columns(table, columns, key_column, caption_columns)
    if not with_captions:
        rows, warnings = _rows(table, key_column, {})
        return rows, [], warnings
    rows, warnings = _rows(table, key_column, captions)
    if not captions:
        warnings.insert(0, f"{path.name} has no captions. Its columns are: {_listed(columns)}")
    return rows, _names(rows, captions), warnings


def _path_column(table: Table, columns: dict[str, bool], given: str | None) -> str:
    wanted = [given] if given else _PATH_COLUMNS
    for column in wanted:
        if column in columns:
            return column
    raise SourceError(
        f"{table.path} must name its images in a column {' or '.join(wanted)}. Found the columns: {_listed(columns)}"
    )


def _caption_columns(
    table: Table, columns: dict[str, bool], key_column: str, given: Mapping[str, str] | Sequence[str] | None
) -> dict[str, str]:
    """Columns by caption name."""
    if given is not None:
        named = given if isinstance(given, Mapping) else {column: column for column in given}
        for name, column in named.items():
            if not name or name in _RESERVED or "/" in name:
                raise ConfigError(
                    f"a caption's name must not be empty, {', '.join(_RESERVED)}, or hold `/`. Found: {name!r}"
                )
            if column not in columns:
                raise SourceError(f"{table.path} has no column {column}. Found the columns: {_listed(columns)}")
        return dict(named)
    plain = table.path.suffix.lower() != ".json"
    found = [
        column
        for column, has_text in columns.items()
        if has_text
        and column not in (key_column, *_RESERVED)
        and (_CAPTION_COLUMN.fullmatch(column) or (plain and column == "text"))
    ]
    if plain and len(found) == 1 and found[0] in ("text", "caption"):
        return {PROMPT: found[0]}
    return {column: column for column in found}


def _rows(table: Table, key_column: str, captions: dict[str, str]) -> tuple[list[CaptionedImage], list[str]]:
    """Every image once, in order; equal rows of one image are told, different ones are refused."""
    rows: list[CaptionedImage] = []
    place: dict[str, int] = {}
    numbers: list[int] = []
    outside: list[str] = []
    repeated: list[str] = []
    for number, cells in zip(table.numbers, table.rows, strict=True):
        row = _row(table, number, cells, key_column, captions)
        if _LEAVES_ROOT.match(row.key):
            outside.append(f"{table.unit} {number:,}: {printable(row.key)}")
            continue
        before = place.setdefault(row.key, len(rows))
        if before == len(rows):
            rows.append(row)
            numbers.append(number)
        elif rows[before] == row:
            repeated.append(printable(row.key))
        else:
            raise SourceError(
                f"{table.path}: {table.unit}s {numbers[before]:,} and {number:,} are different rows for one image, "
                f"{printable(row.key)}. Give its captions in one row, under different names or as a list"
            )
    if outside:
        raise SourceError(
            f"{table.path}: paths must be relative to the images' folder and stay in it, with `/` between parts. "
            f"Found: {_some(outside)}"
        )
    told = f"{table.path.name} names images more than once, in equal rows: {_some(repeated)}"
    return rows, [told] if repeated else []


def _row(table: Table, number: int, cells: dict[str, Any], key_column: str, columns: dict[str, str]) -> CaptionedImage:
    key = cells.get(key_column)
    if not isinstance(key, str) or not key.strip() or not _is_path(key):
        table.wrong(number, f"the path of an image in `{key_column}`", json.dumps(key))
    captions: dict[str, str] = {}
    faults: dict[str, str] = {}
    for name, column in columns.items():
        value = cells.get(column)
        for position, text in enumerate(value if isinstance(value, list) else [value]):
            own = numbered(name, position)
            if own in captions or own in faults:
                table.wrong(number, "every caption under a name of its own", f"two named {own}")
            if isinstance(text, str) and is_utf8(text):
                captions[own] = text
            elif text is not None:
                faults[own] = NOT_UTF8 if isinstance(text, str) else f"not a text but {short(json.dumps(text))}"
    return CaptionedImage(key, captions, faults, _size(table, number, cells), _ratio(table, number, cells))


def _is_path(text: str) -> bool:
    """Whether the system can open it: half of a surrogate pair is no name."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _size(table: Table, number: int, cells: dict[str, Any]) -> tuple[int, int] | None:
    height, width = (_number(cells.get(column)) for column in ("height", "width"))
    if height is None and width is None:
        return None
    for side in (height, width):
        if side is None or side < 1 or side != int(side):
            found = f"width {cells.get('width')!r}, height {cells.get('height')!r}"
            table.wrong(number, "width and height as positive integers", found)
    assert height is not None
    assert width is not None
    return int(height), int(width)


def _ratio(table: Table, number: int, cells: dict[str, Any]) -> float | None:
    ratio = _number(cells.get("ratio"))
    if ratio is not None and ratio <= 0:
        table.wrong(number, "a positive number as ratio", repr(cells["ratio"]))
    return ratio


def _number(value: object) -> float | None:
    """A cell as a number: None of an empty one, -1 of what is no number."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return -1
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return -1
    return found if math.isfinite(found) else -1


def _names(rows: list[CaptionedImage], captions: dict[str, str]) -> list[str]:
    """Caption names in order of appearance: those of columns, then what lists add."""
    found = dict.fromkeys(captions)
    for row in rows:
        if not (row.captions.keys() <= found.keys() and row.faults.keys() <= found.keys()):
            found.update(dict.fromkeys((*row.captions, *row.faults)))
    return list(found)


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _listed(columns: dict[str, bool]) -> str:
    return ", ".join(map(short, columns)) or "none"
