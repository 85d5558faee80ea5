"""Where a dataset lies: a folder of files, or one zip of stored members.

A shard's files are written under the work folder, flushed by one sync, and only then take their place, so that
a reader never meets a file that is not whole. Metadata comes last, and `latentmill.json` last of all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from latentmill.errors import DestinationError
from latentmill.files import (
    new_file,
    process_name,
    remove_tree,
    stored_file,
    sync_filesystem,
    sync_folder,
    write_errors,
    write_parts,
)
from latentmill.formats.growing_zip import GrowingZip, ZipSink
from latentmill.formats.metadata import METADATA_JSON, WORK_FOLDER
from latentmill.formats.stored_zip import DirectoryWriter
from latentmill.records import StoredFile


class ShardSink(Protocol):
    """Takes one shard's files; nothing is seen by a reader before `commit`. known: the digest of `data`, if it is."""

    def write(self, name: str, data: bytes, known: str | None = None) -> StoredFile: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


class _FolderSink:
    def __init__(self, root: Path, stage: Path) -> None:
        self.root, self.stage = root, stage
        self.names: list[str] = []
        remove_tree(stage)
        with write_errors(stage):
            stage.mkdir(parents=True)

    def write(self, name: str, data: bytes, known: str | None = None) -> StoredFile:
        with write_errors(self.root / name):
            file = new_file(f"{self.stage}/{len(self.names)}")
            try:
                write_parts(file, (data,))
            finally:
                os.close(file)
        self.names.append(name)
        return stored_file(name, data, known)

    def commit(self) -> None:
        with write_errors(self.root):
            sync_filesystem(self.stage)
            for folder in {name.rpartition("/")[0] for name in self.names}:
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            for number, name in enumerate(self.names):
                os.replace(f"{self.stage}/{number}", f"{self.root}/{name}")  # noqa: PTH105
        remove_tree(self.stage)

    def abort(self) -> None:
        remove_tree(self.stage)


class FolderContainer:
    """A dataset in a folder; its work folder is `.latentmill` inside."""

    is_zip = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / WORK_FOLDER

    def sink(self, shard: int, publish: str = "", alone: bool = False, placed: bool = False) -> ShardSink:
        """A sink for a shard; `publish`: a folder under `path` to publish into instead of `path` itself."""
        return _FolderSink(self.path / publish, self.work / "stage" / f"{shard:08d}-{process_name()}")

    def remove(self, name: str, publish: str = "") -> None:
        """Remove a file that was published, if it is there."""
        file = self.path / publish / name
        with write_errors(file):
            file.unlink(missing_ok=True)

    def exists(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def side_file(self, name: str) -> Path:
        return self.path / name

    def reserve(self, shard: int, most: Callable[[int], int]) -> None:
        """Nothing to find, put in order or gather: a folder's shards lie where they belong."""

    def settle(self, done: set[int], whole: int) -> None:
        """Likewise."""

    def absorb(self, shards: int) -> None:
        """Likewise."""

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
        self._growing = GrowingZip(path, self.work)

    def sink(self, shard: int, publish: str = "", alone: bool = False, placed: bool = False) -> ShardSink:
        """A sink for a shard. alone: no other process writes shards of this zip. placed: it may have been reserved."""
        return ZipSink(self._growing, shard, alone, placed)

    def remove(self, name: str, publish: str = "") -> None:
        """Nothing to remove: what a shard publishes replaces all that it published before."""

    def exists(self) -> bool:
        return self.path.exists()

    def side_file(self, name: str) -> Path:
        """Beside the zip: what is no part of the data."""
        return self.path.with_name(f"{self.path.name}.{name.removeprefix('latentmill-')}")

    def reserve(self, shard: int, most: Callable[[int], int]) -> None:
        """Find a place for a shard that one of several workers is about to be given (see `GrowingZip.reserve`)."""
        self._growing.reserve(shard, most)

    def settle(self, done: set[int], whole: int) -> None:
        """Before a run: put in order what an earlier one left, whose shards `done` are done, with the first `whole`."""
        self._growing.settle(done, whole)

    def absorb(self, shards: int) -> None:
        """Gather the first `shards` shards, which must be committed, in the archive."""
        self._growing.absorb(shards)

    def finish(self, members: dict[str, Path], files: Iterable[StoredFile]) -> None:
        """Add the metadata members and the directory of all `files` (in order), and put the zip in place."""
        partial = self._growing.archive
        if self._growing.in_place:
            return  # by a run that was cut off just after
        size = self._growing.whole_bytes()
        with write_errors(self.path):
            with partial.open("r+b" if partial.exists() else "w+b") as archive:
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
            partial.replace(self.path)
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
