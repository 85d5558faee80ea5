"""Stored rows of the index's JSON lines, read by one pattern instead of a JSON reader: datasets without columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from latentmill.errors import SourceError
from latentmill.formats.columns_writer import Row
from latentmill.formats.metadata import INDEX_JSONL, READ_ERRORS, open_beside
from latentmill.records import Geometry

_TEXT = rb'"([^"]*)"'  # where a quotation mark is escaped, nothing of the pattern can follow
_PAIR = rb"\[(\d+),(\d+)\]"
_DIGEST = rb'"(.{32})"'
# A line as `metadata.row_json` writes it; of any other the JSON reader decides.
_LINE = re.compile(
    rb'\{"index":(\d+),"key":' + _TEXT + rb',"stat":"[^"]*","label":(null|\d+),"source":' + _DIGEST
    + rb'(?:,"caption":' + _TEXT + rb',"tokens":\d+)?'
    + rb'(?:,"geometry":\{"size":' + _PAIR + rb',"scaled":\[\d+,\d+\],"crop":\[(-?\d+),(-?\d+),(-?\d+),(-?\d+)\],'
    + rb'"bucket":' + _PAIR + rb"\})?"
    + rb'(?:,"notes":\["[^\]\\]*"\])?,"name":' + _TEXT + rb',"size":(\d+),"digest":' + _DIGEST + rb',"crc":(\d+)'
    + rb'(?:,"sums":\[[-+.,eE0-9]*\])?\}\n?'
)  # fmt: skip


def stored_rows(path: Path) -> Iterator[Row]:
    """The rows of a finished dataset's index that have a file, in order. Raises SourceError when it is damaged."""
    stream = open_beside(path, INDEX_JSONL)
    if stream is None:
        return
    try:
        with stream:
            for line in stream:
                match = _LINE.fullmatch(line)
                if match is not None:
                    yield _row(*match.groups())
                elif "name" in (row := json.loads(line)):
                    yield Row.of_json(row)
    except (*READ_ERRORS, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{INDEX_JSONL} in {path} is damaged: {str(error) or type(error).__name__}") from error


def _row(
    number: bytes, key: bytes, label: bytes, source: bytes, caption: bytes | None,
    h: bytes | None, w: bytes, top: bytes, left: bytes, bottom: bytes, right: bytes, rows: bytes, columns: bytes,
    name: bytes, size: bytes, digest: bytes, crc: bytes,
) -> Row:  # fmt: skip
    how = None
    if h is not None:
        crop = int(top), int(left), int(bottom), int(right)
        how = Geometry((int(h), int(w)), (0, 0), crop, (int(rows), int(columns)))
    return Row(
        int(number), _text(key), None if label == b"null" else int(label), source.decode(), _text(name), int(size),
        digest.decode(), int(crc), how, None if caption is None else _text(caption),
    )  # fmt: skip


def _text(escaped: bytes) -> str:
    return json.loads(b'"%b"' % escaped) if b"\\" in escaped else escaped.decode()
