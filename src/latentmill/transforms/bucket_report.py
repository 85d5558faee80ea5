"""What the buckets did to a dataset: images in each, what was cropped away or distorted, and what was left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from latentmill.records import Geometry
from latentmill.transforms.bucket import BucketTable
from latentmill.transforms.fit import distortion, kept, upscaled

_DIGITS = 6  # of means, so that the order of the images does not show


@dataclass(frozen=True, slots=True)
class BucketRow:
    """One bucket. images: how many it got. upscaled: of them, those with a side scaled up. Means over its images:
    cropped_away, the share of pixels; distortion, how much longer one side became against the other, 0.0 not at all.
    """

    bucket: tuple[int, int]
    ratio: float
    images: int
    cropped_away: float
    distortion: float
    upscaled: int


@dataclass(frozen=True, slots=True)
class BucketTotals:
    """The same over all buckets; left_out: images that no bucket got."""

    images: int
    cropped_away: float
    distortion: float
    upscaled: int
    left_out: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that no bucket got, and why."""

    key: str
    reason: str


@dataclass(slots=True)
class _Sums:
    images: int = 0
    cropped_away: float = 0.0
    distortion: float = 0.0
    upscaled: int = 0

    def means(self) -> tuple[int, float, float, int]:
        count = max(self.images, 1)
        cropped_away, stretched = round(self.cropped_away / count, _DIGITS), round(self.distortion / count, _DIGITS)
        return self.images, cropped_away, stretched, self.upscaled


class BucketReport:
    """Counts as the images come; nothing is held per image but what was left out."""

    def __init__(self, table: BucketTable) -> None:
        self.table = table
        self.left_out: list[LeftOut] = []
        self._sums = {bucket.size: _Sums() for bucket in table.buckets}

    def add(self, how: Geometry) -> None:
        """One image that went to a bucket of the table."""
        sums = self._sums[how.bucket]
        sums.images += 1
        sums.cropped_away += 1 - kept(how)
        sums.distortion += distortion(how)
        sums.upscaled += upscaled(how)

    def leave_out(self, key: str, reason: str) -> None:
        """One image that went to none."""
        self.left_out.append(LeftOut(key, reason))

    def rows(self) -> list[BucketRow]:
        """Every bucket in the table's order, those without an image too."""
        return [BucketRow(bucket.size, bucket.ratio, *self._sums[bucket.size].means()) for bucket in self.table.buckets]

    def totals(self) -> BucketTotals:
        """Over all buckets."""
        total = _Sums()
        for sums in self._sums.values():
            total.images += sums.images
            total.cropped_away += sums.cropped_away
            total.distortion += sums.distortion
            total.upscaled += sums.upscaled
        return BucketTotals(*total.means(), len(self.left_out))

    def as_json(self) -> list[dict[str, Any]]:
        """The rows as JSON holds them: `bucket` is [height, width]."""
        return [asdict(row) | {"bucket": list(row.bucket)} for row in self.rows()]
