"""The archive of a zip under way: shards go straight into it or by way of parts, and the bytes are the same."""

from __future__ import annotations

import itertools
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from latentmill.errors import DestinationError
from latentmill.files import write_parts
from latentmill.formats.containers import ZipContainer
from latentmill.records import StoredFile

SHARDS = [[(f"a/{shard}{name}.bin", bytes([shard]) * size) for name, size in zip("xyz", (10, 0, 70_000), strict=True)]
          for shard in range(4)]  # fmt: skip


def written(place: ZipContainer, shard: int, alone: bool) -> list[StoredFile]:
    sink = place.sink(shard, alone=alone)
    stored = [sink.write(name, data) for name, data in SHARDS[shard]]
    sink.commit()
    return stored


def parts(place: ZipContainer) -> list[Path]:
    return sorted((place.work / "parts").glob("*.part"))


def finished(place: ZipContainer, stored: list[StoredFile]) -> bytes:
    place.finish({}, stored)
    with zipfile.ZipFile(place.path) as archive:
        assert archive.testzip() is None
        assert [(name, archive.read(name)) for name in archive.namelist()] == list(itertools.chain(*SHARDS))
    return place.path.read_bytes()


@pytest.mark.parametrize("ways", list(itertools.product([True, False], repeat=4)))
def test_whichever_way_the_shards_come(tmp_path: Path, ways: tuple[bool, ...]) -> None:
    place = ZipContainer(tmp_path / "out.zip")
    stored = []
    for shard, alone in enumerate(ways):
        stored += written(place, shard, alone)
        assert bool(parts(place)) != alone
        place.absorb(shard + 1)
        assert not parts(place)
    plain = ZipContainer(tmp_path / "plain.zip")
    expected = list(itertools.chain.from_iterable(written(plain, shard, False) for shard in range(4)))
    plain.absorb(4)
    assert finished(place, stored) == finished(plain, expected)


def test_only_the_shard_that_comes_next_goes_straight(tmp_path: Path) -> None:
    """A later one, finished first, waits as a part."""
    place = ZipContainer(tmp_path / "out.zip")
    stored = {shard: written(place, shard, True) for shard in (1, 0, 3, 2)}
    assert [part.stem for part in parts(place)] == ["00000001", "00000002", "00000003"]
    place.absorb(4)
    finished(place, list(itertools.chain.from_iterable(stored[shard] for shard in range(4))))


def test_what_was_cut_off_leaves_nothing(tmp_path: Path) -> None:
    """Of a shard that was written once as a part and once straight, without a ledger entry, the last time counts."""
    place = ZipContainer(tmp_path / "out.zip")
    stored = written(place, 0, True)
    place.absorb(1)
    written(place, 1, False)
    written(place, 1, True)
    again = ZipContainer(tmp_path / "out.zip")
    sink = again.sink(1, alone=True)
    sink.write("a/other.bin", b"half")
    sink.abort()
    assert (place.work / "partial.zip").stat().st_size == sum(file.size + 30 + len(file.name) for file in stored)
    for shard, alone in ((1, False), (2, True), (3, True)):
        stored += written(again, shard, alone)
        again.absorb(shard + 1)
    finished(again, stored)


def test_an_archive_that_was_cut_short_is_told(tmp_path: Path) -> None:
    place = ZipContainer(tmp_path / "out.zip")
    stored = written(place, 0, True)
    place.absorb(1)
    os.truncate(place.work / "partial.zip", 100)
    with pytest.raises(DestinationError, match=r"must hold .* bytes .* Found: 100. Start anew with --overwrite"):
        place.finish({}, stored)


def test_parts_are_written_whole_though_the_system_takes_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.writev

    def some(descriptor: int, buffers: list[Any]) -> int:
        return whole(descriptor, [buffers[0][:7]])

    monkeypatch.setattr("os.writev", some, raising=False)
    with (tmp_path / "file").open("wb") as file:
        assert write_parts(file.fileno(), (b"", b"abc" * 10, memoryview(b"de" * 9))) == 48
    assert (tmp_path / "file").read_bytes() == b"abc" * 10 + b"de" * 9
