"""Where a dataset lies: a folder of files, or one zip of stored members. Writer and reader of each.

A shard's files are written under the work folder, flushed by one sync, and only then take their place, so that
a reader never meets a file that is not whole. Metadata comes last, and `latentmill.json` last of all.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from latentmill.errors import DestinationError
from latentmill.files import append_file, digest, remove_tree, replace_text, sync_filesystem, sync_folder, write_errors
from latentmill.formats.metadata import METADATA_JSON, WORK_FOLDER
from latentmill.formats.stored_zip import DirectoryWriter, local_header
from latentmill.records import StoredFile


class ShardSink(Protocol):
    """Takes one shard's files; nothing is seen by a reader before `commit`."""

    def write(self, name: str, data: bytes) -> StoredFile: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


def _stored(name: str, data: bytes) -> StoredFile:
    return StoredFile(name, len(data), digest(data), zlib.crc32(data))


class _FolderSink:
    def __init__(self, root: Path, stage: Path) -> None:
        self.root, self.stage = root, stage
        self.names: list[str] = []
        remove_tree(stage)
        with write_errors(stage):
            stage.mkdir(parents=True)

    def write(self, name: str, data: bytes) -> StoredFile:
        with write_errors(self.root / name), open(self._staged(len(self.names)), "wb") as file:  # noqa: PTH123
            file.write(data)
        self.names.append(name)
        return _stored(name, data)

    def commit(self) -> None:
        with write_errors(self.root):
            sync_filesystem(self.stage)
            for folder in {name.rpartition("/")[0] for name in self.names}:
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            for number, name in enumerate(self.names):
                os.replace(self._staged(number), self.root / name)  # noqa: PTH105
        remove_tree(self.stage)

    def _staged(self, number: int) -> Path:
        return self.stage / str(number)

    def abort(self) -> None:
        remove_tree(self.stage)


class _ZipSink:
    def __init__(self, part: Path) -> None:
        self.part, self.temporary = part, part.with_suffix(".tmp")
        with write_errors(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.temporary.open("wb")

    def write(self, name: str, data: bytes) -> StoredFile:
        stored = _stored(name, data)
        with write_errors(self.part):
            self.file.write(local_header(name, stored.size, stored.crc))
            self.file.write(data)
        return stored

    def commit(self) -> None:
        with write_errors(self.part):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.temporary.replace(self.part)
            sync_folder(self.part.parent)

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # what could not be flushed is thrown away here anyway
            self.file.close()
        self.temporary.unlink(missing_ok=True)


class FolderContainer:
    """A dataset in a folder; its work folder is `.latentmill` inside."""

    is_zip = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / WORK_FOLDER

    def sink(self, shard: int, publish: str = "") -> ShardSink:
        """A sink for a shard; `publish`: a folder under `path` to publish into instead of `path` itself."""
        return _FolderSink(self.path / publish, self.work / "stage" / f"{shard:08d}-{os.getpid()}")

    def exists(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def side_file(self, name: str) -> Path:
        return self.path / name

    def absorb(self, shards: int) -> None:
        """Nothing to gather: a folder's shards lie where they belong."""

    def finish(self, members: dict[str, Path], files: Iterable[StoredFile]) -> None:
        """Move the metadata files into place, `latentmill.json` last."""
        with write_errors(self.path):
            for name in sorted(members, key=lambda name: name == METADATA_JSON):
                os.replace(members[name], self.path / name)  # noqa: PTH105
                sync_folder(self.path)


class ZipContainer:
    """A dataset in one zip; while it is being made, its work folder `NAME.zip.latentmill` lies beside it."""

    is_zip = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path.with_name(path.name + WORK_FOLDER)

    @property
    def _partial(self) -> Path:
        return self.work / "partial.zip"

    def _part(self, shard: int) -> Path:
        return self.work / "parts" / f"{shard:08d}.part"

    def sink(self, shard: int, publish: str = "") -> ShardSink:
        return _ZipSink(self._part(shard))

    def exists(self) -> bool:
        return self.path.exists()

    def side_file(self, name: str) -> Path:
        """Beside the zip: what is no part of the data."""
        return self.path.with_name(f"{self.path.name}.{name.removeprefix('latentmill-')}")

    def absorb(self, shards: int) -> None:
        """Move the parts of the first `shards` shards, which must be committed, into the archive, in order.

        `absorbed` holds how many shards and bytes are safe in the archive; what lies behind them is cut off first.
        """
        count, size = self._absorbed()
        if count >= shards:
            return
        with write_errors(self.path), self._partial.open("r+b" if self._partial.exists() else "w+b") as archive:
            archive.truncate(size)
            archive.seek(size)
            for shard in range(count, shards):
                append_file(archive, self._part(shard))
                archive.flush()
                os.fsync(archive.fileno())
                self._note_absorbed(shard + 1, archive.tell())
                self._part(shard).unlink()

    def _absorbed(self) -> tuple[int, int]:
        try:
            count, size = (self.work / "absorbed").read_text().split()
        except FileNotFoundError:
            return 0, 0
        return int(count), int(size)

    def _note_absorbed(self, count: int, size: int) -> None:
        replace_text(self.work / "absorbed", f"{count} {size}")

    def finish(self, members: dict[str, Path], files: Iterable[StoredFile]) -> None:
        """Add the metadata members and the directory of all `files` (in order), and put the zip in place."""
        if self.path.exists() and not self._partial.exists():
            return  # put in place before, by a run that was cut off just after
        _, size = self._absorbed()
        with write_errors(self.path):
            with self._partial.open("r+b" if self._partial.exists() else "w+b") as archive:
                archive.truncate(size)
                archive.seek(size)
                directory = DirectoryWriter(archive, self.work / "directory")
                for file in files:
                    directory.note(file.name, file.size, file.crc)
                for name in sorted(members, key=lambda name: name == METADATA_JSON):
                    directory.append(name, members[name])
                directory.close()
                archive.flush()
                os.fsync(archive.fileno())
            self._partial.replace(self.path)
            sync_folder(self.path.parent)


Container = FolderContainer | ZipContainer


def container(path: Path) -> Container:
    """The container for a destination: a zip where the name ends in `.zip`, else a folder."""
    if path.suffix.lower() == ".zip":
        if path.is_dir():
            raise DestinationError(f"{path} is a folder, though its name ends in .zip")
        return ZipContainer(path)
    if path.exists() and not path.is_dir():
        raise DestinationError(f"the destination must be a folder or a .zip. Found a file: {path}")
    return FolderContainer(path)


class Reader:
    """Random access to the members of a dataset in a folder or a zip; picklable, safe under fork and spawn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_zip = not path.is_dir()
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "is_zip": self.is_zip}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises KeyError or FileNotFoundError when missing, OSError or BadZipFile when damaged."""
        if not self.is_zip:
            with open(self.path / name, "rb") as file:  # noqa: PTH123
                return file.read()
        return self._archive().read(name)

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
