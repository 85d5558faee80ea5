"""The last members of a zip, where latentmill's own files stand, found without reading the whole directory.

Python's zipfile holds every entry of a directory: seconds and hundreds of megabytes for a million of them. What
is not as `stored_zip` writes it is left to zipfile, which then says what is wrong.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from latentmill.checksums import crc32
from latentmill.formats.stored_zip import local_header

_TAIL_BYTES = 1 << 14  # of the directory: dozens of entries
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_OFFSET_64 = struct.Struct("<HHQ")  # the one field that `stored_zip` writes beside an entry
_MAX_32 = 0xFFFFFFFF


class Member(NamedTuple):
    """A stored member: where its bytes start in the archive, how many they are, and their CRC-32."""

    start: int
    size: int
    crc: int


def last_member(path: Path, name: str) -> Member | None:
    """One of the last members; None where it is not there, or not as `stored_zip` writes it. Raises OSError."""
    with path.open("rb") as file:
        return _found(file, name)


def open_last_member(path: Path, name: str) -> IO[bytes] | None:
    """As `last_member`, to read. Reading on to the end raises BadZipFile where the bytes are damaged."""
    file = path.open("rb")
    try:
        member = _found(file, name)
        if member is not None:
            return io.BufferedReader(_Stream(file, name, member), 1 << 16)
    except BaseException:
        file.close()
        raise
    file.close()
    return None


class _Stream(io.RawIOBase):
    """A member's bytes, whose sum is checked when all of them were read."""

    def __init__(self, file: BinaryIO, name: str, member: Member) -> None:
        self._file, self._name, self._member = file, name, member
        self._left, self._sum = member.size, 0
        file.seek(member.start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = memoryview(buffer).cast("B")[: self._left]
        data = self._file.read(len(wanted))
        if len(data) != len(wanted):
            raise zipfile.BadZipFile(f"the archive is cut off inside {self._name}")
        wanted[:] = data
        self._left, self._sum = self._left - len(data), crc32(data, self._sum)
        if not self._left and self._sum != self._member.crc:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {self._name!r}")
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _found(file: BinaryIO, name: str) -> Member | None:
    span = _directory_span(file)
    if span is None:
        return None
    start, stop = span
    file.seek(max(start, stop - _TAIL_BYTES))
    at = _last_entries(file.read(stop - file.tell())).get(name)
    if at is None:
        return None
    offset, size, crc = at
    header = local_header(name, size, crc)
    file.seek(offset)
    return Member(offset + len(header), size, crc) if file.read(len(header)) == header else None


def _directory_span(file: BinaryIO) -> tuple[int, int] | None:
    """Where the directory starts and stops; None of an archive with a comment, or with bytes before it."""
    length = file.seek(0, os.SEEK_END)
    tail_size = min(length, _END.size + _LOCATOR_64.size)
    file.seek(length - tail_size)
    tail = file.read(tail_size)
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\5\6":
        return None
    *_, size, start, comment = _END.unpack(tail[-_END.size :])
    stop = length - _END.size
    locator = tail[: -_END.size]
    if len(locator) == _LOCATOR_64.size and locator[:4] == b"PK\6\7":
        stop = _LOCATOR_64.unpack(locator)[2]
        file.seek(stop)
        record = file.read(_END_64.size)
        if len(record) != _END_64.size or record[:4] != b"PK\6\6":
            return None
        *_, size, start = _END_64.unpack(record)
    return (start, stop) if not comment and start + size == stop else None


def _last_entries(tail: bytes) -> dict[str, tuple[int, int, int]]:
    """Offset, size and CRC-32 of stored members by name, of the entries that fill the end of a directory exactly."""
    at = tail.find(b"PK\1\2")
    while at >= 0:
        found = _entries(tail, at)
        if found is not None:
            return found
        at = tail.find(b"PK\1\2", at + 1)
    return {}


def _entries(tail: bytes, at: int) -> dict[str, tuple[int, int, int]] | None:
    """None where what starts at `at` is not entry after entry up to the end."""
    found: dict[str, tuple[int, int, int]] = {}
    while at < len(tail):
        if tail[at : at + 4] != b"PK\1\2" or at + _ENTRY.size > len(tail):
            return None
        fields = _ENTRY.unpack_from(tail, at)
        flags, method, crc, packed, size, name_size, extra_size, comment_size = (
            fields[i] for i in (3, 4, 7, 8, 9, 10, 11, 12)
        )
        name_at = at + _ENTRY.size
        extra_at = name_at + name_size
        at = extra_at + extra_size + comment_size
        if at > len(tail):
            return None
        offset = fields[16]
        if offset == _MAX_32 and extra_size == _OFFSET_64.size:
            kind, length, offset = _OFFSET_64.unpack_from(tail, extra_at)
            method = method if (kind, length) == (1, 8) else -1
        if flags == method == 0 and packed == size < _MAX_32:
            found[tail[name_at:extra_at].decode("ascii", "replace")] = offset, size, crc
    return found
