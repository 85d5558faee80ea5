"""Vision features in files: one `.npy` for each image, named by number as REPA's trainer walks, or as PixArt's readers.

By number: `00000/img-feature-00000000.npy`, with `dataset.json` beside them. By key: as PixArt's latents are named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from latentmill.formats.metadata import VisionInfo
from latentmill.formats.payload import npy_array, npy_bytes
from latentmill.formats.pixart import feature_name
from latentmill.formats.repa import ImageLayout
from latentmill.records import NOTHING, Array

Naming = Literal["repa", "pixart/multi", "pixart/single"]
_FAMILY = "vision/"
REPA_PIXELS = 16  # a side of what one token shows of a training image: a latent's patch of 2, of a VAE of factor 8


@dataclass(frozen=True)
class VisionLayout:
    """Features (N, D), float32 or float16. naming: by number (`repa`), or by key as a reader of PixArt's looks."""

    naming: Naming = "repa"
    kind = "vision"
    member = re.compile(r"\d{5}/img-feature-\d{8}\.npy")  # of `repa`

    @property
    def code(self) -> str:
        return _FAMILY + self.naming

    @property
    def labelled(self) -> bool:
        return self.naming == "repa"

    def name(self, number: int, key: str = "") -> str:
        if self.naming == "repa":
            folder = ImageLayout().name(number).partition("/")[0]
            return f"{folder}/img-feature-{number:08d}.npy"
        return feature_name(key, "single" if self.naming == "pixart/single" else "multi", ".npy")

    def to_bytes(self, array: Array, beside: Mapping[str, Array] = NOTHING) -> bytes:
        return npy_bytes(array)

    def from_bytes(self, data: bytes) -> Array:
        """Raises ValueError where the file holds no (N, D) of floats."""
        array = npy_array(data)
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{array.dtype} {array.shape}, not (N, D) of floats")
        return array


def layout_of(code: str) -> VisionLayout | None:
    """The layout that a code describes; None where it is none of vision features."""
    known: dict[str, Naming] = {_FAMILY + name: name for name in ("repa", "pixart/multi", "pixart/single")}
    return VisionLayout(known[code]) if code in known else None


def stored_shape(info: VisionInfo, bucket: tuple[int, int] | None) -> tuple[int | None, int]:
    """(N, D) that an image's file must have; N is None where only the model's processor tells it.

    bucket: (height, width) of the image's pixels; None where all have the same.
    """
    if info.tokens == "pooled":
        return 1, info.width
    grid = info.grid
    if grid is None and bucket is not None and info.input == "repa":
        grid = bucket[0] // REPA_PIXELS, bucket[1] // REPA_PIXELS
    if grid is None:
        return None, info.width
    return prod(grid) + (info.tokens == "both"), info.width
