"""Collects the stored rows of an index into `latentmill-index.bin`, in bounded memory. See `columns` for the file."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

from latentmill.checksums import crc32
from latentmill.files import digest, write_errors
from latentmill.formats.columns import DTYPES, NO_BOX, NO_LABEL, crc_of, header_bytes
from latentmill.formats.metadata import row_geometry
from latentmill.formats.stored_zip import local_header
from latentmill.records import Array, Geometry, Outcome

_ROWS_AT_ONCE = 1 << 15
_HELD_BYTES = 1 << 24  # of a column, before it goes to a temporary file
_BLOCK_BYTES = 1 << 20
_RAW_DIGEST = 16
_LOCAL_HEADER = len(local_header("", 0, 0))
_NO_CRC = "0" * 8


class Row(NamedTuple):
    """A stored file of an index, as `metadata.row_json` has it."""

    number: int
    key: str
    label: int | None
    source: str
    name: str
    size: int
    digest: str
    crc: int
    geometry: Geometry | None = None
    caption: str | None = None

    @classmethod
    def of(cls, outcome: Outcome, output: str) -> Row:
        """A stored outcome's file of one output."""
        ref, stored = outcome.ref, outcome.files[output]
        return cls(
            *(ref.index, ref.key, ref.label, outcome.digest, stored.name, stored.size, stored.digest, stored.crc),
            *(outcome.geometry, ref.caption),
        )

    @classmethod
    def of_json(cls, row: dict[str, Any]) -> Row:
        """A line of an index that has a file."""
        return cls(
            *(row["index"], row["key"], row["label"], row["source"], row["name"], row["size"], row["digest"]),
            *(row["crc"], row_geometry(row), row.get("caption")),
        )


class ColumnsWriter:
    """Takes rows in order of number. folder: where temporary files may lie; None keeps all in memory.

    in_zip: the files are the members of a zip, from its first byte on.
    """

    def __init__(self, folder: Path | None, in_zip: bool) -> None:
        self._in_zip, self._end, self._rows, self._has_captions = in_zip, 0, 0, False
        self._pending: list[Row] = []
        self._columns = {
            "offset": _Numbers(folder, "<u8", ("U64",)),
            "label": _Numbers(folder, "<i8", ("I32", "I64")),
            "size": _Numbers(folder, "<u8", ("U32", "U64")),
            "number": _Numbers(folder, "<u4", ("U32",)),
            "crc": _Numbers(folder, "<u4", ("U32",)),
            "box": _Numbers(folder, "<i4", ("I16", "I32"), (8,)),
            "source": _Numbers(folder, "u1", ("U8",), (_RAW_DIGEST,)),
            "digest": _Numbers(folder, "u1", ("U8",), (_RAW_DIGEST,)),
        }
        self._texts = {name: _Texts(folder) for name in ("key", "caption")}

    def add(self, row: Row) -> None:
        self._pending.append(row)
        if len(self._pending) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        rows, self._pending = self._pending, []
        numbers, keys, labels, sources, names, sizes, digests, sums, geometries, captions = zip(*rows, strict=True)
        self._rows += len(rows)
        columns = self._columns
        columns["number"].add(np.array(numbers))
        columns["label"].add(np.array([NO_LABEL if label is None else label for label in labels], np.int64))
        columns["source"].add(_raw(sources))
        columns["digest"].add(_raw(digests))
        columns["size"].add(np.array(sizes, np.uint64))
        columns["crc"].add(np.array(sums, np.uint32))
        columns["box"].add(np.array([box_of(how) for how in geometries], np.int32))
        if self._in_zip:
            lengths = np.array(sizes, np.uint64) + np.array([_LOCAL_HEADER + len(name) for name in names], np.uint64)
            ends = np.cumsum(lengths) + np.uint64(self._end)
            columns["offset"].add(ends - lengths)
            self._end = int(ends[-1])
        self._texts["key"].add(keys)
        self._has_captions |= any(caption is not None for caption in captions)
        self._texts["caption"].add([caption or "" for caption in captions])

    def write(self, file: BinaryIO, index_digest: str) -> None:
        """Write the whole file. index_digest: of the JSON lines of the same rows."""
        self._flush()
        parts = self._parts()
        arrays = [(name, dtype, column.stored_shape) for name, dtype, column in parts]
        file.write(header_bytes(self._rows, index_digest, _NO_CRC, arrays))
        total = crc_of(self._rows, index_digest, arrays)
        for _, dtype, column in parts:
            for block in column.blocks(np.dtype(DTYPES[dtype])):
                total = crc32(block, total)
                file.write(block.data)
        file.seek(0)
        file.write(header_bytes(self._rows, index_digest, f"{total:08x}", arrays))

    def _parts(self) -> list[tuple[str, str, _Column]]:
        """Every column that says anything, with its dtype; those of larger numbers first, so that all are aligned."""
        parts: list[tuple[str, str, _Column]] = [
            (name, numbers.dtype, numbers)
            for name, numbers in self._columns.items()
            if {"offset": self._in_zip, "box": numbers.any}.get(name, True)
        ]
        for name, texts in self._texts.items():
            if name == "key" or self._has_captions:
                parts += [(f"{name}_end", texts.ends.dtype, texts.ends), (name, "U8", texts.joined)]
        return sorted(parts, key=lambda part: -np.dtype(DTYPES[part[1]]).itemsize)


def write_columns(path: Path, writer: ColumnsWriter, index_digest: str) -> None:
    """Write the file, durably. Raises DestinationError."""
    with write_errors(path), path.open("w+b") as file:
        writer.write(file, index_digest)
        file.flush()
        os.fsync(file.fileno())


def columns_bytes(writer: ColumnsWriter, index_digest: str) -> memoryview:
    """The whole file in memory."""
    file = io.BytesIO()
    writer.write(file, index_digest)
    return file.getbuffer()


def box_of(how: Geometry | None) -> tuple[int, ...]:
    """A row of the column `box`."""
    return NO_BOX if how is None else (*how.size, *how.crop, *how.bucket)


def _raw(digests: Sequence[str]) -> Array:
    """Digests of 32 hexadecimal digits as bytes (N, 16); any other text by its own digest."""
    try:
        data = bytes.fromhex("".join(digests))
        if len(data) == _RAW_DIGEST * len(digests) and all(len(text) == 2 * _RAW_DIGEST for text in digests):
            return np.frombuffer(data, np.uint8).reshape(-1, _RAW_DIGEST)
    except ValueError:
        pass
    if len(digests) > 1:
        return np.concatenate([_raw([text]) for text in digests])
    return _raw([digest(digests[0].encode("utf-8", "surrogatepass"))])


class _Column:
    """Values as they come, spooled."""

    def __init__(self, folder: Path | None) -> None:
        self._file: IO[bytes] = io.BytesIO()
        if folder is not None:
            self._file = tempfile.SpooledTemporaryFile(_HELD_BYTES, dir=str(folder))  # noqa: SIM115
        self.count = 0

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (self.count,)

    def extend(self, data: bytes) -> None:
        self._file.write(data)
        self.count += len(data)

    def blocks(self, dtype: np.dtype[Any]) -> Iterator[Array]:
        """What is stored, block by block."""
        self._file.seek(0)
        while data := self._file.read(_BLOCK_BYTES):
            yield np.frombuffer(data, np.uint8)


class _Numbers(_Column):
    """Numbers, or rows of them; stored once where all are equal. choices: dtypes, of which the first that fits."""

    def __init__(self, folder: Path | None, held: str, choices: Sequence[str], shape: tuple[int, ...] = ()) -> None:
        super().__init__(folder)
        self._held, self._choices, self._shape = np.dtype(held), choices, shape
        self._first: Array | None = None
        self._same, self._least, self._most = True, 0, 0

    @property
    def any(self) -> bool:
        return bool(self._least or self._most)

    @property
    def dtype(self) -> str:
        for choice in self._choices:
            limits = np.iinfo(DTYPES[choice])
            if limits.min <= self._least and self._most <= limits.max:
                return choice
        return self._choices[-1]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (min(1, self.count) if self._same else self.count, *self._shape)

    def add(self, values: Array) -> None:
        array = np.ascontiguousarray(values, self._held)
        self._first = array[:1].copy() if self._first is None else self._first
        self._same = self._same and bool((array == self._first).all())
        self._least, self._most = min(self._least, int(array.min())), max(self._most, int(array.max()))
        self._file.write(array.data)
        self.count += len(array)

    def blocks(self, dtype: np.dtype[Any]) -> Iterator[Array]:
        if self._same:
            if self._first is not None:
                yield self._first.astype(dtype)
            return
        for block in super().blocks(dtype):
            yield block.view(self._held).astype(dtype, copy=False)


class _Texts:
    """Texts joined, and where each ends."""

    def __init__(self, folder: Path | None) -> None:
        self.joined, self.ends = _Column(folder), _Numbers(folder, "<u8", ("U32", "U64"))

    def add(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self.ends.add(np.cumsum([len(text) for text in encoded], dtype=np.uint64) + np.uint64(self.joined.count))
        joined = b"".join(encoded)
        self.joined.extend(joined)
