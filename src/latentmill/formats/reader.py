"""Random access to the files of a finished dataset, in a folder or a zip, from any process and thread."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from latentmill.formats import parts
from latentmill.formats.metadata import WORK_FOLDER
from latentmill.formats.stored_zip import local_header

_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


class Place(NamedTuple):
    """Where a file lies in a zip, as its dataset's columns say: bytes, where its header starts, CRC-32."""

    size: int
    offset: int
    crc: int


class Reader:
    """The files of one dataset; picklable. A process opens a zip once, and all of its threads share that handle.

    A handle that was inherited by a fork is shared too: `parts.read_part` moves no position.
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

    def fill(self, name: str, head: bytes, out: Any) -> bool:
        """Read what stands behind the head of a file in the folder into a buffer of just its size.

        False where the file is not these two: then `read` tells what it is. Raises OSError.
        """
        return parts.AVAILABLE and not self.is_zip and parts.read_file(self._prefix + name, head, out)

    def fill_from_zip(self, name: str, place: Place, head: bytes, out: Any) -> bool:
        """The same of a zip; False too where the file does not lie at its place. The bytes' sum is not compared."""
        if not parts.AVAILABLE or not self.is_zip:
            return False
        handle = self._opened() if self._handle is None else self._handle
        return parts.read_part(handle, place.offset, local_header(name, place.size, place.crc) + head, out)

    def _opened(self) -> int:
        """The zip, whose handle all threads share."""
        with self._opening:
            if self._handle is None:
                self._handle = os.open(self.path, _OPEN)
            return self._handle

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
