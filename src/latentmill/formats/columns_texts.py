"""Texts of a column: held as one, mapped where they are short, read one at a time where they are long."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from latentmill.errors import SourceError
from latentmill.records import Array

_TEXTS_AT_ONCE = 1 << 15


class OwnHandle:
    """A handle of the file that columns are mapped from, to read a few bytes without a page of it."""

    def __init__(self, file: int, where: str) -> None:
        self._where, self._handle = where, os.dup(file)

    def __del__(self) -> None:
        handle = self.__dict__.get("_handle")
        if handle is not None:
            os.close(handle)

    def read(self, at: int, size: int) -> bytes:
        """Raises OSError, or SourceError where the file has become shorter."""
        data = os.pread(self._handle, size, at)
        if len(data) != size:
            raise SourceError(f"{self._where} was cut off since the dataset was loaded: load it again")
        return data


class Texts:
    """Many texts held as one, with the ends of each: small, and shared by processes.

    file, at: where `joined` is mapped from, of texts that are long. One at a time is then read from there: a look at a
    mapped page brings 15 others, so that soon the whole column would count as this process's memory.
    """

    def __init__(self, joined: Array, ends: Array, file: OwnHandle | None = None, at: int = 0) -> None:
        self.joined, self.ends = joined, ends
        self._bytes = memoryview(joined)  # type: ignore[arg-type]
        self._file, self._at = file, at

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, position: int) -> str:
        """A text by its position; negative ones count from the end."""
        ends = self.ends
        if not 0 <= position < len(ends):
            if not -len(ends) <= position < 0:
                raise IndexError(position)
            position += len(ends)
        start = ends.item(position - 1) if position else 0
        if self._file is not None:
            return self._file.read(self._at + start, ends.item(position) - start).decode("utf-8", "surrogateescape")
        return str(self._bytes[start : ends.item(position)], "utf-8", "surrogateescape")

    def take(self, positions: Array) -> Texts:
        """Texts of their own, of these positions."""
        starts, ends = self.spans(positions)
        total = np.cumsum(ends - starts)
        parts = [
            self.joined[within(starts[at : at + _TEXTS_AT_ONCE], ends[at : at + _TEXTS_AT_ONCE])]
            for at in range(0, len(positions), _TEXTS_AT_ONCE)
        ]
        return Texts(np.concatenate([np.zeros(0, np.uint8), *parts]), total)

    def spans(self, positions: Array) -> tuple[Array, Array]:
        """Where these texts start and end, int64."""
        starts = np.where(positions > 0, self.ends[positions - 1], 0).astype(np.int64)
        return starts, self.ends[positions].astype(np.int64)


def within(starts: Array, ends: Array) -> Array:
    """Every position from each start up to its end, one after another."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    positions: Array = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
    return positions
