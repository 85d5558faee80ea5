"""What a person sees on a terminal and elsewhere: bars, rates, colours, quiet, the log file, shell completion."""

from __future__ import annotations

import os
import re
import select
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentmill.outcome import Event
from latentmill.progress import Bars, Speed
from latentmill.terminal import Display
from latentmill.usage import Meter, processor_seconds
from support import cli, command, make_photos

SIZE = ("--resolution", "32x32")
CONTROL = "\x1b"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    make_photos(folder, 12)
    (folder / "c0" / "bad.jpg").write_bytes(b"")
    return folder


def on_a_terminal(columns: int, *arguments: object, **environment: str) -> tuple[int, str]:
    """Exit code and everything that a terminal of so many columns gets."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    terminal, far_end = os.openpty()
    fcntl.ioctl(far_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    env = inherited | {"TERM": "xterm-256color"} | environment
    with subprocess.Popen(command(*arguments), stdout=far_end, stderr=far_end, env=env) as process:
        os.close(far_end)
        seen = b""
        try:
            while block := os.read(terminal, 65536):
                seen += block
        except OSError:  # the far end was closed
            pass
    os.close(terminal)
    return process.returncode, seen.decode()


def lines_of(text: str) -> list[str]:
    """What stood on the screen at any time, without control codes."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))


# bars


@pytest.mark.parametrize("columns", [120, 80, 40, 20])
def test_a_bar_never_wraps(photos: Path, tmp_path: Path, columns: int) -> None:
    arguments = ("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--batch-size", 1)
    code, text = on_a_terminal(columns, *arguments)
    assert code == 3
    drawn = [line for line in lines_of(text) if re.match(r"convert +(━|\d+%|\d+/)", line)]
    assert drawn
    assert max(map(len, drawn)) <= columns
    assert any(("13/13" if columns >= 60 else "100%") in line for line in drawn) or columns < 40
    assert any("1 reject" in line for line in drawn) or columns < 40
    assert "12 stored" in text


def test_the_machine_is_told_of_on_a_line_below(photos: Path, tmp_path: Path) -> None:
    _, text = on_a_terminal(100, "convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--batch-size", 1)
    assert re.search(r"limited by (loading|writing)", text)


def test_quiet_and_dumb_terminals_have_no_bar(photos: Path, tmp_path: Path) -> None:
    arguments = ("convert", "--source", photos, "--dest", tmp_path / "a", *SIZE)
    code, text = on_a_terminal(80, *arguments, "--quiet")
    assert (code, CONTROL + "[?25l" in text, "done" in text) == (3, False, False)
    assert "1 rejected" in text
    code, text = on_a_terminal(80, *arguments, "--overwrite", TERM="dumb")
    assert code == 3
    assert CONTROL not in text
    assert "convert done" in text


# colours


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colours_where_they_are_wanted(environment: dict[str, str], coloured: bool) -> None:
    clean = dict.fromkeys(("FORCE_COLOR", "NO_COLOR"), "")
    run = cli("verify", "/nothing/here", **(environment if environment else clean), TERM="xterm-256color")
    assert run.returncode == 2
    assert ("\x1b[31m" in run.stderr) == coloured


def test_on_a_terminal_no_color_takes_the_colours(tmp_path: Path) -> None:
    _, with_colours = on_a_terminal(80, "verify", tmp_path / "nothing")
    _, without = on_a_terminal(80, "verify", tmp_path / "nothing", NO_COLOR="1")
    assert "\x1b[31m" in with_colours
    assert "\x1b[3" not in without


def test_forced_colours_draw_no_bar_in_a_file(photos: Path, tmp_path: Path) -> None:
    run = cli("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, FORCE_COLOR="1", TERM="xterm")
    assert run.returncode == 3
    assert "\x1b[?25l" not in run.stdout
    assert "\x1b[2K" not in run.stdout


# rates


def test_the_rate_follows_what_happens() -> None:
    speed = Speed(0.0, 100)
    assert (speed.rate, speed.left(200)) == (0.0, None)
    for second in range(1, 61):
        speed.take(second, 100 + 10 * second)
    assert speed.rate == pytest.approx(10)
    assert speed.left(800) == pytest.approx(10)
    for second in range(61, 121):
        speed.take(second, 700 + 2 * (second - 60))
    assert 2 < speed.rate < 4  # what was a minute ago counts little
    steady = Speed(0.0, 0)
    for second in range(1, 301):
        steady.take(second, second // 10 * 100)  # batches of 100, each ten seconds
    assert steady.rate == pytest.approx(10, rel=0.25)


def test_work_that_is_taken_back_is_no_negative_rate() -> None:
    speed = Speed(0.0, 50)
    speed.take(1.0, 20)
    assert speed.rate == 0
    assert speed.left(100) is None


def test_the_busiest_stage_limits() -> None:
    bars = Bars()
    assert bars.stage == ""
    bars.look("a", {"load": 3.0, "write": 1.0, "commit": 1.0})
    assert bars.stage == "loading"
    bars.look("b", {"encode": 1.5, "results": 2.0, "warm-up": 99.0})
    assert bars.stage == "encoding"


def test_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr("latentmill.progress.time.monotonic", lambda: float(next(clock)))
    with Display("convert") as display:
        for done in range(0, 100, 10):
            display.tell(Event("progress", total=100, done=done, rejected=1))
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) < 9
    assert all(re.match(r"convert: \d+ of 100, [\d.]+/s, \S+ (s|min) left, 1 reject", line) for line in lines)


# what the machine does


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_work_of_child_processes_counts() -> None:
    busy = "import time; end = time.process_time() + 1.2\nwhile time.process_time() < end: pass\nprint('x', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{busy}\nimport sys; sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        before = sum(processor_seconds().values())
        assert child.stdout is not None
        assert child.stdout.read(1) == b"x"
        found = processor_seconds()
        assert child.pid in found
        assert found[child.pid] >= 1.1
        assert sum(found.values()) > before
    assert child.pid not in processor_seconds()


def test_usage_is_looked_at_once_a_second() -> None:
    now = [0.0]
    meter = Meter(lambda: now[0])
    assert meter.look().words == ""
    now[0] = 2.0
    first = meter.look()
    assert first.cpu_share is None or 0 <= first.cpu_share <= 1
    now[0] = 2.5
    assert meter.look() is first


# the log file


def test_the_log_has_all_that_was_seen_and_more(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    arguments = ("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--log-file", log)
    seen = cli(*arguments)
    text = log.read_text()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (INFO|DETAIL) ", line)
               for line in text.splitlines())  # fmt: skip
    assert all(line.strip() in text for line in (seen.stdout + seen.stderr).splitlines())
    for detail in ("numpy ", "torch ", '"resolution": "32x32"', "c0/bad.jpg", "the file is empty", '"exit_code": 3'):
        assert detail in text
    quiet = cli(*arguments, "--quiet")  # appended
    assert quiet.stdout == ""
    assert log.read_text().startswith(text)
    assert "already finished" in log.read_text()[len(text) :]


def test_the_log_has_an_error_with_its_traceback(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    run = cli("verify", tmp_path / "nothing", "--log-file", log)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    text = log.read_text()
    assert re.search(r"ERROR +error: there is nothing at ", text)
    assert "Traceback" in text


@pytest.mark.parametrize("place", ["no/such/run.log", "out/run.log", "."])
def test_a_log_that_cannot_be_is_refused(photos: Path, tmp_path: Path, place: str) -> None:
    log = tmp_path / place
    run = cli("convert", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--log-file", log)
    assert run.returncode == 2
    assert run.stderr.startswith("error: --log-file must ")
    assert str(log) in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_log_is_never_written_behind_a_caption_or_into_a_result(tmp_path: Path) -> None:
    caption, result = tmp_path / "cat.txt", tmp_path / "data"
    caption.write_text("a cat")
    (result / "images").mkdir(parents=True)
    (result / "latentmill.json").write_text("{}")
    for log in (caption, result / "images" / "run.log"):
        run = cli("verify", tmp_path / "nothing", "--log-file", log)
        assert run.returncode == 2
        assert re.match(r"error: --log-file must (be a new file, or a log|lie outside of what is made)", run.stderr)
    assert caption.read_text() == "a cat"
    assert not any((result / "images").iterdir())


def test_debug_shows_the_traceback_and_keeps_the_exit_code(tmp_path: Path) -> None:
    for arguments in (("--debug", "verify", tmp_path / "no"), ("verify", tmp_path / "no", "--debug")):
        run = cli(*arguments)
        assert run.returncode == 2
        assert "Traceback" in run.stderr
        assert "error: there is nothing at" in run.stderr


# completion


def typed(keys: list[tuple[bytes, str]]) -> str:
    """What an interactive bash shows after these keys, each once the text that should follow is there."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"PS1": "$ ", "TERM": "dumb", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    seen = b""
    for key, expected in keys:
        os.write(terminal, key)
        end = time.monotonic() + 30
        while expected not in re.sub(r"[\r\n]", "", seen.decode()) and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 65536)
    os.close(terminal)
    os.waitpid(pid, 0)
    return re.sub(r"[\r\n]", "", seen.decode())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash_completes() -> None:
    """Commands, options and values, as Tab gives them."""
    setup = b'eval "$(_LATENTMILL_COMPLETE=source_bash latentmill)"; complete -p latentmill\n'
    line = "latentmill convert --transform center-crop-dhariwal"
    shown = typed([
        (setup, "-F _latentmill_completion latentmill$ "),
        (b"latentmill conv\t", "latentmill convert "),
        (b"--tra\t", "latentmill convert --transform "),
        (b"center-crop-d\t", line),
    ])  # fmt: skip
    assert line in shown


def test_the_shells_scripts_are_shown() -> None:
    program = Path(sys.executable).with_name("latentmill")
    for shell in ("bash", "zsh", "fish"):
        env = {**os.environ, "_LATENTMILL_COMPLETE": f"source_{shell}"}
        run = subprocess.run([program], capture_output=True, text=True, timeout=60, env=env)
        assert (run.returncode, "_LATENTMILL_COMPLETE" in run.stdout) == (0, True), shell


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("latentmill encode --vae sd-v", {"sd-vae-ft-mse", "sd-vae-ft-ema"}),
        ("latentmill pixart --text-encoder pix", {"pixart-sigma-t5"}),
        ("latentmill encode --store m", {"moments", "mean"}),
        ("latentmill ver", {"verify"}),
    ],
)
def test_values_are_completed(words: str, expected: set[str]) -> None:
    program = Path(sys.executable).with_name("latentmill")
    env = {**os.environ, "_LATENTMILL_COMPLETE": "complete_bash", "COMP_WORDS": words,
           "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
    run = subprocess.run([program], capture_output=True, text=True, timeout=60, env=env)
    assert set(run.stdout.split()) == expected
