"""A command whose process is killed goes on in another, and ends as one that nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import latentmill
from feature_jobs import small
from latentmill import supervising
from support import CAN_FORK, contents, descendants, ledger, make_photos, running, wait_until, work_folder

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="only on Linux is a command supervised")

COUNT, BATCH = 60, 4
CROP = {"transform": "center-crop-dhariwal", "resolution": "32x32"}
WARNING = "the process was killed by signal 9 (SIGKILL), most likely for want of memory. Going on"
_PROGRAM = "import latentmill.job as job; job.SHARD_SECONDS = 1e-9; {}; from latentmill.__main__ import main; main()"
_DROP_IN = (
    "import sys, latentmill.job as job; job.SHARD_SECONDS = 1e-9; {};"
    " from latentmill.__main__ import begin; begin('latentmill.dropin', sys.argv[1:])"
)
_FEATURES = (
    "import latentmill.job as job; job.SHARD_SECONDS = 1e-9; {};"
    " from latentmill.__main__ import begin; begin('latentmill.dropin_features', ['pixart'])"
)
_SLOW = (
    "import time, latentmill.loading as loading; fast = loading.decode_reduced;"
    " loading.decode_reduced = lambda *given: time.sleep(0.02) or fast(*given)"
)
_COLLECTED = (
    f"{_SLOW}; import gc; slow = loading.decode_reduced;"
    " loading.decode_reduced = lambda *given: slow(*given) if gc.isenabled() else 1 / 0"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervised") / "photos"
    make_photos(folder, COUNT)
    return folder


def program(command: str, source: Path, dest: Path, *more: str, before: str = "pass") -> list[str]:
    """The command as a process in shards of one batch, with its work in one process; `before` runs first."""
    settings = [part for name, value in CROP.items() for part in (f"--{name}", value)]
    own = ["--model-url", "fake"] if command == "encode" else []
    places = ["--source", str(source), "--dest", str(dest), "--batch-size", str(BATCH), "--num-workers", "1"]
    return [sys.executable, "-c", _PROGRAM.format(before), command, *places, *settings, *own, *more]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def child_of(process: subprocess.Popen[str]) -> int:
    assert wait_until(lambda: bool(descendants(process.pid)))
    return descendants(process.pid)[0]


def same_files(dest: Path, calm: Path) -> bool:
    if dest.is_dir():
        return contents(dest) == contents(calm)
    return dest.read_bytes() == calm.read_bytes()


@pytest.mark.parametrize(("command", "suffix"), [("convert", ""), ("convert", ".zip"), ("encode", "")])
def test_killed_amid_its_work(photos: Path, tmp_path: Path, command: str, suffix: str) -> None:
    dest, calm = tmp_path / f"out{suffix}", tmp_path / "calm" / f"out{suffix}"
    own = {"model_url": "fake"} if command == "encode" else {}
    getattr(latentmill, command)(photos, calm, **CROP, **own, batch_size=BATCH, num_workers=1)
    with started(program(command, photos, dest, "--json", before=_SLOW)) as process:
        child = child_of(process)
        assert wait_until(lambda: len(ledger(dest)) >= 4)
        os.kill(child, signal.SIGKILL)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert same_files(dest, calm)
    assert not work_folder(dest).exists()
    events = [json.loads(line) for line in output.splitlines()]
    assert any(event["event"] == "warning" and WARNING in event["text"] for event in events), output


def test_a_drop_in_program_goes_on_too(photos: Path, tmp_path: Path) -> None:
    """The reference's command line, of which one process does all the work."""
    arguments = program("convert", photos, tmp_path / "out")
    arguments[arguments.index("-c") + 1] = _DROP_IN.format(_COLLECTED)
    latentmill.convert(photos, tmp_path / "calm", **CROP, batch_size=BATCH, num_workers=1)
    with started(arguments) as process:
        child = child_of(process)
        assert wait_until(lambda: len(ledger(tmp_path / "out")) >= 4)
        os.kill(child, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert WARNING in " ".join(errors.split())
    assert same_files(tmp_path / "out", tmp_path / "calm")


def test_the_drop_in_for_features_goes_on_too(tmp_path: Path) -> None:
    data = small(tmp_path, tall=False)
    for number in range(COUNT):
        data.add(f"more/{number}.png", "another")
    data.write()
    table, name = data.table.parent, "img_sdxl_vae_features_512resolution_ms_new"

    def features(save_root: Path) -> list[str]:
        options = {"dataset_root": table, "vae_json_file": table / "data_info.json", "vae_save_root": save_root}
        told = [f"--{option}={value}" for option, value in options.items()]
        chosen = ["--run_vae_feature_extract", "--multi_scale", "--vae_models_dir=fake"]
        return [sys.executable, "-c", _FEATURES.format(_COLLECTED), *chosen, *told]

    subprocess.run(features(tmp_path / "calm"), check=True, capture_output=True, timeout=60)
    with started(features(tmp_path / "out")) as process:
        child = child_of(process)
        assert wait_until(lambda: len(ledger(tmp_path / "out" / name)) >= 2)
        os.kill(child, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert WARNING in " ".join(errors.split())
    assert same_files(tmp_path / "out" / name, tmp_path / "calm" / name)


def test_the_image_that_kills_is_rejected(photos: Path, tmp_path: Path) -> None:
    culprit = sorted(photos.rglob("*.jpg"))[37]
    before = (
        "import os, latentmill.loading as loading; fast = loading.decode_reduced;"
        f" bad = open({str(culprit)!r}, 'rb').read();"
        " loading.decode_reduced = lambda data, *more: os.kill(os.getpid(), 9) if data == bad else fast(data, *more)"
    )
    with started(program("convert", photos, tmp_path / "out", before=before)) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert f"{COUNT - 1} stored" in output
    (line,) = (tmp_path / "out" / "latentmill-rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == culprit.relative_to(photos).as_posix()
    assert "signal 9" in json.loads(line)["reason"]


def test_killed_twice_it_ends_with_one_line(photos: Path, tmp_path: Path) -> None:
    before = "import os, latentmill.api as api; api.convert_recipe = lambda *given, **more: os.kill(os.getpid(), 9)"
    with started(program("convert", photos, tmp_path / "out", before=before)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("error:") == 1
    assert "killed by signal 9 (SIGKILL), most likely for want of memory, for the second time" in errors


@pytest.mark.parametrize("tell", [os.kill, os.killpg], ids=["parent", "terminal"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_signal(photos: Path, tmp_path: Path, tell: Callable[[int, int], None], signum: int) -> None:
    with started(program("convert", photos, tmp_path / "out", before=_SLOW)) as process:
        assert wait_until(lambda: len(ledger(tmp_path / "out")) >= 2)
        tell(process.pid, signum)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors


def test_the_work_ends_with_its_parent(photos: Path, tmp_path: Path) -> None:
    with started(program("convert", photos, tmp_path / "out", before=_SLOW)) as process:
        child = child_of(process)
        assert wait_until(lambda: len(ledger(tmp_path / "out")) >= 2)
        process.kill()
    assert wait_until(lambda: not running(child), 10)


def test_overwriting_is_not_begun_anew(photos: Path, tmp_path: Path) -> None:
    dest, calm = tmp_path / "out", tmp_path / "calm" / "out"
    for place in (dest, calm):
        latentmill.convert(photos, place, **CROP, batch_size=BATCH, num_workers=1)
    before = (dest / "latentmill-index.jsonl").stat().st_ctime_ns
    with started(program("convert", photos, dest, "--overwrite", before=_SLOW)) as process:
        child = child_of(process)
        assert wait_until(lambda: len(ledger(dest)) >= 6)
        kept = {path: path.stat().st_ino for path in dest.glob("0*/*.png")}
        os.kill(child, signal.SIGKILL)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "going on: " in output
    assert len(kept) >= 6 * BATCH
    assert {path: path.stat().st_ino for path in kept} == kept
    assert contents(dest, data_only=True) == contents(calm, data_only=True)
    assert (dest / "latentmill-index.jsonl").stat().st_ctime_ns != before


def test_stopped_it_is_not_begun_again_even_if_it_crashes_on_its_way_out(photos: Path, tmp_path: Path) -> None:
    before = f"import atexit, os; atexit.register(os.abort); {_SLOW}"
    with started(program("convert", photos, tmp_path / "out", before=before)) as process:
        assert wait_until(lambda: len(ledger(tmp_path / "out")) >= 2)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGABRT
    assert "Going on" not in output + errors
    assert errors.count("stopped. ") == 1


def test_where_the_end_of_children_is_not_told(photos: Path, tmp_path: Path) -> None:
    ignoring = ["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh", *program("convert", photos, tmp_path / "out")]
    assert subprocess.run(ignoring, capture_output=True, timeout=60).returncode == 0
    assert (tmp_path / "out" / "latentmill.json").is_file()


def test_without_an_output_to_write_to(photos: Path, tmp_path: Path) -> None:
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *program("convert", photos, tmp_path / "out")]
    assert subprocess.run(closed, timeout=60).returncode == 0


def test_a_death_of_its_own_wish_is_handed_up(tmp_path: Path) -> None:
    before = "import os, latentmill.cli as cli; cli.main = lambda: os.kill(os.getpid(), 15)"
    with started(program("convert", tmp_path, tmp_path / "out", before=before)) as process:
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


def test_other_commands_have_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(supervising, "SUPERVISED", frozenset({"convert"}))  # which conftest has emptied
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr("threading.active_count", lambda: 1)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for command in ("doctor", "models", "--help", "report"):
        supervising.supervise([command, "convert"])
    with pytest.raises(AssertionError, match="forked"):
        supervising.supervise(["convert"])
    monkeypatch.setattr("threading.active_count", lambda: 2)
    supervising.supervise(["convert"])
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert supervising.killed_before() is None


@pytest.mark.parametrize(
    ("code", "told"),
    [(3, "exit code 3"), (-9, "want of memory"), (-11, "signal 11 (SIGSEGV)"), (-99, "of no name"), (None, "signal 0")],
)
def test_endings_are_told(code: int | None, told: str) -> None:
    assert told in supervising.told_ending(code)
