"""Bytes of one source image to what an encoder or a layout takes: decode, then transform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latentmill.decoding import DEFAULT_MAX_PIXELS, decode_reduced, decoded_bytes
from latentmill.errors import ConfigError, SampleError
from latentmill.formats.payload import npy_array
from latentmill.jpeg import Memory
from latentmill.records import TRUNCATED, Array, Geometry, Sample, SampleRef
from latentmill.transforms.crop import CROPS, PLACED, crop_geometry
from latentmill.transforms.fit import geometry, resampled
from latentmill.transforms.reduction import BucketReduction, CropReduction, Reduction
from latentmill.transforms.resample import mirrored
from latentmill.transforms.variant import PLAIN, Variant

if TYPE_CHECKING:
    from latentmill.encoders.text import TextEncoderSpec
    from latentmill.transforms.bucket import BucketTable


class Decoded(NamedTuple):
    """A decoded photo: uint8 HWC RGB pixels, and notes on it. halvings: how often its sides were, while decoding."""

    pixels: Array
    notes: tuple[str, ...]
    halvings: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the whole photo."""
        return self.pixels.shape[0] << self.halvings, self.pixels.shape[1] << self.halvings


@dataclass(frozen=True)
class DecodeImage:
    """Bytes of a photo to its pixels; see `decoding.decode`. reduction: how far it may be decoded at reduced scale."""

    exif: str
    alpha: str
    max_pixels: int
    reduction: Reduction | None = None

    def __call__(self, data: bytes, memory: Memory | None = None) -> Decoded:
        """memory: gives room for so many bytes, which the pixels may then lie in."""
        return Decoded(*decode_reduced(data, self.reduction, self.exif, self.alpha, self.max_pixels, memory))

    def needs(self, data: bytes) -> int:
        """Bytes of the pixels; 0 where that cannot be told quickly, and where they are too many to be decoded."""
        size = decoded_bytes(data, self.reduction)
        return size if size <= 3 * self.max_pixels else 0


@dataclass(frozen=True)
class ImageLoad:
    """Crop a photo, as its variant says. result_size: the (width, height) that every result must have.

    Of a crop elsewhere than in the centre the geometry is kept; it is that of the whole photo before mirroring.
    fast: a JPEG may be decoded at reduced scale; see `transforms.reduction`.
    """

    transform: str
    resolution: tuple[int, int] | None
    exif: str
    alpha: str
    result_size: tuple[int, int] | None
    max_pixels: int = DEFAULT_MAX_PIXELS
    variant: Variant = PLAIN
    fast: bool = False

    @property
    def decode(self) -> DecodeImage:
        return DecodeImage(self.exif, self.alpha, self.max_pixels, self._reduction())

    def _reduction(self) -> CropReduction | None:
        if not self.fast or self.resolution is None or (self.transform == "center-crop" and self.variant.crop):
            return None
        return CropReduction(self.transform, self.resolution)

    def needs(self, decoded: Decoded) -> int:
        """Bytes of the result."""
        height, width = self.resolution[::-1] if self.resolution else decoded.size
        return 3 * height * width

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        """Raises SampleError, and ConfigError when images differ in size and no resolution was asked for."""
        cropped, how = self._cropped(decoded, ref.key)
        if cropped is None:
            return None
        height, width = cropped.shape[:2]
        if self.result_size not in (None, (width, height)):
            raise differing_sizes(ref.key, (width, height), self.result_size)
        result = mirrored(cropped) if self.variant.flip else np.ascontiguousarray(cropped)
        return Sample(ref, result, "", decoded.notes, how)

    def _cropped(self, decoded: Decoded, key: str) -> tuple[Array | None, Geometry | None]:
        pixels, size = decoded.pixels, decoded.size
        width, height = self.resolution or size[::-1]
        place = self.variant.place(key)
        if place is None:
            return CROPS[self.transform](pixels, width, height), None
        how = crop_geometry(self.transform, size, (height, width), place)
        return PLACED[self.transform](pixels, width, height, place), how


def differing_sizes(key: str, size: tuple[int, int], first: tuple[int, int]) -> ConfigError:
    """What is wrong where images differ in (width, height) and no resolution was asked for."""
    return ConfigError(
        f"the images differ in size: {key} is {size[0]}x{size[1]}, the first is {first[0]}x{first[1]}. "
        "Give a --resolution WxH and a --transform (and --overwrite, if the job had begun)"
    )


@dataclass(frozen=True)
class BucketLoad:
    """Bring a photo to the nearest bucket's size, as its variant says; see `transforms.fit`.

    The geometry is that of the whole photo before mirroring. fast: see `transforms.reduction`.
    """

    table: BucketTable
    fit: str
    resample: str
    exif: str
    alpha: str
    max_pixels: int = DEFAULT_MAX_PIXELS
    variant: Variant = PLAIN
    fast: bool = False

    @property
    def decode(self) -> DecodeImage:
        reduction = BucketReduction(self.table, self.fit) if self.fast else None
        return DecodeImage(self.exif, self.alpha, self.max_pixels, reduction)

    def needs(self, decoded: Decoded) -> int:
        """Bytes of the result."""
        height, width = self.table.nearest(*decoded.size).size
        return 3 * height * width * (2 if self.variant.flip else 1)

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        """Raises SampleError, also where the image has not the size that its row or header said."""
        if ref.size is None:
            raise SampleError("read", "its header could not be read when the job began; run the job again")
        size = decoded.size
        if size != ref.size:
            raise SampleError(
                "decode",
                f"the image is {size[1]}x{size[0]} (width x height), its row says {ref.size[1]}x{ref.size[0]}",
            )
        how = geometry(self.fit, size, self.table.nearest(*size).size, self.variant.place(ref.key))
        shown = resampled(decoded.pixels, how, self.resample)
        return Sample(ref, mirrored(shown) if self.variant.flip else shown, "", decoded.notes, how)


class DecodeText:
    """UTF-8 bytes to text."""

    def __call__(self, data: bytes) -> str:
        return data.decode()


@dataclass(frozen=True)
class CaptionLoad:
    """Caption text to the token ids that an encoder takes; notes what truncation cut."""

    spec: TextEncoderSpec
    decode = DecodeText()

    def __call__(self, ref: SampleRef, decoded: str) -> Sample | None:
        tokens = self.spec.tokenize([decoded])[0]
        notes = (TRUNCATED,) if tokens.full_length > len(tokens.ids) else ()
        return Sample(ref, tokens.ids, "", notes)


class DecodeArray:
    """Bytes of an `.npy` to its array."""

    def __call__(self, data: bytes) -> Array:
        try:
            return npy_array(data)
        except (ValueError, EOFError, OSError) as error:
            raise SampleError("decode", f"not an array that can be read: {error}") from error


@dataclass(frozen=True)
class LatentLoad:
    """Take a stored latent; of moments, the mean. channels: C of the model."""

    channels: int
    decode = DecodeArray()

    def __call__(self, ref: SampleRef, decoded: Array) -> Sample | None:
        return Sample(ref, decoded[: self.channels], "")


@dataclass(frozen=True)
class AlteredLoad:
    """What `images` gives, altered for an encoder: resized for a vision model, divided for a VAE.

    alter: uint8 HWC -> uint8 HWC; raises SampleError.
    """

    images: ImageLoad
    alter: Callable[[Array], Array]

    @property
    def decode(self) -> DecodeImage:
        return self.images.decode

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        sample = self.images(ref, decoded)
        return None if sample is None else replace(sample, array=self.alter(sample.array))
