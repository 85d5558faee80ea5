"""The index as columns, `latentmill-index.bin`: what a loader needs of every stored file, mapped instead of parsed.

A file in the safetensors format (8 bytes of header size, a JSON header, then the arrays without a gap), of N rows,
the stored files in order of number:

- `number` U32, the number in the file's name; `label` I32 or I64, -1 where there is none;
- `key` U8, all keys joined, in UTF-8, and `key_end` U32 or U64, where each ends; `caption` and `caption_end` alike,
  of text features;
- `source` and `digest` U8 (N, 16), of the bytes that the file was made from and of its own;
- `size` U32 or U64 and `crc` U32, its bytes and their CRC-32; `offset` U64, in a zip, where its local header starts;
- `box` I16 or I32 (N, 8), where that is recorded, see `NO_BOX`.

A column of N equal values holds one of them. `__metadata__` holds the number of rows, the digest of the JSON lines that
it was made from (which `latentmill.json` holds too: so one that was left over is noticed) and the CRC-32 of the whole
file, computed with zeros in its place. Bytes depend on the rows alone. Datasets without it are read by their lines.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from latentmill.checksums import crc32
from latentmill.errors import SourceError
from latentmill.formats.columns_texts import OwnHandle, Texts
from latentmill.records import Array

VERSION = "1"
NO_LABEL = -1
NO_BOX = (0,) * 8  # height, width of the source image; top, left, bottom, right of what is shown; height, width
DTYPES = {"U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U32": "<u4", "U64": "<u8"}
_SHAPES = {"source": (16,), "digest": (16,), "box": (8,)}  # of a row, where it is more than a number
_NEEDED = frozenset({"number", "label", "key", "key_end", "source", "digest", "size", "crc"})
_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 1 << 16
_BLOCK_BYTES = 1 << 20
_NO_CRC = "0" * 8


def header_bytes(rows: int, index_digest: str, crc: str, arrays: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """What stands before the arrays, given as (name, dtype, shape) in their order."""
    metadata = {"format": f"latentmill-index/{VERSION}", "rows": str(rows), "index_digest": index_digest, "crc32": crc}
    table: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, dtype, shape in arrays:
        end = at + int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text


class Columns:
    """A file's columns over the bytes that hold them. Pickled by what `reopen` is, where they are mapped.

    Raises SourceError for bytes that are not such a file.
    """

    def __init__(self, data: Any, where: str, reopen: tuple[Any, ...] | None = None) -> None:
        self._data, self._where, self._reopen = data, where, reopen
        self._file: OwnHandle | None = None
        self._mapped = data.obj if isinstance(data, memoryview) and isinstance(data.obj, mmap.mmap) else None
        self._table, self._start = self._header()
        try:
            metadata = self._table.pop("__metadata__")
            self.rows, self.index_digest = int(metadata["rows"]), str(metadata["index_digest"])
            self._crc = str(metadata["crc32"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"its header lacks {error}") from error
        self._check_layout()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is not None:
            return _mapped_again, (self._reopen, self.index_digest, self._crc)
        return Columns, (bytes(self._data), self._where)

    def __len__(self) -> int:
        return self.rows

    def _header(self) -> tuple[dict[str, Any], int]:
        try:
            (length,) = _LENGTH.unpack_from(self._data)
            if length > _MAX_HEADER:
                raise ValueError(f"its header is {length:,} bytes")
            table = json.loads(bytes(self._data[_LENGTH.size : _LENGTH.size + length]))
            form = table["__metadata__"]["format"]
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise self._damaged(str(error) or type(error).__name__) from error
        if form != f"latentmill-index/{VERSION}":
            raise SourceError(f"{self._where} must be a latentmill-index/{VERSION}. Found: {form}")
        return table, _LENGTH.size + length

    def _check_layout(self) -> None:
        """Every array must lie within the file, one after another, with a value for each row or one for all."""
        end = 0
        try:
            for name, array in self._table.items():
                itemsize = np.dtype(DTYPES[array["dtype"]]).itemsize
                start, stop = array["data_offsets"]
                if start != end or stop - start != int(np.prod(array["shape"])) * itemsize or stop < start:
                    raise ValueError(f"column {name} lies at {start}-{stop}")
                if name not in ("key", "caption") and tuple(array["shape"][1:]) != _SHAPES.get(name, ()):
                    raise ValueError(f"column {name} has shape {array['shape']}")
                if name not in ("key", "caption") and array["shape"][0] not in (1, self.rows):
                    raise ValueError(f"column {name} has {array['shape'][0]:,} of {self.rows:,} rows")
                end = stop
            if lacking := _NEEDED - self._table.keys():
                raise ValueError(f"it has no column {', '.join(sorted(lacking))}")
            if self._start + end != len(self._data):
                raise ValueError(f"it has {len(self._data):,} bytes, not {self._start + end:,}")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._damaged(str(error)) from error

    def check(self, file: BinaryIO) -> None:
        """Compare the sum of all bytes, read from an open file, not mapped. Raises SourceError when it is another."""
        arrays = [(name, array["dtype"], tuple(array["shape"])) for name, array in self._table.items()]
        if header_bytes(self.rows, self.index_digest, self._crc, arrays) != bytes(self._data[: self._start]):
            raise self._damaged("its header is not as it was written")
        total, left = crc_of(self.rows, self.index_digest, arrays), len(self._data) - self._start
        file.seek(self._start, os.SEEK_CUR)
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            total, left = crc32(block, total), left - len(block)
        if f"{total:08x}" != self._crc:
            raise self._damaged("its CRC-32 does not match")

    def read_captions_from(self, file: BinaryIO) -> None:
        """Take captions from the file that is mapped here, by a handle of its own, where the system can."""
        if "caption" in self._table and hasattr(os, "pread"):
            self._file = OwnHandle(file.fileno(), self._where)

    def release(self) -> None:
        """Let go of the pages that were looked at: they stay in the system's cache, and count no more here."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def _damaged(self, why: str) -> SourceError:
        return SourceError(
            f"{self._where} is damaged: {why}. `latentmill verify` tells whether anything else is; without this file "
            "a folder is read by its JSON lines"
        )

    def _column(self, name: str) -> Array:
        array = self._table[name]
        shape, dtype = tuple(array["shape"]), np.dtype(DTYPES[array["dtype"]])
        found: Array = np.frombuffer(
            self._data, dtype, count=int(np.prod(shape)), offset=self._start + array["data_offsets"][0]
        ).reshape(shape)
        return found

    def _rows(self, name: str) -> Array:
        column = self._column(name)
        return column if len(column) == self.rows else np.broadcast_to(column, (self.rows, *column.shape[1:]))

    @cached_property
    def number(self) -> Array:
        return self._rows("number")

    @cached_property
    def label(self) -> Array:
        return self._rows("label")

    @cached_property
    def size(self) -> Array:
        return self._rows("size")

    @cached_property
    def crc(self) -> Array:
        return self._rows("crc")

    @cached_property
    def offset(self) -> Array | None:
        return self._rows("offset") if "offset" in self._table else None

    @cached_property
    def source(self) -> Array:
        """(N, 2) U64: digests are only compared."""
        return self._rows("source").view("<u8")

    @cached_property
    def digest(self) -> Array:
        """(N, 2) U64: digests are only compared."""
        return self._rows("digest").view("<u8")

    @cached_property
    def box(self) -> Array | None:
        return self._rows("box") if "box" in self._table else None

    @cached_property
    def keys(self) -> Texts:
        return Texts(self._column("key"), self._rows("key_end"))

    @cached_property
    def captions(self) -> Texts | None:
        if "caption" not in self._table:
            return None
        at = self._start + self._table["caption"]["data_offsets"][0]
        at += self._reopen[1] if self._reopen is not None else 0
        return Texts(self._column("caption"), self._rows("caption_end"), self._file, at)


def mapped_columns(path: Path, start: int, size: int, where: str, check: bool = False) -> Columns:
    """The columns that lie in these bytes of a file, of which processes share what they touch. Raises SourceError.

    check: read them all once, so that damage is seen.
    """
    aligned = start - start % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), start - aligned + size, offset=aligned, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise SourceError(f"{where} is damaged: {error}") from error
        columns = Columns(memoryview(mapped)[start - aligned :], where, (path, start, size, where))
        columns.read_captions_from(file)
        if check:
            file.seek(start)
            columns.check(file)
    return columns


def _mapped_again(place: tuple[Path, int, int, str], index_digest: str, crc: str) -> Columns:
    """In another process, the columns that were pickled. Raises SourceError where others lie there by now."""
    columns = mapped_columns(*place)
    if (columns.index_digest, columns._crc) != (index_digest, crc):
        raise SourceError(f"{place[3]} changed since the dataset was loaded: load it again")
    return columns


def crc_of(rows: int, index_digest: str, arrays: Sequence[tuple[str, str, tuple[int, ...]]]) -> int:
    """The sum of the header, with which that of the file begins."""
    return crc32(header_bytes(rows, index_digest, _NO_CRC, arrays))
