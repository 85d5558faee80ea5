"""The archive of a zip under way: shards go straight into it or by way of parts, and the bytes are the same."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import latentmill
from latentmill.errors import DestinationError
from latentmill.files import write_parts
from latentmill.formats import growing_zip
from latentmill.formats.containers import ZipContainer
from latentmill.formats.growing_zip import ZipSink
from latentmill.formats.stored_zip import member_bytes
from latentmill.live import unbroken
from latentmill.records import StoredFile
from support import make_photos

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


# several workers: each shard goes straight to the place that it is given

MOST = 3 * member_bytes("0/0.bin", 100)  # of the shards below


def most(shard: int) -> int:
    return MOST


@dataclass
class Shards:
    """Shards of three members of 100 bytes each; of some fewer or longer. sinks: those that are being written."""

    place: ZipContainer
    members: list[list[tuple[str, bytes]]]
    done: dict[int, list[StoredFile]]
    sinks: dict[int, tuple[ZipSink, list[StoredFile]]]

    @classmethod
    def of(cls, path: Path, sizes: list[list[int]]) -> Shards:
        members = [
            [(f"{shard}/{number}.bin", bytes([16 * shard + number]) * size) for number, size in enumerate(own)]
            for shard, own in enumerate(sizes)
        ]
        return cls(ZipContainer(path), members, {}, {})

    def open(self, shard: int, alone: bool = False) -> None:
        if not alone:
            self.place.reserve(shard, most)
        sink = self.place.sink(shard, alone=alone)
        assert isinstance(sink, ZipSink)
        self.sinks[shard] = sink, []

    def write(self, shard: int) -> bool:
        """Write one member more; whether there was one."""
        sink, stored = self.sinks[shard]
        if len(stored) == len(self.members[shard]):
            return False
        stored.append(sink.write(*self.members[shard][len(stored)]))
        return True

    def commit(self, shard: int, ledger: bool = True) -> None:
        while self.write(shard):
            pass
        sink, stored = self.sinks.pop(shard)
        sink.commit()
        if ledger:
            self.done[shard] = stored

    def kill(self, shard: int) -> None:
        """The worker that writes it, if any does."""
        sink, _ = self.sinks.pop(shard, (None, []))
        if sink is not None and sink._file is not None:
            os.close(sink._file)

    def absorb(self) -> None:
        self.place.absorb(unbroken(set(self.done)))

    def again(self) -> None:
        """As the next run begins, after a kill of the one before."""
        for shard in list(self.sinks):
            self.kill(shard)
        shutil.rmtree(self.place.work / "stage", ignore_errors=True)
        self.place = ZipContainer(self.place.path)
        self.place.settle(set(self.done), unbroken(set(self.done)))

    def finished(self) -> None:
        self.absorb()
        self.place.finish({}, itertools.chain(*(self.done[shard] for shard in range(len(self.members)))))
        with zipfile.ZipFile(self.place.path) as archive:
            assert archive.testzip() is None
            assert [(name, archive.read(name)) for name in archive.namelist()] == list(itertools.chain(*self.members))

    @property
    def start(self) -> dict[int, int]:
        return {shard: region.start for shard, region in self.place._growing.regions().items()}


FULL = [100, 100, 100]


def test_workers_write_straight_to_their_places(tmp_path: Path) -> None:
    """And what they write is never copied, in whatever order they end."""
    shards = Shards.of(tmp_path / "out.zip", [FULL] * 5)
    for shard in (0, 1, 2):
        shards.open(shard)
    for shard, following in ((1, 3), (2, 4), (0, None), (4, None), (3, None)):
        shards.write(shard)
        shards.commit(shard)
        shards.absorb()
        if following is not None:
            shards.open(following)
        assert not parts(shards.place)
    assert shards.place._growing.absorbed() == (5, 5 * MOST)
    assert not list((shards.place.work / "parts").iterdir())
    shards.finished()


def test_a_conversion_copies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By three workers, from photos to a zip that is that of one."""
    make_photos(tmp_path / "photos", 40)

    def convert(name: str, workers: int) -> bytes:
        dest = tmp_path / name
        latentmill.convert(
            tmp_path / "photos", dest, transform="center-crop-dhariwal", resolution="32x32", batch_size=4,
            num_workers=workers,
        )  # fmt: skip
        return dest.read_bytes()

    expected = convert("one.zip", 1)
    monkeypatch.setattr(growing_zip, "copy_bytes", None)
    assert convert("three.zip", 3) == expected


def test_a_shard_that_lost_an_image_moves_those_behind_it(tmp_path: Path) -> None:
    """What was written behind it is moved, what is given out meanwhile becomes a part, and then all goes straight."""
    shards = Shards.of(tmp_path / "out.zip", [FULL, [100], FULL, FULL, FULL, FULL])
    for shard in (0, 1, 2):
        shards.open(shard)
    shards.commit(1)
    shards.write(2)
    shards.open(3)  # its place would begin before the end of that of shard 2, which nobody has moved
    assert 3 not in shards.start
    shards.commit(3)
    shards.commit(0)
    shards.absorb()
    assert len(parts(shards.place)) == 1
    shards.commit(2)
    shards.absorb()
    assert not parts(shards.place)
    shards.open(4)
    shards.open(5)
    size = 3 * MOST + member_bytes("1/0.bin", 100)
    assert shards.start == {4: size, 5: size + MOST}
    shards.commit(5)
    shards.commit(4)
    shards.finished()


def test_a_shard_that_outgrows_its_place_leaves_it(tmp_path: Path) -> None:
    """Those behind it keep theirs until it is appended: they become parts then, once they are written."""
    shards = Shards.of(tmp_path / "out.zip", [FULL, [100, 100, 900], FULL, FULL])
    for shard in range(4):
        shards.open(shard)
        shards.write(shard)
    shards.commit(1)
    assert [part.stem for part in parts(shards.place)] == ["00000001"]
    shards.commit(0)
    shards.absorb()
    assert shards.place._growing.absorbed()[0] == 1  # appended, it would lie over what is being written
    shards.commit(2)
    shards.absorb()
    assert shards.place._growing.absorbed()[0] == 1
    shards.commit(3)
    shards.finished()


def test_a_writer_that_is_alone_cuts_off_nothing_that_is_done(tmp_path: Path) -> None:
    """After a run of several was killed: shards that lie in the archive ahead of their turn become parts first."""
    shards = Shards.of(tmp_path / "out.zip", [FULL] * 5)
    for shard in range(5):
        shards.open(shard)
    for shard in (0, 2, 3):
        shards.commit(shard)
    shards.commit(1, ledger=False)
    shards.write(4)
    shards.again()
    assert shards.place._growing.absorbed()[0] == 1
    assert [part.stem for part in parts(shards.place)] == ["00000002", "00000003"]
    for shard in (1, 4):
        shards.open(shard, alone=True)
        shards.commit(shard)
        shards.absorb()
    shards.finished()


def test_a_removal_that_did_not_last_brings_nothing_back(tmp_path: Path) -> None:
    """A shard became a part, and its place was written over; after a crash, the old note is there again."""
    shards = Shards.of(tmp_path / "out.zip", [[100, 100, 900], FULL, FULL])
    for shard in range(3):
        shards.open(shard)
    shards.commit(2)
    (note,) = (shards.place.work / "parts").glob("*.written")
    shards.commit(0)
    shards.again()
    assert [part.stem for part in parts(shards.place)] == ["00000002"] and not note.exists()
    note.touch()
    shards.again()
    shards.open(1)
    shards.commit(1)
    shards.finished()


class _KilledError(Exception):
    """The process that does it is gone."""


@pytest.mark.parametrize("seed", range(200))
def test_any_course_of_events_gives_the_same_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Workers in any order, rejects, longer files, workers and runs killed at any step, and runs of one worker."""
    course = random.Random(seed)
    odd, kills = course.random() / 2, course.random() / 10

    def dying(step: Callable[..., Any]) -> Callable[..., Any]:
        def done_or_not(*values: Any, **named: Any) -> Any:
            if course.random() >= kills:
                return step(*values, **named)
            if course.random() < 0.5:
                step(*values, **named)
            raise _KilledError

        return done_or_not

    sizes = [
        FULL if course.random() > odd else [course.choice((0, 100, 100, 300)) for _ in range(course.randint(0, 4))]
        for _ in range(12)
    ]
    shards = Shards.of(tmp_path / "out.zip", sizes)
    workers = 0
    while len(shards.done) < 12:
        if not workers:  # a run begins
            shards.again()
            workers, shard, worker = course.randint(1, 4), 0, False
        with monkeypatch.context() as patch:
            for name in ("copy_bytes", "replace_text", "sync_folder", "write_parts", "new_file", "file_at"):
                patch.setattr(growing_zip, name, dying(getattr(growing_zip, name)))
            try:
                waiting = [each for each in range(12) if each not in shards.done and each not in shards.sinks]
                shard, worker = (waiting or [shard])[0], False
                if waiting and len(shards.sinks) < workers:
                    shards.open(waiting[0], alone=workers == 1)
                worker, shard = workers > 1, course.choice(sorted(shards.sinks))
                if not shards.write(shard):
                    shards.commit(shard, ledger=course.random() >= kills)
                    worker = False
                    if course.random() < 0.9:  # which has told the one that gathers
                        shards.absorb()
            except _KilledError:
                if (
                    shard not in shards.done and course.random() < 0.2
                ):  # an image is found to kill, and rejected from now on
                    del shards.members[shard][-1:]
                if worker:
                    shards.kill(shard)  # and it is given to another
                else:
                    workers = 0
        if course.random() < kills / 10:  # the run is stopped
            for shard in list(shards.sinks):
                sink, _ = shards.sinks.pop(shard)
                sink.abort()
            workers = 0
    if not workers:
        shards.again()
    shards.finished()


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
