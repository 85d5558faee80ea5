"""A batch to files: in every output or in none, few files held, digests told together; and which are."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmill.errors import SampleError
from latentmill.files import digest
from latentmill.formats.containers import FolderContainer
from latentmill.records import Encoded, Outcome, Sample, SampleRef
from latentmill.storing import stored, together

SMALL = 1 << 20
LARGE = SMALL + 1


@given(st.lists(st.sampled_from([0, 1, 1, SMALL, LARGE]), max_size=30))
def test_groups_keep_the_order_and_hold_two_small_ones_or_one_large_one(sizes: list[int]) -> None:
    groups = list(together(enumerate(sizes), lambda item: item[1]))
    assert [item for group in groups for item in group] == list(enumerate(sizes))
    for number, group in enumerate(groups):
        held = [size for _, size in group if size]
        assert len(held) <= 2
        assert LARGE not in held or len(group) == 1
        full = len(held) == 2 or held == [LARGE]
        before_large = number + 1 < len(groups) and groups[number + 1][0][1] == LARGE
        assert full or before_large or number == len(groups) - 1


class Alive(bytearray):
    """A file's bytes, of which it is known how many are held."""


class Layout:
    """Files of a size, made from the array's first number; notes what is done, and how many files are held then."""

    suffix, code = ".bin", "bin"

    def __init__(self, name: str, size: int, log: list[tuple[str, str, int]]) -> None:
        self.name_, self.size, self.log = name, size, log

    def name(self, index: int, key: str) -> str:
        return f"{self.name_}/{index}"

    def to_bytes(self, array: np.ndarray, beside: Any = None) -> bytes:
        held = len(list(filter(None, (each() for each in FILES))))
        made = Alive(bytes([int(array.flat[0])]) * self.size)
        FILES.append(weakref.ref(made))
        self.log.append(("made", self.name_, held))
        return made  # type: ignore[return-value]


FILES: list[weakref.ref[Alive]] = []


class Output:
    def __init__(self, name: str, layout: Layout, encoded: bool) -> None:
        self.name, self.layout, self.encoded = name, layout, encoded


class Place:
    """A folder with sinks that note each write."""

    def __init__(self, folder: Path, sizes: dict[str, int]) -> None:
        FILES.clear()
        self.log: list[tuple[str, str, int]] = []
        self.outputs: list[Any] = [
            Output(name, Layout(name, size, self.log), encoded=name == "latents") for name, size in sizes.items()
        ]
        self.sinks: Any = {name: self._sink(folder, name) for name in sizes}

    def _sink(self, folder: Path, name: str) -> Any:
        sink, log = FolderContainer(folder / name).sink(0), self.log

        class Noting:
            def write(self, file: str, data: bytes, known: str | None = None) -> Any:
                log.append(("wrote", file, 0))
                return sink.write(file, data, known)

        return Noting()


def sample(index: int, size: int = 12) -> Sample:
    array = np.full((1, size // 3, 3), index, np.uint8)
    return Sample(SampleRef(index, f"photo{index}", ""), array, f"digest{index}", ("note",))


def test_every_output_has_each_image_or_none_has(tmp_path: Path) -> None:
    place = Place(tmp_path, {"latents": 7, "images": 9})
    left_out = Outcome(SampleRef(2, "photo2", ""), stage="decode", reason="damaged")
    items = [sample(0), sample(1), left_out, sample(3), sample(4)]
    results: dict[int, Encoded | SampleError] = {
        index: Encoded(np.full(3, 100 + index, np.uint8), notes=("encoded",)) for index in (0, 3, 4)
    }
    results[1] = SampleError("encode", "not finite")
    found = list(stored(place.outputs, place.sinks, items, results))
    assert [outcome.ref.index for outcome in found] == [0, 1, 2, 3, 4]
    assert found[2] is left_out
    assert (found[1].stage, found[1].reason, found[1].files) == ("encode", "not finite", {})
    assert (found[1].digest, found[1].notes) == ("digest1", ("note",))
    for outcome in (found[0], found[3], found[4]):
        index = outcome.ref.index
        assert outcome.notes == ("note", "encoded")
        assert outcome.files["latents"].digest == digest(bytes([100 + index]) * 7)
        assert outcome.files["images"].digest == digest(bytes([index]) * 9)
        assert {name: file.name for name, file in outcome.files.items()} == {
            "latents": f"latents/{index}", "images": f"images/{index}",
        }  # fmt: skip


@pytest.mark.parametrize(("large", "one_by_one", "held"), [(False, False, 3), (True, False, 0), (False, True, 0)])
def test_how_many_files_are_held(tmp_path: Path, large: bool, one_by_one: bool, held: int) -> None:
    """Of images whose files are large, and where each is announced before it is touched, one file alone."""
    place = Place(tmp_path, {"latents": 5, "images": 6})
    items = [sample(index, LARGE + 3 if large else 12) for index in range(4)]
    results: dict[int, Encoded | SampleError] = {index: Encoded(np.zeros(1, np.uint8)) for index in range(4)}
    list(stored(place.outputs, place.sinks, items, results, one_by_one))
    assert max(count for what, _, count in place.log if what == "made") == held


def test_one_by_one_asks_for_an_image_once_the_last_is_written(tmp_path: Path) -> None:
    place = Place(tmp_path, {"images": 6})

    def announced() -> Iterator[Sample]:
        for index in range(3):
            place.log.append(("asked", str(index), 0))
            yield sample(index)

    list(stored(place.outputs, place.sinks, announced(), {}, one_by_one=True))
    assert [what for what, _, _ in place.log] == ["asked", "made", "wrote"] * 3
