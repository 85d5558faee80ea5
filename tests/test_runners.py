"""The contract of every runner: the same bytes for any number of workers, and a clear end when a worker fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import latentmill
from latentmill.errors import LatentmillError
from latentmill.loading import Decoded, ImageLoad
from latentmill.records import Progress, Sample, SampleRef, ShardReport
from latentmill.runners.local import run_local
from latentmill.worker import Emit, Task, Unit
from support import (
    CAN_FORK,
    Event,
    cli,
    command_of_small_shards,
    contents,
    descendants,
    ledger,
    make_photos,
    run_shards,
    running,
    task_for,
    wait_until,
)

RUNNERS: dict[str, Callable[[Task, Sequence[Unit], int, Emit], None]] = {"local": run_local}


def run(task: Task, shards: Sequence[int], workers: int, emit: Callable[[Event], None], runner: str = "local") -> None:
    """Run shards of a task of one part with so many workers."""
    run_shards(task, shards, emit, lambda task, units, emit: RUNNERS[runner](task, units, workers, emit))


STARTS = [method for method in ("fork", "spawn") if method in multiprocessing.get_all_start_methods()]


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("latentmill.runners.local._start_method", lambda: request.param)
    return str(request.param)


def outcome_rows(task: Task) -> list[list[object]]:
    """The ledger without its seconds."""
    entries = sorted((task.parts[0].plan.folder / "shards").glob("*.jsonl"))
    found = []
    for entry in entries:
        report, *rows = map(json.loads, entry.read_text().splitlines())
        found.append([{**report, "seconds": None}, *rows])
    return found


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_number_of_workers_gives_the_same_bytes(photos: Path, tmp_path: Path, start: str, runner: str) -> None:
    (photos / "c0" / "bad.jpg").write_bytes(b"")
    seen = {}
    for workers in (1, 2, 3):
        dest = tmp_path / str(workers)
        task = task_for(photos, dest)
        events: list[Progress | ShardReport] = []
        run(task, range(len(task.parts[0].plan.shards)), workers, events.append, runner)
        reports = [event for event in events if isinstance(event, ShardReport)]
        assert sorted(report.shard for report in reports) == [0, 1, 2, 3]
        assert sum(event.done for event in events if isinstance(event, Progress)) == 13
        files = {n: d for n, d in contents(dest).items() if not n.startswith(".latentmill")}
        assert len(files) == 12
        seen[workers] = (files, outcome_rows(task))
        assert not list((dest / ".latentmill" / "stage").glob("*"))
    assert seen[1] == seen[2] == seen[3]


@pytest.mark.parametrize("runner", RUNNERS)
def test_only_the_shards_asked_for_are_run(photos: Path, tmp_path: Path, runner: str) -> None:
    for workers in (1, 2):
        task = task_for(photos, tmp_path / str(workers))
        run(task, [2, 0], workers, lambda event: None, runner)
        assert task.parts[0].plan.done() == [0, 2]


@pytest.mark.parametrize("dest", ["out", "out.zip"])
def test_the_commands_give_the_same_bytes(photos: Path, tmp_path: Path, start: str, dest: str) -> None:
    seen = []
    for workers in (1, 2, 3):
        place = tmp_path / str(workers) / dest
        settings = {"resolution": "32x32", "transform": "center-crop", "batch_size": 1 + workers}
        latentmill.convert(photos, place, **settings, num_workers=workers)
        seen.append(place.read_bytes() if dest.endswith(".zip") else contents(place))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("dest", ["out", "out.zip"])
def test_loading_threads_change_no_latent(photos: Path, tmp_path: Path, dest: str) -> None:
    seen = []
    for threads in (1, 3):
        place = tmp_path / str(threads) / dest
        latentmill.encode(photos, place, resolution="32x32", model_url="fake", num_workers=threads)
        seen.append(place.read_bytes() if dest.endswith(".zip") else contents(place))
    assert seen[0] == seen[1]


class ExitLoad(ImageLoad):
    """Ends its process at one photo."""

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        if ref.index == 5:
            os._exit(7)
        return super().__call__(ref, decoded)


class FaultyLoad(ImageLoad):
    """Fails at one photo in a way that nobody foresaw."""

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        if ref.index == 5:
            raise ZeroDivisionError("nobody foresaw this")
        return super().__call__(ref, decoded)


LOAD = ("none", (32, 32), "ignore", "drop", (32, 32))


def test_a_worker_that_ends_by_itself(photos: Path, tmp_path: Path, start: str) -> None:
    task = task_for(photos, tmp_path / "out", load=ExitLoad(*LOAD))
    with pytest.raises(LatentmillError, match="ended with exit code 7"):
        run(task, range(3), 2, lambda event: None)
    assert not multiprocessing.active_children()


def test_a_fault_in_a_worker_comes_with_its_traceback(photos: Path, tmp_path: Path, start: str) -> None:
    task = task_for(photos, tmp_path / "out", load=FaultyLoad(*LOAD))
    with pytest.raises(RuntimeError, match="nobody foresaw this") as caught:
        run(task, range(3), 2, lambda event: None)
    assert "in __call__" in str(caught.value)
    assert not multiprocessing.active_children()


def test_a_listener_that_fails_stops_the_workers(photos: Path, tmp_path: Path, start: str) -> None:
    def emit(event: object) -> None:
        raise LatentmillError("enough")

    task = task_for(photos, tmp_path / "out")
    for workers in (1, 2):
        with pytest.raises(LatentmillError, match="enough"):
            run(task, range(3), workers, emit)
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not CAN_FORK, reason="finds the workers in /proc")
def test_a_worker_that_the_system_kills(tmp_path: Path) -> None:
    source, dest, count = tmp_path / "photos", tmp_path / "out", 400
    make_photos(source, count)
    settings = ("--source", source, "--dest", dest, "--resolution", "32x32", "--batch-size", 4, "--num-workers", 2)
    arguments = command_of_small_shards("convert", *settings)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert wait_until(lambda: len(ledger(dest)) > 2)
        workers = descendants(process.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        killed = time.monotonic()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "a worker process was killed by the system, most likely for want of memory" in errors
    assert "--num-workers" in errors
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert time.monotonic() - killed < 10
    assert not any(map(running, workers))
    done = len(ledger(dest)) * 4
    assert done < count, "the death was noticed only when all was done"
    again = cli("convert", *settings)
    assert again.returncode == 0
    assert f"going on: {done} of {count} images are done" in again.stdout
    assert not latentmill.verify(dest).problems
