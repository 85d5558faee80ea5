"""Files and parts of them read to where they are wanted, by the compiled calls and by Python's own."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from latentmill.compiled import compiled
from latentmill.formats import parts

pytestmark = pytest.mark.skipif(not parts.AVAILABLE, reason="this system does not read at a place into buffers")
FORMS = {
    "compiled": (compiled("read_file"), compiled("read_part")),
    "python": (parts._read_file, parts._read_part),
}
HEAD, DATA = b"head", bytes(range(200)) * 500


@pytest.fixture(params=[name for name, (read_file, _) in FORMS.items() if read_file is not None])
def form(request: pytest.FixtureRequest) -> tuple[object, object]:
    return FORMS[request.param]


@pytest.mark.parametrize("name", ["a", "ein Ördner 中", os.fsdecode(b"odd\xff")])
def test_a_file_is_what_stands_behind_its_head(form: tuple, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    try:
        path.write_bytes(HEAD + DATA)
    except OSError:
        pytest.skip("this disk takes no such name")
    out = np.zeros((500, 200), np.uint8)
    assert form[0](str(path), HEAD, out) is True
    assert out.tobytes() == DATA
    whole = bytearray(len(HEAD + DATA))
    assert form[0](str(path), b"", memoryview(whole)) is True
    assert bytes(whole) == HEAD + DATA


@pytest.mark.parametrize("content", [HEAD + DATA + b"1", HEAD + DATA[:-1], b"heat" + DATA, HEAD[:2], b""])
def test_any_other_file_is_told(form: tuple, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert form[0](str(tmp_path / "a"), HEAD, bytearray(len(DATA))) is False


def test_nothing_may_be_wanted(form: tuple, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HEAD)
    assert form[0](str(tmp_path / "a"), HEAD, bytearray()) is True
    assert form[0](str(tmp_path / "a"), b"", bytearray()) is False


def test_errors_name_the_file(form: tuple, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told:
        form[0](str(tmp_path / "missing"), HEAD, bytearray(3))
    assert told.value.filename == str(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        form[0](str(tmp_path), HEAD, bytearray(3))
    with pytest.raises(ValueError, match="null"):
        form[0](f"{tmp_path}/a\0b", HEAD, bytearray(3))
    with pytest.raises(OSError, match="Bad file descriptor"):
        form[1](10**6, 0, HEAD, bytearray(3))


def test_what_cannot_be_written_to_is_refused(form: tuple, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HEAD + DATA)
    for out in (b"readonly", np.zeros((8, 8), np.uint8)[:, ::2]):
        with pytest.raises((TypeError, BufferError, ValueError)):
            form[0](str(tmp_path / "a"), HEAD, out)


def test_a_part_is_read_at_its_place_and_moves_nothing(form: tuple, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before" + HEAD + DATA + b"behind")
    out = np.zeros(len(DATA), np.uint8)
    with (tmp_path / "a").open("rb") as file:
        assert form[1](file.fileno(), 6, HEAD, out) is True
        assert out.tobytes() == DATA
        assert form[1](file.fileno(), 5, HEAD, out) is False
        assert form[1](file.fileno(), 6, HEAD, bytearray(len(DATA) + 7)) is False  # it ends before
        assert form[1](file.fileno(), 10**12, HEAD, out) is False
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0


def test_threads_may_read_at_once(form: tuple, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (40, 20_000), dtype=np.uint8)
    for number, row in enumerate(rows):
        (tmp_path / f"{number}").write_bytes(HEAD + row.tobytes())

    def read(number: int) -> bool:
        out = np.empty(rows.shape[1], np.uint8)
        return form[0](str(tmp_path / f"{number}"), HEAD, out) and np.array_equal(out, rows[number])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, list(range(len(rows))) * 10))


@pytest.mark.skipif(compiled("read_file") is None, reason="the compiled calls are not there")
def test_the_compiled_call_refuses_a_long_head_and_keeps_no_handle(tmp_path: Path) -> None:
    read_file = FORMS["compiled"][0]
    assert read_file is not None
    (tmp_path / "a").write_bytes(bytes(5000))
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        read_file(str(tmp_path / "a"), bytes(4097), bytearray(3))
    assert read_file(str(tmp_path / "a"), bytes(4096), bytearray(904)) is True
    if sys.platform == "linux":
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for out in (904, 903):
            read_file(str(tmp_path / "a"), bytes(4096), bytearray(out))
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_signal_while_a_file_is_opened_is_no_error(form: tuple, tmp_path: Path) -> None:
    """A pipe's opening waits for its other end; it is opened in the end, but nothing of it has a place."""
    path, caller, ends = tmp_path / "pipe", threading.get_ident(), list[int]()
    os.mkfifo(path)

    def disturb() -> None:
        time.sleep(0.2)
        signal.pthread_kill(caller, signal.SIGUSR1)
        time.sleep(0.1)
        ends.append(os.open(path, os.O_RDWR))

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        with pytest.raises(OSError) as told:
            form[0](str(path), HEAD, bytearray(3))
    finally:
        thread.join()
        os.close(ends.pop())
        signal.signal(signal.SIGUSR1, before)
    assert told.value.errno == errno.ESPIPE
