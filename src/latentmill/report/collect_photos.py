"""The photos that a dataset was made from: found by its stored recipe or where a person says, read by their keys."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from latentmill.config import SourceSettings
from latentmill.config_types import FILES
from latentmill.decoding import image_header
from latentmill.errors import SampleError, SourceError
from latentmill.files import digest
from latentmill.formats.metadata import READ_ERRORS
from latentmill.records import Array
from latentmill.report.collect_index import Line
from latentmill.sources.captioned import places
from latentmill.sources.folders import DATA_FOLDER, DATA_INFO, IMAGE_FOLDER

MISSING, CHANGED = "not there any more", "changed since they were used"
_MAX_BYTES = 1 << 28  # of a photo that is read for a report
_MAX_REJECT_PIXELS = 1 << 26  # of a damaged photo that is decoded as far as it goes
_PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError,
    AssertionError, RuntimeError, MemoryError, Image.DecompressionBombError,
)  # fmt: skip


@dataclass
class Photos:
    """Photos by their keys, below a folder or in a zip. lost: how many could not be had, by why; for a note."""

    path: Path
    lost: Counter[str] = field(default_factory=Counter)
    _archive: zipfile.ZipFile | None = None

    @classmethod
    def at(cls, path: Path, images: Path | None = None) -> Photos:
        """Of a source as a recipe has it: a folder, a zip, a PixArt root, or a table. Raises SourceError."""
        if not path.exists():
            raise SourceError(f"{path} is not there")
        inner = path / IMAGE_FOLDER
        if (path / DATA_FOLDER / DATA_INFO).is_file() and inner.is_dir():
            return cls(inner)
        if path.is_dir():
            return cls(path)
        if path.suffix.lower() != ".zip":
            return cls(places(path, images)[1])
        try:
            return cls(path, _archive=zipfile.ZipFile(path))
        except READ_ERRORS as error:
            raise SourceError(f"{path} is not a zip archive that can be read: {error}") from error

    @classmethod
    def of(cls, settings: SourceSettings) -> Photos:
        """Those that a stored recipe names. Raises SourceError."""
        if settings.source_kind != FILES:
            raise SourceError(f"its photos come from a source of kind {settings.source_kind!r}, which has no files")
        return cls.at(settings.source, settings.images)

    def read(self, key: str, expected: str = "") -> bytes:
        """A photo's bytes. expected: their digest, where it is known. Raises SampleError, and counts it in `lost`."""
        try:
            data = self._bytes(key)
        except (KeyError, RuntimeError, NotImplementedError, *READ_ERRORS) as error:
            self.lost[MISSING] += 1
            raise SampleError("read", MISSING) from error
        if expected and digest(data) != expected:
            self.lost[CHANGED] += 1
            raise SampleError("read", CHANGED)
        return data

    def _bytes(self, key: str) -> bytes:
        if self._archive is not None:
            if self._archive.getinfo(key).file_size > _MAX_BYTES:
                raise OSError("too large for a report")
            return self._archive.read(key)
        file = self._inside(key)
        if not file.is_file() or file.stat().st_size > _MAX_BYTES:
            raise OSError("no file, or too large for a report")
        return file.read_bytes()

    def _inside(self, key: str) -> Path:
        """Raises KeyError for a key that leads elsewhere."""
        if PurePosixPath(key).is_absolute() or ".." in key.split("/"):
            raise KeyError(key)
        return self.path / key

    def size(self, key: str, exif: str) -> tuple[int, int] | None:
        """(height, width) as `exif` has it, from the header; None where it cannot be read."""
        try:
            stream: Any = io.BytesIO(self._bytes(key)) if self._archive else self._inside(key).open("rb")
            with io.BufferedReader(stream) if self._archive else stream as file:
                size, orientation, _ = image_header(file)
        except (KeyError, RuntimeError, NotImplementedError, SampleError, *READ_ERRORS):
            return None
        return size[::-1] if exif == "apply" and orientation >= 5 else size


def whatever_is_left(photos: Photos, row: Line, side: int) -> Array | None:
    """uint8 HWC of a rejected photo, as much of it as can be decoded, at most about `side` pixels; None without any.

    Pillow takes truncated files for as long as this runs; a report is made in one thread.
    """
    try:
        data = photos.read(row["key"], row["source"])
    except SampleError:
        return None
    previous, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (2 * side, 2 * side))  # of a JPEG: the least scale that is large enough
            if image.width * image.height > _MAX_REJECT_PIXELS:
                return None
            image.load()
            image.thumbnail((side, side))
            return np.asarray(image.convert("RGB"))
    except _PILLOW_ERRORS:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = previous
