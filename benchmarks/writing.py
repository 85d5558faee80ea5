"""Packing and writing: a stored PNG, an npy, and shards to a folder and a zip, against Pillow, np.save and zipfile."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import reference
from harness import (
    DifferentError,
    Section,
    Setting,
    Took,
    check_same,
    cpus,
    in_turn,
    inside,
    ratios,
    spread,
    times,
    walls,
)

from latentmill.files import digests
from latentmill.formats.containers import container
from latentmill.formats.payload import npy_array, npy_bytes, png_bytes, png_pixels

IMAGES, SIDE = 256, 256


def run(setting: Setting) -> list[Section]:
    noise = np.random.default_rng(0)
    pixels = noise.integers(0, 256, (setting.count(IMAGES, 64), SIDE, SIDE, 3), dtype=np.uint8)
    moments = noise.standard_normal((len(pixels), 8, SIDE // 8, SIDE // 8)).astype(np.float32)
    return [packing(setting, pixels, moments), shards(setting, pixels)]


def packing(setting: Setting, pixels: np.ndarray, moments: np.ndarray) -> Section:
    check_same(png_pixels(reference.png(pixels[0], 0)), pixels[0], "Pillow's PNG")
    for image in pixels[:8]:
        check_same(png_pixels(png_bytes(image)), image, "our PNG by our reader")
        check_same(_pillow(png_bytes(image)), image, "our PNG by Pillow")
    for latent in moments[:8]:
        if npy_bytes(latent) != np_save(latent):
            raise DifferentError("an npy has not the bytes that np.save gives it")
        check_same(npy_array(npy_bytes(latent)), latent, "npy")
    section = Section(
        "Packing in memory, one thread, CPU time",
        "PNGs are read back as they were by Pillow and by latentmill; npy files have np.save's bytes",
        ("what", "against", "theirs, MB/s", "latentmill, MB/s", "theirs over latentmill's time"),
    )
    rows: list[tuple[str, str, Callable[[], object], Callable[[], object], int]] = [
        ("stored PNG", "Pillow, compress_level=0", lambda: [reference.png(image, 0) for image in pixels],
         lambda: [png_bytes(image) for image in pixels], pixels.nbytes),
        ("npy of moments", "np.save", lambda: [np_save(latent) for latent in moments],
         lambda: [npy_bytes(latent) for latent in moments], moments.nbytes),
    ]  # fmt: skip
    for what, against, theirs, ours, size in rows:
        programs = {"theirs": partial(inside, theirs), "ours": partial(inside, ours)}
        took = in_turn(programs, setting.rounds)
        add(section, what, against, cpus(took["theirs"]), cpus(took["ours"]), size)
    return section


def np_save(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _pillow(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def shards(setting: Setting, pixels: np.ndarray) -> Section:
    packed = [png_bytes(image) for image in pixels]
    size = sum(map(len, packed))
    folder = setting.folder("written")
    section = Section(
        "Writing to the disk, one thread, until it is safe there",
        "what is read back from the folder and from the zip has the bytes that were written",
        ("what", "against", "theirs, MB/s", "latentmill, MB/s", "theirs over latentmill's time"),
    )
    for what, against, theirs, dest in (
        ("a folder of PNGs", "open, write, one sync", write_files, folder / "ours"),
        ("a zip of PNGs", "zipfile, stored, fsync", write_zip, folder / "ours.zip"),
    ):
        programs: dict[str, Callable[[], Took]] = {
            "theirs": partial(timed, theirs, packed, folder / f"theirs{dest.suffix}"),
            "ours": partial(timed, write_shard, packed, dest),
        }
        for program in programs.values():
            program()
        check_written(dest, packed)
        took = in_turn(programs, setting.rounds)
        add(section, what, against, walls(took["theirs"]), walls(took["ours"]), size)
    section.notes.append("latentmill also takes SHA-256 and CRC-32 of every file, as it does in a job")
    return section


def timed(write: Callable[[Sequence[bytes], Path], None], packed: Sequence[bytes], dest: Path) -> Took:
    work = dest.with_name(dest.name + ".latentmill")
    for old in (dest, work):
        shutil.rmtree(old, ignore_errors=True)
    dest.unlink(missing_ok=True) if dest.suffix else None
    return inside(lambda: write(packed, dest))


def name(number: int) -> str:
    return f"00000/img{number:08d}.png"


def write_files(packed: Sequence[bytes], dest: Path) -> None:
    from latentmill.files import sync_filesystem

    (dest / "00000").mkdir(parents=True)
    for number, data in enumerate(packed):
        (dest / name(number)).write_bytes(data)
    sync_filesystem(dest)


def write_zip(packed: Sequence[bytes], dest: Path) -> None:
    import os

    with dest.open("wb") as file:
        with zipfile.ZipFile(file, "w", compression=zipfile.ZIP_STORED) as archive:
            for number, data in enumerate(packed):
                archive.writestr(name(number), data)
        os.fsync(file.fileno())


def write_shard(packed: Sequence[bytes], dest: Path) -> None:
    """One shard, as the only worker writes it; of a zip, its directory too."""
    place = container(dest)
    sink = place.sink(0, alone=True)
    told = zip(packed, digests(packed), strict=True)
    files = [sink.write(name(number), data, known) for number, (data, known) in enumerate(told)]
    sink.commit()
    place.absorb(1)
    place.finish({}, files)


def check_written(dest: Path, packed: Sequence[bytes]) -> None:
    """Raises DifferentError."""
    archive = zipfile.ZipFile(dest) if dest.suffix == ".zip" else None
    for number, data in enumerate(packed):
        found = archive.read(name(number)) if archive else (dest / name(number)).read_bytes()
        if found != data:
            raise DifferentError(f"{name(number)} in {dest.name} is not as it was given")


def add(section: Section, what: str, against: str, theirs: list[float], ours: list[float], size: int) -> None:
    rates = [[size / seconds / 1e6 for seconds in values] for values in (theirs, ours)]
    section.add(what, against, spread(rates[0], digits=0), spread(rates[1], digits=0), times(ratios(theirs, ours)))
