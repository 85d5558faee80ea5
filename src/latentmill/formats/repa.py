"""The class-conditional layouts that EDM2 and REPA trainers read: names and bytes of images and latents.

Images: `00000/img00000000.png`, 8-bit RGB, stored. Latents: `00000/img-mean-std-00000000.npy`, (2C, H/8, W/8).
The number is in 8 digits, its folder the first 5 of them. `dataset.json` beside them holds the labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from latentmill.errors import ConfigError
from latentmill.formats.payload import npy_array, npy_bytes, png_bytes, png_pixels
from latentmill.records import NOTHING, Array

MAX_IMAGES = 100_000_000  # names have 8 digits
_CONVERTED_IMAGE = re.compile(r"(\d{5})/img(\d{8})\.png")


_PREFIX = {"moments": "mean-std", "mean": "mean", "sample": "sample"}


def _digits(number: int) -> str:
    if not 0 <= number < MAX_IMAGES:
        raise ConfigError(f"this layout names at most {MAX_IMAGES:,} images. Found: number {number:,}")
    return f"{number:08d}"


@dataclass(frozen=True)
class ImageLayout:
    """Square 8-bit RGB PNGs."""

    kind = "images"
    code = "repa/images"
    labelled = True
    member = re.compile(r"\d{5}/img\d{8}\.png")

    def name(self, number: int, key: str = "") -> str:
        digits = _digits(number)
        return f"{digits[:5]}/img{digits}.png"

    def to_bytes(self, array: Array, beside: Mapping[str, Array] = NOTHING) -> bytes:
        return png_bytes(array)

    def from_bytes(self, data: bytes) -> Array:
        return png_pixels(data)


@dataclass(frozen=True)
class LatentLayout:
    """Latents: `moments` is mean then standard deviation along the channel axis; `mean` and `sample` hold C channels.

    Other statistics than moments have other names, since readers of `img-mean-std-…` split the channels in two.
    """

    statistic: str = "moments"
    kind = "latents"
    labelled = True
    member = re.compile(r"\d{5}/img-(mean-std|mean|sample)-\d{8}\.npy")

    @property
    def code(self) -> str:
        return f"repa/latents/{self.statistic}"

    def name(self, number: int, key: str = "") -> str:
        digits = _digits(number)
        return f"{digits[:5]}/img-{_PREFIX[self.statistic]}-{digits}.npy"

    def to_bytes(self, array: Array, beside: Mapping[str, Array] = NOTHING) -> bytes:
        return npy_bytes(array)

    def from_bytes(self, data: bytes) -> Array:
        return npy_array(data)


def converted_number(key: str) -> int | None:
    """The number in a converted image's name, or None if `key` is not such a name."""
    match = _CONVERTED_IMAGE.fullmatch(key)
    if not match or not match[2].startswith(match[1]):
        return None
    return int(match[2])
