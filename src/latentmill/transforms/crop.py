"""The four crops of the class-conditional literature, pixel for pixel as Pillow computes them.

Each takes uint8 HWC RGB pixels and the resolution W x H, and gives uint8 HWC pixels, or None where its rule
leaves the image out. `round` is Python's, half to even; `//` is floor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from latentmill.errors import SampleError
from latentmill.records import Array

# A 1-pixel-high strip scaled to the wanted side would take tens of gigabytes before it is cropped.
_MAX_RESIZED_PIXELS = 178_956_970

Crop = Callable[[Array, int, int], "Array | None"]


def none(pixels: Array, width: int, height: int) -> Array:
    """LANCZOS to W x H, whatever the aspect ratio; unchanged where the size is already right."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(_resize(Image.fromarray(pixels), (width, height), Image.Resampling.LANCZOS))


def center_crop(pixels: Array, width: int, height: int) -> Array:
    """The centre square, then LANCZOS to W x H."""
    h, w = pixels.shape[:2]
    side = min(h, w)
    square = pixels[(h - side) // 2 : (h + side) // 2, (w - side) // 2 : (w + side) // 2]
    return np.asarray(_resize(_image(square), (width, height), Image.Resampling.LANCZOS))


def center_crop_wide(pixels: Array, width: int, height: int) -> Array | None:
    """Full width, the centre rows of the wanted ratio, LANCZOS to W x H, on a black W x W square."""
    h, w = pixels.shape[:2]
    rows = round(width * h / w)
    if w < width or rows < height:
        return None
    band = pixels[(h - rows) // 2 : (h + rows) // 2]
    wide = np.asarray(_resize(_image(band), (width, height), Image.Resampling.LANCZOS))
    canvas = np.zeros((width, width, 3), dtype=np.uint8)
    canvas[(width - height) // 2 : (width + height) // 2] = wide
    return canvas


def center_crop_dhariwal(pixels: Array, width: int, height: int) -> Array:
    """The crop of ADM and DiT: halve by BOX while both sides stay >= S, BICUBIC to shorter side S, centre S x S."""
    side = width
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * side:
        image = _resize(image, (image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = _resize(image, size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


CROPS: dict[str, Crop] = {
    "none": none,
    "center-crop": center_crop,
    "center-crop-wide": center_crop_wide,
    "center-crop-dhariwal": center_crop_dhariwal,
}


def _image(pixels: Array) -> Image.Image:
    if 0 in pixels.shape:
        raise SampleError(
            "transform", f"nothing is left of the image after cropping ({pixels.shape[1]}x{pixels.shape[0]})"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _resize(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    if image.size == size:
        return image
    if min(size) < 1:
        raise SampleError("transform", f"{image.width}x{image.height} is too thin to resize to {size[0]}x{size[1]}")
    if size[0] * size[1] > _MAX_RESIZED_PIXELS:
        raise SampleError(
            "transform", f"{image.width}x{image.height} is too thin: it would be resized to {size[0]}x{size[1]}"
        )
    return image.resize(size, method)
