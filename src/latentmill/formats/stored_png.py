"""Stored PNGs of one known size, read straight into rows: the system's copy is the only one before the planes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from latentmill.checksums import crc32
from latentmill.formats.payload import png_bytes
from latentmill.records import Array

_STORED_BLOCK = 0xFFFF  # bytes of a stored block (RFC 1951, 3.2.4), with a header of 5
_BLOCK_HEADER = 5
_HEAD = 43  # signature, IHDR, IDAT's length and kind, zlib's header
_IDAT = 37  # where IDAT's kind begins, and with it what its CRC-32 is of
_TAIL = 20  # Adler-32, IDAT's CRC-32, IEND
_ADLER = 4


class _Buffers:
    """Where one thread reads a PNG to: rows without the headers of blocks, which lie apart, as does all else."""

    def __init__(self, height: int, width: int) -> None:
        self.rows = np.empty((height, 1 + 3 * width), np.uint8)
        self.filters = self.rows[:, 0]
        data = self.rows.reshape(-1).data
        blocks = range(0, len(data), _STORED_BLOCK)
        self.frame = bytearray(_HEAD + _BLOCK_HEADER * len(blocks) + _TAIL)
        frame = memoryview(self.frame)
        self.parts = []
        at = 0
        for number, start in enumerate(blocks):
            end = _HEAD + _BLOCK_HEADER * (number + 1)
            self.parts += [frame[at:end], data[start : start + _STORED_BLOCK]]
            at = end
        self.parts.append(frame[at:])
        summed = [self.parts[0][_IDAT:], *self.parts[1:-1], self.parts[-1][:_ADLER]]
        self.summed: Sequence[memoryview] = summed
        self.crc = frame[at + _ADLER : at + _ADLER + 4]


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
        data = self.height * (1 + 3 * self.width)
        return _HEAD + data + _BLOCK_HEADER * -(-data // _STORED_BLOCK) + _TAIL

    @cached_property
    def _frame(self) -> bytes:
        """What all such files have around their pixels, but for both sums (zero here)."""
        data = np.frombuffer(png_bytes(np.zeros((self.height, self.width, 3), np.uint8)), np.uint8)
        buffers = _Buffers(self.height, self.width)
        at = 0
        for part in buffers.parts:
            part[:] = data[at : at + len(part)].data
            at += len(part)
        return bytes(buffers.frame)

    def pixels(self, fill: Callable[[Sequence[memoryview]], bool]) -> Array | None:
        """uint8 (H, W, 3) in the thread's buffer, until its next call; None where the file is any other, or damaged.

        fill: reads the file into buffers, and tells whether it has just their size.
        """
        buffers: _Buffers | None = getattr(self._local, "buffers", None)
        if buffers is None:
            buffers = self._local.buffers = _Buffers(self.height, self.width)
        if not fill(buffers.parts) or not self._framed(buffers.frame):
            return None
        total = 0
        for part in buffers.summed:
            total = crc32(part, total)
        if total != int.from_bytes(buffers.crc) or buffers.filters.tobytes().strip(b"\0"):
            return None
        return buffers.rows[:, 1:].reshape(self.height, self.width, 3)

    def _framed(self, frame: bytearray) -> bool:
        expected = self._frame
        tail = len(expected) - _TAIL
        return frame[:tail] == expected[:tail] and frame[tail + 8 :] == expected[tail + 8 :]
