"""Images with captions: a folder with a text file beside each image, or a table (PixArt's JSON, JSON lines, CSV)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latentmill.batching import prefetched
from latentmill.errors import ConfigError, SourceError
from latentmill.files import printable
from latentmill.nearby import instead_of
from latentmill.sources.caption_files import TABLES
from latentmill.sources.caption_rows import NOT_UTF8, PROMPT, CaptionedImage, Missing, caption_of, numbered
from latentmill.sources.caption_tables import read_table
from latentmill.sources.excluding import Exclusion
from latentmill.sources.folders import (
    DATA_FOLDER,
    DATA_INFO,
    IMAGE_FOLDER,
    is_image,
    note_unread,
    told_loops,
    told_unread,
    walk,
)
from latentmill.wording import counted, hinted

__all__ = ["CaptionedImage", "CaptionedSet", "Missing", "caption_of", "captioned"]

_READ_THREADS = 8
_FILES_A_TASK = 64
_MAX_CAPTION_BYTES = 1 << 20  # no caption is so long: somebody's data has its name


@dataclass(frozen=True)
class CaptionedSet:
    """Images and their captions. images: the folder that keys are relative to. rows: in the source's order.

    names: of the captions, in order of appearance. warnings: for the person.
    """

    path: Path
    images: Path
    rows: list[CaptionedImage]
    names: list[str]
    warnings: list[str]


def captioned(
    path: Path | str,
    *,
    images: Path | str | None = None,
    caption_extension: str = ".txt",
    multi_line: bool = False,
    path_column: str | None = None,
    caption_columns: Mapping[str, str] | Sequence[str] | None = None,
    needs_images: bool = True,
    with_captions: bool = True,
    exclude: Exclusion | None = None,
) -> CaptionedSet:
    """Everything that a captioned source says; images are not opened. Raises SourceError, ConfigError.

    A folder is walked; the caption of `NAME.png` is `NAME.txt` beside it, named `prompt`. A folder with
    `InternData/data_info.json` and `InternImgs` is read by that table.

    images: the images' folder of a table; else `InternImgs` for a table in `InternData`, else the table's own folder.
    caption_extension, multi_line (every line that is not empty is a caption: `prompt`, `prompt_2`, …): of a folder.
    path_column, caption_columns (by caption name, or names alone): of a table; else told by the usual names.
    needs_images: whether a table's images must be there. with_captions: False reads none, so that rows of one image
    with different captions are equal. exclude: keys of images that are left out, as if they were not there.
    """
    path, root = places(Path(path), images)
    if path.is_dir():
        if images is not None or path_column is not None or caption_columns is not None:
            raise ConfigError(f"an images' folder and columns can be named for a table only. Found a folder: {path}")
        found = _folder(path, "." + caption_extension.removeprefix("."), multi_line, with_captions)
        return _without(found, exclude)
    if not path.exists():
        raise SourceError(hinted(f"the source does not exist: {path}", instead_of(path)))
    if path.suffix.lower() not in TABLES:
        raise SourceError(f"the source must be a folder or a table ({', '.join(TABLES)}). Found: {path}")
    if needs_images and not root.is_dir():
        raise SourceError(
            f"the images of {path} were looked for in {root}, which is no folder. Name the folder (images)"
        )
    return _without(CaptionedSet(path, root, *read_table(path, path_column, caption_columns, with_captions)), exclude)


def _without(found: CaptionedSet, exclude: Exclusion | None) -> CaptionedSet:
    """Raises SourceError where nothing is left."""
    if exclude is None:
        return found
    rows = [row for row in found.rows if row.key not in exclude]
    exclude.check_any_left(len(rows), found.path)
    return replace(found, rows=rows, warnings=[*found.warnings, *exclude.told(len(found.rows) - len(rows))])


def places(path: Path, images: Path | str | None = None) -> tuple[Path, Path]:
    """The folder or table that says what a captioned source holds, and the folder that keys are relative to."""
    table = path / DATA_FOLDER / DATA_INFO
    if path.is_dir() and table.is_file() and (path / IMAGE_FOLDER).is_dir():
        path = table
    if path.is_dir():
        return path, path
    return path, Path(images) if images is not None else _images_of(path)


def _images_of(table: Path) -> Path:
    parts = table.absolute().parent.parts
    if DATA_FOLDER not in parts:
        return table.parent
    return Path(*(IMAGE_FOLDER if part == DATA_FOLDER else part for part in parts))


def _folder(path: Path, extension: str, multi_line: bool, with_captions: bool) -> CaptionedSet:
    keys, beside, warnings = _listing(path, extension)
    if not keys:
        why = "; ".join(warnings) or "an image has an extension that Pillow knows"
        raise SourceError(f"the source holds no images: {path} ({why})")
    if not with_captions:
        return CaptionedSet(path, path, list(map(CaptionedImage, keys)), [], warnings)
    matched = {caption for key in keys if (caption := _beside(key, extension)) in beside}
    orphans = sorted(beside - matched)
    if orphans:
        more = ", …" if len(orphans) > 1 else ""
        without = counted(len(orphans), f"{extension} files")
        warnings.append(f"no image beside {without}: {printable(orphans[0])}{more}")
    if not matched:
        warnings.append(f"no image has a caption: none has a {extension} file of its name beside it")

    def read(start: int) -> list[CaptionedImage]:
        return [
            captioned_image(path, key, extension, multi_line)
            if _beside(key, extension) in matched
            else CaptionedImage(key)
            for key in keys[start : start + _FILES_A_TASK]
        ]

    rows: list[CaptionedImage] = []
    for some in prefetched(read, range(0, len(keys), _FILES_A_TASK), _READ_THREADS, 2 * _READ_THREADS):
        rows += some
    names = dict.fromkeys([PROMPT]) if matched else {}
    for row in rows:
        names.update(dict.fromkeys(row.captions))
    return CaptionedSet(path, path, rows, list(names), warnings)


def _listing(path: Path, extension: str) -> tuple[list[str], set[str], list[str]]:
    """Keys of the images, in code-point order, and of the caption files; and warnings."""
    keys: list[str] = []
    texts: set[str] = set()
    loops: list[str] = []
    unread: Counter[str] = Counter()
    for found in walk(str(path), loops):
        for name in found.names:
            if is_image(name):
                keys.append(found.below + name)
            elif name.endswith(extension):
                texts.add(found.below + name)
            else:
                note_unread(name, unread)
    return sorted(keys), texts, told_loops(loops) + told_unread(unread)


def _beside(key: str, extension: str) -> str:
    """The caption file of an image: its name up to the last dot."""
    return key.rpartition(".")[0] + extension


def captioned_image(root: Path, key: str, extension: str, multi_line: bool) -> CaptionedImage:
    """An image below a folder with the captions of the file beside it. extension: of that file, with its dot."""
    file = root / _beside(key, extension)
    try:
        if not file.is_file():
            return CaptionedImage(key, faults={PROMPT: f"{file.name} is not a file"})
        with file.open("rb") as stream:
            data = stream.read(_MAX_CAPTION_BYTES + 1)
        if len(data) > _MAX_CAPTION_BYTES:
            return CaptionedImage(key, faults={PROMPT: f"{file.name} is over {_MAX_CAPTION_BYTES:,} bytes"})
        text = data.decode("utf-8-sig").strip()
    except OSError as error:
        return CaptionedImage(key, faults={PROMPT: f"cannot be read: {error.strerror or error}"})
    except UnicodeDecodeError as error:
        return CaptionedImage(key, faults={PROMPT: f"{NOT_UTF8} (byte {error.start:,} of {file.name})"})
    if not multi_line:
        return CaptionedImage(key, {PROMPT: text})
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return CaptionedImage(key, {numbered(PROMPT, i): line for i, line in enumerate(lines or [""])})
