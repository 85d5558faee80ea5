"""Pillow's 8-bit RGB resize, bit for bit, of the part of the result that is wanted, several times faster.

BOX, BILINEAR, BICUBIC and LANCZOS are computed in C (`native/`), without the interpreter's lock. Where that was not
built, does not agree with the Pillow that is installed, or LATENTMILL_RESAMPLER=pillow says so, Pillow does the work;
the result is the same. The choice is made once, at import. Pairs of sizes are (height, width).
What else is compiled for pictures has its two forms here as well.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

from latentmill.compiled import choose
from latentmill.records import Array
from latentmill.transforms.resample_native import FILTERS, LARGEST, Native, Size, Window, find

VARIABLE = "LATENTMILL_RESAMPLER"
_STORED_BLOCK = 0xFFFF  # the most bytes that a stored block holds
_HEADER = struct.Struct("<BHH")  # whether it is the last, its length, and the complement of that


def resize(
    pixels: Array, size: Size, method: Image.Resampling, window: Window | None = None, halvings: int = 0
) -> Array:
    """uint8 HWC RGB pixels -> contiguous uint8 HWC pixels: `Image.resize(size, method)`, cropped to `window`.

    window: (top, left, bottom, right) of the result; only what it needs is computed. halvings: how often the image is
    brought to half its sides, rounded down, by BOX, beforehand. Rows may lie any distance apart. The result is new
    memory. Raises ValueError for pixels of another kind, sizes below 1 and windows that are empty or reach outside.
    """
    window = (0, 0, *size) if window is None else window
    _check_pixels(pixels)
    _check_window(size, window)
    sizes = _halved((pixels.shape[0], pixels.shape[1]), halvings)
    if _native is None or method not in FILTERS or max(*sizes[0], *size) > LARGEST:
        return _by_pillow(pixels, size, method, window, halvings)
    return _native.resize(pixels, sizes, size, method, window)


def halve(pixels: Array) -> Array:
    """uint8 HWC RGB pixels -> contiguous pixels of half the sides, rounded down, by BOX. Raises ValueError."""
    height, width = pixels.shape[:2]
    return resize(pixels, (height // 2, width // 2), Image.Resampling.BOX, halvings=1)


def planes(pixels: Array) -> Array:
    """uint8 (height, width, 3) -> contiguous uint8 (3, height, width). Raises ValueError."""
    _check_pixels(pixels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if _native is None else _native.planes(pixels)


def stored_planes(blocks: memoryview, size: Size) -> Array | None:
    """The stored blocks of a PNG's rows (RFC 1951, 3.2.4) -> uint8 (3, height, width), of memory of its own.

    blocks: as long as rows of `size` take, each after its filter, in blocks of 65,535 bytes but for the last. None
    where they are other blocks, or a row has a filter. Raises ValueError for blocks of another length.
    """
    return _joined_planes(blocks, size) if _native is None else _native.stored_planes(blocks, size)


def _joined_planes(blocks: memoryview, size: Size) -> Array | None:
    height, width = size
    left, at, parts = height * (1 + 3 * width), 0, []
    if len(blocks) != left + _HEADER.size * -(-left // _STORED_BLOCK):
        raise ValueError(f"blocks must be as long as the rows of {size} take. Found: {len(blocks):,} bytes")
    while left:
        count, at = min(left, _STORED_BLOCK), at + _HEADER.size
        if blocks[at - _HEADER.size : at] != _HEADER.pack(count == left, count, count ^ _STORED_BLOCK):
            return None
        parts.append(blocks[at : at + count])
        left, at = left - count, at + count
    rows = np.frombuffer(b"".join(parts), np.uint8).reshape(height, 1 + 3 * width)
    if rows[:, 0].any():
        return None
    return np.ascontiguousarray(rows[:, 1:].reshape(height, width, 3).transpose(2, 0, 1))


def mirrored(pixels: Array) -> Array:
    """uint8 (height, width, 3) -> the same contiguous, left and right exchanged. Raises ValueError."""
    _check_pixels(pixels)
    return np.ascontiguousarray(pixels[:, ::-1]) if _native is None else _native.mirrored(pixels)


def _check_pixels(pixels: Array) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"pixels must be uint8 of (height, width, 3), none of these 0. Found: {pixels.dtype} {pixels.shape}"
        )


def _check_window(size: Size, window: Window) -> None:
    if min(size) < 1:
        raise ValueError(f"the height and width to resize to must be at least 1. Found: {size}")
    top, left, bottom, right = window
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        raise ValueError(
            f"the window (top, left, bottom, right) must not be empty and lie within {size}. Found: {window}"
        )


def _halved(size: Size, halvings: int) -> list[Size]:
    """The sizes before and after each halving."""
    sizes = [size]
    for _ in range(halvings):
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    if halvings < 0 or min(sizes[-1]) < 1:
        raise ValueError(f"halvings must be from 0 to as many as leave each side a pixel. Found: {halvings} of {size}")
    return sizes


def _by_pillow(pixels: Array, size: Size, method: Image.Resampling, window: Window, halvings: int) -> Array:
    image = Image.fromarray(pixels)
    for _ in range(halvings):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    top, left, bottom, right = window
    return np.array(image.resize((size[1], size[0]), method).crop((left, top, right, bottom)))


def _chosen() -> tuple[Native | None, str]:
    """The compiled resampler, or None and why. Raises ConfigError."""
    return choose(VARIABLE, "pillow", "resampler", find)


_native, REASON = _chosen()  # REASON: why it is Pillow that works; empty where it is not
IMPLEMENTATION = "pillow" if _native is None else "native"
