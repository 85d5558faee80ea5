"""Large photos: 12 to 50 megapixels to squares, and to buckets of 2880 pixels; the memory of a worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from converting import FAST_MOST, check_fast, convert, fresh, has_fast, pngs
from harness import Section, Setting, Took, check_same, cpus, in_turn, judged, latentmill, ratios, spread, times, walls
from photos import grainy
from PIL import Image
from reference import center_crop_dhariwal, decoded

from latentmill.formats.payload import png_pixels
from latentmill.formats.reader import Reader

SIZES = {"12 MP": (4000, 3000), "24 MP": (6000, 4000), "50 MP": (8688, 5792)}  # (width, height)
RESULTS = (256, 1024)
PHOTOS = 6
MOST_ROUNDS = 2
BATCH = 32  # results that a process may hold: latentmill's default


def run(setting: Setting) -> list[Section]:
    sizes = dict(list(SIZES.items())[: 1 if setting.quick else None])
    folders = {name: large_photos(setting, name, size) for name, size in sizes.items()}
    squares = Section(
        "Large photos to squares, one worker, whole processes",
        "every crop is that of Pillow, pixel for pixel; --resize fast is within the documented levels, 99.9 % of each "
        f"photo's values within {FAST_MOST[0]} and all within {FAST_MOST[1]}",
        (
            "photos",
            "result",
            "way",
            "ms an image",
            "CPU over exact's",
            "largest process",
            "memory goal",
            "levels from exact",
        ),
    )
    for name, folder in folders.items():
        for side in RESULTS[: 1 if setting.quick else None]:
            square(squares, setting, name, folder, side)
    squares.notes.append("memory goal: a process with one small photo, a decoded photo, its file, a batch of results")
    squares.notes.append("ms an image: CPU of the whole process less that of a job of one small photo")
    return [squares, buckets(setting, next(iter(folders.values())), next(iter(folders)))]


def large_photos(setting: Setting, name: str, size: tuple[int, int]) -> Path:
    """JPEGs of quality 92 with grain, of one size."""
    folder = setting.folder("large") / name.replace(" ", "")
    folder.mkdir()
    noise = np.random.default_rng(0)
    sources = sorted((Path(__file__).parents[1] / "src/latentmill/assets/photos").rglob("*.jpg"))
    for number in range(setting.count(PHOTOS, 2)):
        with Image.open(sources[number]) as source:
            image = source.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        grainy(image, noise).save(folder / f"{number}.jpg", quality=92)
    return folder


def square(section: Section, setting: Setting, name: str, folder: Path, side: int) -> None:
    out, small = setting.folder("large-squares"), setting.folder("large-small")
    if not any(small.iterdir()):
        Image.new("RGB", (2 * side, 2 * side)).save(small / "0.jpg")
    ways = {"exact": (), **({"fast": ("--resize=fast",)} if has_fast() else {})}
    size = f"--resolution={side}x{side}"
    programs = {
        way: lambda way=way, more=more: convert(folder, fresh(out / way), 1, size, *more) for way, more in ways.items()
    }
    programs["start"] = lambda: convert(small, fresh(out / "start"), 1, size)
    for way in ways:
        programs[way]()
    for number, path in enumerate(sorted(folder.glob("*.jpg"))):
        found = png_pixels(Reader(out / "exact").read(pngs(out / "exact")[number]))
        check_same(found, center_crop_dhariwal(decoded(path), side, side), f"{name} photo {number} to {side}")
    took = in_turn(programs, min(setting.rounds, MOST_ROUNDS))
    count = len(list(folder.glob("*.jpg")))
    before = min(each.peak for each in took["start"])
    bound = round((before + largest_photo(folder) + min(count, BATCH) * 3 * side**2) / 1e6)
    for way in ways:
        each = [max(1e-9, cpu - start) for cpu, start in zip(cpus(took[way]), cpus(took["start"]), strict=True)]
        exact = [max(1e-9, cpu - start) for cpu, start in zip(cpus(took["exact"]), cpus(took["start"]), strict=True)]
        levels = "" if way == "exact" else str(check_fast(out / way, out / "exact"))
        peaks = [one.peak / 1e6 for one in took[way]]
        section.add(
            name, f"{side}x{side}", way, spread([1000 * value / count for value in each], digits=0),
            times(ratios(each, exact)), f"{max(peaks):,.0f} MB", judged([max(peaks)], bound, " MB"), levels,
        )  # fmt: skip


def largest_photo(folder: Path) -> int:
    """Bytes of the largest photo, decoded and as a file."""

    def size(path: Path) -> int:
        with Image.open(path) as image:
            return 3 * image.width * image.height + path.stat().st_size

    return max(map(size, folder.glob("*.jpg")))


def buckets(setting: Setting, folder: Path, name: str) -> Section:
    """2880-pixel buckets through the fake encoder, which takes next to nothing: loading is what is measured."""
    out = setting.folder("large-buckets")
    (folder / "data.txt").unlink(missing_ok=True)
    for path in folder.glob("*.jpg"):
        path.with_suffix(".txt").write_text("a photo")
    section = Section(
        "Large photos to buckets of 2880 pixels (stretch, LANCZOS), whole processes, an encoder that takes no time",
        "what the exact job stored is what the encoder gives for Pillow's pixels of the bucket, number for number",
        ("photos", "way", "seconds an image", "CPU seconds an image", "largest process", "memory goal"),
    )
    count = len(list(folder.glob("*.jpg")))

    def program(source: Path, *more: str) -> Took:
        return latentmill(
            "pixart", "--data-info", source, "--dest", fresh(out / "features"), "--vae=fake", "--multi-scale",
            "--resolution=2880", "--batch-size=1", f"--num-workers={setting.workers}", *more,
        )  # fmt: skip

    ways = {"exact": (), **({"fast": ("--resize=fast",)} if has_fast() else {})}
    before = program(small_captioned(setting)).peak
    program(folder)
    for path in folder.glob("*.jpg"):
        check_stored(path, next((out / "features").rglob(f"{path.stem}.npy")))
    programs = {way: lambda more=more: program(folder, *more) for way, more in ways.items()}
    took = in_turn(programs, min(setting.rounds, MOST_ROUNDS))
    held = min(count, setting.workers) * largest_photo(folder)
    bound = round((before + held) / 1e6)
    for way, each in took.items():
        peak = max(one.peak for one in each) / 1e6
        section.add(
            name, way, *(spread([value / count for value in values]) for values in (walls(each), cpus(each))),
            f"{peak:,.0f} MB", judged([peak], bound, " MB"),
        )  # fmt: skip
    section.notes.append(
        f"memory goal: a process with one small photo, which has a batch of one bucket too, and "
        f"{min(count, setting.workers)} decoded photos with their files"
    )
    return section


def small_captioned(setting: Setting) -> Path:
    """A folder of one photo of 64x48 with its caption."""
    folder = setting.folder("large-small-captioned")
    Image.new("RGB", (64, 48)).save(folder / "0.jpg")
    (folder / "0.txt").write_text("a photo")
    return folder


def check_stored(path: Path, stored: Path) -> None:
    """What the timed job stored: means of 8x8 pixels, so no pixel may differ unseen by more than float32 tells.

    Raises DifferentError.
    """
    from latentmill.transforms.bucket import reference_table

    with Image.open(path) as image:
        bucket = reference_table(2880).nearest(image.height, image.width).size
        pixels = np.asarray(image.convert("RGB").resize(bucket[::-1], Image.Resampling.LANCZOS))
    expected = block_means(pixels)
    check_same(np.load(stored)[: len(expected)], expected, f"{path.name} in the bucket {bucket}")


def block_means(pixels: np.ndarray) -> np.ndarray:
    """The `fake` encoder's means (4, h, w): of blocks of 8x8 pixels of red, green, blue, in -1..1, and of all three."""
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // 8, 8, width // 8, 8, 3)
    colours = blocks.mean(axis=(1, 3), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    return np.concatenate([colours, colours.mean(axis=0, keepdims=True)]).astype(np.float32)
