"""Bytes on disk: digests, atomic replacement, one sync for many files, and a lock on a work folder."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from latentmill.checksums import crc32, sha256
from latentmill.errors import DestinationError
from latentmill.records import StoredFile
from latentmill.wording import counted as counted
from latentmill.wording import printable as printable

DIGEST = "sha256-128"  # SHA-256, its first 128 bits as 32 hexadecimal digits
_DIGEST_DIGITS = 32
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WRITES = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)


def digest(data: bytes | memoryview) -> str:
    """The digest that latentmill records of every source and output file: 32 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:_DIGEST_DIGITS]


def digests(buffers: Iterable[bytes | memoryview]) -> list[str]:
    """The `digest` of each, in less time than of one after the other."""
    return [each.hex()[:_DIGEST_DIGITS] for each in sha256(tuple(buffers))]


class LineDigest:
    """One digest over many short texts, each closed by a NUL."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()

    def add(self, line: str) -> None:
        self._total.update(line.encode("utf-8", "surrogatepass") + b"\0")

    def hex(self) -> str:
        return self._total.hexdigest()[:_DIGEST_DIGITS]


def digest_lines(lines: Iterable[str]) -> str:
    """The `LineDigest` of many texts."""
    total = LineDigest()
    for line in lines:
        total.add(line)
    return total.hex()


def digest_file(path: Path) -> str:
    """The full SHA-256 of a file's bytes, in hexadecimal; for model weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_written(file: Path, beginning: bytes) -> None:
    """Before the work: a file can be made there, or one that begins as it will is replaced. Raises DestinationError.

    So a slip of the hand (`--out photos/cat.jpg`) does not cost a photo or its caption.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        found = "a folder" if file.is_dir() else f"no folder {printable(str(file.parent))}"
        raise DestinationError(
            f"expected a file to write, in a folder that is there. Found {found}: {printable(str(file))}"
        )
    if not file.is_file():
        return
    with file.open("rb") as there:
        start = there.read(len(beginning))
    if start and start.lower() != beginning.lower():
        raise DestinationError(
            f"{printable(str(file))} is there, and is not what would be written (which begins with "
            f"{beginning.decode()!r}). Give another name, or remove it"
        )


@contextmanager
def write_errors(what: Path) -> Iterator[None]:
    """Turn a failed write into one clear line that names `what`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DestinationError(
                f"the disk is full: could not write {what}. What is committed is safe; "
                "make room and run the same command again to go on"
            ) from error
        raise DestinationError(f"cannot write {what}: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends well, and is removed when it does not."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with write_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def replace_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in place of `path`, all or nothing. Surrogates must be escaped by the caller."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, data: bytes) -> None:
    """Write `data` in place of `path`, all or nothing."""
    with replacing(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_filesystem(folder: Path) -> None:
    """Flush everything written to the filesystem of `folder`: one call for a shard's many small files."""
    if sys.platform != "linux":
        if hasattr(os, "sync"):
            os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def new_file(path: Path | str, keep: int = 0) -> int:
    """A descriptor to write with, of a file whose first `keep` bytes stay, and at their end."""
    if not keep:
        return os.open(path, _WRITES | os.O_TRUNC, 0o666)
    descriptor = file_at(path, keep)
    try:
        os.ftruncate(descriptor, keep)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def file_at(path: Path | str, start: int) -> int:
    """A descriptor to write with from `start` on, of a file that keeps all that is elsewhere."""
    descriptor = os.open(path, _WRITES, 0o666)
    os.lseek(descriptor, start, os.SEEK_SET)
    return descriptor


def write_parts(descriptor: int, parts: Sequence[bytes | memoryview]) -> int:
    """Write all of `parts` one after the other, uncopied; gives how many bytes that were."""
    left = [memoryview(part).cast("B") for part in parts]
    total = sum(map(len, left))
    while left:
        count = os.writev(descriptor, left) if hasattr(os, "writev") else os.write(descriptor, left[0])
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if left:
            left[0] = left[0][count:]
    return total


def stored_file(name: str, data: bytes, known: str | None = None) -> StoredFile:
    """What is recorded of an output file. known: its digest, where that has been told."""
    return StoredFile(name, len(data), digest(data) if known is None else known, crc32(data))


def copy_bytes(source: Path, start: int, size: int, target: int) -> None:
    """Write `size` bytes of a file, from `start` on, to a descriptor. Raises OSError where the file has fewer."""
    with source.open("rb") as file:
        file.seek(start)
        while size:
            block = file.read(min(size, 1 << 20))
            if not block:
                raise OSError(errno.EIO, f"{source} ends {size:,} bytes before it should")
            write_parts(target, (block,))
            size -= len(block)


def process_name() -> str:
    """Tells this process from any other that may write to the same folder, on another machine too."""
    return f"{platform.node()}-{os.getpid()}"


def remove_tree(folder: Path) -> None:
    """Remove a folder of latentmill's own; one that is not there is fine."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_empty_folders(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, below `root`, as far as they are empty."""
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:  # not empty
            return
        folder = folder.parent
