"""The files of tables, read to rows of named cells: a JSON list of objects, JSON lines, CSV and TSV.

A file of a wrong shape is refused with its line. Bytes that are not UTF-8 are held as surrogate escapes, so that paths
come through as they are.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from latentmill.errors import SourceError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".json", *_JSON_LINES, *_DELIMITERS)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SHOWN_CHARACTERS = 60


def short(found: object) -> str:
    """What was found in a table, as it can be shown."""
    text = str(found).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


@dataclass(frozen=True)
class Table:
    """rows by column, with the number of each (`unit`: a row of a list, or a line of a file), counted from 1."""

    path: Path
    unit: str
    numbers: Sequence[int]
    rows: list[dict[str, Any]]

    def wrong(self, number: int, expected: str, found: object) -> NoReturn:
        """Refuse the table for one row. Raises SourceError."""
        raise SourceError(f"{self.path}, {self.unit} {number:,}: expected {expected}. Found: {short(found)}")

    def columns(self) -> dict[str, bool]:
        """Every column in order of appearance, and whether some row has a text in it."""
        found: dict[str, bool] = {}
        for row in self.rows:
            for column, value in row.items():
                if not found.get(column):
                    found[column] = isinstance(value, str) or (
                        isinstance(value, list) and any(isinstance(text, str) for text in value)
                    )
        return found


def read_cells(path: Path) -> Table:
    """Read a table by the kind that its name tells. Raises SourceError."""
    kind = path.suffix.lower()
    try:
        with path.open("rb") as file:
            if file.read(2) in _UTF16_MARKS:
                raise SourceError(f"{path} must be UTF-8. Found: UTF-16. Save it as UTF-8")
        if kind == ".json":
            return _read_json(path)
        return _read_json_lines(path) if kind in _JSON_LINES else _read_csv(path, _DELIMITERS[kind])
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error


def _read_json(path: Path) -> Table:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise SourceError(f"{path} must be a list of objects, one for an image. Found: {type(rows).__name__}")
    table = Table(path, "row", range(1, len(rows) + 1), rows)
    for number, row in zip(table.numbers, rows, strict=True):
        if not isinstance(row, dict):
            table.wrong(number, "an object", json.dumps(row))
    return table


def _read_json_lines(path: Path) -> Table:
    numbers: list[int] = []
    table = Table(path, "line", numbers, [])
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{path}, line {number:,}: not JSON: {error}") from error
            if not isinstance(row, dict):
                table.wrong(number, "an object", line.strip())
            numbers.append(number)
            table.rows.append(row)
    return table


def _read_csv(path: Path, delimiter: str) -> Table:
    numbers: list[int] = []
    table = Table(path, "line", numbers, [])
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        records = _csv_records(path, csv.reader(file, delimiter=delimiter, strict=True))
        first, header = next(records, (0, []))
        if len(set(header)) < len(header):
            table.wrong(first, "a header of different column names", delimiter.join(header))
        for number, row in records:
            if len(row) != len(header):
                table.wrong(number, f"{len(header)} fields, as in the header", f"{len(row)} fields")
            numbers.append(number)
            table.rows.append(dict(zip(header, row, strict=True)))
    return table


def _csv_records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the line that it ends on."""
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise SourceError(f"{path}, line {reader.line_num:,}: not {path.suffix[1:].upper()}: {error}") from error
