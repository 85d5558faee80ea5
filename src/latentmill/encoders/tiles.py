"""An image too large to be encoded whole, in overlapping tiles whose latents are blended.

A tile's group norms and attention see the tile alone, so the result is close to the whole image's and not the same.
Tiles are full and evenly placed: a narrow one at the edge would have norms of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from latentmill.records import Array

_OVERLAP = 0.25  # of a tile's side, at least


def tiled_moments(moments: Callable[[Array], Array], pixels: Array, tile: int, factor: int) -> Array:
    """Moments float32 (2C, h, w) of uint8 HWC pixels. moments: of a batch of pixels NHWC, (N, 2C, h, w).

    Any number of channels will do: a model without a posterior has C.
    tile: pixels of a tile's side. factor: pixels that one position stands for; sides are multiples of it.
    """
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    side = tile // factor
    rows, columns = _starts(height, side), _starts(width, side)
    high, wide = min(side, height), min(side, width)
    weight = np.outer(_ramp(high), _ramp(wide))
    total, weights = np.zeros(0, np.float32), np.zeros((height, width), np.float32)
    for top in rows:
        for left in columns:
            part = pixels[top * factor : (top + high) * factor, left * factor : (left + wide) * factor]
            own = moments(np.ascontiguousarray(part)[None])[0]
            if not total.size:
                total = np.zeros((len(own), height, width), np.float32)
            total[:, top : top + high, left : left + wide] += own * weight
            weights[top : top + high, left : left + wide] += weight
    result: Array = total / weights
    return result


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin: evenly, the first at the start and the last ending at the end."""
    if length <= side:
        return [0]
    count = -(-(length - round(side * _OVERLAP)) // (side - round(side * _OVERLAP)))
    return [round(number * (length - side) / (count - 1)) for number in range(count)]


def _ramp(side: int) -> Array:
    """Weights float32 that rise from a tile's edges, over the overlap, to its middle."""
    rise = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)) / max(1, round(side * _OVERLAP))
    return np.minimum(rise, 1).astype(np.float32)
