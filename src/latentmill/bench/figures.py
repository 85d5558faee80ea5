"""Timing: figures with their spread, taken in turn, so that a machine that slows down slows every part alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_LEAST_ROUNDS, _MOST_ROUNDS = 3, 50


@dataclass(frozen=True)
class Figure:
    """Seconds that one image (or caption) takes: the median of rounds, the least and the most."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Figure:
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    @property
    def rate(self) -> float:
        """Images a second."""
        return 1 / max(self.median, 1e-9)

    def at_least(self, floor: float) -> Figure:
        return Figure(max(floor, self.median), max(floor, self.low), max(floor, self.high), self.rounds)

    def told(self) -> dict[str, float | int]:
        """Milliseconds, for a file."""
        times = {"median_ms": self.median, "low_ms": self.low, "high_ms": self.high}
        return {**{name: round(1000 * value, 5) for name, value in times.items()}, "rounds": self.rounds}


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all its threads, while it does something: others' work does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn_together(turn: Callable[[], Mapping[str, float]], seconds: float) -> dict[str, list[float]]:
    """What one turn gives, by name, turn after turn for about `seconds`, but at least three times.

    A first turn, in which caches fill, is not counted.
    """
    turn()
    found: dict[str, list[float]] = {}
    end = time.perf_counter() + seconds
    for number in range(_MOST_ROUNDS):
        if number >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, value in turn().items():
            found.setdefault(name, []).append(value)
    return found


def figures(works: Mapping[str, Callable[[], float]], count: int, seconds: float) -> dict[str, Figure]:
    """Figures of one image each, of works that give the seconds of `count` images; in turn."""
    found = in_turn_together(lambda: {name: work() for name, work in works.items()}, seconds)
    return {name: Figure.of([value / count for value in values]) for name, values in found.items()}
