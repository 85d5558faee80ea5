"""Stored PNGs of one known size, read into one buffer and from there straight into planes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from latentmill.checksums import crc32
from latentmill.formats.payload import png_bytes
from latentmill.records import Array
from latentmill.transforms.resample import stored_planes

_HEAD = 43  # signature, IHDR, IDAT's length and kind, zlib's header
_IDAT = 37  # where IDAT's kind begins, and with it what its CRC-32 is of
_TAIL = 20  # Adler-32, IDAT's CRC-32, IEND
_ADLER = _CRC = 4


class _Buffer:
    """Where one thread reads a PNG to, and the parts of it."""

    def __init__(self, size: int) -> None:
        self.data = memoryview(bytearray(size))
        sums = size - _TAIL
        crc = sums + _ADLER
        self.head, self.blocks, self.summed = self.data[:_HEAD], self.data[_HEAD:sums], self.data[_IDAT:crc]
        self.crc, self.end = self.data[crc : crc + _CRC], self.data[crc + _CRC :]


class StoredPngs:
    """Reads PNGs of (height, width) as `payload.png_bytes` writes them. Picklable; threads have their own buffers."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def size(self) -> int:
        """Bytes of such a file."""
        return self._frame[0]

    @cached_property
    def _frame(self) -> tuple[int, bytes, bytes]:
        """What all such files have in common: their size, and what stands before the blocks and behind the sums."""
        data = png_bytes(np.zeros((self.height, self.width, 3), np.uint8))
        return len(data), data[:_HEAD], data[len(data) - _TAIL + _ADLER + _CRC :]

    def planes(self, fill: Callable[[Sequence[memoryview]], bool]) -> Array | None:
        """uint8 (3, H, W) in memory of its own; None where the file is any other, or damaged.

        fill: reads the file into buffers, and tells whether it has just their size.
        """
        size, head, end = self._frame
        buffer: _Buffer | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = _Buffer(size)
        if not fill([buffer.data]) or buffer.head != head or buffer.end != end:
            return None
        if crc32(buffer.summed) != int.from_bytes(buffer.crc):
            return None
        return stored_planes(buffer.blocks, (self.height, self.width))
