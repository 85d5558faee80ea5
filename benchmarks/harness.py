"""What the benchmarks share: rounds in turn, processes with their CPU time and memory, sections of results.

Equality comes first: `DifferentError` ends a benchmark before it has told a time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
_TOUCHED = 1 << 30  # bytes, more than a conversion of a thousand photos writes to


_last_rounds: set[int] = set()


class DifferentError(Exception):
    """Two programs that must give the same did not: there is no time to tell."""


@dataclass(frozen=True)
class Setting:
    """How a benchmark is run. photos: a folder of the user's own, or None. workers: cores that may be used."""

    work: Path
    rounds: int
    quick: bool
    workers: int
    photos: Path | None = None

    def folder(self, name: str) -> Path:
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def count(self, whole: int, quick: int) -> int:
        return quick if self.quick else whole


@dataclass(frozen=True)
class Took:
    """Seconds of wall, and of CPU with all processes below. peak: bytes of the largest of these processes."""

    wall: float
    cpu: float
    peak: int = 0


@dataclass
class Section:
    """Results of one kind. checked: what was found equal before a time was taken. goal: in the last column, or "".

    rounds: those that its rows were measured in, which `add` takes over from the last `in_turn`.
    """

    title: str
    checked: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rounds: set[int] = field(default_factory=set)

    def add(self, *cells: str) -> None:
        assert len(cells) == len(self.headings), (cells, self.headings)
        self.rows.append(cells)
        self.rounds |= _last_rounds
        print("  " + " | ".join(cells), flush=True)

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", f"Checked first: {self.checked}.", ""]
        lines += [_row(self.headings), _row("---" for _ in self.headings), *map(_row, self.rows)]
        counts = [f"rounds: {' or '.join(map(str, sorted(self.rounds)))}"] if self.rounds else []
        if told := counts + self.notes:
            lines += ["", *(f"- {note}" for note in told)]
        return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def process(*command: object) -> Took:
    """Run a program to its end. Raises CalledProcessError, with the end of what it told on stderr."""
    arguments = [sys.executable, str(HERE / "launch.py"), *map(str, command)]
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace")
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        done.check_returncode()
    return Took(**json.loads(done.stdout))


def latentmill(*arguments: object) -> Took:
    return process(sys.executable, "-m", "latentmill", *arguments)


def reference(*arguments: object) -> Took:
    return process(sys.executable, HERE / "reference_loops.py", *arguments)


def inside(work: Callable[[], object]) -> Took:
    """Time something of this process. Threads count, processes do not."""
    cpu, start = time.process_time(), time.perf_counter()
    work()
    return Took(time.perf_counter() - start, time.process_time() - cpu)


def in_turn(programs: Mapping[str, Callable[[], Took]], rounds: int) -> dict[str, list[Took]]:
    """Each program once a round, so that a machine that slows down slows all of them.

    The disk is synced before each: else one that syncs what it writes, as latentmill does, pays for another's writing.
    And memory is touched, which a virtual machine may first have to get from its host: see touch.py.
    """
    _last_rounds.clear()
    _last_rounds.add(rounds)
    found: dict[str, list[Took]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            os.sync()
            subprocess.run([sys.executable, HERE / "touch.py", str(_TOUCHED)], check=True, stdout=subprocess.DEVNULL)
            found[name].append(run())
    return found


def ratios(these: Sequence[float], over: Sequence[float]) -> list[float]:
    """Of every round."""
    return [a / b for a, b in zip(these, over, strict=True)]


def spread(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """Median (least to most)."""
    middle = f"{statistics.median(values):,.{digits}f}{unit}"
    return f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})" if len(values) > 1 else middle


def walls(took: Iterable[Took]) -> list[float]:
    return [each.wall for each in took]


def cpus(took: Iterable[Took]) -> list[float]:
    return [each.cpu for each in took]


def judged(values: Sequence[float], most: float, unit: str = "x") -> str:
    """The goal, and whether the median meets it."""
    verdict = "met" if statistics.median(values) <= most else "MISSED"
    return f"at most {most:g}{unit}: {verdict}"


def times(values: Sequence[float]) -> str:
    return spread(values, "x")


def check_same(found: np.ndarray | None, expected: np.ndarray | None, what: str) -> None:
    """Raises DifferentError unless shape, kind and every number are the same."""
    if found is None or expected is None:
        if found is not expected:
            raise DifferentError(f"{what}: one of the two leaves it out")
        return
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise DifferentError(f"{what}: {found.dtype} {found.shape} against {expected.dtype} {expected.shape}")
    if not np.array_equal(found, expected):
        wrong = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        count = f"{np.count_nonzero(wrong):,} of {wrong.size:,} numbers"
        raise DifferentError(f"{what}: {count} differ, by up to {wrong.max()}")


def check_same_numbers(found: np.ndarray, expected: np.ndarray, most: float, what: str) -> float:
    """The largest difference, of the largest value. Raises DifferentError where it is over `most`."""
    if found.shape != expected.shape:
        raise DifferentError(f"{what}: shape {found.shape} against {expected.shape}")
    largest = float(np.abs(found.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30))
    if not largest <= most:
        raise DifferentError(f"{what}: differs by {largest:.1e} of the largest value, allowed are {most:.0e}")
    return largest
