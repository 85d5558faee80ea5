"""Walking a folder of images: every file below it, and what tells a change of each.

Where looking at files waits for a disk or a network, threads wait side by side. Where it does not (a warm cache), one
thread is quicker: Python runs one at a time, and they would take it from each other.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from stat import S_ISREG
from typing import NamedTuple

from latentmill.batching import prefetched
from latentmill.decoding import is_image_extension
from latentmill.errors import SourceError
from latentmill.files import printable
from latentmill.formats.metadata import WORK_FOLDER

if sys.platform == "linux":
    import resource

DATA_FOLDER, IMAGE_FOLDER, DATA_INFO = "InternData", "InternImgs", "data_info.json"  # a PixArt dataset's
# Pictures that phones, cameras and programs make, where Pillow has nothing that reads them.
_CAMERAS = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw")
OTHER_PICTURES = frozenset((".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".webp", ".psd", ".svg", *_CAMERAS))
_THREADS = 8
_FILES_A_TASK = 1024
_WAITING = 0.1  # of the files that a thread looks at, those that it waits for where more threads are worth it


class Files(NamedTuple):
    """Some files of one folder. below: what their keys begin with, "" or the folder's path with its `/`."""

    folder: str
    below: str
    names: list[str]


class Looked(NamedTuple):
    """Files that were looked at. entries: `key NUL stat`. faults: by entry, why a file cannot be used."""

    entries: list[str]
    faults: dict[str, str]


def image_files(root: str, loops: list[str], unread: Counter[str]) -> Iterator[Looked]:
    """Every image below `root`, links followed; see `walk` and `note_unread`. Raises SourceError."""
    known: dict[str, bool] = {}
    tasks = (
        Files(found.folder, found.below, names[start : start + _FILES_A_TASK])
        for found in walk(root, loops)
        for names in (_images(found.names, known, unread),)
        for start in range(0, len(names), _FILES_A_TASK)
    )
    for files in tasks:
        before = _waits()
        looked = _look(files)
        waited = _waits() - before
        yield looked
        if waited > 1 + _WAITING * len(files.names):
            break
    yield from prefetched(_look, tasks, _THREADS, 4 * _THREADS)


def _waits() -> int:
    """How often this thread gave up its processor to wait for something; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _images(names: list[str], known: dict[str, bool], unread: Counter[str]) -> list[str]:
    """Those names that count as images. known: by what comes after the last dot, which is looked up once."""
    found = []
    for name in names:
        ending = name[name.rfind(".") :]
        counts = known.get(ending)
        if counts is None:
            counts = known[ending] = is_image_extension(ending)
        if not counts:
            note_unread(name, unread)
        elif name[0] != "." or is_image(name):
            found.append(name)
    return found


def note_unread(name: str, unread: Counter[str]) -> None:
    """Count a file that is no image here by its extension, where it is a picture all the same."""
    ending = name[name.rfind(".") :].lower()
    if ending in OTHER_PICTURES and name[0] != ".":
        unread[ending] += 1


def told_unread(unread: Counter[str]) -> list[str]:
    """The warning, if any, of the pictures that no format of Pillow's reads."""
    if not unread:
        return []
    counts = ", ".join(f"{count:,} {ending}" for ending, count in unread.most_common())
    return [f"pictures that cannot be read here are left out ({counts}): convert them to JPEG or PNG to have them"]


def _look(files: Files) -> Looked:
    looked = Looked([], {})
    try:
        descriptor = os.open(files.folder, os.O_RDONLY) if os.stat in os.supports_dir_fd else None
    except OSError as error:
        for name in files.names:
            _note_fault(looked, f"{files.below}{name}\0", error.strerror or str(error))
        return looked
    try:
        _look_in(files, descriptor, looked)
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return looked


def _look_in(files: Files, descriptor: int | None, looked: Looked) -> None:
    """descriptor: of the open folder, by which a file is found in three quarters of the time that its path takes."""
    stat_of = partial(os.stat, dir_fd=descriptor)
    before = "" if descriptor is not None else os.path.join(files.folder, "")  # noqa: PTH118 - with its separator
    below, entries = files.below, looked.entries
    for name in files.names:
        try:
            stat = stat_of(before + name)
        except OSError as error:
            _note_fault(looked, f"{below}{name}\0", error.strerror or str(error))
            continue
        entry = f"{below}{name}\0{stat.st_size}-{stat.st_mtime_ns}"
        if S_ISREG(stat.st_mode):
            entries.append(entry)
        else:
            _note_fault(looked, entry, "not a file")  # a pipe would be waited for without end


def _note_fault(looked: Looked, entry: str, fault: str) -> None:
    looked.entries.append(entry)
    looked.faults[entry] = fault


def walk(folder: str, loops: list[str], below: str = "", parents: tuple[tuple[int, int], ...] = ()) -> Iterator[Files]:
    """The files of `folder` and of every folder below, links followed, except one to a folder that it lies in.

    loops: gets such links. Raises SourceError for a folder that cannot be listed.
    """
    try:
        stat = os.stat(folder)  # noqa: PTH116
        identity = (stat.st_dev, stat.st_ino)
        if identity in parents:
            loops.append(folder)
            return
        names, folders = _sorted_out(folder)
    except OSError as error:
        raise SourceError(f"cannot list the folder {printable(folder)}: {error.strerror or error}") from error
    if names:
        yield Files(folder, below, names)
    for name in folders:
        yield from walk(os.path.join(folder, name), loops, f"{below}{name}/", (*parents, identity))  # noqa: PTH118


def _sorted_out(folder: str) -> tuple[list[str], list[str]]:
    """The names of a folder's files, and of its folders, links to either included. Raises OSError."""
    names: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link that points at itself
                is_folder = False
            if not is_folder:
                names.append(entry.name)
            elif entry.name != WORK_FOLDER:
                folders.append(entry.name)
    return names, folders


def told_loops(loops: list[str]) -> list[str]:
    """The warning, if any, of the links that `walk` did not follow."""
    if not loops:
        return []
    shown = ", ".join(map(printable, loops[:3])) + (f" and {len(loops) - 3} more" if len(loops) > 3 else "")
    return [f"links not followed, since they lead back to a parent folder: {shown}"]


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image: its extension is one that Pillow knows."""
    return is_image_extension(os.path.splitext(name)[1])  # noqa: PTH122 - a million times
