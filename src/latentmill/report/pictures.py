"""Pixels to the small encoded pictures of a report, and the picture that shows what a crop leaves out."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image

from latentmill.errors import ConfigError
from latentmill.records import Array, Geometry
from latentmill.report.facts import Picture

MediaType = Literal["image/jpeg", "image/png"]
Box = tuple[int, int, int, int]  # top, left, bottom, right, in pixels
_DARKER, _PALER = 0.35, 0.4  # what is shaded keeps this much of itself, on this much of white


def picture(
    pixels: Array, alt: str, side: int | None = None, quality: int = 85, media: MediaType = "image/jpeg"
) -> Picture:
    """uint8 HWC RGB pixels as a JPEG or PNG. The same pixels give the same bytes with one build of Pillow.

    side: of the longest, in pixels, that is left (LANCZOS); nothing is enlarged. quality: of a JPEG, 1..95; from 90 on
    its colours have the full resolution. Raises ConfigError.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ConfigError(f"a picture must be uint8 (height, width, 3). Found: {pixels.dtype} {pixels.shape}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if side is not None:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if media == "image/png":
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=quality, optimize=True, subsampling=0 if quality >= 90 else 2)
    return Picture(file.getvalue(), media, image.width, image.height, alt)


def shaded(original: Array, box: Box) -> Array:
    """The whole picture, uint8 HWC, darker and paler where it lies outside the box."""
    top, left, bottom, right = box
    found = (original * np.float32(_DARKER) + 255 * _PALER).astype(np.uint8)
    found[top:bottom, left:right] = original[top:bottom, left:right]
    return found


def kept_box(how: Geometry) -> Box:
    """The part of the source image, in its own pixels, that the result shows; all of it where it was padded."""
    (height, width), scaled = how.size, how.scaled
    top, left, bottom, right = how.crop
    down, across = height / scaled[0], width / scaled[1]
    return (
        max(0, round(top * down)),
        max(0, round(left * across)),
        min(height, round(bottom * down)),
        min(width, round(right * across)),
    )
