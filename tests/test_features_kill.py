"""PixArt's two jobs, killed at any moment and run again, end where an uninterrupted run does."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import fake_text
from feature_jobs import FOLDERS, JOBS, Data, Job, fresh, held, run_text, small
from latentmill.errors import SettingsChangedError
from latentmill.outcome import Result
from support import CAN_FORK, identity, kill_before_change, kill_when, ledger

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="kills processes by ways that only Linux has")


@pytest.fixture(autouse=True)
def without_a_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_text.install(monkeypatch.setattr)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: these tests sync thousands of times."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


class Steps:
    """A small job in this process, to be stopped before each change that it makes to the filesystem."""

    def __init__(self, memory: Path, job: Job) -> None:
        self.data, self.job = small(memory / "data", tall=False), job
        self.start, self.place = memory / "start", memory / "place"
        self.start.mkdir()

    @property
    def dest(self) -> Path:
        return self.place / FOLDERS[self.job]

    def run(self, **settings: Any) -> Result:
        return self.job(self.data, self.place, **settings)

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

    def check(self, number: int, expected: dict[str, bytes]) -> None:
        assert held(self.place) == expected, f"killed before change {number}"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of one batch."""
    monkeypatch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)


def edit(data: Data) -> None:
    """Rows added before and behind, removed with their folder, renamed; a caption and an image edited."""
    data.add("aa/a.png", "an added one")
    data.add("z.png", "a red fox")
    data.remove("f/g/h.png")
    data.rename("b/a.png", "b/n/a.png")
    data.rows["b/c/d.e.png"]["prompt"] = "edited caption"
    data.add("b/c/Zoë 1.jpg", "nothing much")
    data.write()


@JOBS
@pytest.mark.usefixtures("small_shards")
def test_killed_before_every_change_of_a_first_run(memory: Path, job: Job) -> None:
    steps = Steps(memory, job)
    expected = fresh(steps.data, job)
    for number in steps.killed_at_each(steps.run):
        steps.run()
        steps.check(number, expected)


@JOBS
@pytest.mark.usefixtures("small_shards")
def test_killed_before_every_change_of_an_update(memory: Path, job: Job) -> None:
    steps = Steps(memory, job)
    job(steps.data, steps.start)
    edit(steps.data)
    expected = fresh(steps.data, job)
    for number in steps.killed_at_each(steps.run):
        steps.run()
        steps.check(number, expected)


@JOBS
@pytest.mark.usefixtures("small_shards")
def test_killed_before_every_change_of_an_overwrite(memory: Path, job: Job) -> None:
    steps = Steps(memory, job)
    job(steps.data, steps.start)
    steps.data.remove("f/g/h.png")  # so that the earlier folder has files that the new one has not
    steps.data.write()
    new = {"reader": "multi", "pad": True, "max_length": 9} if job is run_text else {"fit": "cover"}
    expected = fresh(steps.data, job, **new)
    for number in steps.killed_at_each(partial(steps.run, overwrite=True, **new)):
        if ledger(steps.dest):
            break  # what was there is gone; the rest is a first run
        try:
            steps.run(**new)  # goes on where the overwriting had begun
        except SettingsChangedError:
            steps.run(overwrite=True, **new)
        steps.check(number, expected)


@JOBS
@pytest.mark.parametrize("update", [False, True])
@pytest.mark.usefixtures("small_shards")
def test_killed_and_then_the_source_changes(memory: Path, job: Job, update: bool) -> None:
    steps = Steps(memory, job)
    if update:
        job(steps.data, steps.start)
        edit(steps.data)
    before = steps.data.table.read_text()
    gone = steps.data.rows.pop("b/n/a.png" if update else "f/g/h.png")
    steps.data.rows["a.png"]["prompt"] = "edited"
    steps.data.write()
    after = steps.data.table.read_text()
    expected = fresh(steps.data, job)
    steps.data.table.write_text(before)
    for number in steps.killed_at_each(steps.run, every=5):
        steps.data.table.write_text(after)
        steps.run()
        steps.check(number, expected)
        steps.data.table.write_text(before)
    assert gone


def command(data: Data, dest: Path, job: Job) -> list[str]:
    """The command line of a job in shards of one batch, without a model; each takes its time, to be killed in it."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fake_text; fake_text.install(); "
        "import time, latentmill.job as job, latentmill.worker as worker; job.SHARD_SECONDS = 1e-9; "
        "commit = worker._Run._commit; "
        "worker._Run._commit = lambda run, shard: (time.sleep(0.02), commit(run, shard))[1]; "
        "from latentmill.__main__ import main; main()"
    )
    own = ["--vae", "fake", "--resolution", "64", "--multi-scale", "--buckets", "grid:16", "--batch-size", "3"]
    if job is run_text:
        own = ["--text-encoder", "fake", "--token-budget", "16"]
    places = ["--data-info", str(data.table), "--dest", str(dest)]
    return [sys.executable, "-c", code, "pixart", *places, *own, "--threads", "1"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Data:
    data = Data(tmp_path_factory.mktemp("many"))
    words = random.Random(0)
    for number in range(60):
        data.add(f"c{number % 3}/d/p{number:03d}.png", " ".join(words.choices("abcdefgh", k=words.randint(1, 9))))
    data.write()
    return data


@JOBS
def test_killed_at_any_time(many: Data, tmp_path: Path, job: Job) -> None:
    expected = fresh(many, job)
    place = tmp_path / "place"
    seen: dict[Path, tuple[int, int]] = {}
    folder = place / FOLDERS[job]
    for shards in (1, 6):
        code, output = kill_when(lambda least=shards: len(ledger(folder)) >= least, command(many, place, job))
        assert code == -signal.SIGKILL, output
        entries = {path: identity(path) for path in ledger(folder)}
        assert entries.items() >= seen.items(), "a committed shard was done again"
        seen = entries
    moment = time.monotonic() + random.uniform(0.3, 0.8)
    kill_when(lambda: time.monotonic() > moment, command(many, place, job))
    job(many, place)
    assert held(place) == expected
