"""The compiled resampler, and whether it computes as the Pillow does that is installed.

Pillow makes the horizontal pass first, and from 13.0 on the vertical one first where that is less work; both round, so
the order shows. Which rule holds, and that the rest agrees, is found by a few tiny resizes, so that another Pillow
(Pillow-SIMD, which rounds weights to 16 bits, or a later one) is never taken for one that is known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from PIL import __version__ as version

from latentmill.compiled import load
from latentmill.records import Array

Size = tuple[int, int]
Window = tuple[int, int, int, int]
Order = Callable[[Size, Size], bool]  # whether a resize from one size to another makes its vertical pass first

LARGEST = 1 << 17  # sides; a row of more would take hundreds of megabytes to transpose
FILTERS: dict[int, int] = {  # Pillow's number, and that in native/resample.h
    Image.Resampling.BOX: 0,
    Image.Resampling.BILINEAR: 1,
    Image.Resampling.BICUBIC: 2,
    Image.Resampling.LANCZOS: 3,
}
_TABLES = 128  # of weights that are kept: some 10 kB each for a side of 256, so that photos of one size share them
_KEPT_OUTPUTS = 8192  # tables of more are made for one call
# From height, width to height, width: shrunk, enlarged, and on either side of where the order changes.
_TRIALS = ((23, 31, 11, 17), (11, 9, 23, 29), (31, 23, 13, 14), (31, 23, 12, 14), (29, 7, 28, 16))


class Native:
    """Resizes by the compiled module. Threads may share it."""

    def __init__(self, module: ModuleType, order: Order) -> None:
        self.module = module
        self._order = order
        self._kept = lru_cache(_TABLES)(module.table)

    def resize(self, pixels: Array, sizes: list[Size], size: Size, method: int, window: Window) -> Array:
        """uint8 HWC -> the window (top, left, bottom, right) of the image in `size`, contiguous.

        sizes: before and after each halving, which are made row by row with the last resize. method: Pillow's number.
        """
        top, left, bottom, right = window
        source, number = sizes[-1], FILTERS[method]
        down, top_needed, bottom_needed = self._axis(source[0], size[0], number, top, bottom)
        across, left_needed, right_needed = self._axis(source[1], size[1], number, left, right)
        chain: list[tuple[Any, Any, bool]] = []
        for before, after in zip(sizes[-2::-1], sizes[:0:-1], strict=True):
            halved_down, top_needed, bottom_needed = self._table(before[0], after[0], 0, top_needed, bottom_needed)
            halved_across, left_needed, right_needed = self._table(before[1], after[1], 0, left_needed, right_needed)
            chain.insert(0, (halved_across, halved_down, self._order(before, after)))
        out = np.empty((bottom - top, right - left, 3), np.uint8)
        down_first = self._order(source, size)
        self.module.resize(_with_whole_rows(pixels), out, tuple(chain), across, down, down_first, top, left)
        return out

    def planes(self, pixels: Array) -> Array:
        """uint8 (height, width, 3) -> contiguous uint8 (3, height, width)."""
        out = np.empty((3, *pixels.shape[:2]), np.uint8)
        self.module.planes(_with_whole_rows(pixels), out)
        return out

    def mirrored(self, pixels: Array) -> Array:
        """uint8 (height, width, 3) -> the same contiguous, left and right exchanged."""
        out = np.empty(pixels.shape, np.uint8)
        self.module.mirrored(_with_whole_rows(pixels), out)
        return out

    def stored_planes(self, blocks: memoryview, size: Size) -> Array | None:
        """See `resample.stored_planes`."""
        out = np.empty((3, *size), np.uint8)
        return out if self.module.stored_planes(blocks, out) else None

    def _axis(self, source: int, size: int, number: int, first: int, last: int) -> tuple[Any, int, int]:
        """The table of one pass, None where the side stays, and the inputs that it needs."""
        return (None, first, last) if source == size else self._table(source, size, number, first, last)

    def _table(self, *told: int) -> tuple[Any, int, int]:
        first, last = told[-2:]
        made: tuple[Any, int, int] = (self._kept if last - first <= _KEPT_OUTPUTS else self.module.table)(*told)
        return made


def find() -> Native:
    """The compiled resampler. Raises ImportError where it was not built, or does not agree with Pillow."""
    module = load()
    for order in (_across_first, _less_work_first):
        native = Native(module, order)
        if all(_agrees(native, trial, method) for trial in _TRIALS for method in FILTERS):
            return native
    raise ImportError(f"it does not compute as Pillow {version} does")


def _across_first(before: Size, after: Size) -> bool:
    """Pillow below 13."""
    return False


def _less_work_first(before: Size, after: Size) -> bool:
    """Pillow 13: where the height loses pixels, and more than twice as many as the width."""
    lost = before[0] - after[0]
    return lost > 0 and lost > 2 * (before[1] - after[1])


def _agrees(native: Native, trial: tuple[int, int, int, int], method: int) -> bool:
    height, width, *size = trial
    noise = (np.arange(height * width * 3, dtype=np.uint32) * 2654435761 >> 24).astype(np.uint8)
    pixels = noise.reshape(height, width, 3)
    found = native.resize(pixels, [(height, width)], (size[0], size[1]), method, (0, 0, size[0], size[1]))
    theirs = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling(method))
    return np.array_equal(found, np.asarray(theirs))


def _with_whole_rows(pixels: Array) -> Array:
    return pixels if pixels.strides[1:] == (3, 1) else np.ascontiguousarray(pixels)
