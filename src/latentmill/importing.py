"""`import`: any captioned source becomes a PixArt dataset, `InternImgs` and `InternData/data_info.json`.

Names that readers could not tell apart are refused before any work. While images change there is no `data_info.json`;
it comes last. After a failure, an interrupt or a kill, the same call goes on: what stands is kept, what was edited is
made anew, and what the import made but nobody wants any more is removed. Files of others are never touched.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, get_args

from latentmill.destination import locked
from latentmill.errors import ConfigError, DestinationError, SampleError
from latentmill.files import (
    counted,
    digest_file,
    remove_empty_folders,
    remove_tree,
    replace_text,
    sync_filesystem,
    sync_folder,
    write_errors,
)
from latentmill.formats.containers import FolderContainer
from latentmill.formats.metadata import REJECTS_JSONL, REPORT_JSON
from latentmill.outcome import Event, Tell, quiet
from latentmill.records import EXIF_ROTATED
from latentmill.sources.caption_imports import IMPORT_JSONL, Imported, ImportLog
from latentmill.sources.caption_names import import_names
from latentmill.sources.caption_placing import Exif, Link, Placer
from latentmill.sources.caption_rows import PROMPT, CaptionedImage, Missing, caption_of
from latentmill.sources.captioned import CaptionedSet, captioned
from latentmill.sources.excluding import read_exclusion
from latentmill.sources.folders import DATA_FOLDER, DATA_INFO, IMAGE_FOLDER
from latentmill.system import usable_cores

RE_ENCODED = "re-encoded"
FAULTY_CAPTION = "faulty-caption"  # a caption was left out of a row that has another
_CHUNK = 256  # images between two entries in the log


@dataclass(frozen=True)
class ImportResult:
    """What an import came to. stored: images in `data_info`, of the `listed` ones; names: of their captions.

    placed: images put into place by this call; removed: files of an earlier call that were no longer wanted.
    notes: how many images are exif-rotated, re-encoded, transparent, …; the report names each.
    """

    dest: Path
    data_info: Path
    listed: int
    stored: int
    rejected: int
    placed: int
    removed: int
    names: list[str]
    notes: dict[str, int]
    report: Path
    rejects: Path | None
    seconds: float
    already_done: bool


def import_captioned(
    source: Path | str,
    dest: Path | str,
    *,
    link: Link = "hard",
    flatten: bool = False,
    png: bool = False,
    exif: Exif = "ignore",
    missing_caption: Missing = "reject",
    caption_extension: str = ".txt",
    multi_line: bool = False,
    path_column: str | None = None,
    caption_columns: Mapping[str, str] | Sequence[str] | None = None,
    images: Path | str | None = None,
    exclude: Path | str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    tell: Tell = quiet,
) -> ImportResult:
    """Make a PixArt dataset of a captioned source (see `captioned` for its options). Raises LatentmillError.

    PNG and JPEG files are linked or copied (`link`), whatever their names end in; other formats are encoded as PNG.
    flatten: `a/b.png` becomes `a_b.png`. png: JPEG files are encoded as PNG too; with flatten, names are what PixArt's
    single-scale reader finds. exif: "apply" encodes turned photos upright, as PNG. missing_caption: an image without a
    caption (`prompt`, where the source has one of that name) is rejected, or has "" under every name. exclude: a list
    of images to leave out, see `sources.excluding`. overwrite: make every image anew, and replace a `data_info.json`
    that was edited since.
    """
    for name, value, allowed in (
        ("link", link, Link),
        ("exif", exif, Exif),
        ("missing_caption", missing_caption, Missing),
    ):
        if value not in get_args(allowed):
            raise ConfigError(f"{name} must be {' or '.join(get_args(allowed))}. Found: {value!r}")
    started = time.monotonic()
    exclusion = read_exclusion(Path(exclude) if exclude is not None else None)
    found = captioned(
        source,
        images=images,
        caption_extension=caption_extension,
        multi_line=multi_line,
        path_column=path_column,
        caption_columns=caption_columns,
        exclude=exclusion,
    )
    place = _destination(Path(dest), found)
    names = import_names((row.key for row in found.rows), flatten)
    for warning in found.warnings:
        tell(Event("warning", warning))
    if found.names and PROMPT not in found.names:
        tell(Event("warning", f"no caption is called {PROMPT}, which PixArt's reader looks up: name the one to take"))
    tell(Event("plan", f"{len(found.rows):,} images; captions: {', '.join(found.names) or 'none'}"))
    if exclusion is not None:
        tell(Event("plan", exclusion.summary))
    with locked((place,)):
        placer = Placer(found.images, place.path / IMAGE_FOLDER, link, exif, png)
        work = _Import(found, place, placer, missing_caption, tell)
        return work.run(names, threads or usable_cores(), overwrite, started)


def _destination(dest: Path, found: CaptionedSet) -> FolderContainer:
    if dest.exists() and not dest.is_dir():
        raise DestinationError(f"the destination must be a folder. Found a file: {dest}")
    place, images = dest.resolve(), found.images.resolve()
    if images in (place, *place.parents):
        raise DestinationError(f"the destination must not lie in the source's folder, {found.images}. Found: {dest}")
    if place / IMAGE_FOLDER in (images, *images.parents):
        raise DestinationError(f"the source's images, {found.images}, lie in the destination's own. Choose another")
    return FolderContainer(dest)


@dataclass(frozen=True, slots=True)
class _Item:
    """An image of the source, and what it is to become; `error` where it is rejected."""

    row: CaptionedImage
    captions: dict[str, str] = field(default_factory=dict)
    image: Imported | None = None
    stands: bool = False
    error: SampleError | None = None


class _Import:
    """One run, with the destination locked."""

    def __init__(
        self, found: CaptionedSet, place: FolderContainer, placer: Placer, missing: Missing, tell: Tell
    ) -> None:
        self.found, self.place, self.placer, self.missing, self.tell = found, place, placer, missing, tell
        self.data = place.path / DATA_FOLDER
        self.log = ImportLog(self.data / IMPORT_JSONL)
        self.known: Mapping[str, Imported] = self.log.images
        self.wanted: set[str] = set()
        self.rejects: list[tuple[str, SampleError]] = []
        self.notes: dict[str, list[str]] = {}
        self.placed = 0
        self.changing = False

    def run(self, names: list[str], threads: int, overwrite: bool, started: float) -> ImportResult:
        self.log.load()
        self.log.refuse_foreign(self.placer.images, self.data / DATA_INFO, overwrite)
        if overwrite:
            self.known = {}
        remove_tree(self.placer.work)
        new = self.place.work / DATA_INFO
        try:
            with write_errors(new), new.open("wb") as file, _pool(threads) as pool:
                self._all(names, pool, file)
                file.flush()
                os.fsync(file.fileno())
            removed = self._remove_unwanted()
            self._tell_notes()
            already_done = self._publish(new)
            report, rejects = self._side_files()
        finally:
            remove_tree(self.placer.work)
        return ImportResult(
            dest=self.place.path,
            data_info=self.data / DATA_INFO,
            listed=len(self.found.rows),
            stored=len(self.wanted),
            rejected=len(self.rejects),
            placed=self.placed,
            removed=removed,
            names=self.found.names,
            notes={note: len(keys) for note, keys in sorted(self.notes.items())},
            report=report,
            rejects=rejects,
            seconds=time.monotonic() - started,
            already_done=already_done,
        )

    def _all(self, names: list[str], pool: ThreadPoolExecutor, file: BinaryIO) -> None:
        rows, first = self.found.rows, True
        file.write(b"[")
        for start in range(0, len(rows), _CHUNK):
            stop = start + _CHUNK
            for item in self._chunk(list(pool.map(self._look, rows[start:stop], names[start:stop])), pool):
                if self._count(item):
                    file.write((b"\n" if first else b",\n") + _row_json(item))
                    first = False
            done = min(stop, len(rows))
            self.tell(Event("progress", total=len(rows), done=done, committed=done, rejected=len(self.rejects)))
        file.write(b"\n]\n")

    def _look(self, row: CaptionedImage, name: str) -> _Item:
        try:
            captions = _captions(row, self.found.names or [PROMPT], self.missing)
            image, stands = self.placer.wanted(row.key, name, self.known)
        except SampleError as error:
            return _Item(row, error=error)
        return _Item(row, captions, image, stands)

    def _chunk(self, items: list[_Item], pool: ThreadPoolExecutor) -> Iterator[_Item]:
        """Put what does not stand yet into its place; the log has it before, and again when a PNG was made."""
        missing = [item.image for item in items if item.image is not None and not item.stands]
        if missing:
            self._change()
            self.log.append(missing)
        placed = iter(list(pool.map(self._place, missing)))
        if any(image.made not in ("hard", "symlink") for image in missing):
            sync_filesystem(self.placer.images)
        made: list[Imported] = []
        for item in items:
            image = item.image if item.image is None or item.stands else next(placed)
            if isinstance(image, SampleError):
                yield _Item(item.row, error=image)
                continue
            if image is not None and not item.stands:
                made.append(image)
            yield _Item(item.row, item.captions, image, item.stands, item.error)
        self.placed += len(made)
        if any(image.is_encoded for image in made):
            self.log.append(image for image in made if image.is_encoded)

    def _place(self, image: Imported) -> Imported | SampleError:
        try:
            return self.placer.place(image)
        except SampleError as error:
            return error

    def _change(self) -> None:
        """Before the first change: from here until the end no reader finds a table."""
        if self.changing:
            return
        self.changing = True
        with write_errors(self.place.path):
            self.data.mkdir(parents=True, exist_ok=True)
            self.placer.work.mkdir(parents=True, exist_ok=True)
            (self.data / DATA_INFO).unlink(missing_ok=True)
            sync_folder(self.data)
        self.log.write()

    def _count(self, item: _Item) -> bool:
        """Whether the image is stored."""
        if item.error is not None:
            self.rejects.append((item.row.key, item.error))
            return False
        assert item.image is not None
        self.wanted.add(item.image.path)
        encoded = (RE_ENCODED,) if item.image.is_encoded else ()
        faulty = (FAULTY_CAPTION,) if item.row.faults else ()
        for note in (*item.image.notes, *encoded, *faulty):
            self.notes.setdefault(note, []).append(item.row.key)
        return True

    def _remove_unwanted(self) -> int:
        unwanted = [path for path in self.log.images if path not in self.wanted]
        if not unwanted:
            return 0
        self._change()
        removed = 0
        with write_errors(self.placer.images):
            for path in unwanted:
                file = self.placer.images / path
                removed += os.path.lexists(file)
                file.unlink(missing_ok=True)
                remove_empty_folders(file.parent, self.placer.images)
                del self.log.images[path]
        return removed

    def _publish(self, new: Path) -> bool:
        """Put the new table into its place, the log before it; True where nothing at all has changed."""
        made = digest_file(new)
        if not self.changing and made == self.log.data_info and (self.data / DATA_INFO).exists():
            new.unlink()
            return True
        self._change()
        sync_filesystem(self.placer.images)
        self.log.data_info = made
        self.log.write()
        with write_errors(self.data):
            new.replace(self.data / DATA_INFO)
            sync_folder(self.data)
        return False

    def _tell_notes(self) -> None:
        if self.placer.refused:
            self.tell(
                Event("warning", f"the filesystem refuses hard links ({self.placer.refused}): images were copied")
            )
        rotated = len(self.notes.get(EXIF_ROTATED, ()))
        if rotated and self.placer.exif == "ignore":
            turned = f"stored turned, as EXIF says: {counted(rotated, 'images')}"
            self.tell(Event("warning", f"{turned}; import with --exif apply to make them upright"))
        faulty = len(self.notes.get(FAULTY_CAPTION, ()))
        if faulty:
            self.tell(Event("warning", f"{faulty:,} images have a caption that cannot be read; it was left out"))

    def _side_files(self) -> tuple[Path, Path | None]:
        """The report, and the rejects where there are any: for a person, no part of the data."""
        report, rejects = self.data / REPORT_JSON, self.data / REJECTS_JSONL
        lines = [{"key": key, "stage": error.stage, "reason": error.reason} for key, error in self.rejects]
        counts = {"listed": len(self.found.rows), "stored": len(self.wanted), "rejected": len(lines)}
        reasons = Counter(f"{line['stage']}: {line['reason']}" for line in lines)
        table = {
            "counts": counts,
            "captions": self.found.names,
            "rejects_by_reason": dict(reasons.most_common()),
            "images": self.notes,
        }
        replace_text(report, json.dumps(table, indent=1) + "\n")
        if not lines:
            rejects.unlink(missing_ok=True)
            return report, None
        replace_text(rejects, "".join(json.dumps(line) + "\n" for line in lines))
        return report, rejects


def _captions(row: CaptionedImage, names: list[str], missing: Missing) -> dict[str, str]:
    """The captions that an image has, by name. Raises SampleError where it has none, or no `prompt` among others."""
    found: dict[str, str] = {}
    first: SampleError | None = None
    for name in names:
        try:
            found[name] = caption_of(row, name, missing)
        except SampleError as error:
            if first is None or name == PROMPT or (name in row.faults and PROMPT in found):
                first = error
    lacks_prompt = PROMPT in names and PROMPT not in found  # which PixArt's reader looks up in every row
    if first is not None and (lacks_prompt or not any(found.values())):
        raise first
    return found


def _row_json(item: _Item) -> bytes:
    assert item.image is not None
    height, width = item.image.size
    row = {"width": width, "height": height, "ratio": height / width, "path": item.image.path, **item.captions}
    return json.dumps(row).encode()


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that start nothing new once the block is left."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="import")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
