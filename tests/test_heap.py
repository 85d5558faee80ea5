"""Memory that is kept between forwards: the same bytes, bounded, and given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from latentmill.encoders import heap

glibc = pytest.mark.skipif(heap._glibc() is None, reason="only glibc is told what to keep")

FAULTS = """
import resource, sys
import torch
from latentmill.encoders import heap
kept = sys.argv[1] == "kept"
if kept:
    heap.keep_buffers()
def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sum(float(torch.ones(10 << 20).sum()) for _ in range(4))  # 40 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(5):
    work()
print(work(), heap._resident())
heap.give_back()
print(work(), heap._resident())
"""


def run(*arguments: str) -> list[list[int]]:
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=True, timeout=60)
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


@glibc
def test_kept_buffers_are_not_faulted_in_again_until_they_are_given_back() -> None:
    """A fault is for a page of 4 kB, or for one of 2 MB."""
    (kept, held), (after, given_back) = run(FAULTS, "kept")
    (usual, _), _ = run(FAULTS, "usual")
    assert kept * 10 < usual
    assert after * 2 > usual
    assert given_back < held - (30 << 20)


@glibc
def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []

    class Libc:
        def mallopt(self, parameter: int, value: int) -> int:
            return 1

        def malloc_trim(self, pad: int) -> int:
            trimmed.append(pad)
            return 1

    monkeypatch.setattr(heap, "_glibc", Libc)
    monkeypatch.setattr(heap, "available_memory", lambda: 800)
    monkeypatch.setattr(heap, "_resident", lambda: resident)
    resident = 1000
    heap.keep_buffers()
    resident = 1100
    heap.bound_kept()
    assert trimmed == []
    resident = 1101
    heap.bound_kept()
    assert trimmed == [0]
    heap.give_back()
    assert trimmed == [0, 0]
    heap.give_back()
    heap.bound_kept()
    assert trimmed == [0, 0]


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(heap, "_STATM", tmp_path / "no-such-file")
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    heap.keep_buffers()
    heap.bound_kept()
    heap.give_back()


LARGE = """
import sys
from latentmill.encoders import heap
heap.keep_small()
large, kept = 3 << 20, []
if sys.argv[1] == "large":
    heap.map_large(large)
before = heap._resident()
for _ in range(8):
    photo = bytearray(large)
    kept.append(bytearray(200_000))  # a result, which comes to lie behind the photo
    second = bytearray(large + 500_000 * len(kept))
    kept.append(bytearray(200_000))
    del photo, second
print(heap._resident() - before - sum(map(len, kept)))
heap.keep_small()
"""


@glibc
def test_large_files_leave_nothing_behind_in_the_heap() -> None:
    ((mapped,),) = run(LARGE, "large")
    ((usual,),) = run(LARGE, "usual")
    assert mapped < 2 << 20 < 4 << 20 < usual


SMALL = """
import resource, sys
from latentmill.encoders import heap
if sys.argv[1] == "kept":
    heap.keep_small()
def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        photo, result = bytearray(600_000), bytearray(200_000)
        other = bytearray(900_000)
        del photo, other, result
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(3):
    work()
print(work())
"""


@glibc
def test_what_small_photos_take_is_not_faulted_in_again() -> None:
    ((kept,),) = run(SMALL, "kept")
    assert kept < 100


@glibc
def test_large_files_do_not_end_the_keeping_of_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    class Libc:
        def mallopt(self, parameter: int, value: int) -> int:
            told.append((parameter, value))
            return 1

        def malloc_trim(self, pad: int) -> int:
            return 1

    monkeypatch.setattr(heap, "_glibc", Libc)
    heap.keep_buffers()
    before = list(told)
    heap.keep_small()
    heap.map_large(1 << 30)
    assert told == before
    heap.give_back()
    heap.map_large(1 << 30)
    heap.map_large(1 << 30)
    assert len(told) == len(before) + 4
    heap.keep_small()
