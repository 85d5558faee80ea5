"""Aspect buckets: tables of the sizes that images are brought to, and which of them is nearest to an image's own.

Pairs of sizes are (height, width), ratios height / width, as the reference's tables have them.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import numpy as np

from latentmill.errors import ConfigError
from latentmill.records import Array
from latentmill.wording import did_you_mean, hinted

DEFAULT_STEP = 64
DEFAULT_RANGE = (0.25, 4.0)
_LATENT_STEP = 8  # pixels that one position of a latent stands for
_WIDEST_RANGE = (1 / 64, 64.0)  # bounds what `fitted_table` has to search
_NEGLIGIBLE = 1e-9  # share of all pixels; less is the rounding of long sums
_OPTION = re.compile(r"(reference)|grid(?::(\d+)(?::(\d*\.?\d+):(\d*\.?\d+))?)?|auto:(\d+)(?::(\d+))?", re.ASCII)
_NAME = re.compile(r"[^\s=]+")
_ENTRY = re.compile(r"([^=]+)=(\d+)x(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One size of a table, in pixels. ratio: what images are compared with; the reference rounds it to 2 digits."""

    ratio: float
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


@dataclass(frozen=True)
class BucketTable:
    """The sizes that the images of one dataset are brought to, in an order that decides ties. Raises ConfigError."""

    name: str
    buckets: tuple[Bucket, ...]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"the name of a bucket table must have no blank and no '='. Found: {self.name!r}")
        if not self.buckets:
            raise ConfigError("a bucket table must have at least one bucket. Found: none")
        for bucket in self.buckets:
            if not 0 < bucket.ratio < math.inf or min(bucket.size) < 1:
                raise ConfigError(f"a bucket must have a positive ratio, height and width. Found: {bucket}")
        if len({bucket.size for bucket in self.buckets}) < len(self.buckets):
            raise ConfigError(f"a bucket table must have every size once. Found: {self.to_text()}")

    def nearest(self, height: int, width: int) -> Bucket:
        """The bucket with the smallest |ratio - height / width| in float64, the first in order on a tie."""
        ratios, ratio = self._ratios, height / width
        low = high = bisect_left(ratios, ratio)
        distance = min(abs(near - ratio) for near in ratios[max(low - 1, 0) : low + 1])
        # More than two can be equally far: equal ratios, and differences that float64 rounds to the same number.
        while low > 0 and ratio - ratios[low - 1] <= distance:
            low -= 1
        while high < len(ratios) and ratios[high] - ratio <= distance:
            high += 1
        return self.buckets[min(self._order[low:high])]

    @cached_property
    def _order(self) -> list[int]:
        return sorted(range(len(self.buckets)), key=lambda number: self.buckets[number].ratio)

    @cached_property
    def _ratios(self) -> list[float]:
        return [self.buckets[number].ratio for number in self._order]

    def to_text(self) -> str:
        """One line for metadata and fingerprints: `name ratio=HEIGHTxWIDTH …`; `from_text` gives an equal table."""
        return " ".join([self.name, *(f"{b.ratio!r}={b.height}x{b.width}" for b in self.buckets)])

    @classmethod
    def from_text(cls, text: str) -> BucketTable:
        """The table that `to_text` wrote. Raises ConfigError."""
        name, *entries = text.split() or [""]
        return cls(name, tuple(map(_bucket, entries)))


def _bucket(entry: str) -> Bucket:
    match = _ENTRY.fullmatch(entry)
    try:
        if match:
            return Bucket(float(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        pass
    raise ConfigError(f"a bucket must be written ratio=HEIGHTxWIDTH. Found: {entry!r}")


def table_for(text: str, resolution: int, sizes: Callable[[], Array] | None = None) -> BucketTable:
    """The table that the option `--buckets` names.

    sizes: gives the (height, width) of every image, integers (n, 2); called for `auto` only, and only once nothing
    else is wrong. Raises ConfigError.
    """
    match = _OPTION.fullmatch(text)
    if match is None:
        raise ConfigError(
            hinted(
                "buckets must be reference, grid, grid:STEP, grid:STEP:LOW:HIGH, auto:N or auto:N:STEP. "
                f"Found: {text!r}",
                did_you_mean(text.partition(":")[0], ("reference", "grid", "auto")),
            )
        )
    reference, step, low, high, count, auto_step = match.groups()
    if reference:
        return reference_table(resolution)
    if count is None:
        ends = (float(low), float(high)) if low else DEFAULT_RANGE
        return grid_table(resolution, int(step or DEFAULT_STEP), *ends)
    _check_fitted(int(count), resolution, int(auto_step or DEFAULT_STEP), *DEFAULT_RANGE)
    if sizes is None:
        raise ConfigError(f"buckets {text} must be fitted to image sizes, which are not known here: use grid instead")
    return fitted_table(int(count), resolution, sizes(), int(auto_step or DEFAULT_STEP))


def reference_table(resolution: int) -> BucketTable:
    """PixArt-Sigma's table (diffusion/data/datasets/utils.py of its repository), in its order. Raises ConfigError."""
    tables = _reference_tables()
    if resolution not in tables:
        known = ", ".join(map(str, sorted(tables)))
        raise ConfigError(
            f"resolution must be one of {known} for the reference's buckets (grid has any). Found: {resolution}"
        )
    return tables[resolution]


@cache
def _reference_tables() -> dict[int, BucketTable]:
    text = (files("latentmill") / "assets" / "aspect_ratios.json").read_text(encoding="utf-8")
    return {
        int(resolution): BucketTable(
            f"reference-{resolution}", tuple(Bucket(float(ratio), *size) for ratio, size in rows.items())
        )
        for resolution, rows in json.loads(text).items()
    }


def square_table(resolution: int) -> BucketTable:
    """The one square of single-scale training. Raises ConfigError."""
    return BucketTable(f"square-{resolution}", (Bucket(1.0, resolution, resolution),))


def grid_table(
    base: int, step: int = DEFAULT_STEP, low: float = DEFAULT_RANGE[0], high: float = DEFAULT_RANGE[1]
) -> BucketTable:
    """Sizes whose sides are multiples of `step`, with ratios low..high and areas just below base * base, by ratio.

    For each height the widest width and for each width the tallest height, so that a photo turned on its side finds
    the same size, turned. No two have the same ratio: the smaller could be made wider. Raises ConfigError.
    """
    _check_grid(base, step, low, high)
    sides = range(step, base * base // step + 1, step)
    widest = {(side, base * base // side // step * step) for side in sides}
    sizes = widest | {(height, width) for width, height in widest}
    buckets = [Bucket(height / width, height, width) for height, width in sizes if low <= height / width <= high]
    if not buckets:
        raise ConfigError(
            f"buckets must have at least one size of step {step} within the area of {base}x{base} and ratios from "
            f"{low} to {high}. Found: none; widen the range or lower the step"
        )
    return BucketTable(f"grid-{base}-{step}", tuple(sorted(buckets, key=lambda bucket: bucket.ratio)))


def _check_grid(base: int, step: int, low: float, high: float) -> None:
    if base < 1:
        raise ConfigError(f"the resolution of buckets must be a positive number of pixels. Found: {base}")
    if step < 1 or step % _LATENT_STEP or base % step:
        raise ConfigError(
            f"the step of buckets must be a multiple of {_LATENT_STEP} that divides the resolution {base}. "
            f"Found: {step}"
        )
    if not _WIDEST_RANGE[0] <= low <= high <= _WIDEST_RANGE[1]:
        raise ConfigError(
            f"the ratios (height / width) of buckets must go from a lower to a higher number, within "
            f"{_WIDEST_RANGE[0]:g} to {_WIDEST_RANGE[1]:g}. Found: {low} to {high}"
        )


def _check_fitted(count: int, base: int, step: int, low: float, high: float) -> None:
    if count < 1:
        raise ConfigError(f"the number of buckets must be at least 1. Found: {count}")
    _check_grid(base, step, low, high)


def fitted_table(
    count: int,
    base: int,
    sizes: Array,
    step: int = DEFAULT_STEP,
    low: float = DEFAULT_RANGE[0],
    high: float = DEFAULT_RANGE[1],
) -> BucketTable:
    """The `count` sizes of `grid_table` that lose the fewest pixels of these images when they cover and are cropped.

    sizes: (height, width) of every image, integers (n, 2). An image of ratio a goes to the bucket that `nearest`
    gives, of ratio b, and loses the share 1 - min(a / b, b / a) of its pixels; every image counts alike. The optimum
    is exact: of an image between two neighbours of a table only those two matter, so what is kept adds up along a
    path through the candidates. Gives fewer than `count` where more would save nothing. Raises ConfigError.
    """
    _check_fitted(count, base, step, low, high)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or len(sizes) == 0 or sizes.min() < 1:
        raise ConfigError(
            "the image sizes that buckets are fitted to must be at least one pair of positive (height, width). "
            f"Found: an array of shape {sizes.shape}{' with a side below 1' if sizes.size else ''}"
        )
    candidates = grid_table(base, step, low, high).buckets
    images = np.sort(sizes[:, 0] / sizes[:, 1])
    first, between, last = _kept(np.array([bucket.ratio for bucket in candidates]), images)
    chosen = _best_path(min(count, len(candidates)), first, between, last, _NEGLIGIBLE * len(images))
    return BucketTable(f"auto-{count}-{base}-{step}", tuple(candidates[number] for number in chosen))


def _kept(ratios: Array, images: Array) -> tuple[Array, Array, Array]:
    """Shares that images keep, summed: of those at or below the first ratio of a table, (k,); between two neighbours,
    (k, k), -inf where they are not in order; above the last, (k,). Ratios and images are sorted."""
    sums = np.concatenate([[0.0], np.cumsum(images)])
    inverse = np.concatenate([[0.0], np.cumsum(1 / images)])
    below = np.searchsorted(images, ratios, side="right")
    i, j = np.triu_indices(len(ratios), 1)
    split = _split(ratios[i], ratios[j], below[i], below[j], images)
    between = np.full((len(ratios), len(ratios)), -np.inf)
    between[i, j] = (inverse[split] - inverse[below[i]]) * ratios[i] + (sums[below[j]] - sums[split]) / ratios[j]
    return sums[below] / ratios, between, (inverse[-1] - inverse[below]) * ratios


def _split(lower: Array, upper: Array, start: Array, stop: Array, images: Array) -> Array:
    """For each pair of neighbours, the first of `images[start:stop]` that is nearer to the upper; a tie is the
    lower's. A binary search by the very differences that `nearest` compares, since a midpoint rounds otherwise."""
    start, stop = start.copy(), stop.copy()
    while (searching := start < stop).any():
        middle = np.minimum((start + stop) // 2, len(images) - 1)
        to_lower = images[middle] - lower <= upper - images[middle]
        start = np.where(searching & to_lower, middle + 1, start)
        stop = np.where(searching & ~to_lower, middle, stop)
    return start


def _best_path(count: int, first: Array, between: Array, last: Array, negligible: float) -> list[int]:
    """The shortest of the paths of at most `count` candidates that keep the most, by dynamic programming."""
    kept = first
    totals, origins = [kept + last], []
    for _ in range(count - 1):
        through = kept[:, None] + between
        origins.append(through.argmax(axis=0))
        kept = through.max(axis=0)
        totals.append(kept + last)
    best = np.array([total.max() for total in totals])
    length = int(np.argmax(best >= best.max() - negligible))
    path = [int(totals[length].argmax())]
    for origin in reversed(origins[:length]):
        path.append(int(origin[path[-1]]))
    return path[::-1]
