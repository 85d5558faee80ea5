"""The four crops against Pillow's, in one thread: exactness over many photos first."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

import numpy as np
import reference
from harness import Section, Setting, check_same, cpus, in_turn, inside, ratios, spread, times
from photos import make_photos
from reference_loops import photos as jpegs

from latentmill.transforms.crop import CROPS

GOAL = 0.2  # of Pillow's time, for the whole dhariwal crop
RESULTS = {  # (width, height), by transform
    "none": ((256, 256), (512, 512)),
    "center-crop": ((256, 256), (512, 512)),
    "center-crop-wide": ((256, 128), (512, 256)),
    "center-crop-dhariwal": ((256, 256), (512, 512)),
}
TIMED = ((375, 500), (500, 375), (768, 1024), (3000, 4000))  # (height, width) of the source
SECONDS = 0.2  # of Pillow's time, about, in one turn


def run(setting: Setting) -> Section:
    counted = check(setting)
    section = Section(
        f"Crops, one thread, CPU time ({implementation()})",
        f"{counted:,} crops of photos and of noise, of random sizes, are Pillow's, pixel for pixel",
        ("crop", "source", "result", "Pillow, ms", "latentmill, ms", "of Pillow's time", "goal"),
    )
    for name, sizes in RESULTS.items():
        for size in sizes if not setting.quick else sizes[:1]:
            for source in TIMED if not setting.quick else TIMED[:1]:
                timed(section, setting, name, source, size)
    return section


def implementation() -> str:
    from latentmill.transforms import resample

    return f"{resample.IMPLEMENTATION} resampler"


def timed(section: Section, setting: Setting, name: str, source: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = photo(source)
    ours, theirs = CROPS[name], reference.CROPS[name]
    check_same(ours(pixels, *size), theirs(pixels, *size), f"{name} of {source}")
    first = inside(lambda: theirs(pixels, *size)).cpu
    count = max(1, round(SECONDS / max(first, 1e-4)))

    def repeat(crop: object) -> None:
        for _ in range(count):
            crop(pixels, *size)  # type: ignore[operator]

    programs = {"theirs": theirs, "ours": ours}
    took = in_turn({key: partial(inside, partial(repeat, crop)) for key, crop in programs.items()}, setting.rounds)
    mine, other = cpus(took["ours"]), cpus(took["theirs"])
    each = [[1000 * seconds / count for seconds in values] for values in (other, mine)]
    goal = f"{GOAL}x" if name == "center-crop-dhariwal" else ""
    section.add(
        name, f"{source[1]}x{source[0]}", f"{size[0]}x{size[1]}", spread(each[0]), spread(each[1]),
        times(ratios(mine, other)), goal,
    )  # fmt: skip


def photo(size: tuple[int, int]) -> np.ndarray:
    """A photo with grain, uint8 HWC of (height, width)."""
    from photos import grainy
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    whole = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(grainy(whole, np.random.default_rng(1)))


def check(setting: Setting) -> int:
    """Compare every crop over photos of many sizes; gives how many were. Raises DifferentError."""
    count = 0
    for number, pixels in enumerate(sources(setting)):
        for name, sizes in RESULTS.items():
            for size in sizes:
                what = f"{name} to {size[0]}x{size[1]} of source {number} ({pixels.shape[1]}x{pixels.shape[0]})"
                check_same(CROPS[name](pixels, *size), reference.CROPS[name](pixels, *size), what)
                count += 1
    return count


def sources(setting: Setting) -> Iterator[np.ndarray]:
    """Photos as they come, and noise of sizes from 17 to 1400 pixels a side."""
    folder = setting.photos or setting.work / "crop-photos"
    if setting.photos is None:
        make_photos(folder, setting.count(300, 40))
    for path in jpegs(folder)[: setting.count(1000, 40)]:
        yield reference.decoded(path)
    pick, noise = random.Random(0), np.random.default_rng(0)
    for _ in range(setting.count(100, 20)):
        height, width = (int(17 * (1400 / 17) ** pick.random()) for _ in range(2))
        yield noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
