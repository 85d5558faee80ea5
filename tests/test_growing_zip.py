"""The archive of a zip under way: shards go straight into it or by way of parts, and the bytes are the same."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import latentmill
from latentmill.errors import DestinationError
from latentmill.files import copy_bytes, write_parts
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
        sink = self.place.sink(shard, alone=alone, placed=not alone)
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
    assert not list((shards.place.work / "places").iterdir())
    shards.finished()


@pytest.mark.parametrize("command", ["convert", "encode"])
def test_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Several processes make what one makes: what they store is as large as was told before."""
    make_photos(tmp_path / "photos", 40)
    crop = {"transform": "center-crop-dhariwal", "resolution": "32x32"}

    def made(name: str, processes: int) -> bytes:
        dest = tmp_path / name
        if command == "convert":
            latentmill.convert(tmp_path / "photos", dest, **crop, batch_size=4, num_workers=processes)
        else:
            settings = {"model_url": "fake", "save_dtype": "float16", "batch_size": 4, "threads": 1}
            images = tmp_path / f"images-{name}"
            latentmill.encode(tmp_path / "photos", dest, **crop, **settings, images=images, device=f"cpu:{processes}")
        return dest.read_bytes()

    expected = made("one.zip", 1)
    monkeypatch.setattr(growing_zip, "copy_bytes", None)
    assert made("more.zip", 3 if command == "convert" else 2) == expected


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


def test_a_writer_that_is_alone_cuts_off_nothing_that_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run of several was killed: shards that lie in the archive ahead of their turn become parts first.

    Even on a disk that was full: that takes no more room than one of them.
    """
    room: list[int] = []

    def copied(source: Path, start: int, size: int, target: int) -> None:
        held = sum(path.stat().st_size for path in shards.place.work.rglob("*.part"))
        room.append(source.stat().st_size + held + size - 4 * MOST)  # more than what was written
        copy_bytes(source, start, size, target)

    monkeypatch.setattr(growing_zip, "copy_bytes", copied)
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
    assert room == [MOST, MOST]
    assert (shards.place.work / "partial.zip").stat().st_size == 2 * MOST
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
    (note,) = (shards.place.work / "places").glob("*.written")
    shards.commit(0)
    shards.again()
    assert [part.stem for part in parts(shards.place)] == ["00000002"] and not note.exists()
    note.touch()
    shards.again()
    shards.open(1)
    shards.commit(1)
    shards.finished()


class _Disk:
    """What would outlive a power cut: names in folders that were synced, and bytes of files that were."""

    def __init__(self, work: Path, course: random.Random) -> None:
        self.folders = [work, work / "places", work / "parts"]
        self.course = course
        self.keep = work.with_name("kept")  # links, so that no inode's number is used again
        self.keep.mkdir()
        self.names: dict[Path, dict[str, int]] = {}
        self.bytes: dict[int, bytes] = {}

    def fsync(self, file: int) -> None:
        path = Path(f"/proc/self/fd/{file}").readlink()
        if path.is_dir():
            self.names[path] = self._listed(path)
        else:
            self._kept(path)
            self.bytes[path.stat().st_ino] = path.read_bytes()

    def _kept(self, path: Path) -> int:
        number = path.stat().st_ino
        if not (self.keep / str(number)).exists():
            os.link(path, self.keep / str(number))
        return number

    def _listed(self, folder: Path) -> dict[str, int]:
        inner = folder.iterdir() if folder.exists() else ()
        return {path.name: self._kept(path) for path in inner if path.is_file()}

    def cut(self) -> None:
        """Lose any part of what was not synced; folders stay as they are at the start of a run."""
        for folder in self.folders:
            now, safe = self._listed(folder), self.names.get(folder, {})
            for name in sorted(now.keys() | safe.keys()):
                if now.get(name) != safe.get(name) and self.course.random() < 0.5:
                    (folder / name).unlink(missing_ok=True)
                    if name in safe:
                        os.link(self.keep / str(safe[name]), folder / name)
            for name, number in self._listed(folder).items():
                written, synced = (folder / name).read_bytes(), self.bytes.get(number, b"")
                blocks = [
                    self.course.choice((written, synced.ljust(len(written), b"\0")))[at : at + 64]
                    for at in range(0, max(len(written), len(synced)), 64)
                ]
                with (folder / name).open("r+b") as file:  # the same inode
                    file.write(b"".join(blocks))
                    file.truncate(self.course.choice((len(written), len(synced))))
            self.names[folder] = self._listed(folder)
        for path in self.keep.iterdir():
            self.bytes[path.stat().st_ino] = path.read_bytes()


class _KilledError(Exception):
    """The process that does it is gone."""


@dataclass
class _Course:
    """A job of twelve shards, of which anything may happen to any step. kills: how likely it is."""

    shards: Shards
    random: random.Random
    disk: _Disk
    kills: float
    workers: int = 0

    def run(self, patch: pytest.MonkeyPatch) -> None:
        steps = ("copy_bytes", "replace_text", "sync_folder", "write_parts", "new_file", "file_at")
        while len(self.shards.done) < 12:
            if not self.workers:
                if self.random.random() < 0.5:
                    self.disk.cut()
                self.shards.again()
                self.workers = self.random.randint(1, 4)
            with patch.context() as patched:
                for name in steps:
                    patched.setattr(growing_zip, name, self.dying(getattr(growing_zip, name)))
                self.step()
            if self.random.random() < self.kills / 10:  # the run is stopped
                for shard in list(self.shards.sinks):
                    self.shards.sinks.pop(shard)[0].abort()
                self.workers = 0
        if not self.workers:
            self.shards.again()
        self.shards.finished()

    def dying(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def done_or_not(*values: Any, **named: Any) -> Any:
            if self.random.random() >= self.kills:
                return step(*values, **named)
            if self.random.random() < 0.5:
                step(*values, **named)
            raise _KilledError

        return done_or_not

    def step(self) -> None:
        """A shard is given out, and one that is under way gets a member more, or is committed."""
        shards = self.shards
        shard, worker = -1, False
        try:
            waiting = [each for each in range(12) if each not in shards.done and each not in shards.sinks]
            if waiting and len(shards.sinks) < self.workers:
                shard = waiting[0] if self.random.random() < 0.9 else self.random.choice(waiting)
                shards.open(shard, alone=self.workers == 1)
            shard, worker = self.random.choice(sorted(shards.sinks)), self.workers > 1
            if not shards.write(shard):
                shards.commit(shard, ledger=self.random.random() >= self.kills)
                worker = False
                if self.random.random() < 0.9:  # which has told the one that gathers
                    shards.absorb()
        except _KilledError:
            if 0 <= shard not in shards.done and self.random.random() < 0.2:  # an image is found to kill
                del shards.members[shard][-1:]
            if worker:
                shards.kill(shard)  # and it is given to another
            else:
                self.workers = 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads what was written through /proc")
@pytest.mark.parametrize("seed", range(300))
def test_any_course_of_events_gives_the_same_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Workers in any order, rejects, longer files, kills and power cuts at any step, and runs of one worker."""
    course = random.Random(seed)
    odd = course.random() / 2
    sizes = [
        FULL if course.random() > odd else [course.choice((0, 100, 100, 300)) for _ in range(course.randint(0, 4))]
        for _ in range(12)
    ]
    shards = Shards.of(tmp_path / "out.zip", sizes)
    disk = _Disk(shards.place.work, course)

    def listed(folder: str) -> list[str]:
        names = sorted(os.scandir(folder), key=lambda entry: entry.name)
        return [entry.name for entry in course.sample(names, len(names))]

    monkeypatch.setattr("os.fsync", disk.fsync)
    monkeypatch.setattr("os.listdir", listed)
    _Course(shards, course, disk, kills=course.random() / 10).run(monkeypatch)


def test_an_archive_that_was_cut_short_is_told(tmp_path: Path) -> None:
    place = ZipContainer(tmp_path / "out.zip")
    stored = written(place, 0, True)
    place.absorb(1)
    os.truncate(place.work / "partial.zip", 100)
    with pytest.raises(DestinationError, match=r"must hold .* bytes .* Found: 100. Start anew with --overwrite"):
        place.settle({0}, 1)  # before another run would make it long enough again
    with pytest.raises(DestinationError, match=r"must hold .* bytes .* Found: 100. Start anew with --overwrite"):
        place.finish({}, stored)


def test_a_shard_that_is_nowhere_is_told(tmp_path: Path) -> None:
    shards = Shards.of(tmp_path / "out.zip", [FULL, FULL])
    shards.open(1)
    shards.commit(1)
    shards.done[0] = []
    with pytest.raises(DestinationError, match=r"must hold shard 0, which the ledger knows.* Start anew"):
        shards.absorb()
    os.truncate(shards.place.work / "partial.zip", MOST + 100)
    del shards.done[0]
    with pytest.raises(DestinationError, match=f"must hold {2 * MOST} bytes .* Found: {MOST + 100}"):
        shards.again()


def test_a_shard_far_ahead_has_no_place(tmp_path: Path) -> None:
    """So that what is listed for each shard stays short, however long one of them takes."""
    shards = Shards.of(tmp_path / "out.zip", [FULL])
    for shard in range(1, 200):
        shards.place.reserve(shard, most)
    assert sorted(shards.start) == list(range(1, 65))


def test_parts_are_written_whole_though_the_system_takes_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.writev

    def some(descriptor: int, buffers: list[Any]) -> int:
        return whole(descriptor, [buffers[0][:7]])

    monkeypatch.setattr("os.writev", some, raising=False)
    with (tmp_path / "file").open("wb") as file:
        assert write_parts(file.fileno(), (b"", b"abc" * 10, memoryview(b"de" * 9))) == 48
    assert (tmp_path / "file").read_bytes() == b"abc" * 10 + b"de" * 9
