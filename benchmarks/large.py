"""Large photos: 12 to 50 megapixels to squares, and to buckets of 2880 pixels; the memory of a worker."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from converting import convert, fresh, has_fast, most_levels, pngs
from harness import Section, Setting, Took, check_same, cpus, in_turn, latentmill, ratios, spread, times, walls
from photos import grainy
from PIL import Image
from reference import center_crop_dhariwal, decoded

from latentmill.formats.payload import png_pixels
from latentmill.formats.reader import Reader

SIZES = {"12 MP": (4000, 3000), "24 MP": (6000, 4000), "50 MP": (8688, 5792)}  # (width, height)
RESULTS = (256, 1024)
PHOTOS = 6
BUCKETED = 4  # photos


def run(setting: Setting) -> list[Section]:
    sizes = dict(list(SIZES.items())[: 1 if setting.quick else None])
    folders = {name: large_photos(setting, name, size) for name, size in sizes.items()}
    squares = Section(
        "Large photos to squares, one worker, whole processes",
        "every crop is that of Pillow, pixel for pixel; --resize fast: the largest and the mean difference are told",
        ("photos", "result", "way", "ms an image", "CPU over exact's", "largest process", "levels from exact"),
    )
    for name, folder in folders.items():
        for side in RESULTS[: 1 if setting.quick else None]:
            square(squares, setting, name, folder, side)
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
    took = in_turn(programs, setting.count(3, 1))
    count = len(list(folder.glob("*.jpg")))
    for way in ways:
        each = [max(1e-9, cpu - start) for cpu, start in zip(cpus(took[way]), cpus(took["start"]), strict=True)]
        exact = [max(1e-9, cpu - start) for cpu, start in zip(cpus(took["exact"]), cpus(took["start"]), strict=True)]
        levels = "" if way == "exact" else differences(out / way, out / "exact")
        section.add(
            name, f"{side}x{side}", way, spread([1000 * value / count for value in each], digits=0),
            times(ratios(each, exact)), f"{max(took.peak for took in took[way]) / 1e6:,.0f} MB", levels,
        )  # fmt: skip


def differences(fast: Path, exact: Path) -> str:
    mine, other = Reader(fast), Reader(exact)
    means = [
        np.abs(png_pixels(mine.read(name)).astype(np.int16) - png_pixels(other.read(name))).mean()
        for name in pngs(exact)
    ]
    return f"at most {most_levels(fast, exact)}, mean {np.mean(means):.2f}"


def buckets(setting: Setting, folder: Path, name: str) -> Section:
    """2880-pixel buckets through the fake encoder, which takes next to nothing: loading is what is measured."""
    out = setting.folder("large-buckets")
    (folder / "data.txt").unlink(missing_ok=True)
    for path in folder.glob("*.jpg"):
        path.with_suffix(".txt").write_text("a photo")
    section = Section(
        "Large photos to buckets of 2880 pixels (stretch, LANCZOS), whole processes, an encoder that takes no time",
        "the pixels of the bucket are Pillow's, pixel for pixel",
        ("photos", "way", "seconds an image", "CPU seconds an image", "largest process"),
    )
    check_bucket(next(folder.glob("*.jpg")))
    count = len(list(folder.glob("*.jpg")))

    def program(*more: str) -> Took:
        return latentmill(
            "pixart", "--data-info", folder, "--dest", fresh(out / "features"), "--vae=fake", "--multi-scale",
            "--resolution=2880", f"--num-workers={setting.workers}", *more,
        )  # fmt: skip

    ways = {"exact": (), **({"fast": ("--resize=fast",)} if has_fast() else {})}
    took = in_turn({way: lambda more=more: program(*more) for way, more in ways.items()}, setting.count(3, 1))
    for way, each in took.items():
        section.add(
            name, way, *(spread([value / count for value in values]) for values in (walls(each), cpus(each))),
            f"{max(took.peak for took in each) / 1e6:,.0f} MB",
        )  # fmt: skip
    return section


def check_bucket(path: Path) -> None:
    """Raises DifferentError."""
    from latentmill.transforms.bucket import reference_table
    from latentmill.transforms.fit import geometry, resampled

    pixels = decoded(path)
    size = pixels.shape[0], pixels.shape[1]
    bucket = reference_table(2880).nearest(*size).size
    found = resampled(pixels, geometry("stretch", size, bucket), "lanczos")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        expected = image.convert("RGB").resize(bucket[::-1], Image.Resampling.LANCZOS)
    check_same(found, np.asarray(expected), f"{path.name} to the bucket {bucket}")
