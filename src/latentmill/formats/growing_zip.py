"""The archive of a zip while it is being made: shards written straight to their places, or beside it and appended.

`absorbed` in the work folder holds how many shards, and how many bytes, are whole in the archive `partial.zip`. Of the
others, names tell, where S is a shard, and the rest are bytes:

    places/S-START-MOST.place      the shard's worker may write it from START on, and no more than MOST
    places/S-START-SIZE.written    it lies there, whole
    parts/S.part                   its members lie in this file; that counts where a shard is `written` too

Shards that lie where those before them end are only counted. One that lies elsewhere, since an image before it was
rejected after its place had been found, becomes a part; parts are appended in their turn. Either is flushed before the
ledger tells that the shard is done.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
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

_MARK = re.compile(r"(\d{8,})-(\d+)-(\d+)\.(place|written)")
_FAR = 64  # shards between the last one that is in the archive and one that is given a place


class _Region(NamedTuple):
    """Bytes of the archive that are a shard's. written: whole, and no more than those. marks: what tells of them."""

    start: int
    size: int
    written: bool
    marks: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.size


class GrowingZip:
    """The archive under way in `work`, of the zip that will lie at `path`."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work = path, work
        self.archive, self.places = work / "partial.zip", work / "places"
        self.parts, self.stage = work / "parts", work / "stage"

    def make_folders(self) -> None:
        for folder in (self.places, self.parts, self.stage):
            folder.mkdir(parents=True, exist_ok=True)

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
        try:
            names = os.listdir(self.places)  # noqa: PTH208
        except FileNotFoundError:
            return found
        for name in names:
            if told := _MARK.fullmatch(name):
                shard, start, size = map(int, told.groups()[:3])
                region = _Region(start, size, told[4] == "written")
                other = found.get(shard)
                best = other if other is not None and other.written else region
                found[shard] = best._replace(marks=(*(other.marks if other else ()), name))
        return found

    def _mark(self, shard: int, start: int, size: int, kind: str) -> None:
        os.close(new_file(self.places / f"{shard:08d}-{start}-{size}.{kind}"))

    def note_written(self, shard: int, start: int, size: int) -> None:
        """A shard lies in the archive, flushed. Durable."""
        self._mark(shard, start, size, "written")
        sync_folder(self.places)

    def forget(self, region: _Region | None) -> None:
        """Let it count no more."""
        for mark in region.marks if region is not None else ():
            (self.places / mark).unlink(missing_ok=True)

    # by the one process that gathers

    def reserve(self, shard: int, most: Callable[[int], int]) -> None:
        """Give a shard that will be run its place, if none before it loses an image, where that is free.

        most: of a shard, how many bytes it takes if it loses none. May be called for a shard again. There is no place
        while what lies before it is out of place itself: it would be, too.
        """
        with write_errors(self.path):
            regions = self.regions()
            if (own := regions.get(shard)) is not None and own.written:  # of a worker that died before its ledger entry
                self.forget(regions.pop(shard))
            count, at = self.absorbed()
            if shard < count or shard in regions or shard - count > _FAR:
                return
            for before in range(count, shard):
                region = regions.get(before)
                if region is None:
                    part = self._part_bytes(before)
                    at += most(before) if part is None else part
                elif region.start != at:
                    return
                else:
                    at = region.end
            end = at + most(shard)
            if any(region.start < end and at < region.end for region in regions.values()):
                return
            self.make_folders()
            if count == 0:
                os.close(file_at(self.archive, 0))
                sync_folder(self.work)
            self._mark(shard, at, end - at, "place")

    def _part_bytes(self, shard: int) -> int | None:
        try:
            return self.part(shard).stat().st_size
        except FileNotFoundError:
            return None

    def absorb(self, shards: int) -> None:
        """Make the first `shards` shards, which must be committed, part of the archive, in order.

        Those that would be appended over what another worker is writing have to wait for it. Raises DestinationError.
        """
        count, size = self.absorbed()
        if count >= shards:
            return
        with write_errors(self.path):
            regions = self.regions()
            for shard in range(count, shards):
                own = regions.pop(shard, None)
                end = self._with(shard, own, size, regions)
                if end is None:
                    return
                size = end
                replace_text(self.work / "absorbed", f"{shard + 1} {size}")
                self.part(shard).unlink(missing_ok=True)
                self.forget(own)

    def _with(self, shard: int, own: _Region | None, size: int, others: dict[int, _Region]) -> int | None:
        """Where the archive ends with the shard that follows its first `size` bytes; None where it has to wait."""
        length = self._part_bytes(shard)
        if length is None:
            if own is None or not own.written:
                raise DestinationError(
                    f"{self.archive} must hold shard {shard}, which the ledger knows, or a part beside it. Found "
                    "neither. Start anew with --overwrite"
                )
            if own.start == size:
                return own.end
            self._take_out(shard, own)
            length = own.size
        end = size + length
        over = [other for other, region in others.items() if region.start < end]
        if not all(others[other].written for other in over):
            return None
        for other in over:
            self._take_out(other, others.pop(other))
        _copy(self.part(shard), 0, length, file_at(self.archive, size))
        return end

    def _take_out(self, shard: int, region: _Region) -> None:
        """Make a part of a shard that lies in the archive, unless it is one already."""
        if self._part_bytes(shard) is None:
            self.make_folders()
            temporary = self.stage / f"{shard:08d}-{process_name()}.part"
            _copy(self.archive, region.start, region.size, new_file(temporary))
            temporary.replace(self.part(shard))
            sync_folder(self.parts)
        self.forget(region)

    def settle(self, done: set[int], whole: int) -> None:
        """Before a run: of an earlier one that was cut off, what is done stays, and nothing else.

        whole: how many of the shards from the first on are done. What lies in the archive ahead of its turn becomes
        parts, since a writer that is alone cuts the archive off; the last first, and each is cut off before the next
        one is copied, so that a disk that was full needs room for one. Raises DestinationError.
        """
        if self.in_place:
            return
        count, _ = self.absorbed()
        self.whole_bytes()
        with write_errors(self.path):
            for shard, region in self.regions().items():
                if shard < count or shard not in done or not region.written or self._part_bytes(shard) is not None:
                    self.forget(region)
                elif region.size:
                    self._check_length(region.end)
            self.absorb(whole)
            _, size = self.absorbed()
            ahead = sorted(self.regions().items(), key=lambda found: (found[1].start, found[1].size), reverse=True)
            self._cut_off(max((size, *(region.end for _, region in ahead))))
            for shard, region in ahead:
                self._take_out(shard, region)
                self._cut_off(max(size, region.start))

    def _cut_off(self, size: int) -> None:
        if self.archive.exists() and self.archive.stat().st_size > size:
            os.truncate(self.archive, size)

    @property
    def in_place(self) -> bool:
        """Whether the archive is whole, and is the zip already."""
        return self.path.exists() and not self.archive.exists()

    def whole_bytes(self) -> int:
        """Bytes of the archive that count. Raises DestinationError where it holds fewer."""
        _, size = self.absorbed()
        self._check_length(size)
        return size

    def _check_length(self, expected: int) -> None:
        found = self.archive.stat().st_size if self.archive.exists() else 0
        if found < expected:
            raise DestinationError(
                f"{self.archive} must hold {expected:,} bytes that were written before. Found: {found:,}. "
                "Start anew with --overwrite"
            )


class ZipSink:
    """Takes one shard's files. alone: nobody else writes to the archive meanwhile. placed: it may have a place."""

    def __init__(self, growing: GrowingZip, shard: int, alone: bool, placed: bool) -> None:
        self._growing, self._shard, self._alone, self._placed = growing, shard, alone, placed
        self._temporary = growing.stage / f"{shard:08d}-{process_name()}.part"
        self._file: int | None = None
        self._place: _Region | None = None
        self._start: int | None = None  # in the archive
        self._most: int | None = None  # bytes, where others write behind them
        self._size = 0
        with write_errors(growing.path):
            growing.make_folders()

    def write(self, name: str, data: bytes, known: str | None = None) -> StoredFile:
        stored = stored_file(name, data, known)
        header = local_header(name, stored.size, stored.crc)
        with write_errors(self._growing.path):
            file = self._opened()
            if self._most is not None and self._most < self._size + len(header) + stored.size:
                file = self._moved_out()
            self._size += write_parts(file, (header, data))
        return stored

    def _opened(self) -> int:
        """The file to write to; which, is decided at the first write, when the shard before may be through."""
        if self._file is not None:
            return self._file
        growing = self._growing
        with contextlib.suppress(FileNotFoundError):
            growing.part(self._shard).unlink()  # of a run that was cut off before its ledger entry
            sync_folder(growing.parts)
        if self._alone and (absorbed := growing.absorbed())[0] == self._shard:
            self._start = absorbed[1]
            self._file = new_file(growing.archive, keep=self._start)
            return self._file
        self._place = growing.regions().get(self._shard) if self._placed else None
        if self._place is None:
            self._file = new_file(self._temporary)
        else:
            self._start, self._most = self._place.start, self._place.size
            self._file = file_at(growing.archive, self._start)
        return self._file

    def _moved_out(self) -> int:
        """Go on in a part: the shard takes more than its place."""
        assert self._file is not None and self._start is not None
        file, start = self._file, self._start
        self._file = self._start = self._most = None
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
            growing.forget(self._place)

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
