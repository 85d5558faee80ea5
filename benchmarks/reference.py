"""What people use today, written as its authors would: the four crops and the stored PNG by Pillow, one at a time.

The arithmetic is that of the class-conditional literature. A pixel array is uint8 HWC RGB.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

LANCZOS, BOX, BICUBIC = Image.Resampling.LANCZOS, Image.Resampling.BOX, Image.Resampling.BICUBIC


def none(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), LANCZOS))


def center_crop(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    h, w = pixels.shape[:2]
    side = min(h, w)
    square = pixels[(h - side) // 2 : (h + side) // 2, (w - side) // 2 : (w + side) // 2]
    return np.asarray(Image.fromarray(np.ascontiguousarray(square)).resize((width, height), LANCZOS))


def center_crop_wide(pixels: np.ndarray, width: int, height: int) -> np.ndarray | None:
    h, w = pixels.shape[:2]
    rows = round(width * h / w)
    if w < width or rows < height:
        return None
    band = pixels[(h - rows) // 2 : (h + rows) // 2]
    canvas = np.zeros((width, width, 3), dtype=np.uint8)
    canvas[(width - height) // 2 : (width + height) // 2] = np.asarray(
        Image.fromarray(np.ascontiguousarray(band)).resize((width, height), LANCZOS)
    )
    return canvas


def center_crop_dhariwal(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    side = width
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), BICUBIC)
    found = np.asarray(image)
    top, left = (found.shape[0] - side) // 2, (found.shape[1] - side) // 2
    return found[top : top + side, left : left + side]


CROPS = {
    "none": none,
    "center-crop": center_crop,
    "center-crop-wide": center_crop_wide,
    "center-crop-dhariwal": center_crop_dhariwal,
}


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def png(pixels: np.ndarray, level: int) -> bytes:
    """level: of zlib; 0 stores."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="png", compress_level=level, optimize=False)
    return file.getvalue()
