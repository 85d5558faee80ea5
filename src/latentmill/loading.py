"""Bytes of one source image to what an encoder or a layout takes: decode, then transform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentmill.decoding import DEFAULT_MAX_PIXELS, decode
from latentmill.encoders.text import TextEncoderSpec
from latentmill.errors import ConfigError, SampleError
from latentmill.formats.payload import npy_array
from latentmill.records import TRUNCATED, Sample, SampleRef
from latentmill.transforms.bucket import BucketTable
from latentmill.transforms.crop import CROPS
from latentmill.transforms.fit import geometry, resampled


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
class BucketLoad:
    """Decode a photo and bring it to the nearest bucket's size; see `transforms.fit`."""

    table: BucketTable
    fit: str
    resample: str
    exif: str
    alpha: str
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __call__(self, ref: SampleRef, data: bytes) -> Sample | None:
        """Raises SampleError, also where the image has not the size that its row or header said."""
        if ref.size is None:
            raise SampleError("read", "its header could not be read when the job began; run the job again")
        pixels, notes = decode(data, exif=self.exif, alpha=self.alpha, max_pixels=self.max_pixels)
        size = pixels.shape[0], pixels.shape[1]
        if size != ref.size:
            raise SampleError(
                "decode",
                f"the image is {size[1]}x{size[0]} (width x height), its row says {ref.size[1]}x{ref.size[0]}",
            )
        how = geometry(self.fit, size, self.table.nearest(*size).size)
        return Sample(ref, resampled(pixels, how, self.resample), "", notes, how)


@dataclass(frozen=True)
class CaptionLoad:
    """Caption text to the token ids that an encoder takes; notes what truncation cut."""

    spec: TextEncoderSpec

    def __call__(self, ref: SampleRef, data: bytes) -> Sample | None:
        tokens = self.spec.tokenize([data.decode()])[0]
        notes = (TRUNCATED,) if tokens.full_length > len(tokens.ids) else ()
        return Sample(ref, tokens.ids, "", notes)


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
