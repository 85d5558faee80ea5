"""One encoder process against two, and Ray against the local runner: what they cost, with the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from converting import SETTINGS, fresh, source_photos
from harness import DifferentError, Section, Setting, Took, cpus, in_turn, latentmill, ratios, spread, times, walls
from reference_loops import photos as jpegs

REPORT = "latentmill-report.json"


def run(setting: Setting) -> list[Section]:
    whole, _ = source_photos(setting)
    photos = setting.work / "some"
    photos.mkdir()
    count = setting.count(160, 64)
    for number, path in enumerate(jpegs(whole)[:count]):
        (photos / f"{number:06d}.jpg").write_bytes(path.read_bytes())
    sections = [encoders(setting, photos, count)]
    if find_spec("ray") is not None:
        sections.append(ray(setting, photos, count))
    return sections


def encoders(setting: Setting, photos: Path, count: int) -> Section:
    """cpu:1 against cpu:2, each process of as many threads."""
    out, threads = setting.folder("devices"), max(1, setting.workers // 2)

    def program(device: str, threads: int) -> Took:
        return latentmill(
            "encode", "--source", photos, "--dest", fresh(out / device.replace(":", "-")), "--vae=mini",
            f"--device={device}", f"--threads={threads}", *SETTINGS,
        )  # fmt: skip

    programs = {"cpu:1": lambda: program("cpu:1", threads), "cpu:2": lambda: program("cpu:2", threads)}
    what = f"{threads} thread{'s' if threads > 1 else ''} each"
    title = f"Encoder processes: {count} photos with `mini`, whole processes, {what}"
    return compared(title, setting, programs, [out / "cpu-1", out / "cpu-2"])


def ray(setting: Setting, photos: Path, count: int) -> Section:
    out = setting.folder("ray")

    def program(name: str) -> Took:
        return latentmill(
            "convert", "--source", photos, "--dest", fresh(out / name), f"--runner={name}",
            f"--num-workers={setting.workers}", *SETTINGS,
        )  # fmt: skip

    programs = {"local": lambda: program("local"), "ray": lambda: program("ray")}
    title = f"Ray: {count} photos converted, whole processes, {setting.workers} workers, one node started anew"
    return compared(title, setting, programs, [out / "local", out / "ray"])


def compared(title: str, setting: Setting, programs: dict[str, Callable[[], Took]], places: list[Path]) -> Section:
    for program in programs.values():
        program()
    check_same_bytes(*places)
    section = Section(
        title,
        "every file but the report has the same bytes",
        ("way", "seconds", "CPU seconds", "over the first's time"),
    )
    took = in_turn(programs, setting.count(min(3, setting.rounds), 1))
    first = walls(next(iter(took.values())))
    for name, each in took.items():
        section.add(name, spread(walls(each)), spread(cpus(each)), times(ratios(walls(each), first)))
    return section


def check_same_bytes(first: Path, second: Path) -> None:
    """Raises DifferentError."""
    one, other = digests(first), digests(second)
    wrong = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    if wrong:
        raise DifferentError(f"{len(wrong)} files of {first.name} and {second.name} differ, {wrong[0]} first")


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != REPORT]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
