"""The sequential loop that people replace: decode, crop, stored PNG, one image after the other, all by Pillow.

python benchmarks/pillow_loop.py SOURCE DEST SIDE
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def crop(image: Image.Image, side: int) -> Image.Image:
    """The dhariwal crop, as its arithmetic is written down."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return Image.fromarray(pixels[top : top + side, left : left + side])


def main() -> None:
    source, dest, side = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for number, path in enumerate(sorted(source.rglob("*.jpg"))):
        target = dest / f"{number:08d}"[:5] / f"img{number:08d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            crop(image.convert("RGB"), side).save(target, compress_level=0, optimize=False)


if __name__ == "__main__":
    main()
