"""Photos to measure with: JPEGs of about 500x375, cut from the packaged demo photos, always the same ones."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

_SOURCE = Path(__file__).resolve().parents[1] / "src" / "latentmill" / "assets" / "photos"
_GRAIN = 6.0  # levels of deviation: a scaled photo is smoother than one of that size, and easier to decode


def make_photos(
    folder: Path,
    count: int,
    size: tuple[int, int] = (500, 375),
    classes: int = 10,
    grain: bool = False,
    vary: float = 0.1,
    quality: int = 90,
) -> None:
    """Write `count` JPEGs (4:2:0) of `size` (width, height) into class folders.

    vary: the share that each side may be longer or shorter; a tenth, as in ImageNet's midst.
    grain: add noise to the scaled photos, as a camera does.
    """
    pick = random.Random(0)
    noise = np.random.default_rng(0)
    sources = [Image.open(path).convert("RGB") for path in sorted(_SOURCE.rglob("*.jpg"))]
    for number in range(count):
        path = folder / f"class{number % classes:02d}" / f"photo{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        source = pick.choice(sources)
        share = pick.uniform(0.6, 1.0)
        width, height = int(source.width * share), int(source.height * share)
        left, top = pick.randint(0, source.width - width), pick.randint(0, source.height - height)
        wide = (round(size[0] * pick.uniform(1 - vary, 1 + vary)), round(size[1] * pick.uniform(1 - vary, 1 + vary)))
        image = source.resize(wide, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        (grainy(image, noise) if grain else image).save(path, quality=quality)


def grainy(image: Image.Image, noise: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image)
    grains = noise.standard_normal(pixels.shape, dtype=np.float32) * _GRAIN
    return Image.fromarray((pixels + grains).round().clip(0, 255).astype(np.uint8))
