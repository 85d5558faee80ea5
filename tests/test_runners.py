"""The contract of every runner: the same bytes for any number of workers, and a clear end when a worker fails."""

from __future__ import annotations

import faulthandler
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
from latentmill.careful import WORKER, Doing
from latentmill.encoders.fake import FakeSpec
from latentmill.errors import LatentmillError, SampleError, TooManyFailuresError
from latentmill.formats.containers import _FolderSink
from latentmill.formats.repa import ImageLayout
from latentmill.loading import Decoded, ImageLoad
from latentmill.manifest import Plan
from latentmill.records import Array, Encoded, Outcome, Progress, Sample, SampleRef, ShardReport, StoredFile
from latentmill.runners import tasks
from latentmill.runners.local import run_local
from latentmill.runners.scheduler import Death, schedule
from latentmill.runners.work import Ask, Message, Order, Told
from latentmill.worker import Emit, Task, Unit
from support import (
    CAN_FORK,
    Event,
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
    for workers in (1, 2, 5):
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
    assert seen[1] == seen[2] == seen[5]


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


class FaultyLoad(ImageLoad):
    """Fails at one photo in a way that nobody foresaw."""

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        if ref.index == 5:
            raise ZeroDivisionError("nobody foresaw this")
        return super().__call__(ref, decoded)


LOAD = ("none", (32, 32), "ignore", "drop", (32, 32))


def test_a_fault_in_a_worker_comes_with_its_traceback(photos: Path, tmp_path: Path, start: str) -> None:
    task = task_for(photos, tmp_path / "out", load=FaultyLoad(*LOAD))
    with pytest.raises(RuntimeError, match="nobody foresaw this") as caught:
        run(task, range(3), 2, lambda event: None)
    image, told = caught.value.__notes__
    assert image.startswith("with ")
    assert "in __call__" in told
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
def test_workers_that_the_system_kills_are_replaced(tmp_path: Path) -> None:
    source, dest, calm, count = tmp_path / "photos", tmp_path / "out", tmp_path / "calm", 400
    make_photos(source, count)
    crop = {"resolution": "32x32", "transform": "center-crop", "batch_size": 4}
    latentmill.convert(source, calm, **crop, num_workers=1)
    settings = ("--source", source, "--dest", dest, "--resolution", "32x32", "--transform", "center-crop",
                "--batch-size", 4, "--num-workers", 2)  # fmt: skip
    arguments = command_of_small_shards("convert", *settings)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        killed: list[int] = []
        for done in (2, 20, 60):
            assert wait_until(lambda done=done: len(ledger(dest)) > done)
            killed += descendants(process.pid)[-1:]
            os.kill(killed[-1], signal.SIGKILL)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert len(set(killed)) == 3
    assert "400 stored" in output
    assert errors == ""
    assert not any(map(running, killed))
    assert contents(dest) == contents(calm)


# what kills its worker


class Killing(ImageLoad):
    """Ends its process at some photos, in the way that is named."""

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        how = self.__dict__["at"].get(ref.index)
        if how == "exit":
            os._exit(7)
        if how is not None:
            faulthandler.disable()  # pytest's, which would tell of it
            os.kill(os.getpid(), how)
        return super().__call__(ref, decoded)


def killing(at: dict[int, object]) -> Killing:
    load = Killing(*LOAD)
    load.__dict__["at"] = at
    return load


class KillingEncoder(FakeSpec):
    """Ends its process at some photos; or at every batch of several."""

    def at(self, *indices: int, batches: bool = False) -> KillingEncoder:
        self.__dict__.update(indices=indices, batches=batches)
        return self

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        state = self.__dict__
        if any(sample.ref.index in state["indices"] for sample in samples) or (state["batches"] and len(samples) > 1):
            faulthandler.disable()  # pytest's, which would tell of it
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().encode(samples)


class KillingWarmUp(KillingEncoder):
    """Ends its process in every warm-up, too."""

    def warm_up(self, samples: Sequence[Sample]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def rejects(task: Task) -> dict[str, list[str]]:
    rows = [row for entry in outcome_rows(task) for row in entry[1:]]
    return {row["key"]: row["reject"] for row in rows if "reject" in row}  # type: ignore[call-overload, index]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start in milliseconds, and see what a test has patched."""
    if not CAN_FORK:
        pytest.skip("needs fork")
    monkeypatch.setattr("latentmill.runners.local._start_method", lambda: "fork")


@pytest.mark.usefixtures("forked")
def test_a_photo_that_kills_its_worker_is_rejected_with_the_reason_and_the_rest_is_made(
    photos: Path, tmp_path: Path
) -> None:
    calm = task_for(photos, tmp_path / "calm")
    run(calm, range(3), 1, lambda event: None)
    task = task_for(photos, tmp_path / "out", load=killing({2: signal.SIGKILL, 5: "exit", 6: signal.SIGSEGV}))
    events: list[Progress | ShardReport] = []
    run(task, range(3), 2, events.append)
    assert rejects(task) == {
        "c0/photo00002.jpg": [WORKER, "the process was killed by signal 9 (SIGKILL), most likely for want of memory"],
        "c0/photo00005.jpg": [WORKER, "the process ended with exit code 7"],
        "c1/photo00006.jpg": [WORKER, "the process was killed by signal 11 (SIGSEGV)"],
    }
    left = {name: data for name, data in contents(tmp_path / "calm", data_only=True).items() if name[:1] == "0"}
    for number in (2, 5, 6):
        del left[f"00000/img{number:08d}.png"]
    made = contents(tmp_path / "out", data_only=True)
    assert {name: data for name, data in made.items() if name[:1] == "0"} == left
    counts = [event for event in events if isinstance(event, Progress)]
    assert (sum(each.done for each in counts), sum(each.rejected for each in counts)) == (12, 3)
    assert sorted(event.shard for event in events if isinstance(event, ShardReport)) == [0, 1, 2]
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("workers", [2, 5])
def test_a_sample_that_kills_the_encoder_is_found_within_its_batch(photos: Path, tmp_path: Path, workers: int) -> None:
    places = [[tmp_path / name / kind for kind in ("lat", "img")] for name in ("calm", "out")]
    run(calm := task_for(photos, *places[0], encoder=FakeSpec(), batch_size=4), range(3), 1, lambda event: None)
    encoder = KillingEncoder().at(1, 2, 10)
    run(task := task_for(photos, *places[1], encoder=encoder, batch_size=4), range(3), workers, lambda event: None)
    assert list(rejects(task)) == ["c0/photo00001.jpg", "c0/photo00002.jpg", "c1/photo00010.jpg"]
    assert {reason for _, reason in rejects(task).values()} == {"the process was killed by signal 11 (SIGSEGV)"}
    kept = [row for entry in outcome_rows(calm) for row in entry[1:] if row["index"] not in (1, 2, 10)]  # type: ignore[call-overload, index]
    assert [row for entry in outcome_rows(task) for row in entry[1:] if "reject" not in row] == kept  # type: ignore[operator]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("where", ["write", "pack"])
def test_a_photo_that_kills_while_its_file_is_made_is_found_among_those_made_with_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def write(sink: object, name: str, data: bytes, known: str | None = None) -> StoredFile:
        if name.endswith("00000002.png"):
            os._exit(7)
        return usual_write(sink, name, data, known)  # type: ignore[arg-type]

    def to_bytes(layout: ImageLayout, array: Array, beside: object = None) -> bytes:
        if array.tobytes() == culprit:
            os._exit(7)
        return usual_bytes(layout, array)

    usual_write, usual_bytes = _FolderSink.write, ImageLayout.to_bytes
    task = task_for(photos, tmp_path / "out", batch_size=4)
    part = task.parts[0]
    ref = next(ref for ref in part.plan.refs(0) if ref.index == 2)
    shown = part.load(ref, part.load.decode(part.source.read(ref)))
    assert shown is not None
    culprit = shown.array.tobytes()
    if where == "write":
        monkeypatch.setattr(_FolderSink, "write", write)
    else:
        monkeypatch.setattr(ImageLayout, "to_bytes", to_bytes)
    run(task, range(3), 2, lambda event: None)
    assert rejects(task) == {"c0/photo00002.jpg": [WORKER, "the process ended with exit code 7"]}


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("culprits", [(), (1,)])
def test_a_warm_up_that_kills_is_blamed_on_no_photo(photos: Path, tmp_path: Path, culprits: tuple[int, ...]) -> None:
    encoder = KillingWarmUp().at(*culprits)
    task = task_for(photos, tmp_path / "lat", tmp_path / "img", encoder=encoder, batch_size=4)
    run(task, range(3), 2, lambda event: None)
    assert list(rejects(task)) == [f"c0/photo{number:05d}.jpg" for number in culprits]
    assert sum("files" in row for entry in outcome_rows(task) for row in entry[1:]) == 12 - len(culprits)  # type: ignore[operator]


@pytest.mark.usefixtures("forked")
def test_when_every_photo_kills_the_job_ends_with_one_error(photos: Path, tmp_path: Path) -> None:
    for name, broken in (
        ("load", {"load": killing(dict.fromkeys(range(12), signal.SIGKILL))}),
        ("encode", {"encoder": KillingEncoder().at(*range(12))}),
    ):
        task = task_for(photos, tmp_path / name / "out", tmp_path / name / "img", **broken, shard_size=6, batch_size=6)
        with pytest.raises(LatentmillError, match="5 images in a row ended their worker process") as caught:
            run(task, range(2), 2, lambda event: None)
        assert "Use fewer" in str(caught.value)
        assert task.parts[0].plan.done() == []
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("forked")
def test_batches_that_kill_though_no_sample_does_end_the_job(photos: Path, tmp_path: Path) -> None:
    encoder = KillingEncoder().at(batches=True)
    task = task_for(photos, tmp_path / "lat", tmp_path / "img", encoder=encoder, shard_size=12)
    with pytest.raises(LatentmillError, match=r"none of their samples does alone.*smaller --batch-size"):
        run(task, [0], 2, lambda event: None)


@pytest.mark.usefixtures("forked")
def test_one_batch_that_kills_as_a_whole_is_encoded_sample_by_sample(photos: Path, tmp_path: Path) -> None:
    task = task_for(photos, tmp_path / "lat", tmp_path / "img", encoder=KillingEncoder().at(batches=True))
    run(task, [1], 2, lambda event: None)
    rows = [row for entry in outcome_rows(task) for row in entry[1:]]
    assert [row["notes"] for row in rows] == [["smaller-batch"]] * 4  # type: ignore[call-overload, index]


@pytest.mark.usefixtures("forked")
def test_photos_that_kill_count_as_failures_and_are_tried_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)
    settings = {"resolution": "32x32", "transform": "center-crop", "batch_size": 3, "num_workers": 2}
    latentmill.convert(photos, tmp_path / "calm", **settings)
    with monkeypatch.context() as patch:
        whole = ImageLoad.__call__

        def load(self: ImageLoad, ref: SampleRef, decoded: Decoded) -> Sample | None:
            if ref.index in (4, 7, 9):
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(self, ref, decoded)

        patch.setattr(ImageLoad, "__call__", load)
        with pytest.raises(TooManyFailuresError, match="over --max-failures 1"):
            latentmill.convert(photos, tmp_path / "out", **settings, max_failures=1)
        result = latentmill.convert(photos, tmp_path / "out", **settings, max_failures=3)
        assert (result.stored, result.rejected) == (9, 3)
    again = latentmill.convert(photos, tmp_path / "out", **settings)
    assert (again.stored, again.rejected, again.computed) == (12, 0, 3)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


@pytest.mark.usefixtures("forked")
def test_a_shard_that_was_committed_just_before_its_worker_died_is_not_done_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_for(photos, tmp_path / "out")
    commit, died = Plan.commit, tmp_path / "died"

    def die_once(plan: Plan, report: ShardReport, outcomes: list[Outcome]) -> None:
        commit(plan, report, outcomes)
        if report.shard == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Plan, "commit", die_once)
    events: list[Progress | ShardReport] = []
    run(task, range(3), 2, events.append)
    assert died.exists()
    assert sorted(event.shard for event in events if isinstance(event, ShardReport)) == [0, 1, 2]
    assert sum(event.done for event in events if isinstance(event, Progress)) == 12


class NoModel(FakeSpec):
    """Ends its process while it is opened."""

    def open(self) -> FakeSpec:
        os.kill(os.getpid(), signal.SIGKILL)
        return self


class OneModel(FakeSpec):
    """Has room for one process alone. The folder of its `room` is the first one's."""

    def within(self, room: Path) -> OneModel:
        self.__dict__["room"] = room
        return self

    def open(self) -> FakeSpec:
        owner = self.__dict__["room"] / "owner"
        try:
            owner.parent.mkdir()
            owner.write_text(str(os.getpid()))
        except FileExistsError:
            if not owner.exists() or owner.read_text() != str(os.getpid()):
                os.kill(os.getpid(), signal.SIGKILL)
        return self


@pytest.mark.usefixtures("forked")
def test_workers_that_cannot_load_their_model(photos: Path, tmp_path: Path) -> None:
    task = task_for(photos, tmp_path / "lat", tmp_path / "img", encoder=NoModel())
    with pytest.raises(LatentmillError, match=r"no worker process can be started: .*signal 9.*fewer --device"):
        run(task, range(3), 2, lambda event: None)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("forked")
def test_where_there_is_room_for_fewer_workers_they_do_it_all(photos: Path, tmp_path: Path) -> None:
    encoder = OneModel().within(tmp_path / "room")
    task = task_for(photos, tmp_path / "lat", tmp_path / "img", encoder=encoder)
    run(task, range(3), 3, lambda event: None)
    assert task.parts[0].plan.done() == [0, 1, 2]


@pytest.mark.usefixtures("forked")
def test_a_death_while_a_shard_is_committed_is_no_photos_and_leaves_no_stray(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(task_for(photos, tmp_path / "calm"), range(3), 1, lambda event: None)
    task = task_for(photos, tmp_path / "out")
    commit, deaths = Plan.commit, tmp_path / "deaths"
    deaths.mkdir()

    def die_thrice(plan: Plan, report: ShardReport, outcomes: list[Outcome]) -> None:
        """After the files have taken their places, before the ledger entry."""
        if report.shard == 0 and (count := len(list(deaths.iterdir()))) < 3:
            (deaths / str(count)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        commit(plan, report, outcomes)

    monkeypatch.setattr(Plan, "commit", die_thrice)
    run(task, range(3), 2, lambda event: None)
    assert len(list(deaths.iterdir())) == 3
    assert rejects(task) == {}
    assert contents(tmp_path / "out", data_only=True).keys() == contents(tmp_path / "calm", data_only=True).keys()


@pytest.mark.usefixtures("forked")
def test_commits_that_always_kill_end_the_job(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "commit", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(LatentmillError, match="no image is to blame"):
        run(task_for(photos, tmp_path / "out"), range(3), 2, lambda event: None)


@pytest.mark.usefixtures("forked")
def test_one_unit_of_a_job_with_several_workers_is_not_run_in_the_caller(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, caller = ImageLoad.__call__, os.getpid()

    def load(self: ImageLoad, ref: SampleRef, decoded: Decoded) -> Sample | None:
        assert os.getpid() != caller
        if ref.index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, ref, decoded)

    monkeypatch.setattr(ImageLoad, "__call__", load)
    settings = {"resolution": "32x32", "transform": "center-crop", "batch_size": 12}
    result = latentmill.convert(photos, tmp_path / "out", **settings, num_workers=2)
    assert (result.stored, result.rejected) == (11, 1)


class Greedy(ImageLoad):
    """Has room for the first photo only where no other process is at work. The folder `busy` is of those that are."""

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        here: Path = self.__dict__["busy"]
        own = here / str(os.getpid())
        own.touch()
        seconds = 0.3 if self._others(own) else 20  # the first time there is company, sooner or later
        if ref.index == 0 and wait_until(lambda: any(map(running, self._others(own))), seconds):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        own.unlink()
        return super().__call__(ref, decoded)

    @staticmethod
    def _others(own: Path) -> list[int]:
        return [int(other.name) for other in own.parent.iterdir() if other != own]


@pytest.mark.usefixtures("forked")
def test_a_photo_that_only_wants_the_memory_for_itself_is_stored(photos: Path, tmp_path: Path) -> None:
    load = Greedy(*LOAD)
    load.__dict__["busy"] = tmp_path / "busy"
    (tmp_path / "busy").mkdir()
    task = task_for(photos, tmp_path / "out", load=load, load_threads=0)
    run(task, range(3), 2, lambda event: None)
    assert len(list((tmp_path / "busy").iterdir())) == 1, "it must kill once"
    assert rejects(task) == {}
    assert task.parts[0].plan.done() == [0, 1, 2]


class Scripted:
    """A crew of one worker that is no process: what it tells, time by time, is written down."""

    def __init__(self, *told: Sequence[Message | Death]) -> None:
        self.told, self.started = list(told), 0

    def start(self) -> int:
        self.started += 1
        return self.started

    def wait(self) -> list[tuple[int, Message | Death]]:
        return [(self.started, message) for message in self.told.pop(0)]

    def answer(self, worker: int, order: Order | None) -> None:
        """It knows what it has to do."""

    def close(self) -> None:
        """Nothing is to be ended."""


def test_rejects_that_are_expected_are_not_those_of_shards_that_are_done(photos: Path, tmp_path: Path) -> None:
    killed, asks = Death("killed"), [Ask(waits=True)]
    ended = [[Told(0, Progress(4, 1, 0, shard)), Told(0, ShardReport(shard, 4, 3, 1, 0, {}))] for shard in (0, 1)]
    crew = Scripted(
        asks, [killed],
        asks, [killed],
        asks, [Doing("load", ((0, 3),), "three"), killed],
        asks, [*ended[0], Doing("load", ((0, 5),), "five"), killed],
        asks, ended[1],
    )  # fmt: skip
    rejected = [0]

    def emit(part: int, event: Event) -> None:
        if isinstance(event, Progress):
            rejected.append(rejected[-1] + event.rejected)

    schedule(task_for(photos, tmp_path / "out"), [((0, 1),)], 1, emit, crew)
    assert max(rejected) == rejected[-1] == 2


def _leave_a_process_behind(note: Path) -> None:
    """Begin one, which does nothing before this one has ended: after it has told its number."""
    parent = os.getpid()

    def wait(*_: object) -> None:
        note.write_text(str(os.getpid()))
        wait_until(lambda: os.getppid() != parent)

    tasks.signal.signal = wait  # type: ignore[assignment]
    tasks._Pool(1).submit(abs, [1])
    wait_until(lambda: note.exists() and note.read_text() != "")
    os._exit(0)


@pytest.mark.usefixtures("forked")
def test_a_process_that_begins_after_its_parents_end_ends(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_leave_a_process_behind, args=(tmp_path / "note",))
    process.start()
    process.join(30)
    orphan = int((tmp_path / "note").read_text())
    try:
        assert wait_until(lambda: not running(orphan), 10)
    finally:
        if running(orphan):
            os.kill(orphan, signal.SIGKILL)
