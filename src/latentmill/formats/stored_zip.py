"""Zip archives of stored members, byte for byte the same for the same members (PKWARE APPNOTE 6.3, with zip64).

Python's zipfile cannot append members that other processes wrote, nor list a million members without holding
them all; these few records can. Names are ASCII, times are fixed at 1980-01-01, nothing is compressed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from latentmill.checksums import crc32
from latentmill.errors import SampleError

_VERSION, _VERSION_ZIP64 = 20, 45
_MADE_BY_UNIX = 3 << 8
_FIXED_DATE = (1 << 5) | 1  # 1980-01-01, the first day that the format can express
_REGULAR_FILE_0644 = 0o100644 << 16
_MAX_32, _MAX_16 = 0xFFFFFFFF, 0xFFFF
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED_FLAG = 1


def local_header(name: str, size: int, crc: int) -> bytes:
    """What stands before a member's bytes. Members are smaller than 4 GiB."""
    if size >= _MAX_32:
        raise ValueError(f"{name}: a member of {size:,} bytes is over the 4 GiB that this layout stores")
    encoded = name.encode("ascii")
    return _LOCAL.pack(b"PK\3\4", _VERSION, 0, _STORED, 0, _FIXED_DATE, crc, size, size, len(encoded), 0) + encoded


def member_bytes(name: str, size: int) -> int:
    """Bytes that a member of `size` bytes takes with its header."""
    return _LOCAL.size + len(name) + size


def directory_entry(name: str, size: int, crc: int, offset: int) -> bytes:
    """A member's entry in the central directory; `offset` is where its local header starts."""
    encoded = name.encode("ascii")
    large = offset >= _MAX_32
    version = _VERSION_ZIP64 if large else _VERSION
    extra = struct.pack("<HHQ", 1, 8, offset) if large else b""
    fixed = struct.pack(
        "<4s6H3L5H2L",
        *(b"PK\1\2", _MADE_BY_UNIX | version, version, 0, _STORED, 0, _FIXED_DATE, crc, size, size),
        *(len(encoded), len(extra), 0, 0, 0, _REGULAR_FILE_0644, _MAX_32 if large else offset),
    )
    return fixed + encoded + extra


def end_records(count: int, directory_size: int, directory_offset: int) -> bytes:
    """What closes an archive; the zip64 records are added when a figure needs them."""
    records = b""
    if count >= _MAX_16 or directory_size >= _MAX_32 or directory_offset >= _MAX_32:
        at = directory_offset + directory_size
        records += struct.pack(
            "<4sQ2H2L4Q",
            *(b"PK\6\6", 44, _MADE_BY_UNIX | _VERSION_ZIP64, _VERSION_ZIP64, 0, 0),
            *(count, count, directory_size, directory_offset),
        )
        records += struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    short = min(count, _MAX_16)
    size, offset = min(directory_size, _MAX_32), min(directory_offset, _MAX_32)
    return records + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, short, short, size, offset, 0)


def read_member(file: BinaryIO, offset: int, compressed: int, method: int, crc: int, max_bytes: int) -> bytes:
    """A member's bytes, by its place in the central directory. Raises SampleError (stage `read`) when damaged."""
    file.seek(offset)
    header = file.read(_LOCAL.size)
    if len(header) != _LOCAL.size or header[:4] != b"PK\3\4":
        raise SampleError("read", "the archive is damaged: no member starts where its directory says")
    fields = _LOCAL.unpack(header)
    if fields[2] & _ENCRYPTED_FLAG:
        raise SampleError("read", "the member is encrypted")
    if compressed > max_bytes:
        raise SampleError("read", f"the member takes over {max_bytes:,} bytes")
    file.seek(fields[9] + fields[10], 1)
    data = file.read(compressed)
    if len(data) != compressed:
        raise SampleError("read", "the archive is cut off inside this member")
    if method == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(data, max_bytes)
        except zlib.error as error:
            raise SampleError("read", f"the member cannot be inflated: {error}") from error
        if inflater.unconsumed_tail:
            raise SampleError("read", f"the member inflates to over {max_bytes:,} bytes")
    elif method != _STORED:
        raise SampleError("read", f"the member is compressed by method {method}; only stored and deflated are read")
    if crc32(data) != crc:
        raise SampleError("read", "the member's CRC-32 does not match: its bytes are damaged")
    return data


def changed_records(path: Path, members: Sequence[tuple[str, int, int]]) -> list[str]:
    """Members, as (name, size, CRC-32) in order, whose records in an archive are not those that this module writes.

    Empty too where most differ: then another tool made the archive, and what it records is its own business.
    """
    changed: list[str] = []
    with path.open("rb") as file:
        start = 0
        for name, size, crc in members:
            header = local_header(name, size, crc)
            file.seek(start)
            if file.read(len(header)) != header:
                changed.append(name)
            start += len(header) + size
        file.seek(start)
        offset = 0
        for name, size, crc in members:
            entry = directory_entry(name, size, crc, offset)
            if file.read(len(entry)) != entry:
                changed.append(name)
            offset += member_bytes(name, size)
        end = end_records(len(members), file.tell() - start, start)
        if file.read() != end:
            changed.append("the archive's end")
    return changed if len(changed) <= len(members) else []


class DirectoryWriter:
    """Appends members to an archive that already holds `offset` bytes of them, then closes it."""

    def __init__(self, file: BinaryIO, directory: Path) -> None:
        self._file = file
        self._spool = directory.open("w+b")
        self._offset, self._count = 0, 0

    def note(self, name: str, size: int, crc: int) -> None:
        """Take up the next member that already lies in the archive."""
        self._spool.write(directory_entry(name, size, crc, self._offset))
        self._offset += member_bytes(name, size)
        self._count += 1

    def append(self, name: str, source: Path) -> None:
        """Add a whole file as a member at the archive's end."""
        crc, size = 0, source.stat().st_size
        with source.open("rb") as file:
            while block := file.read(1 << 20):
                crc = crc32(block, crc)
            self._file.write(local_header(name, size, crc))
            file.seek(0)
            while block := file.read(1 << 20):
                self._file.write(block)
        self.note(name, size, crc)

    def close(self) -> None:
        """Write the central directory and the end records. Raises ValueError if the members do not add up."""
        if self._file.tell() != self._offset:
            raise ValueError(f"the members end at byte {self._file.tell():,}, their entries at {self._offset:,}")
        size = self._spool.tell()
        self._spool.seek(0)
        while block := self._spool.read(1 << 20):
            self._file.write(block)
        self._file.write(end_records(self._count, size, self._offset))
        self._spool.close()
