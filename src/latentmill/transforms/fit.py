"""From a decoded image to the pixels of its bucket: what it is scaled to, what is cropped or padded, by which filter.

Pairs of sizes are (height, width).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from latentmill.errors import ConfigError, SampleError
from latentmill.records import Array, Geometry
from latentmill.transforms.resample import resize
from latentmill.transforms.variant import Place, offset

Fit = Literal["stretch", "cover", "pad"]
Filter = Literal["bilinear", "bicubic", "lanczos"]

FITS: tuple[Fit, ...] = ("stretch", "cover", "pad")
FILTERS: dict[str, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_LANCZOS_RESOLUTIONS = (2048, 2880)
# A 1-pixel-high strip that is to cover a bucket would take tens of gigabytes before it is cropped.
_MAX_SCALED_PIXELS = 178_956_970


def geometry(fit: str, size: tuple[int, int], bucket: tuple[int, int], place: Place | None = None) -> Geometry:
    """How an image of `size` becomes pixels of `bucket`.

    `stretch`: exactly to the bucket, whatever the ratio; the reference extractor's way. `cover`: scaled until the
    bucket is covered, the centre kept; the reference reader's arithmetic, and for a square bucket torchvision's
    Resize and CenterCrop, the reference's single-scale way. `pad`: scaled to lie within the bucket, centred, black
    around. place: of what `cover` keeps, where not the centre; of the bucket's own ratio there is one place alone.
    Raises ConfigError, and SampleError for an image too thin to be scaled so.
    """
    if place is not None and fit != "cover":
        raise ConfigError(f"crops need fit cover: nothing is cropped else. Found: {fit!r}")
    if fit == "stretch":
        return Geometry(size, bucket, (0, 0, *bucket), bucket)
    if fit not in FITS:
        raise ConfigError(f"fit must be {', '.join(FITS[:-1])} or {FITS[-1]}. Found: {fit!r}")
    scaled = _covering(size, bucket) if fit == "cover" else _within(size, bucket)
    if min(scaled) < 1 or scaled[0] * scaled[1] > _MAX_SCALED_PIXELS:
        raise SampleError(
            "transform",
            f"height x width {size[0]}x{size[1]} is too thin for a bucket of {bucket[0]}x{bucket[1]}: it would be "
            f"resized to {scaled[0]}x{scaled[1]}",
        )
    if place is None:
        top, left = _centred(scaled[0], bucket[0]), _centred(scaled[1], bucket[1])
    else:
        top, left = offset(scaled[0] - bucket[0], place[0]), offset(scaled[1] - bucket[1], place[1])
    return Geometry(size, scaled, (top, left, top + bucket[0], left + bucket[1]), bucket)


def _covering(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """int() of the free side, as the reference has it. Float64 compares and divides sides below 2**26 exactly enough
    that it is never less than the bucket's."""
    if bucket[0] / size[0] > bucket[1] / size[1]:
        return bucket[0], int(size[1] * bucket[0] / size[0])
    return int(size[0] * bucket[1] / size[1]), bucket[1]


def _within(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """The free side to the nearest pixel; likewise never more than the bucket's."""
    if bucket[0] / size[0] < bucket[1] / size[1]:
        return bucket[0], round(size[1] * bucket[0] / size[0])
    return round(size[0] * bucket[1] / size[1]), bucket[1]


def _centred(length: int, window: int) -> int:
    """Where a centred window starts, half to even as torchvision's CenterCrop; negative where it is the longer."""
    return round((length - window) / 2)


def resampled(pixels: Array, how: Geometry, method: str) -> Array:
    """uint8 HWC RGB pixels of `how.size` -> contiguous uint8 HWC pixels of `how.bucket`; black where padded.

    method: `bilinear`, `bicubic` or `lanczos`, Pillow's. As the whole image resized, then cropped.
    """
    top, left, bottom, right = how.crop
    shown = max(top, 0), max(left, 0), min(bottom, how.scaled[0]), min(right, how.scaled[1])
    found = resize(pixels, how.scaled, FILTERS[method], shown)
    if found.shape[:2] == how.bucket:
        return found
    padded = np.zeros((bottom - top, right - left, 3), np.uint8)
    padded[shown[0] - top : shown[2] - top, shown[1] - left : shown[3] - left] = found
    return padded


def default_filter(resolution: int, multi_scale: bool = True) -> Filter:
    """The reference's filter: bilinear for single-scale; for multi-scale lanczos at 2048 and 2880, else bicubic."""
    if not multi_scale:
        return "bilinear"
    return "lanczos" if resolution in _LANCZOS_RESOLUTIONS else "bicubic"


def kept(how: Geometry) -> float:
    """The share of the source's pixels that the result shows: 1.0 where nothing was cropped."""
    (height, width), (top, left, bottom, right) = how.scaled, how.crop
    shown = (min(bottom, height) - max(top, 0)) * (min(right, width) - max(left, 0))
    return shown / (height * width)


def distortion(how: Geometry) -> float:
    """How much longer one side became, against the other, than it was: 0.0 is not at all, 0.25 a quarter."""
    before, after = how.size[0] / how.size[1], how.scaled[0] / how.scaled[1]
    return max(before / after, after / before) - 1


def upscaled(how: Geometry) -> bool:
    """Whether a side was scaled up, so that the result has pixels which the source did not."""
    return how.scaled[0] > how.size[0] or how.scaled[1] > how.size[1]
