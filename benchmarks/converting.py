"""A whole conversion, from process start to exit, against what it replaces and against decoding alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import (
    DifferentError,
    Section,
    Setting,
    Took,
    check_same,
    cpus,
    in_turn,
    inside,
    latentmill,
    ratios,
    spread,
    times,
    walls,
)
from harness import reference as loop
from photos import make_photos
from reference import center_crop_dhariwal, decoded
from reference_loops import photos as jpegs

from latentmill.decoding import decode
from latentmill.formats.payload import png_pixels
from latentmill.formats.reader import Reader

SIDE = 256
SETTINGS = (f"--resolution={SIDE}x{SIDE}", "--transform=center-crop-dhariwal")
GOALS = {"sequential": "5x", "pool": "3.5x", "decode": "at most 2x its time", "fast": "at most 1.5x decode's time"}
FAST_LEVELS = 2  # that --resize fast may differ where it does not decode at reduced scale
FAST_MOST = 14, 25  # where it does: of 99.9 % of the values, and of all; see latentmill.transforms.reduction
REDUCED = 2048, 1536  # (width, height)
LIKE_IMAGENET = 96  # quality, by which photos are of 112 kB in the mean; ImageNet's 1,281,167 are of 108 kB
LIGHT = 90  # of 65 kB: decoding takes less, and so all else weighs more
DECODED, CHECKED = 200, 20  # photos, for a note and against Pillow
HEADINGS = ("program", "seconds", "CPU seconds", "images/s", "its time over exact's", "its CPU over exact's", "goal")
NAMES = {
    "sequential": "sequential Pillow loop",
    "pool": "the fork's scheme: 4 processes, level-1 PNG, polled every 0.1 s",
    "decode": "decode alone",
    "calls": "what latentmill calls for each photo, and nothing else",
    "exact": "latentmill convert",
    "fast": "latentmill convert --resize fast",
}


def run(setting: Setting) -> list[Section]:
    photos, count = source_photos(setting)
    sections = [folder_section(setting, photos, count)]
    if setting.photos is None:
        sections.append(light_section(setting, count))
    sections.append(zip_section(setting, photos, count))
    if has_fast():
        sections.append(reduced_section(setting))
    return sections


def source_photos(setting: Setting) -> tuple[Path, int]:
    """The photos, made once for all parts, and how many they are. Of a user's folder, links to what all sides read."""
    folder = setting.work.parent / "photos"
    if not folder.exists():
        if setting.photos is None:
            make_photos(folder, setting.count(1000, 200), grain=True, quality=LIKE_IMAGENET)
        else:
            link_photos(setting.photos, folder)
    return folder, len(jpegs(folder))


def link_photos(source: Path, folder: Path) -> None:
    """Links to the `.jpg` files alone, under their relative names."""
    for path in jpegs(source):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())


def has_fast() -> bool:
    from latentmill.config import PixelSettings

    return "resize" in PixelSettings.model_fields


def folder_section(setting: Setting, photos: Path, count: int) -> Section:
    out = setting.folder("converted")
    programs: dict[str, Callable[[], Took]] = {
        "sequential": lambda: loop("sequential", photos, fresh(out / "sequential"), SIDE),
        "pool": lambda: loop("pool", photos, fresh(out / "pool"), SIDE),
        "decode": lambda: loop("decode", photos, setting.workers),
        "calls": lambda: loop("calls", photos, fresh(out / "calls"), SIDE, setting.workers),
        "exact": lambda: convert(photos, fresh(out / "exact"), setting.workers),
    }
    if has_fast():
        programs["fast"] = lambda: convert(photos, fresh(out / "fast"), setting.workers, "--resize=fast")
    for name, program in programs.items():
        if name != "decode":
            program()
    check_same_pngs(out / "exact", out / "sequential")
    check_same_pngs(out / "exact", out / "pool")
    check_same_pngs(out / "exact", out / "calls")
    checked = f"{count:,} PNGs of all programs have the same pixels"
    if has_fast():
        worst = most_levels(out / "fast", out / "exact")
        if worst > FAST_LEVELS:
            raise DifferentError(f"--resize fast is {worst} levels from exact, allowed are {FAST_LEVELS} at this size")
        checked += f"; --resize fast is at most {worst} levels from them"
    section = Section(
        f"Convert {count:,} photos to {SIDE}x{SIDE}, a folder, whole processes, {setting.workers} workers",
        checked,
        HEADINGS,
    )
    tell(section, in_turn(programs, setting.rounds), count)
    decode_note(section, setting, photos)
    return section


def light_section(setting: Setting, count: int) -> Section:
    """The same photos in fewer bytes."""
    photos, out = setting.work / "photos-light", setting.folder("light")
    make_photos(photos, count, grain=True, quality=LIGHT)
    programs: dict[str, Callable[[], Took]] = {
        "sequential": lambda: loop("sequential", photos, fresh(out / "sequential"), SIDE),
        "decode": lambda: loop("decode", photos, setting.workers),
        "exact": lambda: convert(photos, fresh(out / "exact"), setting.workers),
    }
    programs["sequential"]()
    programs["exact"]()
    check_same_pngs(out / "exact", out / "sequential")
    section = Section(
        f"The same with lighter photos, of quality {LIGHT}",
        f"{count:,} PNGs of latentmill and of the sequential loop have the same pixels",
        HEADINGS,
    )
    tell(section, in_turn(programs, min(setting.rounds, 3)), count)
    decode_note(section, setting, photos)
    return section


def copied(photos: Path, times: int) -> int:
    """Each photo under so many names, by hard links: a thousand of large ones would take minutes to make."""
    for path in jpegs(photos):
        for number in range(1, times):
            path.with_name(f"{path.stem}-{number}.jpg").hardlink_to(path)
    return times


def tell(section: Section, took: dict[str, list[Took]], count: int) -> None:
    exact = took["exact"]
    for name, each in took.items():
        rates = [count / seconds for seconds in walls(each)]
        section.add(
            NAMES[name], spread(walls(each)), spread(cpus(each)), spread(rates, digits=0),
            times(ratios(walls(each), walls(exact))), times(ratios(cpus(each), cpus(exact))), GOALS.get(name, ""),
        )  # fmt: skip
    if "decode" in took:
        over = ratios(walls(exact), walls(took["decode"]))
        section.notes.append(f"convert takes {times(over)} the time of decode alone")
        if "fast" in took:
            over = ratios(walls(took["fast"]), walls(took["decode"]))
            section.notes.append(f"convert --resize fast takes {times(over)} the time of decode alone")


def decode_note(section: Section, setting: Setting, photos: Path) -> None:
    files = jpegs(photos)
    size, (theirs, ours) = np.mean([path.stat().st_size for path in files]), decode_ms(files[:DECODED])
    section.notes.append(
        f"decode alone: simplejpeg over the same files in {setting.workers} processes, its imports and start counted; "
        f"a photo is of {size:,.0f} bytes in the mean, and decoded in {theirs:.2f} ms of CPU without them, and in "
        f"{ours:.2f} by latentmill ({ours / theirs:.2f}), to the same pixels"
    )


def decode_ms(files: list[Path]) -> tuple[float, float]:
    """Milliseconds of CPU to decode a photo in this process, by simplejpeg and by latentmill.

    Medians of 5 rounds in turn. Raises DifferentError.
    """
    import simplejpeg

    data = [path.read_bytes() for path in files]
    for path, each in zip(files, data, strict=True):
        check_same(decode(each)[0], simplejpeg.decode_jpeg(each), path.name)

    def each_of(decoder: Callable[[bytes], object]) -> float:
        return inside(lambda: [decoder(each) for each in data]).cpu

    rounds = [(each_of(simplejpeg.decode_jpeg), each_of(decode)) for _ in range(5)]
    theirs, ours = (1000 * statistics.median(spent) / len(files) for spent in zip(*rounds, strict=True))
    return theirs, ours


def reduced_section(setting: Setting) -> Section:
    """Photos that `--resize fast` decodes at half their sides; those of 500x375 it decodes as exact does."""
    photos, out, made = setting.work / "photos-reduced", setting.folder("reduced"), setting.count(100, 12)
    make_photos(photos, made, REDUCED, grain=True, vary=0)
    count = made * copied(photos, setting.count(10, 1))
    programs: dict[str, Callable[[], Took]] = {
        "decode": lambda: loop("decode", photos, setting.workers),
        "exact": lambda: convert(photos, fresh(out / "exact"), setting.workers),
        "fast": lambda: convert(photos, fresh(out / "fast"), setting.workers, "--resize=fast"),
    }
    programs["exact"]()
    programs["fast"]()
    for number, path in enumerate(jpegs(photos)[:CHECKED]):
        found = png_pixels(Reader(out / "exact").read(pngs(out / "exact")[number]))
        check_same(found, center_crop_dhariwal(decoded(path), SIDE, SIDE), f"exact, {path.name}")
    told = check_fast(out / "fast", out / "exact")
    if told.most == 0:
        raise DifferentError("--resize fast gave what exact gives, so nothing was decoded at reduced scale")
    section = Section(
        f"Convert {count:,} photos of {REDUCED[0]}x{REDUCED[1]} to {SIDE}x{SIDE} ({made} that differ), "
        f"{setting.workers} workers",
        f"exact is Pillow's, pixel for pixel, in {min(CHECKED, count)} photos; --resize fast is within the documented "
        f"{FAST_MOST[0]} levels for 99.9 % of each photo's values and {FAST_MOST[1]} for all: {told}",
        HEADINGS,
    )
    tell(section, in_turn(programs, min(setting.rounds, 3)), count)
    decode_note(section, setting, photos)
    return section


@dataclass(frozen=True)
class Levels:
    """Differences of `--resize fast` from exact, in levels of 255. most, nearly: of all values, and of 99.9 %."""

    most: int
    nearly: int
    mean: float

    def __str__(self) -> str:
        return f"at most {self.most}, 99.9 % at most {self.nearly}, mean {self.mean:.2f}"


def check_fast(fast: Path, exact: Path) -> Levels:
    """The worst photo's levels. Raises DifferentError beyond what `transforms.reduction` documents, or other names."""
    if pngs(fast) != pngs(exact):
        raise DifferentError(f"{fast.name} and {exact.name} hold other PNGs")
    mine, other = Reader(fast), Reader(exact)
    each = []
    for name in pngs(exact):
        one, two = png_pixels(mine.read(name)), png_pixels(other.read(name))
        apart = np.abs(one.astype(np.int16) - two)
        nearly = int(np.quantile(apart, 0.999, method="higher"))
        each.append(Levels(int(apart.max()), nearly, float(apart.mean())))
        if nearly > FAST_MOST[0] or each[-1].most > FAST_MOST[1]:
            raise DifferentError(f"--resize fast, {name}: {each[-1]} levels; allowed: {FAST_MOST}")
    return Levels(*(max(getattr(levels, name) for levels in each) for name in ("most", "nearly", "mean")))


def zip_section(setting: Setting, photos: Path, count: int) -> Section:
    out = setting.folder("zipped")
    programs = {
        "sequential": lambda: loop("sequential", photos, fresh(out / "sequential.zip"), SIDE),
        "exact": lambda: convert(photos, fresh(out / "exact.zip"), setting.workers),
    }
    for program in programs.values():
        program()
    check_same_pngs(out / "exact.zip", out / "sequential.zip")
    section = Section(
        f"Convert {count:,} photos to {SIDE}x{SIDE}, a zip, whole processes, {setting.workers} workers",
        f"{count:,} members of both archives have the same pixels",
        HEADINGS,
    )
    tell(section, in_turn(programs, min(setting.rounds, 3)), count)
    return section


def fresh(dest: Path) -> Path:
    """A destination that is not there yet. What an earlier round left is put aside, and removed with all else.

    ext4 looks at each inode that was deleted in the last minutes before it gives out another: programs that write
    would pay for what the benchmark deletes.
    """
    aside = dest.parent / "earlier"
    aside.mkdir(parents=True, exist_ok=True)
    for path in dest.parent.glob(f"{dest.name}*"):
        path.rename(aside / f"{len(list(aside.iterdir()))}-{path.name}")
    return dest


def convert(source: Path, dest: Path, workers: int, *more: str) -> Took:
    return latentmill("convert", "--source", source, "--dest", dest, f"--num-workers={workers}", *SETTINGS, *more)


def pngs(place: Path) -> list[str]:
    if place.suffix == ".zip":
        import zipfile

        with zipfile.ZipFile(place) as archive:
            return sorted(name for name in archive.namelist() if name.endswith(".png"))
    return sorted(str(path.relative_to(place)) for path in place.rglob("*.png"))


def check_same_pngs(ours: Path, theirs: Path) -> None:
    """Every PNG of both, by name. Ours are decoded by Pillow as well as by latentmill. Raises DifferentError."""
    names = pngs(ours)
    if names != pngs(theirs):
        raise DifferentError(f"{ours.name} holds {len(names)} PNGs, {theirs.name} {len(pngs(theirs))} or other names")
    mine, other = Reader(ours), Reader(theirs)
    for name in names:
        data = mine.read(name)
        found = pillow_pixels(data)
        check_same(found, pillow_pixels(other.read(name)), f"{name} of {ours.name} and {theirs.name}")
        check_same(png_pixels(data), found, f"{name} as latentmill reads it")


def most_levels(ours: Path, theirs: Path) -> int:
    mine, other = Reader(ours), Reader(theirs)
    pairs = ((png_pixels(mine.read(name)), png_pixels(other.read(name))) for name in pngs(theirs))
    return max(int(np.abs(a.astype(np.int16) - b).max()) for a, b in pairs)


def pillow_pixels(data: bytes) -> np.ndarray:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)
