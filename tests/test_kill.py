"""A job killed at any moment and run again ends where an uninterrupted one does, and does no finished work twice."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import latentmill
from latentmill.errors import DestinationError, SettingsChangedError
from latentmill.files import copy_bytes, write_parts
from latentmill.worker import _Run
from support import (
    CAN_FORK,
    command_of_small_shards,
    contents,
    descendants,
    fork_with,
    identity,
    kill_before_change,
    kill_when,
    ledger,
    make_photos,
    running,
    wait_until,
    work_folder,
)

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="kills processes by ways that only Linux has")

COUNT, BATCH = 200, 8
CROP = {"transform": "center-crop-dhariwal", "resolution": "32x32"}


def flags(settings: dict[str, object]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def everything(*dests: Path) -> dict[str, bytes]:
    """All data and metadata of finished datasets in folders or zips."""
    found = {}
    for number, dest in enumerate(dests):
        files = contents(dest) if dest.is_dir() else {"zip": dest.read_bytes()}
        found |= {f"{number}/{name}": data for name, data in files.items()}
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill") / "photos"
    make_photos(folder, COUNT, classes=5)
    return folder


class Case:
    """A command over `many`, its destinations, and what they hold when nothing interrupts it."""

    def __init__(self, command: str, source: Path, root: Path, suffix: str) -> None:
        self.dests = [root / f"out{suffix}"] + ([root / f"images{suffix}"] if command == "encode" else [])
        own: dict[str, object] = {"model_url": "fake"} if command == "encode" else {}
        calm = [root / "calm" / dest.name for dest in self.dests]
        images = {"images": calm[1]} if command == "encode" else {}
        run = getattr(latentmill, command)
        run(source, calm[0], **CROP, **own, **images, batch_size=BATCH, num_workers=1)
        self.expected = everything(*calm)
        images = {"images": self.dests[1]} if command == "encode" else {}
        settings = {"source": source, "dest": self.dests[0], **CROP, **own, **images, "batch_size": BATCH}
        self.arguments = command_of_small_shards(command, *flags({**settings, "num_workers": 2}))

    @property
    def dest(self) -> Path:
        return self.dests[0]

    def committed(self) -> int:
        return len(ledger(self.dest))

    def kill_after(self, shards: int) -> str:
        """Run until so many shards are committed, and kill it there."""
        code, output = kill_when(lambda: self.committed() >= shards, self.arguments)
        assert code == -signal.SIGKILL, output
        return output

    def finish(self) -> str:
        code, output = kill_when(lambda: False, self.arguments)
        assert code == 0, output
        return output

    def check(self) -> None:
        assert everything(*self.dests) == self.expected
        assert not any(work_folder(dest).exists() for dest in self.dests)


@pytest.fixture(params=["convert", "encode"])
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["", ".zip"], ids=["folder", "zip"])
def case(request: pytest.FixtureRequest, command: str, many: Path, tmp_path: Path) -> Case:
    return Case(command, many, tmp_path, request.param)


def test_killed_five_times_in_a_row(case: Case) -> None:
    seen: dict[Path, tuple[int, int]] = {}
    for shards in (1, 3, 6, 10, 14):
        case.kill_after(shards)
        entries = {path: identity(path) for path in ledger(case.dest)}
        assert entries.items() >= seen.items(), "a committed shard was done again"
        seen = entries
    output = case.finish()
    assert f"going on: {len(seen) * BATCH} of {COUNT} images are done" in output
    assert f"; {COUNT - len(seen) * BATCH} images in" in output
    case.check()


@pytest.mark.parametrize(("command", "suffix"), [("convert", ""), ("encode", ".zip")])
def test_killed_at_any_time(many: Path, tmp_path: Path, command: str, suffix: str) -> None:
    case = Case(command, many, tmp_path, suffix)
    for seconds in (0.35, 0.5, 0.65, 0.8):
        moment = time.monotonic() + seconds
        code, output = kill_when(lambda moment=moment: time.monotonic() > moment, case.arguments)
        assert code in (0, -signal.SIGKILL), output
    case.finish()
    case.check()


def test_committed_files_are_not_written_again(command: str, many: Path, tmp_path: Path) -> None:
    case = Case(command, many, tmp_path, "")
    case.kill_after(12)
    names = [
        name for path in ledger(case.dest) for row in path.read_text().splitlines()[1:]
        for name, *_ in json.loads(row)["files"].values()
    ]  # fmt: skip
    kept = {file: identity(file) for dest in case.dests for name in names if (file := dest / name).exists()}
    assert len(kept) >= 12 * BATCH
    case.finish()
    assert {file: identity(file) for file in kept} == kept


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_die_with_their_parent(many: Path, tmp_path: Path, start: str) -> None:
    case = Case("convert", many, tmp_path, "")
    python, option, code, *arguments = case.arguments
    code = f"import latentmill.runners.local as local; local._start_method = lambda: {start!r}; {code}"
    with subprocess.Popen([python, option, code, *arguments], stdout=subprocess.DEVNULL) as process:
        assert wait_until(lambda: case.committed() > 1)
        workers = descendants(process.pid)
        process.kill()
    assert len(workers) >= 2
    assert wait_until(lambda: not any(map(running, workers)), 10)


@pytest.mark.parametrize(
    ("command", "suffix", "signum"),
    [
        ("convert", "", signal.SIGINT),
        ("convert", ".zip", signal.SIGTERM),
        ("encode", "", signal.SIGTERM),
        ("encode", ".zip", signal.SIGINT),
    ],
)
def test_stopped_by_signal(many: Path, tmp_path: Path, command: str, suffix: str, signum: int) -> None:
    case = Case(command, many, tmp_path, suffix)
    code, output = kill_when(lambda: case.committed() >= 3, case.arguments, signum)
    assert code == 130, output
    assert re.search(rf"\d+ of {COUNT} images are committed", output)
    assert "run the same command again to go on" in output
    assert "Traceback" not in output
    done = case.committed() * BATCH
    assert done >= 3 * BATCH
    assert f"going on: {done} of {COUNT} images are done" in case.finish()
    case.check()


def test_stopped_by_a_person_in_a_hurry(many: Path, tmp_path: Path) -> None:
    """More than one Ctrl-C, as a terminal sends them to all processes."""
    case = Case("convert", many, tmp_path, "")
    with subprocess.Popen(
        case.arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert wait_until(lambda: case.committed() > 1)
        for _ in range(5):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.02)
        output, _ = process.communicate(timeout=15)
    assert process.returncode == 130, output
    assert "Traceback" not in output


# killed before every single change that a run makes to the filesystem


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: these tests sync thousands of times."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


class Steps:
    """A small job in this process, to be stopped before each of its changes."""

    def __init__(self, root: Path, command: str, suffix: str, count: int = 5) -> None:
        self.root, self.command, self.suffix = root, command, suffix
        self.source = root / "photos"
        self.photos = make_photos(self.source, count)
        self.start = root / "start"
        self.start.mkdir()
        self.place = root / "place"

    def run(self, place: Path | None = None, **settings: object) -> object:
        place = place or self.place
        own: dict[str, object] = {"num_workers": 1}
        if self.command == "encode":
            own |= {"model_url": "fake", "images": place / f"images{self.suffix}"}
        run = getattr(latentmill, self.command)
        return run(self.source, place / f"out{self.suffix}", **{**CROP, **own, "batch_size": 2, **settings})

    def expected(self, **settings: object) -> dict[str, bytes]:
        """What a fresh run over the source as it is now makes."""
        with TemporaryDirectory(dir=self.root) as fresh:
            self.run(Path(fresh), **settings)
            return self.held(Path(fresh))

    def held(self, place: Path | None = None) -> dict[str, bytes]:
        place = place or self.place
        found = {name: data for name, data in contents(place).items() if not name.endswith("report.json")}
        assert not [name for name in found if ".latentmill" in name], "a work folder was left behind"
        return found

    def killed_at_each(self, work: Callable[[], object], every: int = 1) -> Iterator[int]:
        """For each change that `work` makes from the start on: put the start back, kill it there, and yield."""
        number = 0
        while True:
            shutil.rmtree(self.place, ignore_errors=True)
            shutil.copytree(self.start, self.place, copy_function=shutil.copy2)
            if not kill_before_change(number, work):
                assert number > 20
                return
            yield number
            number += every


SHAPES = pytest.mark.parametrize("suffix", ["", ".zip"], ids=["folder", "zip"])


@pytest.fixture(autouse=True)
def one_batch_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)


@SHAPES
def test_before_every_change_of_a_first_run(memory: Path, command: str, suffix: str) -> None:
    steps = Steps(memory, command, suffix)
    expected = steps.expected()
    for number in steps.killed_at_each(steps.run):
        steps.run()
        assert steps.held() == expected, f"killed before change {number}"


def test_before_every_change_of_an_update(memory: Path, command: str) -> None:
    steps = Steps(memory, command, "", count=7)
    steps.run(steps.start)
    steps.photos[0].rename(steps.source / "c0" / "zz.jpg")  # all others shift down, this one moves behind its class
    steps.photos[4].unlink()
    make_photos(steps.source / "b", 1, seed=1)  # a new class before all others
    expected = steps.expected()
    for number in steps.killed_at_each(steps.run):
        steps.run()
        assert steps.held() == expected, f"killed before change {number}"


def test_before_every_change_and_then_the_source_changes(memory: Path) -> None:
    steps = Steps(memory, "convert", "")
    before = steps.run
    aside = memory / "aside"

    def change() -> None:
        steps.photos[0].rename(aside)

    def change_back() -> None:
        aside.rename(steps.photos[0])

    change()
    expected = steps.expected()
    change_back()
    for number in steps.killed_at_each(before):
        change()
        steps.run()
        change_back()
        assert steps.held() == expected, f"killed before change {number}"


def test_before_changes_of_an_update_and_then_the_source_changes_again(memory: Path) -> None:
    steps = Steps(memory, "encode", "", count=6)
    steps.run(steps.start)
    make_photos(steps.source / "b", 3, seed=1)
    added = sorted((steps.source / "b").rglob("*.jpg"))
    aside = memory / "aside"
    aside.mkdir()

    def change() -> None:
        added[0].rename(aside / "0")
        steps.photos[5].rename(aside / "5")

    def change_back() -> None:
        (aside / "0").rename(added[0])
        (aside / "5").rename(steps.photos[5])

    change()
    expected = steps.expected()
    change_back()
    for number in steps.killed_at_each(steps.run, every=2):
        change()
        steps.run()
        change_back()
        assert steps.held() == expected, f"killed before change {number}"


@SHAPES
def test_before_every_change_of_an_overwrite(memory: Path, suffix: str) -> None:
    steps = Steps(memory, "encode", suffix)
    more = make_photos(steps.source / "zz", 2, seed=1)
    steps.run(steps.start)
    for photo in more:  # so that the earlier dataset has files that the new one has not
        photo.unlink()
    new: dict[str, object] = {"resolution": "16x16"}
    expected = steps.expected(**new)
    for number in steps.killed_at_each(partial(steps.run, overwrite=True, **new)):
        if ledger(steps.place / f"out{suffix}"):
            break  # the earlier dataset is gone; the rest is a first run
        try:
            steps.run(**new)  # goes on where the overwriting had begun
        except SettingsChangedError:
            steps.run(overwrite=True, **new)
        assert steps.held() == expected, f"killed before change {number}"


@pytest.mark.parametrize(("suffix", "update"), [("", False), ("", True), (".zip", False)])
def test_a_full_disk_at_every_change(memory: Path, suffix: str, update: bool) -> None:
    steps = Steps(memory, "encode", suffix)
    if update:
        steps.run(steps.start)
        steps.photos[0].unlink()
        make_photos(steps.source / "b", 1, seed=1)
        shutil.copytree(steps.start, steps.place, copy_function=shutil.copy2)
    expected = steps.expected()
    full, done = 5, 0

    def attempt() -> None:
        try:
            steps.run()
        except DestinationError as error:
            os._exit(full if "the disk is full" in str(error) else 1)

    def no_room(number: int, count: int, event: str) -> None:
        if count >= number and event in ("open", "os.mkdir", "os.rename"):
            raise OSError(errno.ENOSPC, "No space left on device")

    number = 0
    while (code := fork_with(partial(no_room, number), attempt)) != done:
        assert code == full, f"full from change {number} on"
        steps.run()
        assert steps.held() == expected, f"full from change {number} on"
        shutil.rmtree(steps.place)
        shutil.copytree(steps.start, steps.place, copy_function=shutil.copy2)
        number += 1
    assert number > 15


def test_in_the_middle_of_gathering_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that lost an image moves the one behind it: out of the archive, killed there, and then to its place."""
    steps = Steps(tmp_path, "convert", ".zip")
    steps.photos[0].write_bytes(b"no picture")
    expected = steps.expected()

    def half(source: Path, start: int, size: int, target: int) -> None:
        copy_bytes(source, start, size // 2, target)
        os.kill(os.getpid(), signal.SIGKILL)

    commit = _Run._commit

    def later(run: _Run, shard: Any) -> None:
        """The shard that lost an image comes after one that lies behind it, however busy the machine is."""
        if shard.number == 0:
            wait_until(lambda: any(path.suffix == ".written" for path in steps.place.rglob("*-*-*")))
        commit(run, shard)

    with monkeypatch.context() as patch:
        patch.setattr("latentmill.formats.growing_zip.copy_bytes", half)
        patch.setattr(_Run, "_commit", later)
        for _ in range(2):
            assert fork_with(lambda count, event: None, partial(steps.run, num_workers=2)) == -signal.SIGKILL
    steps.run()
    assert steps.held() == expected


@pytest.mark.parametrize("after", range(4))
def test_in_the_middle_of_a_member_among_several_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The worker is killed in its place in the archive, then the whole run; another one goes on, with any number."""
    steps = Steps(tmp_path, "convert", ".zip", count=8)
    expected = steps.expected()
    calls = tmp_path / "calls"
    calls.write_bytes(b"")

    def half(descriptor: int, parts: tuple[bytes, bytes]) -> int:
        with calls.open("ab") as file:  # of all workers
            file.write(b".")
        if calls.stat().st_size <= after:
            return write_parts(descriptor, parts)
        write_parts(descriptor, (parts[0], parts[1][:100]))
        if calls.stat().st_size > after + 2:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr("latentmill.formats.growing_zip.write_parts", half)
        patch.setattr("latentmill.runners.local._start_method", lambda: "fork")  # be PyTorch imported or not
        assert fork_with(lambda count, event: None, partial(steps.run, num_workers=2)) == -signal.SIGKILL
    assert calls.stat().st_size > after + 2
    assert not list((steps.place / "out.zip.latentmill" / "parts").glob("*.part"))
    steps.run(num_workers=2 if after % 2 else 1)
    assert steps.held() == expected


@pytest.mark.parametrize("after", range(5))
def test_in_the_middle_of_a_member_of_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """One writer's shards go straight into the archive: no part of one counts before its ledger entry."""
    steps = Steps(tmp_path, "convert", ".zip")
    expected = steps.expected()
    calls: list[int] = []

    def half(descriptor: int, parts: tuple[bytes, bytes]) -> int:
        calls.append(descriptor)
        if len(calls) <= after:
            return write_parts(descriptor, parts)
        write_parts(descriptor, (parts[0], parts[1][:100]))
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr("latentmill.formats.growing_zip.write_parts", half)
        assert fork_with(lambda count, event: None, steps.run) == -signal.SIGKILL
    work = steps.place / "out.zip.latentmill"
    assert len(ledger(steps.place / "out.zip")) == after // 2
    assert (work / "partial.zip").exists() and not list((work / "parts").glob("*.part"))
    steps.run(num_workers=2 if after % 2 else 1)
    assert steps.held() == expected
