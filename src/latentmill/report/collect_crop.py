"""What a dataset's own settings do to a photo: the load that made the model's input, and which part of it is seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentmill.decoding import DEFAULT_MAX_PIXELS
from latentmill.formats.metadata import Metadata, row_geometry
from latentmill.loading import AlteredLoad, BucketLoad, Decoded, ImageLoad
from latentmill.records import Array, Geometry, SampleRef
from latentmill.report.collect_index import Line
from latentmill.report.pictures import kept_box
from latentmill.transforms.bucket import BucketTable
from latentmill.transforms.crop import PLACED, crop_geometry
from latentmill.transforms.divide import Divide
from latentmill.transforms.variant import Variant

_WIDE = "center-crop-wide"


@dataclass(frozen=True)
class Cropping:
    """How one dataset's images were brought to their size, as its fingerprint tells. transform: "" of buckets."""

    transform: str
    resolution: tuple[int, int] | None  # (width, height)
    variant: Variant
    exif: str
    alpha: str
    max_pixels: int
    fast: bool
    bucket_fit: str = ""
    bucket_table: str = ""
    bucket_filter: str = ""
    divide: Divide | None = None

    @classmethod
    def of(cls, metadata: Metadata) -> Cropping:
        """Of a dataset of images, latents or vision features."""
        told = metadata.fingerprint
        size = str(told["resolution"]).split("x") if isinstance(told.get("resolution"), str) else None
        limit = told.get("max_pixels")
        rule, model, buckets = told.get("indivisible"), metadata.model, metadata.buckets
        return cls(
            transform="" if buckets else str(told.get("transform") or "none"),
            resolution=(int(size[0]), int(size[1])) if size else None,
            variant=Variant.of(told),
            exif=str(told.get("exif") or "ignore"),
            alpha=str(told.get("alpha") or "drop"),
            max_pixels=int(limit) if isinstance(limit, int) else DEFAULT_MAX_PIXELS,
            fast=told.get("resize") == "fast",
            bucket_fit=buckets.fit if buckets else "",
            bucket_table=buckets.table if buckets else "",
            bucket_filter=buckets.resample if buckets else "",
            divide=Divide(str(rule), model.pixel_multiple) if rule and model and not buckets else None,
        )

    @property
    def whole(self) -> tuple[object, ...]:
        """What two datasets have alike that show the same pixels of one photo."""
        return (self.transform, self.resolution, self.variant, self.exif, self.alpha, self.fast, self.bucket_table)

    def decoded(self, data: bytes) -> Decoded:
        """The whole photo, as the dataset's own settings decode it. Raises SampleError."""
        return self._load().decode(data)

    def pixels(self, row: Line, decoded: Decoded) -> Array | None:
        """uint8 HWC, what the model was fed; None where the transform leaves the image out.

        Raises SampleError, ConfigError.
        """
        height, width = decoded.size
        ref = SampleRef(row["index"], row["key"], "", size=(height, width))
        sample = self._load()(ref, decoded)
        return None if sample is None else sample.array

    def _load(self) -> ImageLoad | BucketLoad | AlteredLoad:
        common = (self.exif, self.alpha)
        if self.bucket_table:
            return BucketLoad(
                BucketTable.from_text(self.bucket_table), self.bucket_fit, self.bucket_filter, *common,
                self.max_pixels, self.variant, self.fast,
            )  # fmt: skip
        load = ImageLoad(
            self.transform, self.resolution, *common, None, self.max_pixels, self.variant, self.fast,
        )  # fmt: skip
        return load if self.divide is None else AlteredLoad(load, self.divide)

    def geometry(self, row: Line, size: tuple[int, int]) -> Geometry | None:
        """How an image of `size`, (height, width), was cropped; None where a transform of another package did it.

        As the index recorded it, else as the transform's own arithmetic has it.
        """
        recorded = row_geometry(row)
        if recorded is not None:
            return recorded
        width, height = self.resolution or size[::-1]
        if self.transform in PLACED:
            return crop_geometry(self.transform, size, (height, width), self.variant.place(row["key"]))
        if self.transform == _WIDE:
            rows = round(width * size[0] / size[1])
            top, bottom = (size[0] - rows) // 2, (size[0] + rows) // 2
            return Geometry(size, size, (top, 0, bottom, size[1]), (width, width))
        return Geometry(size, size, (0, 0, *size), (height, width)) if self.transform == "none" else None


def cut_away(how: Geometry) -> float:
    """The share of the source image's pixels that is not seen."""
    top, left, bottom, right = kept_box(how)
    return 1 - (bottom - top) * (right - left) / (how.size[0] * how.size[1])


def as_compared(first: Array, second: Array) -> tuple[Array, Array]:
    """Two pictures on the rows and columns that both have: a decoder may give less than was padded."""
    height, width = np.minimum(first.shape[:2], second.shape[:2])
    return first[:height, :width], second[:height, :width]
