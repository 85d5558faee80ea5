"""Random access to the files of a finished dataset, in a folder or a zip, from any process and thread."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from latentmill.formats.metadata import WORK_FOLDER
from latentmill.formats.stored_zip import local_header

_CAN_SCATTER = hasattr(os, "preadv")  # reads at a place, into several buffers: not on Windows
_MAX_BUFFERS = 1000  # that one call may fill: IOV_MAX is 1024
_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


class Place(NamedTuple):
    """Where a file's bytes are, as its dataset's columns say: their number and, in a zip, header and CRC-32."""

    size: int
    offset: int = 0
    crc: int | None = None


class Reader:
    """The files of one dataset; picklable. A process opens a zip once, and all of its threads share that handle.

    A handle that was inherited by a fork is shared too: reading by `preadv` moves no position.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_zip = not path.is_dir()
        self._open()

    def _open(self) -> None:
        self._prefix = f"{self.path}{os.sep}"
        self._local = threading.local()
        self._handle: int | None = None
        self._opening = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "is_zip": self.is_zip}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __del__(self) -> None:
        handle = self.__dict__.get("_handle")
        if handle is not None:
            os.close(handle)

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises KeyError or FileNotFoundError when missing, OSError or BadZipFile when damaged."""
        if not self.is_zip:
            with open(self._prefix + name, "rb") as file:  # noqa: PTH123
                return file.read()
        return self._archive().read(name)

    def fill(self, name: str, place: Place, buffers: Sequence[memoryview]) -> bool:
        """Read a file into buffers that have room for just its bytes; False where it is not as `place` says.

        Then `read` tells what it is. The sum of the bytes is not checked. Raises OSError.
        """
        if not _CAN_SCATTER or len(buffers) >= _MAX_BUFFERS:
            return False
        if self.is_zip:
            return self._fill_from_zip(name, place, buffers)
        handle = os.open(self._prefix + name, _OPEN)
        try:
            return os.fstat(handle).st_size == place.size == os.preadv(handle, buffers, 0)
        finally:
            os.close(handle)

    def _fill_from_zip(self, name: str, place: Place, buffers: Sequence[memoryview]) -> bool:
        expected = local_header(name, place.size, place.crc or 0)
        header = bytearray(len(expected))
        if self._handle is None:
            with self._opening:
                if self._handle is None:
                    self._handle = os.open(self.path, _OPEN)
        count = os.preadv(self._handle, [header, *buffers], place.offset)
        return count == len(expected) + place.size and header == expected

    def names(self) -> Iterator[str]:
        """Every member, in no particular order; latentmill's work folder is left out."""
        if self.is_zip:
            yield from (info.filename for info in self._archive().infolist() if not info.is_dir())
            return
        for folder, folders, files in os.walk(self.path):
            folders[:] = [name for name in folders if name != WORK_FOLDER]
            base = os.path.relpath(folder, self.path).replace(os.sep, "/")
            yield from (name if base == "." else f"{base}/{name}" for name in files)

    def _archive(self) -> zipfile.ZipFile:
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.archive = zipfile.ZipFile(self.path)
            self._local.pid = os.getpid()
        archive: zipfile.ZipFile = self._local.archive
        return archive
