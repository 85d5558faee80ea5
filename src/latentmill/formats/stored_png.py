"""Stored PNGs of one known size, read into one buffer and from there straight into planes."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np

from latentmill.checksums import crc32
from latentmill.compiled import compiled
from latentmill.formats.payload import png_bytes
from latentmill.records import Array
from latentmill.transforms.resample import stored_planes

_HEAD = 43  # signature, IHDR, IDAT's length and kind, zlib's header
_IDAT = 37  # where IDAT's kind begins, and with it what its CRC-32 is of
_TAIL = 20  # Adler-32, IDAT's CRC-32, IEND
_ADLER = _CRC = 4
_unpack = compiled("stored_planes")  # at every access: without the calls in between


class Buffer:
    """Where one thread reads what stands behind a PNG's head, and the parts of it."""

    def __init__(self, size: int) -> None:
        self.data = memoryview(bytearray(size))
        self.blocks, self.tail = self.data[:-_TAIL], self.data[-_TAIL + _ADLER :]
        self.summed = self.data[: -_TAIL + _ADLER]


class StoredPngs:
    """Reads PNGs of (height, width) as `payload.png_bytes` writes them. Picklable; threads have their own buffers."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @cached_property
    def size(self) -> int:
        """Bytes of such a file."""
        return len(self.head) + len(self.buffer.data)

    @cached_property
    def head(self) -> bytes:
        """What stands before the blocks of all such files."""
        return self._example[:_HEAD]

    @cached_property
    def _frame(self) -> tuple[int, bytes]:
        """With what IDAT's CRC-32 begins, and what stands behind it."""
        return crc32(self.head[_IDAT:]), self._example[-_TAIL + _ADLER + _CRC :]

    @property
    def _example(self) -> bytes:
        return png_bytes(np.zeros((self.height, self.width, 3), np.uint8))

    @property
    def buffer(self) -> Buffer:
        """This thread's, for what stands behind the head."""
        found: Buffer | None = getattr(self._local, "buffer", None)
        if found is None:
            found = self._local.buffer = Buffer(len(self._example) - _HEAD)
        return found

    def planes(self, buffer: Buffer) -> Array | None:
        """uint8 (3, H, W) in memory of its own; None where what was read is of any other file, or damaged."""
        begun, end = self._frame
        if buffer.tail.tobytes() != crc32(buffer.summed, begun).to_bytes(_CRC, "big") + end:
            return None
        if _unpack is None:
            return stored_planes(buffer.blocks, (self.height, self.width))
        out = np.empty((3, self.height, self.width), np.uint8)
        return out if _unpack(buffer.blocks, out) else None
