"""Pixels whose sides a VAE cannot divide: refused, cropped or padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from latentmill.errors import ConfigError, SampleError
from latentmill.records import Array

Rule = Literal["refuse", "crop", "pad"]
RULES: tuple[Rule, ...] = ("refuse", "crop", "pad")


@dataclass(frozen=True)
class Divide:
    """What becomes of pixels, after their transform, whose sides are no multiples of `factor`.

    `refuse`: an error. `crop`: the centre, with each side the next lower multiple; half a pixel goes to the right and
    the bottom. `pad`: the last column and row repeated on the right and at the bottom, up to the next higher multiple.
    factor: of the model, `ModelInfo.pixel_multiple`. Raises ConfigError.
    """

    rule: str
    factor: int

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"divide must be refuse, crop or pad. Found: {self.rule!r}")
        if self.factor < 1:
            raise ConfigError(f"the factor to divide by must be positive. Found: {self.factor}")

    def __call__(self, pixels: Array) -> Array:
        """uint8 HWC -> contiguous uint8 HWC; the same array where nothing is to do. Raises SampleError."""
        height, width = pixels.shape[:2]
        size = divided_size((height, width), self.factor, self.rule)
        if size == (height, width):
            return pixels
        if self.rule == "pad":
            return np.pad(pixels, ((0, size[0] - height), (0, size[1] - width), (0, 0)), mode="edge")
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return np.ascontiguousarray(pixels[top : top + size[0], left : left + size[1]])


def divided_size(size: tuple[int, int], factor: int, rule: str) -> tuple[int, int]:
    """The (height, width) that pixels of `size` will have; see `Divide`. Raises SampleError."""
    height, width = size
    if height % factor == 0 and width % factor == 0:
        return size
    if rule == "pad":
        return -(-height // factor) * factor, -(-width // factor) * factor
    if rule == "refuse":
        raise SampleError(
            "transform", f"{height}x{width} (height x width) has a side that is no multiple of {factor}: crop or pad it"
        )
    divided = height // factor * factor, width // factor * factor
    if 0 in divided:
        raise SampleError(
            "transform", f"nothing is left of {height}x{width} (height x width) cropped to multiples of {factor}"
        )
    return divided
