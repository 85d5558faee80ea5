"""The four crops of the class-conditional literature, pixel for pixel as Pillow computes them.

Each takes uint8 HWC RGB pixels and the resolution W x H, and gives uint8 HWC pixels, or None where its rule
leaves the image out. `round` is Python's, half to even; `//` is floor. Two of them take a square out of a longer
side; of an augmented variant it lies elsewhere than in the centre. A square image leaves it no choice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from latentmill.errors import ConfigError, SampleError
from latentmill.plugins import TRANSFORMS, Transform, load, origin
from latentmill.records import Array, Geometry
from latentmill.transforms.resample import resize
from latentmill.transforms.variant import Place, offset

# A 1-pixel-high strip scaled to the wanted side would take tens of gigabytes before it is cropped, with Pillow.
_MAX_RESIZED_PIXELS = 178_956_970

Crop = Callable[[Array, int, int], "Array | None"]
PlacedCrop = Callable[[Array, int, int, "Place | None"], Array]


def none(pixels: Array, width: int, height: int) -> Array:
    """LANCZOS to W x H, whatever the aspect ratio; unchanged where the size is already right."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return _resize(pixels, (height, width), Image.Resampling.LANCZOS)


def center_crop(pixels: Array, width: int, height: int, place: Place | None = None) -> Array:
    """The centre square, or the one at `place`, then LANCZOS to W x H."""
    h, w = pixels.shape[:2]
    top, left, bottom, right = _square((h, w), min(h, w), place)
    square = pixels[top:bottom, left:right]
    return _resize(_not_empty(square), (height, width), Image.Resampling.LANCZOS)


def center_crop_wide(pixels: Array, width: int, height: int) -> Array | None:
    """Full width, the centre rows of the wanted ratio, LANCZOS to W x H, on a black W x W square."""
    h, w = pixels.shape[:2]
    rows = round(width * h / w)
    if w < width or rows < height:
        return None
    band = pixels[(h - rows) // 2 : (h + rows) // 2]
    wide = _resize(_not_empty(band), (height, width), Image.Resampling.LANCZOS)
    canvas = np.zeros((width, width, 3), dtype=np.uint8)
    canvas[(width - height) // 2 : (width + height) // 2] = wide
    return canvas


def center_crop_dhariwal(pixels: Array, width: int, height: int, place: Place | None = None) -> Array:
    """The crop of ADM and DiT: halve by BOX while both sides stay >= S, BICUBIC to shorter side S, centre S x S.

    place: of the S x S pixels, where not in the centre.
    """
    halvings, halved = _halved((pixels.shape[0], pixels.shape[1]), width)
    scaled = _scaled(halved, width)
    return _resize(pixels, scaled, Image.Resampling.BICUBIC, _square(scaled, width, place), halvings)


def crop_geometry(
    transform: str, size: tuple[int, int], result: tuple[int, int], place: Place | None = None
) -> Geometry:
    """What `center-crop` or `center-crop-dhariwal` takes of an image of `size`. Pairs are (height, width).

    Of `center-crop`, the square is cut from the image itself (`scaled` is `size`) and resized to `result` afterwards.
    """
    scaled, side = size, min(size)
    if transform == "center-crop-dhariwal":
        side = result[1]
        scaled = _scaled(_halved(size, side)[1], side)
    return Geometry(size, scaled, _square(scaled, side, place), result)


def _halved(size: tuple[int, int], side: int) -> tuple[int, tuple[int, int]]:
    """How often an image of (height, width) can be halved with both sides still `side` or more, and what it is then."""
    halvings, (height, width) = 0, size
    while min(height, width) >= 2 * side:
        halvings, height, width = halvings + 1, height // 2, width // 2
    return halvings, (height, width)


def _scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of an image that is brought to a shorter side of `side`."""
    scale = side / min(size)
    return round(size[0] * scale), round(size[1] * scale)


def _square(size: tuple[int, int], side: int, place: Place | None) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a square in an image of (height, width)."""
    free = size[0] - side, size[1] - side
    top, left = (free[0] // 2, free[1] // 2) if place is None else map(offset, free, place)
    return top, left, top + side, left + side


PLACED: dict[str, PlacedCrop] = {
    "center-crop": center_crop,
    "center-crop-dhariwal": center_crop_dhariwal,
}


class _Crops(dict[str, Crop]):
    """Crops by name: the built-in ones, and those of other packages, which are found when they are asked for."""

    def __missing__(self, name: str) -> Crop:
        return _of_package(name)


CROPS = _Crops(
    {
        "none": none,
        "center-crop": center_crop,
        "center-crop-wide": center_crop_wide,
        "center-crop-dhariwal": center_crop_dhariwal,
    }
)


@cache
def _of_package(name: str) -> Crop:
    """A transform of another package, whose results are checked. Raises ConfigError."""
    transform: Transform = load(TRANSFORMS, name)
    told = f"transform {name!r} of {origin(TRANSFORMS, name)}"

    def crop(pixels: Array, width: int, height: int) -> Array | None:
        found = transform(pixels, width, height)
        if found is None or (found.dtype == np.uint8 and found.shape == (height, width, 3)):
            return found
        raise ConfigError(
            f"{told} must give uint8 pixels of (height, width, 3) = {(height, width, 3)}, or None. "
            f"Found: {found.dtype} {found.shape}"
        )

    return crop


def _not_empty(pixels: Array) -> Array:
    if 0 in pixels.shape:
        raise SampleError(
            "transform", f"nothing is left of the image after cropping ({pixels.shape[1]}x{pixels.shape[0]})"
        )
    return pixels


def _resize(
    pixels: Array,
    size: tuple[int, int],
    method: Image.Resampling,
    window: tuple[int, int, int, int] | None = None,
    halvings: int = 0,
) -> Array:
    """`resample.resize`, with a reject for what is too thin. size: (height, width)."""
    height, width = pixels.shape[0] >> halvings, pixels.shape[1] >> halvings
    if min(size) < 1:
        raise SampleError("transform", f"{width}x{height} is too thin to resize to {size[1]}x{size[0]}")
    if (height, width) != size and size[0] * size[1] > _MAX_RESIZED_PIXELS:
        raise SampleError("transform", f"{width}x{height} is too thin: it would be resized to {size[1]}x{size[0]}")
    return resize(pixels, size, method, window, halvings)
