"""Images in a folder (walked recursively) or in a zip, ordered and labelled as the class-conditional tools do."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentmill.errors import SampleError, SourceError
from latentmill.files import printable
from latentmill.formats.metadata import (
    DATASET_JSON,
    REJECTS_JSONL,
    WORK_FOLDER,
    Metadata,
    index_rows,
    read_beside,
    read_labels,
    row_geometry,
)
from latentmill.formats.repa import converted_number
from latentmill.formats.stored_zip import read_member
from latentmill.nearby import instead_of
from latentmill.records import Listing, SampleRef
from latentmill.sources.excluding import Exclusion
from latentmill.sources.folders import image_files, is_image, note_unread, told_loops, told_unread
from latentmill.wording import hinted

# A deflated member may not inflate to more than this: a photo of the decoder's pixel limit, uncompressed.
_MAX_MEMBER_BYTES = 1 << 30


@dataclass
class _Found:
    """What a listing found: `entries` are `key NUL stat` in order; one text an image, since there may be millions."""

    entries: list[str] = field(default_factory=list)
    where: dict[str, tuple[int, ...]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, stat: str, where: tuple[int, ...] = (), fault: str = "") -> None:
        entry = f"{key}\0{stat}"
        self.entries.append(entry)
        if where:
            self.where[entry] = where
        if fault:
            self.faults[entry] = fault

    def leave_out(self, exclusion: Exclusion, source: Path) -> list[str]:
        """Forget what a list names; gives the warnings. Raises SourceError where nothing is left."""
        known = set(self.each_key())
        self.entries = [entry for entry in self.entries if entry.partition("\0")[0] not in exclusion]
        exclusion.check_any_left(len(self.entries), source)
        return exclusion.told(sum(key in known for key in exclusion.keys))

    def each_key(self) -> Iterator[str]:
        return (entry.partition("\0")[0] for entry in self.entries)


class ImageSource:
    """A folder or a `.zip` of images. Picklable; `read` may be called from many threads and processes.

    numbering: number the outputs by the numbers in converted names (`00000/img00000007.png` -> 7) where every
    image has one, else by position. exclude: keys that are as if their files were not there. Raises SourceError.
    """

    def __init__(self, path: Path, numbering: bool = False, exclude: Exclusion | None = None) -> None:
        self.path = self.root = path
        self.numbering, self._exclude = numbering, exclude
        self.is_zip = path.suffix.lower() == ".zip" and not path.is_dir()
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        kept = {"path": self.path, "root": self.root, "numbering": self.numbering, "is_zip": self.is_zip}
        return {**kept, "_exclude": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def listing(self, max_images: int | None = None) -> Listing:
        """All images in order: by full path, in code-point order, whatever can be read of them later."""
        if not self.path.exists():
            raise SourceError(hinted(f"the source does not exist: {self.path}", instead_of(self.path)))
        if not self.path.is_dir() and not self.is_zip:
            raise SourceError(f"the source must be a folder or a .zip. Found: {self.path}")
        if any(inner.name != "lock" for inner in (self.path / WORK_FOLDER).glob("*")):
            raise SourceError(f"the source is still being made: first let the command that makes {self.path} end")
        warnings: list[str] = []
        found = self._list_zip(warnings) if self.is_zip else self._list_folder(warnings)
        found.entries.sort()  # NUL sorts before all else, so this is the order of the keys
        if not found.entries:
            raise SourceError(f"the source holds no images: {self.path} ({'; '.join(warnings) or self._instead()})")
        if self._exclude is not None:
            warnings += found.leave_out(self._exclude, self.path)
        metadata = Metadata.read_beside(self.path)
        label_of, classes = self._labels(found, metadata, warnings)
        number_of = self._numbering(found)
        digests = self._known_digests(metadata)
        self._refuse_stray(found, metadata, digests)
        count = len(found.entries) if max_images is None else min(max_images, len(found.entries))

        def at(position: int) -> SampleRef:
            entry = found.entries[position]
            key, _, stat = entry.partition("\0")
            where, fault = found.where.get(entry, ()), found.faults.get(entry, "")
            return SampleRef(number_of(position, key), key, stat, label_of(key), where, digests.get(key, ""), fault)

        return Listing(count, classes, warnings, bool(digests), lambda: map(at, range(count)), _at=at)

    def _instead(self) -> str:
        """What a source without images holds, as far as that can be told."""
        metadata = Metadata.read_beside(self.path)
        if metadata is None:
            return "an image has an extension that Pillow knows"
        if metadata.kind == "latents":
            return "it holds latents: see `latentmill decode`"
        return f"every image of it was rejected when it was made: see {REJECTS_JSONL}"

    def read(self, ref: SampleRef) -> bytes:
        """The bytes of one image. Raises SampleError (stage `read`, or `list` for what listing found)."""
        if ref.fault:
            raise SampleError("list", ref.fault)
        try:
            if not self.is_zip:
                with open(f"{self.path}/{ref.key}", "rb", buffering=0) as file:  # noqa: PTH123 - faster by 30 us
                    return file.read()
            file = self._archive()
            offset, compressed, method, crc = ref.where
            return read_member(file, offset, compressed, method, crc, _MAX_MEMBER_BYTES)
        except OSError as error:
            raise SampleError("read", error.strerror or str(error)) from error

    def _archive(self) -> Any:
        """This thread's own handle on the archive, opened anew after a fork."""
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.file = self.path.open("rb")
            self._local.pid = os.getpid()
        return self._local.file

    def _list_zip(self, warnings: list[str]) -> _Found:
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, OSError) as error:
            raise SourceError(f"the source is not a zip archive that can be read: {self.path} ({error})") from error
        found = _Found()
        seen: set[str] = set()
        unread: Counter[str] = Counter()
        for info in infos:
            key = info.filename
            if info.is_dir():
                continue
            if not is_image(key):
                note_unread(key.rpartition("/")[2], unread)
                continue
            stat, fault = f"{info.file_size}-{info.CRC:08x}", ""
            if ".." in key.replace("\\", "/").split("/") or key.startswith("/"):
                fault = "the member's name leaves the archive"
            elif "\\" in key:
                fault = "the member's name has a backslash, which is a folder on one system only: zip it anew"
            elif key in seen:
                stat += f"-{info.header_offset}"  # tells it from its namesake
                fault = "the archive holds this name twice"
            seen.add(key)
            where = (info.header_offset, info.compress_size, info.compress_type, info.CRC)
            found.add(key, stat, where, fault)
        warnings += told_unread(unread)
        return found

    def _list_folder(self, warnings: list[str]) -> _Found:
        found = _Found()
        loops: list[str] = []
        unread: Counter[str] = Counter()
        for looked in image_files(str(self.path), loops, unread):
            found.entries += looked.entries
            found.faults |= looked.faults
        warnings += told_loops(loops) + told_unread(unread)
        return found

    def _refuse_stray(self, found: _Found, metadata: Metadata | None, digests: dict[str, str]) -> None:
        """A file that is not the dataset's own would get a number, and shift or unlabel all others."""
        if not self.numbering or metadata is None or metadata.kind != "images":
            return
        stray = next((key for key in found.each_key() if key not in digests), None)
        if stray is not None:
            raise SourceError(
                f"{printable(stray)} is a stray file in {self.path}, whose index does not know it: remove it"
            )

    def _numbering(self, found: _Found) -> Callable[[int, str], int]:
        if self.numbering and all(converted_number(key) is not None for key in found.each_key()):
            return lambda position, key: int(key[-12:-4])
        return lambda position, key: position

    def _labels(
        self, found: _Found, metadata: Metadata | None, warnings: list[str]
    ) -> tuple[Callable[[str], int | None], list[str] | None]:
        """The label of a key: `dataset.json` wins; else, in a folder, the rank of the top-level folder's name."""
        given = self._dataset_json()
        if given:
            missing = len(given.keys() - set(found.each_key()))
            if missing:
                warnings.append(f"{DATASET_JSON} names {missing:,} files that the source does not hold")
            without = next((key for key in found.each_key() if key not in given), None)
            if without is not None:
                warnings.append(
                    f"{DATASET_JSON} gives no label to {printable(without)}, and perhaps others: while one image has "
                    "none, the result has no labels at all"
                )
            return given.get, metadata.classes if metadata else None
        if self.is_zip or metadata is not None:
            return lambda key: None, None
        classes = sorted({_top_folder(key) for key in found.each_key()})
        if len(classes) == 1:
            return lambda key: None, None
        rank = {name: label for label, name in enumerate(classes)}
        return lambda key: rank[_top_folder(key)], classes

    def _dataset_json(self) -> dict[str, int]:
        """Labels of the source's own `dataset.json`; empty without one, or where its labels are null or empty."""
        text = read_beside(self.path, DATASET_JSON)
        if text is None:
            return {}
        return read_labels(text, str(self.path / DATASET_JSON))

    def _known_digests(self, metadata: Metadata | None) -> dict[str, str]:
        """Digests by key where latentmill wrote the source, so that renumbered images are known again."""
        if metadata is None:
            return {}
        with contextlib.suppress(OSError, json.JSONDecodeError, SourceError):
            return {row["name"]: row["digest"] for row in index_rows(self.path) if "name" in row}
        return {}


class LatentSource(ImageSource):
    """The stored latents of a dataset that latentmill made, numbered and labelled as they are."""

    def listing(self, max_images: int | None = None) -> Listing:
        rows = [row for row in index_rows(self.path) if "name" in row]
        metadata = Metadata.read_beside(self.path)
        if not rows or metadata is None:
            raise SourceError(f"{self.path} holds no latents")
        places: dict[str, tuple[int, ...]] = {}
        if self.is_zip:
            with zipfile.ZipFile(self.path) as archive:
                places = {
                    i.filename: (i.header_offset, i.compress_size, i.compress_type, i.CRC) for i in archive.infolist()
                }
        count = len(rows) if max_images is None else min(max_images, len(rows))

        def refs() -> Iterator[SampleRef]:
            for row in rows[:count]:
                name = row["name"]
                how = row_geometry(row)
                yield SampleRef(
                    row["index"],
                    name,
                    row["digest"],
                    row["label"],
                    places.get(name, ()),
                    row["digest"],
                    size=how.bucket if how else None,
                )

        return Listing(count, metadata.classes, [], True, refs)


def _top_folder(key: str) -> str:
    top, slash, _ = key.partition("/")
    return top if slash else ""
