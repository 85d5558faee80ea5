"""`run`, `plan` and `init` as a person uses them: what is printed, exit codes, and what is left behind."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import fake_text
from latentmill.cli import app
from latentmill.outcome import Event
from latentmill.terminal import Board
from support import command, command_of_small_shards, kill_when, ledger, make_photos

RECIPE = """\
dest = "out"
[source]
path = "photos"
[defaults]
transform = "center-crop"
resolution = "16x16"
[outputs.images]
kind = "pixels"
[outputs.sd]
kind = "latents"
model = "fake"
flip = "both"
[outputs.text]
kind = "text"
model = "fake"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: captioned photos, a recipe, a fake text encoder and no hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fake_text.install(monkeypatch.setattr)
    for number, photo in enumerate(make_photos(tmp_path / "photos", 6)):
        photo.with_suffix(".txt").write_text(f"caption {number}")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def latentmill(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "100"})


# run


def test_each_output_is_told_once_and_has_a_summary(here: Path) -> None:
    done = latentmill("run", "recipe.toml")
    assert done.exit_code == 0
    assert done.stderr == ""
    told = done.stdout.splitlines()
    assert len(told) == len(set(told))
    assert "sd: the same for sd-flip" in told
    summaries = [line for line in told if " done: " in line]
    assert [line.partition(" in ")[0] for line in summaries] == [
        "images done: out/images: 6 stored; 6 images",
        "sd done: out/sd: 6 stored; 6 images",
        "sd-flip done: out/sd-flip: 6 stored; 6 images",
        "text done: out/text: 6 stored; 6 captions",
    ]
    again = latentmill("run", "recipe.toml")
    assert again.exit_code == 0
    assert again.stdout.count("already finished: ") == 4
    assert "already finished: out/text holds all 6 captions; nothing to do" in again.stdout


def test_settings_are_given_over_the_files(here: Path) -> None:
    done = latentmill("run", "recipe.toml", "--set", "source.max_images=2", "--set", "dest=trial", "--set",
                      "outputs.more={kind = 'pixels', resolution = '8x8'}")  # fmt: skip
    assert done.exit_code == 0
    assert "more done: trial/more: 2 stored" in done.stdout
    assert not Path("out").exists()
    again = latentmill("run", "recipe.toml", "--set", "dest=trial", "--set", "source.max_images=2", "--overwrite")
    assert "images done: trial/images: 2 stored; 2 images" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "no.toml"),
         "error: the recipe no.toml cannot be read: No such file or directory. To have one written: latentmill init "),
        (("run", "recipe.toml", "--set", "outputs.sd.modle=x"),
         "error: --set outputs.sd.modle=x: outputs.sd (kind latents, layout repa) has no setting modle. "
         "Did you mean model?\n"),
        (("plan", "recipe.toml", "--set", "source.path=no"),
         "error: --set source.path=no: source.path does not exist: no\n"),
        (("run", "recipe.toml", "--set", "outputs.sd.model=sd-vae"),
         "error: --set outputs.sd.model=sd-vae: outputs.sd: no model is called 'sd-vae', and no folder is there. "),
        (("run", "recipe.toml", "--set", "outputs.sd.path=images/x"),
         "error: --set outputs.sd.path=images/x: outputs.sd and outputs.images must not be the same place or "
         "inside each other. Found: out/images/x and out/images\n"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_nothing_is_written(here: Path, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(here.rglob("*"))
    done = latentmill(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_outputs_that_refuse_have_a_line_each_and_the_rest_is_made(here: Path) -> None:
    latentmill("run", "recipe.toml", "--set", "outputs.sd.flip=none")
    for suffix in (".jpg", ".txt"):
        (here / "photos" / "c0" / "photo00000").with_suffix(suffix).unlink()
    done = latentmill("run", "recipe.toml", "--set", "outputs.sd.flip=none", "--set", "outputs.sd.save_dtype=float16",
                      "--set", "outputs.text.max_length=7")  # fmt: skip
    assert done.exit_code == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("error: recipe.toml, line 9: outputs.sd: out/sd was made with other settings (save-dtype: ")
    assert second.startswith("error: recipe.toml, line 13: outputs.text: out/text was made with other settings (max-l")
    assert "images done: out/images: 5 stored" in done.stdout


def test_rejects_are_counted_and_the_exit_code_tells(here: Path) -> None:
    (here / "photos" / "broken.jpg").write_bytes(b"x")
    done = latentmill("run", "recipe.toml", "--set", "run.max_failures=3")
    assert done.exit_code == 3
    assert done.stdout.count("  1 rejected: out/") == 4
    assert done.stderr.count("warning: 1 of 7 rows have no caption that can be used") == 1


def test_a_warning_of_the_source_is_told_once(here: Path) -> None:
    (here / "photos" / "c0").joinpath("orphan.txt").write_text("x")
    done = latentmill("run", "recipe.toml", "--set", "outputs.two={kind='text', model='fake', path='two'}")
    assert done.exit_code == 0
    assert done.stderr == "warning: no image beside 1 .txt file: c0/orphan.txt\n"


# plan


def test_a_plan_shows_all_in_a_narrow_terminal_too(here: Path) -> None:
    path = "a-folder-with-quite-a-long-name/and-another-one-in-it/that-nobody-would-want-cut-off"
    text = CliRunner().invoke(app, ["plan", "recipe.toml", "--set", f"outputs.sd.path={path}"], env={"COLUMNS": "40"})
    assert text.exit_code == 0
    assert text.stderr == ""
    lines = text.stdout.splitlines()
    assert lines[0] == "6 images in photos"
    assert [line.split() for line in lines[2:4]] == [
        ["output", "kind", "where", "samples", "bytes", "time", "state"],
        ["images", "pixels", "out/images", "6", "10.9", "kB", *lines[3].split()[6:8], "new"],
    ]
    assert f"{path}-flip" in text.stdout
    assert "…" not in text.stdout
    assert "the whole recipe, as it will lie in out/latentmill-recipe.toml" in lines
    assert not Path("out").exists()


def test_a_model_that_cannot_be_had_is_told_and_the_rest_planned(here: Path) -> None:
    done = latentmill("plan", "recipe.toml", "--set", "outputs.sd.model=sd-vae-ft-mse")
    assert done.exit_code == 0
    assert re.search(r"^sd-flip +latents +out/sd-flip +6 +[0-9.]+ kB +unknown +new", done.stdout, re.MULTILINE)
    assert "those of sd, sd-flip" in done.stdout
    assert done.stderr.count("no model, so no time: ") == 1
    assert "--set outputs.sd.model=sd-vae-ft-mse: outputs.sd: stabilityai/sd-vae-ft-mse is not in the" in done.stderr


def test_rejects_and_settings_that_differ_are_shown(here: Path) -> None:
    latentmill("run", "recipe.toml")
    (here / "photos" / "broken.jpg").write_bytes(b"x")
    done = latentmill("plan", "recipe.toml", "--set", "outputs.images.resolution=8x8", "--set", "run.max_failures=9")
    assert "images: made with other settings (resolution): `run` refuses it" in done.stdout
    assert "1 reject seen already (of 7 images looked at):" in done.stdout
    assert "  broken.jpg: decode: " in done.stdout


# init


def test_init_tells_what_it_saw_and_what_comes_next(here: Path) -> None:
    done = latentmill("init", "photos", "--out", "first.toml")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "photos: 6 images of 64x48",
        "2 classes",
        "captions 'prompt': 6 of 6",
        "written: first.toml: look at it, then",
        "  latentmill plan first.toml",
        "  latentmill run first.toml",
    ]
    assert latentmill("plan", "first.toml").exit_code == 0
    again = latentmill("init", "photos", "--out", "first.toml")
    assert again.exit_code == 2
    assert again.stderr == "error: first.toml is there already: give another file (--out), or remove it\n"


# help


@pytest.mark.parametrize("name", ["run", "plan", "init"])
def test_help_shows_every_option_whole(name: str) -> None:
    for columns in ("80", "120"):
        done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": columns})
        assert done.exit_code == 0
        assert f"\n   latentmill {name} " in done.output
        assert "…" not in done.output


def test_help_is_quick_and_brings_no_heavy_library() -> None:
    code = (
        "import sys; from latentmill.cli import main; sys.argv[1:] = ['run', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy', 'PIL') if name in sys.modules])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)  # compiles what is not yet
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - started < 3  # on a busy machine; a quiet one needs a tenth


# the terminal


def test_several_bars_run_on_a_terminal(here: Path) -> None:
    """As a person sees it: a bar for each output while it runs, and the summaries in the end."""
    (here / "images.toml").write_text(RECIPE[: RECIPE.index("[outputs.text]")])
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        arguments = command_of_small_shards("run", "images.toml", "--set", "outputs.sd.batch_size=1")
        os.execv(arguments[0], arguments)
    seen = b""
    try:
        while data := os.read(terminal, 1 << 16):
            seen += data
    except OSError as error:
        assert error.errno == errno.EIO  # the other side is closed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = seen.decode()
    for name in ("images", "sd", "sd-flip"):
        assert re.search(rf"\x1b\[2K{name} +\S*━+|^{name} +\S*━+", text, re.MULTILINE), name
        assert f"{name} done:" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor comes back


def test_stopping_tells_what_is_committed_of_each_output(here: Path) -> None:
    make_photos(here / "photos", 200, seed=3)
    (here / "images.toml").write_text(RECIPE[: RECIPE.index("[outputs.text]")])
    arguments = command_of_small_shards(
        "run", "images.toml", "--set", "outputs.sd.batch_size=1", "--set", "run.num_workers=1"
    )
    code, output = kill_when(lambda: len(ledger(here / "out" / "sd")) >= 3, arguments, signal.SIGINT)
    assert code == 130
    assert re.search(r"^sd: \d+ of 203 images are committed$", output, re.MULTILINE)
    assert re.search(r"^sd-flip: \d+ of 203 images are committed$", output, re.MULTILINE)
    assert output.rstrip().endswith("stopped. What is committed stays; run the same command again to go on")
    done = subprocess.run(command("run", "images.toml", "--set", "outputs.sd.batch_size=1"), check=True, text=True,
                          capture_output=True)  # fmt: skip
    assert re.search(r"sd: going on: \d+ of 203 images are done", done.stdout)


def test_plain_lines_come_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr("latentmill.progress.time.monotonic", lambda: float(next(clock)))
    board = Board(lambda name: (name, "images"))
    with board:
        one, two = board.tell_of("one"), board.tell_of("two")
        for done in range(0, 50, 10):
            one(Event("progress", total=50, done=done))
            two(Event("progress", total=50, done=done, rejected=done // 20))
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("one: 10 of 50, ")
    assert any(re.fullmatch(r"two: \d0 of 50, [0-9.]+/s, \S+ (s|min) left, \d rejects?", line) for line in told)
