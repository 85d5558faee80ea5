"""The archive of a zip while it is being made: shards written straight to their places, or beside it and appended.

`absorbed` in the work folder holds how many shards, and how many bytes, are whole in the archive `partial.zip`. The
rest is told by the names in `parts/`, where S is a shard, and sizes are in bytes:

    S-START-MOST.place      the shard's worker may write it from START on, and no more than MOST
    S-START-SIZE.written    it lies there, whole
    S.part                  its members lie in this file; that counts where a shard is `written` too

Shards that lie where those before them end are only counted. One that lies elsewhere, since an image before it was
rejected after its place had been found, becomes a part; parts are appended in their turn. Either is flushed before the
ledger tells that the shard is done.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from latentmill.errors import DestinationError
from latentmill.files import (
    copy_bytes,
    file_at,
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

_PLACE, _WRITTEN = "place", "written"
_FAR = 64  # shards between the last one that is in the archive and one that is given a place


class _Region(NamedTuple):
    """Bytes of the archive that are a shard's. written: whole, and no more than those."""

    start: int
    size: int
    written: bool

    @property
    def end(self) -> int:
        return self.start + self.size


class GrowingZip:
    """The archive under way in `work`, of the zip that will lie at `path`."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work = path, work
        self.archive, self.parts, self.stage = work / "partial.zip", work / "parts", work / "stage"

    def make_folders(self) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)
        self.stage.mkdir(exist_ok=True)

    def part(self, shard: int) -> Path:
        return self.parts / f"{shard:08d}.part"

    def absorbed(self) -> tuple[int, int]:
        """How many shards, and bytes, are whole in the archive."""
        try:
            count, size = (self.work / "absorbed").read_text().split()
        except FileNotFoundError:
            return 0, 0
        return int(count), int(size)

    def regions(self) -> dict[int, _Region]:
        """What is given out of the archive, or written, and not counted yet, by shard."""
        found: dict[int, _Region] = {}
        for shard, region, _ in self._marks():
            if shard not in found or region.written:
                found[shard] = region
        return found

    def _marks(self) -> Iterator[tuple[int, _Region, str]]:
        """Of each file that tells of a region: its shard, what it tells, and its path."""
        try:
            names = os.listdir(self.parts)  # noqa: PTH208
        except FileNotFoundError:
            return
        for name in names:
            told, _, kind = name.rpartition(".")
            if kind in (_PLACE, _WRITTEN):
                shard, start, size = map(int, told.split("-"))
                yield shard, _Region(start, size, kind == _WRITTEN), f"{self.parts}/{name}"

    def _mark(self, shard: int, region: _Region) -> None:
        kind = _WRITTEN if region.written else _PLACE
        os.close(new_file(self.parts / f"{shard:08d}-{region.start}-{region.size}.{kind}"))

    def note_written(self, shard: int, start: int, size: int) -> None:
        """A shard lies in the archive, flushed. Durable."""
        self._mark(shard, _Region(start, size, True))
        sync_folder(self.parts)

    def forget(self, shard: int, *, place: bool = True) -> None:
        """Let no region count any more that was written of a shard; nor, with `place`, one that was given to it."""
        for marked, region, path in self._marks():
            if marked == shard and (place or region.written):
                os.unlink(path)  # noqa: PTH108

    # by the one process that gathers

    def reserve(self, shard: int, most: Callable[[int], int]) -> None:
        """Give a shard that will be run its place, if none before it loses an image, where that is free.

        most: of a shard, how many bytes it takes if it loses none. May be called for a shard again.
        """
        self.forget(shard, place=False)  # of a worker that died before its ledger entry
        count, at = self.absorbed()
        regions = self.regions()
        if shard < count or shard in regions or shard - count > _FAR:
            return
        for before in range(count, shard):
            part = self.part(before)
            if before in regions:
                at += regions[before].size
            else:
                at += part.stat().st_size if part.exists() else most(before)
        place = _Region(at, most(shard), False)
        if any(region.start < place.end and place.start < region.end for region in regions.values()):
            return
        with write_errors(self.path):
            self.make_folders()
            if not self.archive.exists():
                os.close(new_file(self.archive))
                sync_folder(self.work)
            self._mark(shard, place)

    def absorb(self, shards: int) -> None:
        """Make the first `shards` shards, which must be committed, part of the archive, in order.

        Those that would be appended over what another worker is writing have to wait for it.
        """
        count, size = self.absorbed()
        if count >= shards:
            return
        with write_errors(self.path):
            for shard in range(count, shards):
                end = self._with(shard, size)
                if end is None:
                    return
                size = end
                replace_text(self.work / "absorbed", f"{shard + 1} {size}")
                self.part(shard).unlink(missing_ok=True)
                self.forget(shard)

    def _with(self, shard: int, size: int) -> int | None:
        """Where the archive ends with the shard that follows its first `size` bytes; None where it has to wait."""
        regions, part = self.regions(), self.part(shard)
        own = regions.pop(shard, None)
        if not part.exists() and own is not None:
            if own.start == size:
                return own.end
            self._take_out(shard, own)
        end = size + part.stat().st_size
        over = {other: region for other, region in regions.items() if region.start < end}
        if not all(region.written for region in over.values()):
            return None
        for other, region in over.items():
            self._take_out(other, region)
        _copy(part, 0, end - size, file_at(self.archive, size))
        return end

    def _take_out(self, shard: int, region: _Region) -> None:
        """Make a part of a shard that lies in the archive, unless it is one already."""
        if not self.part(shard).exists():
            self.make_folders()
            temporary = self.stage / f"{shard:08d}-{process_name()}.part"
            _copy(self.archive, region.start, region.size, new_file(temporary))
            temporary.replace(self.part(shard))
            sync_folder(self.parts)
        self.forget(shard)

    def settle(self, done: set[int], whole: int) -> None:
        """Before a run: of an earlier one that was cut off, what is done stays, and nothing else.

        whole: how many of the shards from the first on are done. What lies in the archive ahead of its turn becomes
        parts, since a writer that is alone cuts the archive off.
        """
        with write_errors(self.path):
            count, _ = self.absorbed()
            for shard, region in self.regions().items():
                if shard < count or shard not in done or not region.written:
                    self.forget(shard)
            self.absorb(whole)
            for shard, region in self.regions().items():
                self._take_out(shard, region)

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
        self._temporary = growing.stage / f"{shard:08d}-{process_name()}.part"
        self._file: int | None = None
        self._start: int | None = None  # in the archive
        self._size, self._most = 0, -1  # bytes written; how many may be, where others write behind them
        with write_errors(growing.path):
            growing.make_folders()

    def write(self, name: str, data: bytes) -> StoredFile:
        stored = stored_file(name, data)
        header = local_header(name, stored.size, stored.crc)
        with write_errors(self._growing.path):
            file = self._opened()
            if 0 <= self._most < self._size + len(header) + stored.size:
                file = self._moved_out(file)
            self._size += write_parts(file, (header, data))
        return stored

    def _opened(self) -> int:
        """The file to write to; which, is decided at the first write, when the shard before may be through."""
        if self._file is not None:
            return self._file
        growing = self._growing
        growing.part(self._shard).unlink(missing_ok=True)  # of a run that was cut off before its ledger entry
        count, size = growing.absorbed()
        place = growing.regions().get(self._shard)
        if self._alone and count == self._shard:
            self._start, self._file = size, new_file(growing.archive, keep=size)
        elif place is not None:
            self._start, self._most = place.start, place.size
            self._file = file_at(growing.archive, place.start)
        else:
            self._file = new_file(self._temporary)
        return self._file

    def _moved_out(self, file: int) -> int:
        """Go on in a part: the shard takes more than its place."""
        assert self._start is not None
        start, self._start, self._most = self._start, None, -1
        self._file = None
        os.close(file)
        self._file = new_file(self._temporary)
        copy_bytes(self._growing.archive, start, self._size, self._file)
        return self._file

    def commit(self) -> None:
        growing = self._growing
        with write_errors(growing.path):
            file = self._opened()
            os.fsync(file)
            os.close(file)
            self._file = None
            if self._start is not None:
                if self._alone:
                    sync_folder(growing.work)
                growing.note_written(self._shard, self._start, self._size)
                return
            self._temporary.replace(growing.part(self._shard))
            sync_folder(growing.parts)
            growing.forget(self._shard)

    def abort(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # what could not be flushed is thrown away here anyway
            if self._start is not None and self._alone:
                os.ftruncate(self._file, self._start)
            os.close(self._file)
        self._file = None
        if self._start is None:
            self._temporary.unlink(missing_ok=True)


def _copy(source: Path, start: int, size: int, target: int) -> None:
    """Write `size` bytes of a file, from `start` on, to a descriptor that is flushed then, and closed."""
    try:
        copy_bytes(source, start, size, target)
        os.fsync(target)
    finally:
        os.close(target)
