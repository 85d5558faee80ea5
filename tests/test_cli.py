"""The command line as a person meets it: help, suggestions, summaries, exit codes; and the drop-in's own options."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from latentmill import cli as command_line
from latentmill import dropin
from support import FULL, GOES_ON, GONE, HAS_FULL, PHOTOS, cli, command, contents, on_full_disk, read_once, unread

ROOT = Path(__file__).parents[1]
SIZE = ("--resolution", "32x32")
COMMON = {"--source", "--dest", "--max-images", "--overwrite"}
OPTIONS = {
    "convert": COMMON | {"--resolution", "--transform", "--num-workers", "--batch-size", "--exif", "--alpha",
                         "--max-failures"},
    "encode": COMMON | {"--model-url", "--vae", "--revision", "--subfolder", "--batch-size", "--num-workers",
                        "--threads", "--device", "--dtype", "--pixel-range", "--store", "--seed", "--save-dtype",
                        "--images", "--transform", "--resolution", "--channels-last", "--compile"},
    "decode": COMMON,
    "verify": {"--images"},
    "models": set(),
    "demo": {"--out"},
}  # fmt: skip
REFERENCE = {
    "--source", "--dest", "--max-images", "--transform", "--resolution", "--model-url", "--num-workers", "--batch-size",
}  # fmt: skip


def test_version() -> None:
    run = cli("--version")
    assert (run.returncode, run.stdout) == (0, f"latentmill {version('latentmill')}\n")


def test_the_installed_command_is_there() -> None:
    script = Path(sys.executable).with_name("latentmill")
    run = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith("latentmill ")


def test_help_lists_the_commands() -> None:
    for arguments in (("--help",), ("-h",), ()):
        run = cli(*arguments)
        assert run.returncode == (0 if arguments else 2)
        shown = run.stdout + run.stderr
        assert all(f" {name} " in shown for name in OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_help_of_each_command_tells_its_options_and_an_example(name: str) -> None:
    run = cli(name, "--help", COLUMNS="200")
    assert run.returncode == 0
    missing = {option for option in OPTIONS[name] if option not in run.stdout}
    assert not missing
    if name in ("convert", "encode", "decode", "verify"):
        assert f"\n   latentmill {name} " in run.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("covert",), "Did you mean 'convert'?"),
        (("convert", "--sorce", "a"), "--source"),
        (("convert", "--source", "a", "--dest", "b", "--transform", "centre-crop"), "center-crop"),
        (("convert", "--source", "a"), "--dest"),
        (("convert", "--source", "a", "--dest", "b", "--num-workers", "many"), "--num-workers"),
        (("verify",), "DIR_OR_ZIP"),
        (("verify", "a", "b"), "b"),
    ],
)
def test_a_slip_of_the_pen_is_pointed_out(arguments: tuple[str, ...], said: str) -> None:
    run = cli(*arguments)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    failed = cli("convert", "--source", tmp_path / "[b]:cat:", "--dest", tmp_path / "out")
    assert failed.returncode == 2
    assert "[b]:cat:" in failed.stderr


def test_the_summary_counts_what_may_surprise(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    odd = {"exif-rotated": "shapes/exif_rotated.jpg", "transparent": "modes/rgba.png", "cmyk": "modes/cmyk.jpg",
           "16-bit": "modes/gray16.png"}  # fmt: skip
    for file in (*odd.values(), "place/moon.png"):
        shutil.copy(PHOTOS / file, source)
    shutil.copy(PHOTOS / "modes/rgba.png", source / "rgba2.png")
    run = cli("convert", "--source", source, "--dest", tmp_path / "out", "--transform", "center-crop", *SIZE)
    assert run.returncode == 0, run
    assert "6 stored" in run.stdout
    listed = json.loads((tmp_path / "out" / "latentmill-report.json").read_text())["images"]
    for note, file in odd.items():
        keys = [Path(file).name, *(["rgba2.png"] if note == "transparent" else [])]
        assert f"  {len(keys)} {note}\n" in run.stdout
        assert listed[note] == keys
    assert "latentmill-report.json" in run.stdout
    assert json.loads((tmp_path / "out" / "latentmill.json").read_text())["notes"] == {
        "16-bit": 1,
        "cmyk": 1,
        "exif-rotated": 1,
        "transparent": 2,
    }


def test_it_says_first_what_it_will_do_and_last_what_it_did(photos: Path, tmp_path: Path) -> None:
    run = cli("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--num-workers", 2)
    lines = run.stdout.splitlines()
    assert lines[0].startswith("convert: 12 images, output about ")
    assert lines[1].startswith("convert: 2 workers, batches of 32, memory about ")
    assert lines[-3].startswith(f"convert done: {tmp_path / 'out'}: 12 stored; 12 images in ")
    assert lines[-2].startswith("  report: ")
    assert lines[-1] == f"look: latentmill report {tmp_path / 'out'}; check: latentmill verify {tmp_path / 'out'}"
    assert run.stderr == ""


def test_both_ways_to_write_a_size(photos: Path, tmp_path: Path) -> None:
    for name, size in (("a", "32x32"), ("b", "32,32")):
        arguments = ("--source", photos, "--dest", tmp_path / name, "--transform", "center-crop", "--resolution", size)
        assert cli("convert", *arguments).returncode == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_whole_way_in_zips(photos: Path, tmp_path: Path) -> None:
    images, latents = tmp_path / "images.zip", tmp_path / "latents.zip"
    assert cli("convert", "--source", photos, "--dest", images, *SIZE).returncode == 0
    encoded = cli("encode", "--source", images, "--dest", latents, "--vae", "fake")
    assert encoded.returncode == 0, encoded
    assert "fake: 4 channels, factor 8" in encoded.stdout
    verified = cli("verify", latents, "--images", images)
    assert verified.returncode == 0
    assert "sound" in verified.stdout
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [
        ".json",
        ".json",
        ".toml",
        ".toml",
        ".zip",
        ".zip",
    ]


_FAULT = (
    "import latentmill.api as api; api.convert_recipe = lambda *a, **k: 1 / 0; from latentmill.cli import main; main()"
)


def test_a_fault_of_ours_is_one_line_and_a_traceback_only_on_request(photos: Path, tmp_path: Path) -> None:
    arguments = ["convert", "--source", str(photos), "--dest", str(tmp_path / "out")]
    run = subprocess.run([sys.executable, "-c", _FAULT, *arguments], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "ZeroDivisionError" in run.stderr
    debug = [sys.executable, "-c", _FAULT, "--debug", *arguments]
    run = subprocess.run(debug, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert "Traceback" in run.stderr


NEEDS_FULL = pytest.mark.skipif(not HAS_FULL, reason="/dev/full is Linux's")
AS_COMMAND, AS_DROP_IN = [*command()], [sys.executable, str(ROOT / "dataset_tools.py")]
AS_FEATURES = [sys.executable, str(ROOT / "tools" / "extract_features.py")]


@pytest.mark.parametrize("program", [AS_COMMAND, AS_DROP_IN], ids=["latentmill", "dataset_tools"])
@pytest.mark.parametrize(
    ("ending", "told"), [(unread, GONE), pytest.param(on_full_disk, FULL, marks=NEEDS_FULL)], ids=["pipe", "full"]
)
def test_where_its_output_is_lost_a_job_says_so_and_goes_on_later(
    photos: Path, tmp_path: Path, program: list[str], ending: Callable[..., tuple[int, str]], told: str
) -> None:
    arguments = (*program, "convert", "--source", photos, "--dest", tmp_path / "out", *SIZE)
    assert ending(*arguments) == (2, f"error: {told}{GOES_ON}\n")
    again = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert len(list((tmp_path / "out").rglob("*.png"))) == 12


@pytest.mark.parametrize(
    "arguments",
    [
        [*AS_COMMAND, "--help"],
        [*AS_COMMAND, "convert", "--help"],
        [*AS_COMMAND, "--version"],
        [*AS_COMMAND, "models"],
        [*AS_DROP_IN, "convert", "--help"],
        [*AS_FEATURES, "--help"],
    ],
    ids=["help", "command", "version", "models", "dataset_tools", "extract_features"],
)
def test_what_only_shows_something_says_where_it_has_no_room(arguments: list[str]) -> None:
    """Of a reader that leaves, as `head` does, it says nothing."""
    assert unread(*arguments) == (2, "")
    if HAS_FULL:
        assert on_full_disk(*arguments) == (2, f"error: {FULL}\n")


def test_a_problem_that_nobody_hears_of_is_not_told_as_found(photos: Path, tmp_path: Path) -> None:
    """Exit code 1 is that of `verify` where something is wrong."""
    assert cli("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE).returncode == 0
    assert unread(*command("verify", tmp_path / "out")) == (2, "")


def test_where_nothing_can_be_told_the_exit_code_remains(photos: Path, tmp_path: Path) -> None:
    (photos / "c0" / "bad.jpg").write_bytes(b"")  # of which a warning may come
    reads, writes = os.pipe()
    os.close(reads)
    arguments = command("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE)
    try:
        assert subprocess.run(arguments, stdout=writes, stderr=writes, timeout=60).returncode == 2
    finally:
        os.close(writes)


def test_a_reader_that_goes_away_amid_the_job(photos: Path, tmp_path: Path) -> None:
    first, code, errors = read_once("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE)
    assert first
    assert (code, errors) == (2, f"error: {GONE}{GOES_ON}\n")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_on_a_terminal(photos: Path, tmp_path: Path) -> None:
    (photos / "c0" / "bad.jpg").write_bytes(b"")
    terminal, far_end = os.openpty()
    arguments = command("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--batch-size", 1)
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(arguments, stdout=far_end, stderr=far_end, env=environment) as process:
        os.close(far_end)
        shown = b""
        try:
            while block := os.read(terminal, 65536):
                shown += block
        except OSError:  # the far end was closed
            pass
    os.close(terminal)
    text = shown.decode()
    assert process.returncode == 3
    assert "/13" in text  # the live bar
    assert "1 reject" in text
    assert "12 stored" in text
    assert "Traceback" not in text


# the drop-in


def drop_in(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = ROOT / "dataset_tools.py"
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd="/"
    )


def options_of(app: typer.Typer, name: str) -> set[str]:
    group = typer.main.get_command(app)
    return {option for parameter in group.commands[name].params for option in parameter.opts}  # type: ignore[attr-defined]


def test_the_drop_in_has_exactly_the_options_of_the_reference() -> None:
    both = {name: options_of(dropin.app, name) for name in ("convert", "encode")}
    assert both["convert"] | both["encode"] == REFERENCE
    assert both["convert"] == REFERENCE - {"--model-url"}
    assert both["encode"] == REFERENCE - {"--transform", "--resolution"}
    for name, options in both.items():
        assert options < options_of(command_line.app, name)


def test_the_drop_in_converts_and_encodes_as_the_commands_do(photos: Path, tmp_path: Path) -> None:
    crop = ("--transform", "center-crop-dhariwal", *SIZE, "--max-images", 9, "--num-workers", 2, "--batch-size", 4)
    model = ("--model-url", "fake", "--max-images", 7, "--num-workers", 1, "--batch-size", 3)
    run = drop_in("convert", "--source", photos, "--dest", tmp_path / "i", *crop)
    assert run.returncode == 0, run
    assert drop_in("encode", "--source", tmp_path / "i", "--dest", tmp_path / "l", *model).returncode == 0
    assert cli("convert", "--source", photos, "--dest", tmp_path / "i2", *crop).returncode == 0
    assert contents(tmp_path / "i") == contents(tmp_path / "i2")
    assert cli("encode", "--source", tmp_path / "i", "--dest", tmp_path / "l2", *model).returncode == 0
    assert contents(tmp_path / "l") == contents(tmp_path / "l2")
    assert len(list((tmp_path / "l").rglob("*.npy"))) == 7


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "--exif", "apply"),
        ("convert", "--overwrite"),
        ("encode", "--vae", "mini"),
        ("verify", "a"),
        ("models",),
    ],
)
def test_the_drop_in_rejects_what_the_reference_does_not_have(
    photos: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    run = drop_in(*arguments, "--source", photos, "--dest", tmp_path / "out")
    assert run.returncode == 2
    assert "No such" in run.stderr
    assert not (tmp_path / "out").exists()
