"""Pillow's 8-bit RGB resize, bit for bit, of the part of the result that is wanted, several times faster.

BOX, BILINEAR, BICUBIC and LANCZOS are computed in C (`native/`), without the interpreter's lock. Where that was not
built, does not agree with the Pillow that is installed, or LATENTMILL_RESAMPLER=pillow says so, Pillow does the work;
the result is the same. The choice is made once, at import. Pairs of sizes are (height, width).
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from latentmill.errors import ConfigError
from latentmill.records import Array
from latentmill.transforms.resample_native import FILTERS, LARGEST, Native, Size, Window, find

VARIABLE = "LATENTMILL_RESAMPLER"


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
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "native", "pillow"):
        raise ConfigError(f"{VARIABLE} must be native or pillow, or not set. Found: {asked!r}")
    if asked == "pillow":
        return None, f"{VARIABLE} is pillow"
    try:
        return find(), ""
    except ImportError as error:
        if asked == "native":
            raise ConfigError(f"{VARIABLE} is native, but the compiled resampler cannot be used: {error}") from error
        return None, f"the compiled resampler cannot be used: {error}"


_native, REASON = _chosen()  # REASON: why it is Pillow that works; empty where it is not
IMPLEMENTATION = "pillow" if _native is None else "native"
