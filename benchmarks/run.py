"""Every measurement of latentmill against what it replaces, by one command; results go to benchmarks/results.md.

    python benchmarks/run.py [--only NAME]... [--quick] [--rounds 3] [--photos DIR] [--workers N] [--out FILE]

Equality of results is checked before a time is taken; a difference ends the run with exit code 1 and writes nothing.
Rounds are in turn. Take a quiet machine; --quick ends in about two minutes and says less.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness import DifferentError, Section, Setting

HERE = Path(__file__).resolve().parent
# by name, what is imported and measured, in this order; those that load PyTorch come last
PARTS = {
    "crop": "crops",
    "convert": "converting",
    "large": "large",
    "write": "writing",
    "start": "starting",
    "model": "modelled",
    "read": "reading",
    "encode": "encoding",
    "recipe": "recipe",
    "text": "texts",
    "devices": "devices",
}
NOT_QUICK = ("devices", "recipe")
PACKAGES = ("latentmill", "numpy", "pillow", "simplejpeg", "zlib-ng", "torch", "diffusers", "transformers", "ray")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 where results differ."""
    options = parsed(arguments)
    chosen = options.only or [name for name in PARTS if not (options.quick and name in NOT_QUICK)]
    began, before = time.time(), os.getloadavg()
    sections: list[Section] = []
    with tempfile.TemporaryDirectory(prefix="latentmill-benchmark-", dir=options.work) as name:
        for part in [name for name in PARTS if name in chosen]:
            print(f"{part}:", flush=True)
            rounds = 1 if options.quick else options.rounds
            (folder := Path(name) / part).mkdir()
            setting = Setting(folder, rounds, options.quick, options.workers, options.photos)
            start, load = time.perf_counter(), os.getloadavg()[0]
            try:
                found = importlib.import_module(PARTS[part]).run(setting)
            except DifferentError as error:
                print(f"{part}: results differ, so no time is told: {error}", file=sys.stderr)
                return 1
            each = [found] if isinstance(found, Section) else list(found)
            after = os.getloadavg()[0]
            each[-1].notes.append(
                f"load average {load:.1f} before, {after:.1f} after; {time.perf_counter() - start:.0f} s in all"
            )
            sections += each
    head = heading(sys.argv[1:] if arguments is None else arguments, rounds, before, time.time() - began)
    options.out.write_text("\n".join([head, *(section.markdown() for section in sections)]))
    print(f"written: {options.out}")
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    from latentmill.system import usable_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part alone; repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer photos, rounds and sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs in place of the made ones")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes and threads")
    parser.add_argument("--work", type=Path, help="a folder on the disk to write to; default: the temporary one")
    parser.add_argument("--out", type=Path, default=HERE / "results.md")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.workers < 1:
        parser.error("--rounds and --workers must be at least 1")
    if options.photos is not None and not any(options.photos.rglob("*.jpg")):
        parser.error(f"--photos must be a folder that holds .jpg files. Found none in {options.photos}")
    return options


def heading(arguments: Sequence[str], rounds: int, before: tuple[float, float, float], seconds: float) -> str:
    """The machine, the versions, the command, and how busy the machine was."""
    from latentmill.doctor.machine import file_system, processor_name
    from latentmill.estimate import human
    from latentmill.system import available_memory, usable_cores

    temporary = Path(tempfile.gettempdir())
    after = os.getloadavg()
    lines = [
        "# Results of `make bench`",
        "",
        f"- command: `python benchmarks/run.py {shlex.join(arguments)}`".rstrip(),
        f"- machine: {processor_name()} ({platform.machine()}), {usable_cores()} usable cores of {os.cpu_count()}, "
        f"{human(available_memory() or 0)} memory available, {file_system(temporary) or 'unknown'} file system",
        f"- system: {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"- versions: {', '.join(f'{name} {told}' for name in PACKAGES if (told := version_of(name)))}",
        f"- load average of 1, 5 and 15 minutes: {_loads(before)} before, {_loads(after)} after; the measured programs "
        "themselves count in it",
        f"- medians of up to {rounds} rounds in turn, each section tells its own; least and most in brackets; "
        "ratios are those of each round",
        f"- {seconds / 60:.0f} minutes in all",
        "",
    ]
    return "\n".join(lines)


def _loads(loads: tuple[float, float, float]) -> str:
    return ", ".join(f"{load:.1f}" for load in loads)


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
