"""How fast a disk takes and gives data: one large file, as a zip is, and many small ones, as a folder of latents is.

What is written is bounded in bytes and time, flushed as a job flushes it, and removed. What was written is dropped from
the system's memory before it is read again, where the system can do that.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from latentmill.doctor.findings import Finding
from latentmill.doctor.machine import NETWORK, file_system
from latentmill.estimate import human
from latentmill.files import new_file, sync_filesystem, write_parts

GROUP = "disk"
_CHUNK = 4_000_000
_LARGE = (16_000_000, 64_000_000, 256_000_000)  # bytes of a file, one after the other while they are quick
_SMALL = (100, 400, 1600)  # files, likewise
_QUICK = 0.4  # seconds: the next round, four times as large, is tried
_LATENT = 128 + 8 * 32 * 32 * 4  # bytes: moments of 256x256 by a VAE of 4 channels and factor 8, in float32
_PNG = 400 + 3 * 256 * 256  # as they are written, uncompressed
_ROOM = 2_000_000_000  # bytes that must be free
_SLOW_WRITE, _SLOW_FILES, _SLOW_READS = 60_000_000, 500, 1000  # a second: below, the disk is what a job waits for


class Speed(NamedTuple):
    """Bytes a second of one large file, and small files a second, of `_LATENT` bytes, by one thread.

    written: with the flush. cold: whether what was read came from the disk, as far as can be known.
    """

    written: float
    read: float
    files_written: float
    files_read: float
    cold: bool


def findings(dest: Path | None = None) -> list[Finding]:
    """dest: where a result is to lie, which need not be there yet; None: the temporary folder."""
    folder = nearest(dest) if dest is not None else Path(tempfile.gettempdir())
    kind = file_system(folder.resolve())
    place = f"{folder}{f', {kind}' if kind else ''}"
    name = "destination" if dest is not None else "temporary folder"
    try:
        free = shutil.disk_usage(folder).free
        if free < _ROOM:
            advice = "too little to be measured, and to work with: make room, or choose another place"
            return [Finding(GROUP, name, f"{place}: {human(free)} free", "warning", advice)]
        speed = measured(folder)
    except OSError as error:
        advice = "choose a folder that this account may write to" if dest is not None else "set TMPDIR to one"
        return [Finding(GROUP, name, f"{place}: cannot be written: {error.strerror or error}", "broken", advice)]
    return [Finding(GROUP, name, f"{place}: {human(free)} free"), _large(speed), _small(speed), _meaning(speed, kind)]


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    found = folder.absolute()
    while not found.is_dir() and found != found.parent:
        found = found.parent
    return found


def measured(folder: Path) -> Speed:
    """Measure in a folder of its own there, which is removed again. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix=".latentmill-doctor-", dir=folder) as name:
        return _measured(Path(name))


def _measured(place: Path) -> Speed:
    noise = os.urandom(_CHUNK)  # which no file system compresses
    file = place / "large"
    written = _rate(_LARGE, lambda size: _write_large(file, noise, size))
    cold = _forget([file])
    read = _read_large(file)
    file.unlink()
    folder = place / "small"
    folder.mkdir()
    files_written = _rate(_SMALL, lambda count: _write_small(folder, noise, count))
    files = sorted(folder.iterdir())
    _forget(files)
    return Speed(written, read, files_written, _read_small(files), cold)


def _rate(rounds: Sequence[int], work: Callable[[int], None]) -> float:
    """Units a second of the largest round, which is reached while rounds are quick."""
    for size in rounds:
        start = time.perf_counter()
        work(size)
        seconds = time.perf_counter() - start
        if seconds > _QUICK:
            break
    return size / max(seconds, 1e-6)


def _write_large(file: Path, noise: bytes, size: int) -> None:
    handle = new_file(file)
    try:
        for _ in range(size // len(noise)):
            write_parts(handle, [noise])
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_large(file: Path) -> float:
    start, total = time.perf_counter(), 0
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            total += len(chunk)
    return total / max(time.perf_counter() - start, 1e-6)


def _write_small(folder: Path, noise: bytes, count: int) -> None:
    for number in range(count):
        handle = new_file(folder / f"{number:08d}")
        try:
            write_parts(handle, [noise[:_LATENT]])
        finally:
            os.close(handle)
    sync_filesystem(folder)


def _read_small(files: Sequence[Path]) -> float:
    start = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            stream.read()
    return len(files) / max(time.perf_counter() - start, 1e-6)


def _forget(files: Sequence[Path]) -> bool:
    """Let the system drop what it keeps of these files in memory; whether it was asked to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return True


def _large(speed: Speed) -> Finding:
    value = f"written {_bytes(speed.written)} (flushed), read {_bytes(speed.read)}{_warm(speed)}"
    if speed.written < _SLOW_WRITE:
        advice = "slow: what is converted waits for it; write to a local SSD"
        return Finding(GROUP, "a large file", value, "warning", advice)
    return Finding(GROUP, "a large file", value)


def _small(speed: Speed) -> Finding:
    value = f"written {_count(speed.files_written)}/s (flushed), read {_count(speed.files_read)}/s{_warm(speed)}"
    value += f", of {human(_LATENT)} by one thread"
    if speed.files_written < _SLOW_FILES or speed.files_read < _SLOW_READS:
        advice = "slow for folders: give --dest a name that ends in .zip, which is one large file; or use a local SSD"
        return Finding(GROUP, "many small files", value, "warning", advice)
    return Finding(GROUP, "many small files", value)


def _meaning(speed: Speed, kind: str) -> Finding:
    """In images of 256x256: what a job can write at most, whatever the cores, and what a trainer's worker can read."""
    png = 1 / (1 / speed.files_written + (_PNG - _LATENT) / speed.written)
    value = (
        f"at most {_count(speed.files_written)} latents or {_count(png)} PNGs of 256x256 a second into a folder, "
        f"{_count(speed.written / _LATENT)} or {_count(speed.written / _PNG)} into a .zip; a DataLoader's worker reads "
        f"at most {_count(speed.files_read)} latents a second from a folder"
    )
    if kind in NETWORK:
        return Finding(GROUP, "that is", value, "warning", "a network's disk: others that use it make it slower")
    return Finding(GROUP, "that is", value)


def _warm(speed: Speed) -> str:
    return "" if speed.cold else " (from memory: this system cannot be told to forget it)"


def _bytes(rate: float) -> str:
    return f"{human(int(rate))}/s"


def _count(rate: float) -> str:
    """Two digits, since more would not be the same the next time."""
    return f"{float(f'{rate:.2g}'):,.0f}"
