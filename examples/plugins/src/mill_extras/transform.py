"""A transform: the whole image, on a grey ground of the wanted size."""

from __future__ import annotations

import numpy as np
from PIL import Image

from latentmill.records import Array

_GREY = 128


def letterbox(pixels: Array, width: int, height: int) -> Array | None:
    """`transform = "letterbox"`: uint8 HWC RGB -> uint8 (height, width, 3), nothing cut off; None: leave it out.

    Called from many threads; `pixels` is shared with other outputs and stays as it is.
    """
    rows, columns = pixels.shape[:2]
    scale = min(height / rows, width / columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    if size[0] > columns:
        return None  # never enlarged
    image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    canvas = np.full((height, width, 3), _GREY, dtype=np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = np.asarray(image)
    return canvas
