"""`--json`: events for programs, for every command that runs; nothing else on stdout; the same exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from support import FULL, GOES_ON, GONE, HAS_FULL, cli, command, make_photos, on_full_disk, read_once, unread

SIZE = ("--resolution", "32x32")
COMMON = {"event", "version", "time", "command"}
KEYS = {
    "start": {"latentmill", "arguments", "settings"},
    "plan": {"job", "text"},
    "progress": {"job", "what", "total", "done", "committed", "rejected", "skipped", "rate", "eta_seconds", "stage",
                 "cpu_share", "gpus"},
    "reject": {"job", "key", "stage", "reason"},
    "end": {"exit_code", "seconds"},
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(make_photos(folder, 6)):
        photo.with_suffix(".txt").write_text(f"a caption of photo {number}")
    (folder / "c0" / "bad.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def images(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("made") / "images"
    assert cli("convert", "--source", photos, "--dest", dest, *SIZE).returncode == 3
    return dest


def told(*arguments: object, **environment: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the events on stdout, which has nothing else, and stderr."""
    run = cli(*arguments, "--json", **environment)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    for event in found:
        assert event.keys() >= COMMON
        assert event["version"] == 1
        assert event["command"] == str(arguments[0])
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
        assert KEYS.get(event["event"], set()) <= event.keys() - COMMON
    assert (found[0]["event"], found[-1]["event"]) == ("start", "end")
    assert found[-1]["exit_code"] == run.returncode
    assert [event["event"] for event in found].count("end") == 1
    return run.returncode, found, run.stderr


def only(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [event for event in events if event["event"] == kind]
    return found


def test_a_conversion_from_start_to_end(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    code, events, errors = told("convert", "--source", photos, "--dest", dest, *SIZE)
    assert code == 3
    assert errors == ""
    kinds = [kind for kind, _ in groupby(event["event"] for event in events)]
    assert kinds == ["start", "plan", "progress", "reject", "result", "end"]
    assert events[0]["settings"]["resolution"] == "32x32"
    progress = [event for event in events if event["event"] == "progress"][-1]
    result, reject = only(events, "result"), only(events, "reject")
    assert (progress["total"], progress["done"], progress["committed"], progress["rejected"]) == (7, 7, 7, 1)
    assert progress["what"] == "images"
    assert (reject["key"], reject["stage"], reject["reason"]) == ("c0/bad.jpg", "decode", "the file is empty")
    assert (result["dest"], result["stored"], result["rejected"], result["computed"]) == (str(dest), 6, 1, 7)
    assert Path(result["report"]).is_file()
    assert Path(result["rejects"]).is_file()
    assert not result["already_done"]


def test_a_finished_one_says_so(photos: Path, images: Path) -> None:
    (images.parent / "log").unlink(missing_ok=True)
    code, events, _ = told("verify", images, "--log-file", images.parent / "log")
    assert code == 0
    result = only(events, "result")
    assert (result["sound"], result["problems"], result["kind"]) == (True, [], "images")
    assert "sound: images" in (images.parent / "log").read_text()


def test_verify_tells_every_problem(images: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(images, broken)
    next(broken.rglob("*.png")).write_bytes(b"x")
    code, events, _ = told("verify", broken)
    assert code == 1
    assert not only(events, "result")["sound"]
    assert only(events, "result")["problems"]


def test_a_recipe_of_two_outputs_and_its_plan(photos: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'dest = "out"\n[source]\npath = "{photos}"\n[outputs.images]\nkind = "pixels"\nresolution = "32x32"\n'
        '[outputs.sd]\nkind = "latents"\nmodel = "fake"\nresolution = "32x32"\n'
    )
    code, events, _ = told("plan", recipe)
    assert code == 0
    planned = only(events, "result")
    assert [(each["name"], each["samples"], each["state"]) for each in planned["outputs"]] == [
        ("images", 7, "new"), ("sd", 7, "new")
    ]  # fmt: skip
    code, events, _ = told("run", recipe)
    assert code == 3
    results = {event["job"]: event for event in events if event["event"] == "result"}
    assert {name: result["stored"] for name, result in results.items()} == {"images": 6, "sd": 6}
    assert {event["job"] for event in events if event["event"] == "progress"} == {"images", "sd"}
    assert [event["job"] for event in events if event["event"] == "reject"] == ["images", "sd"]
    code, events, _ = told("run", recipe)
    assert all(event["already_done"] for event in events if event["event"] == "result")


def test_commands_that_look_tell_one_result(photos: Path, images: Path, tmp_path: Path) -> None:
    code, events, _ = told("models")
    assert code == 0
    assert {"vae", "text", "text_sets", "vision"} <= only(events, "result").keys()
    code, events, _ = told("buckets", photos, "--buckets", "grid:64", "--resolution", 256)
    assert only(events, "result")["totals"]["images"] == 6
    code, events, _ = told("init", photos, "--out", tmp_path / "recipe.toml")
    assert only(events, "result")["recipe"] == str(tmp_path / "recipe.toml")
    code, events, _ = told("import", photos, tmp_path / "data")
    assert (only(events, "result")["stored"], only(events, "result")["names"]) == (6, ["prompt"])
    assert only(events, "reject")["key"] == "c0/bad.jpg"


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (("verify", "/nothing/here"), "SourceError", "there is nothing at /nothing/here"),
        (("convert", "--source", "x"), "UsageError", "convert needs --dest"),
        (("convert", "--sauce", "x"), "UsageError", "Did you mean --source?"),
        (("convert", "--source", "x", "--dest", "y", "--log-file", "/no/such.log"), "ConfigError", "--log-file must"),
    ],
)
def test_errors_are_events_too(arguments: tuple[str, ...], kind: str, said: str) -> None:
    code, events, errors = told(*arguments)
    assert code == 2
    assert only(events, "error")["type"] == kind
    assert said in only(events, "error")["text"]
    assert said in errors  # for the person who looks at the log of the program


def test_warnings_are_events_and_for_a_person(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    shutil.copytree(photos, source)
    (source / "dataset.json").write_text(json.dumps({"labels": [["no/such.jpg", 1]]}))
    _, events, errors = told("convert", "--source", source, "--dest", tmp_path / "out", *SIZE)
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert any("names 1 files that the source does not hold" in text for text in warnings)
    assert errors.splitlines() == [f"warning: {text}" for text in warnings]


def test_what_a_library_prints_is_not_on_stdout(photos: Path, tmp_path: Path) -> None:
    code = (
        "import latentmill.api as api; real = api.convert_recipe\n"
        "def noisy(*a, **k):\n    print('a library says hello')\n"
        "    import os; os.system('echo a program too')\n    return real(*a, **k)\n"
        "api.convert_recipe = noisy\nfrom latentmill.cli import main; main()"
    )
    arguments = command("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--json")
    run = subprocess.run([arguments[0], "-c", code, *arguments[3:]], capture_output=True, text=True, timeout=60)
    assert run.returncode == 3
    assert all(json.loads(line)["version"] == 1 for line in run.stdout.splitlines())
    assert "a library says hello" in run.stderr
    assert "a program too" in run.stderr


@pytest.mark.parametrize("full", [False, True], ids=["pipe", "full"])
def test_where_nobody_listens_from_the_start_nothing_begins(photos: Path, tmp_path: Path, full: bool) -> None:
    if full and not HAS_FULL:
        pytest.skip("/dev/full is Linux's")
    log = tmp_path / "log"
    arguments = command("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--log-file", log, "--json")
    assert (on_full_disk if full else unread)(*arguments) == (2, f"error: {FULL if full else GONE}\n")
    assert f"error: {FULL if full else GONE}" in log.read_text()
    assert '"exit_code": 2' in log.read_text()
    assert not (tmp_path / "out").exists()


def test_a_reader_that_goes_away_ends_it(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--log-file", log)
    first, code, errors = read_once(*arguments, "--json")
    assert json.loads(first)["event"] == "start"
    assert (code, errors) == (2, f"error: {GONE}{GOES_ON}\n")
    assert GONE + GOES_ON in log.read_text()
    assert cli(*arguments).returncode == 3  # the one that is no photo


def test_names_that_are_not_utf8_are_json_all_the_same(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    make_photos(source, 2)
    with open(os.fsencode(source) + b"/c0/bad\xff.jpg", "wb"):  # noqa: PTH123
        pass
    _, events, _ = told("convert", "--source", source, "--dest", tmp_path / "out", *SIZE)
    assert os.fsencode(only(events, "reject")["key"]) == b"c0/bad\xff.jpg"
