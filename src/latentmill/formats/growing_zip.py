"""The archive of a zip while it is being made: shards written straight into it, or beside it and appended in order.

`absorbed` in the work folder holds how many shards, and how many bytes, are whole in the archive `partial.zip`; what
lies behind them is cut off before anything is written there. Where nobody else writes, the shard that comes next goes
straight to its place in the archive, and `parts/NNNNNNNN.written` tells how long it is. Any other shard becomes a part
file, which is appended in its turn, and removed. Either is flushed before the ledger tells that the shard is done.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from latentmill.errors import DestinationError
from latentmill.files import (
    append_file,
    new_file,
    process_name,
    replace_text,
    stored_file,
    sync_folder,
    write_errors,
    write_parts,
)
from latentmill.formats.stored_zip import local_header
from latentmill.records import StoredFile


class GrowingZip:
    """The archive under way in `work`, of the zip that will lie at `path`."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work = path, work
        self.archive, self.parts, self.stage = work / "partial.zip", work / "parts", work / "stage"

    def part(self, shard: int) -> Path:
        return self.parts / f"{shard:08d}.part"

    def note(self, shard: int) -> Path:
        """Where it stands how many bytes a shard takes that was written straight into the archive."""
        return self.parts / f"{shard:08d}.written"

    def absorbed(self) -> tuple[int, int]:
        """How many shards, and bytes, are whole in the archive."""
        try:
            count, size = (self.work / "absorbed").read_text().split()
        except FileNotFoundError:
            return 0, 0
        return int(count), int(size)

    def absorb(self, shards: int) -> None:
        """Make the first `shards` shards, which must be committed, part of the archive, in order."""
        count, size = self.absorbed()
        if count >= shards:
            return
        with write_errors(self.path):
            for shard in range(count, shards):
                size = self._appended(shard, size)
                replace_text(self.work / "absorbed", f"{shard + 1} {size}")
                self.part(shard).unlink(missing_ok=True)
                self.note(shard).unlink(missing_ok=True)

    def _appended(self, shard: int, size: int) -> int:
        """Where the archive ends with the shard that follows its first `size` bytes."""
        with self.archive.open("r+b" if self.archive.exists() else "w+b") as archive:
            if self.note(shard).exists():
                return size + int(self.note(shard).read_text())
            archive.truncate(size)
            archive.seek(size)
            append_file(archive, self.part(shard))
            archive.flush()
            os.fsync(archive.fileno())
            return archive.tell()

    def whole_bytes(self) -> int:
        """Bytes of the archive that count. Raises DestinationError where it holds fewer."""
        _, size = self.absorbed()
        found = self.archive.stat().st_size if self.archive.exists() else 0
        if found < size:
            raise DestinationError(
                f"{self.archive} must hold {size:,} bytes that were written before. Found: {found:,}. "
                "Start anew with --overwrite"
            )
        return size


class ZipSink:
    """Takes one shard's files. alone: nobody else writes to the archive meanwhile."""

    def __init__(self, growing: GrowingZip, shard: int, alone: bool) -> None:
        self._growing, self._shard, self._alone = growing, shard, alone
        self._part = growing.part(shard)
        self._temporary = growing.stage / f"{shard:08d}-{process_name()}.part"
        self._file: int | None = None
        self._start = self._size = 0
        self._straight = False
        with write_errors(growing.path):
            growing.parts.mkdir(parents=True, exist_ok=True)
            growing.stage.mkdir(exist_ok=True)

    def write(self, name: str, data: bytes) -> StoredFile:
        stored = stored_file(name, data)
        with write_errors(self._growing.path):
            self._size += write_parts(self._opened(), (local_header(name, stored.size, stored.crc), data))
        return stored

    def _opened(self) -> int:
        """The file to write to; which, is decided at the first write, when the shard before is through."""
        if self._file is None:
            count, size = self._growing.absorbed()
            self._straight = self._alone and count == self._shard
            if self._straight:
                self._part.unlink(missing_ok=True)  # of a run that was cut off before its ledger entry
                self._start = size
                self._file = new_file(self._growing.archive, keep=size)
            else:
                self._file = new_file(self._temporary)
        return self._file

    def commit(self) -> None:
        with write_errors(self._growing.path):
            file = self._opened()
            os.fsync(file)
            os.close(file)
            self._file = None
            if self._straight:
                sync_folder(self._growing.work)
                replace_text(self._growing.note(self._shard), str(self._size))
                return
            self._growing.note(self._shard).unlink(missing_ok=True)
            self._temporary.replace(self._part)
            sync_folder(self._growing.parts)

    def abort(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # what could not be flushed is thrown away here anyway
            if self._straight:
                os.ftruncate(self._file, self._start)
            os.close(self._file)
        self._file = None
        if not self._straight:
            self._temporary.unlink(missing_ok=True)
