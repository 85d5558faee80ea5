"""Bytes of one source image to what an encoder or a layout takes: decode, then transform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentmill.decoding import DEFAULT_MAX_PIXELS, decode
from latentmill.errors import ConfigError, SampleError
from latentmill.formats.payload import npy_array
from latentmill.records import Sample, SampleRef
from latentmill.transforms.crop import CROPS


@dataclass(frozen=True)
class ImageLoad:
    """Decode and crop a photo. result_size: the (width, height) that every result must have."""

    transform: str
    resolution: tuple[int, int] | None
    exif: str
    alpha: str
    result_size: tuple[int, int]
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __call__(self, ref: SampleRef, data: bytes) -> Sample | None:
        """Raises SampleError, and ConfigError when images differ in size and no resolution was asked for."""
        pixels, notes = decode(data, exif=self.exif, alpha=self.alpha, max_pixels=self.max_pixels)
        height, width = pixels.shape[:2]
        cropped = CROPS[self.transform](pixels, *(self.resolution or (width, height)))
        if cropped is None:
            return None
        height, width = cropped.shape[:2]
        if (width, height) != self.result_size:
            raise ConfigError(
                f"the images differ in size: {ref.key} is {width}x{height}, the first is "
                f"{self.result_size[0]}x{self.result_size[1]}. Give a --resolution WxH and a "
                "--transform (and --overwrite, if the job had begun)"
            )
        return Sample(ref, np.ascontiguousarray(cropped), "", notes)


@dataclass(frozen=True)
class LatentLoad:
    """Read a stored latent; of moments, keep the mean. channels: C of the model."""

    channels: int

    def __call__(self, ref: SampleRef, data: bytes) -> Sample | None:
        try:
            array = npy_array(data)
        except (ValueError, EOFError, OSError) as error:
            raise SampleError("decode", f"not an array that can be read: {error}") from error
        return Sample(ref, array[: self.channels], "")
