"""What several test modules share: the command line as a process, synthetic photos, and comparing datasets."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentmill.batching import ByCount
from latentmill.formats.containers import container
from latentmill.formats.metadata import INDEX_COLUMNS
from latentmill.formats.repa import ImageLayout, LatentLayout
from latentmill.formats.stored_zip import directory_entry, end_records, local_header
from latentmill.loading import ImageLoad
from latentmill.planning import ShardSize, write_plan
from latentmill.records import Progress, ShardReport
from latentmill.sources.images import ImageSource
from latentmill.worker import Output, Part, Task, Unit, run_units

DATA = Path(__file__).parent / "data"
PHOTOS = DATA / "photos"
TINY_VAE = DATA / "models" / "tiny-vae"
WHOLE = 3  # threads for an encoder: two images cannot share them evenly, so its batches are computed whole


def command(*arguments: object) -> list[str]:
    """The command line of `latentmill` with these arguments."""
    return [sys.executable, "-m", "latentmill", *map(str, arguments)]


def cli(*arguments: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `latentmill` as a process of its own."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a few statements as a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def cli_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As `cli`, in this process, which saves its start; without `--num-workers 1` it has workers all the same."""
    from typer.testing import CliRunner

    from latentmill.cli import app

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    line = list(map(str, arguments))
    result = CliRunner().invoke(app, line)
    for each, handler in before.items():
        signal.signal(each, handler)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return subprocess.CompletedProcess(line, result.exit_code, result.stdout, result.stderr)


def make_photos(folder: Path, count: int, *, side: int = 48, classes: int = 2, seed: int = 0) -> list[Path]:
    """`count` different small JPEGs in class folders `c0`, `c1`, …"""
    random = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        path = folder / f"c{number * classes // count}" / f"photo{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


def contents(path: Path, *, data_only: bool = False) -> dict[str, bytes]:
    """Every file of a dataset folder by name; without the report, which holds times. data_only: arrays and labels."""
    found = {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "latentmill-report.json"
    }
    if data_only:
        return {name: data for name, data in found.items() if not name.startswith("latentmill")}
    return found


def without_columns(dataset: Path) -> Path:
    """The dataset as earlier versions made it, without the index's columns; a zip is written as they wrote it."""
    if dataset.is_dir():
        (dataset / INDEX_COLUMNS).unlink()
        return dataset
    with zipfile.ZipFile(dataset) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != INDEX_COLUMNS}
    with dataset.open("wb") as file:
        offset, entries = 0, []
        for name, data in members.items():
            entries.append(directory_entry(name, len(data), zlib.crc32(data), offset))
            offset += file.write(local_header(name, len(data), zlib.crc32(data)) + data)
        size = sum(file.write(entry) for entry in entries)
        file.write(end_records(len(entries), size, offset))
    return dataset


# programs whose output is lost

GONE, FULL = "nobody reads the output any more", "the output cannot be written: No space left on device"
GOES_ON = ". What is committed stays; run the same command again to go on"
HAS_FULL = Path("/dev/full").exists()


def unread(*arguments: object) -> tuple[int, str]:
    """Exit code and stderr of a program whose stdout is a pipe that nobody reads."""
    line = list(map(str, arguments))
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    return process.returncode, errors


def on_full_disk(*arguments: object) -> tuple[int, str]:
    """The same with a stdout that has no room."""
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(list(map(str, arguments)), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stderr


_SLOW_PROGRAM = (
    "import time, latentmill.loading as loading; fast = loading.decode_reduced;"
    " loading.decode_reduced = lambda *given: time.sleep(0.1) or fast(*given);"
    " from latentmill.__main__ import main; main()"
)


def read_once(*arguments: object) -> tuple[str, int, str]:
    """Of `latentmill` with these arguments, slowed: its first line, after which nobody reads, exit code and stderr."""
    line = [sys.executable, "-c", _SLOW_PROGRAM, *map(str, arguments), "--num-workers", "1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    return first, process.returncode, errors


# processes that are killed

CAN_FORK = sys.platform == "linux"
_SMALL_SHARDS = """
import time
import latentmill.job as job
from latentmill.__main__ import main
from latentmill.manifest import Plan

def unhurried(*given, commit=Plan.commit):
    commit(*given)
    time.sleep(0.01)

Plan.commit, job.SHARD_SECONDS = unhurried, 1e-9
main()
"""


def command_of_small_shards(*arguments: object) -> list[str]:
    """As `command`, in shards of one batch, so that a small dataset has as many commits as a large one.

    Each is followed by a rest, so that what looks for it on a busy machine finds the command still at work.
    """
    return [sys.executable, "-c", _SMALL_SHARDS, *map(str, arguments)]


def work_folder(dest: Path) -> Path:
    """Where a job keeps plan and ledger until its dataset is finished."""
    return dest.with_name(dest.name + ".latentmill") if dest.suffix == ".zip" else dest / ".latentmill"


def ledger(dest: Path) -> list[Path]:
    """The entries of the committed shards."""
    return sorted(work_folder(dest).glob("plan-*/shards/*.jsonl"))


def identity(path: Path) -> tuple[int, int]:
    """Changes when a file is written anew, even with the same bytes."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, their children included."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def running(pid: int) -> bool:
    """Whether a process still does anything (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether `condition` came true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.001)
    return condition()


def kill_when(condition: Callable[[], bool], arguments: list[str], signum: int = signal.SIGKILL) -> tuple[int, str]:
    """Start a process, signal it when `condition` comes true, and give its exit code and output.

    SIGINT goes to its workers too, as a terminal sends it. No worker may be left behind.
    """
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            wait_until(lambda: condition() or process.poll() is not None, 60)
            below = descendants(process.pid)
            if process.poll() is None:
                (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)
            output, _ = process.communicate(timeout=15)
        finally:
            process.kill()
    assert wait_until(lambda: not any(map(running, below)), 10), "a worker outlived its parent"
    return process.returncode, output


def fork_with(hook: Callable[[int, str], None], work: Callable[[], object]) -> int:
    """Run `work` in a forked process and give its exit code; `hook` is called before each change of a filesystem.

    The hook is told how many changes came before, and what Python calls the change (`open`, `os.rename`, …).
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        changes = itertools.count()

        def audit(event: str, arguments: tuple[object, ...]) -> None:
            if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate") or (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            ):
                hook(next(changes), event)

        sys.addaudithook(audit)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_before_change(number: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that SIGKILLs itself before its change `number`; False when it made fewer changes."""

    def hook(count: int, event: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    code = fork_with(hook, work)
    assert code in (0, -signal.SIGKILL), f"exit code {code}"
    return code != 0


# a shard's work without a command around it


def task_for(photos: Path, *places: Path, load: Any = None, encoder: Any = None, **settings: Any) -> Task:
    """What a runner gets: a plan over `photos` in shards of 4, into images; with an encoder, latents before them."""
    source = ImageSource(photos)
    containers = [container(place) for place in places]
    batch_size, shard_size = settings.setdefault("batch_size", 2), settings.pop("shard_size", 4)
    plan, _ = write_plan(
        containers[0].work,
        source.listing(),
        ByCount(batch_size),
        lambda: ShardSize(shard_size),
        fingerprint={},
        layouts={},
        asked_digest="",
    )
    assert plan is not None
    outputs = [Output("images", ImageLayout(), containers[-1], encoded=False)]
    if encoder is not None:
        outputs.insert(0, Output("latents", LatentLayout(), containers[0], encoded=True))
    load = load or ImageLoad("none", (32, 32), "ignore", "drop", (32, 32))
    part = Part(plan, source, load, encoder, tuple(outputs), batch_size)
    return Task((part,), settings.get("load_threads", 2))


Event = Progress | ShardReport


def run_shards(
    task: Task,
    shards: Iterable[int],
    emit: Callable[[Event], None],
    run: Callable[[Task, list[Unit], Callable[[int, Event], None]], None] = run_units,
) -> None:
    """Run shards of a task of one part, each a unit of its own."""
    run(task, [((shard,),) for shard in shards], lambda part, event: emit(event))
