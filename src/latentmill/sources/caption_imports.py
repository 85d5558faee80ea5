"""What an import has put into a PixArt dataset: a file that lists it, so that a rerun knows its own work.

The file is begun anew with what was known before, then grows by what is about to be placed and by what was converted;
the last word on a path holds. So after a kill no image of the import's own is taken for somebody else's, and a torn
last line is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from latentmill.errors import DestinationError
from latentmill.files import digest_file, printable, replacing, write_errors
from latentmill.formats.metadata import WORK_FOLDER

IMPORT_JSONL = "latentmill-import.jsonl"
_FORMAT = "latentmill-import/1"
Made = Literal["hard", "copy", "symlink", "png", "upright"]


@dataclass(frozen=True, slots=True)
class Imported:
    """One image of an import. path: in `InternImgs`; source: its key there; stat: size and time of the source's file.

    made: a link, a copy, or encoded as PNG (`upright`: turned by its EXIF orientation). format, orientation: of the
    source. size: (height, width) of the result. encoded_bytes: of a PNG that was made; 0 before. notes: as of decoding.
    """

    path: str
    source: str
    stat: str
    made: Made
    format: str
    size: tuple[int, int]
    orientation: int
    encoded_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_encoded(self) -> bool:
        return self.made in ("png", "upright")

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__}) + "\n"

    @classmethod
    def from_json(cls, line: bytes) -> Imported:
        """Raises ValueError, KeyError or TypeError where the line is none of an import's."""
        row = json.loads(line)
        if row["path"].startswith("/") or ".." in row["path"].split("/"):
            raise ValueError(f"the path leaves the dataset: {row['path']}")
        row["size"], row["notes"] = tuple(row["size"]), tuple(row["notes"])
        return cls(**row)


class ImportLog:
    """The list of an import's images. data_info: digest of the `data_info.json` that belongs to it, "" without one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data_info = ""
        self.images: dict[str, Imported] = {}

    def load(self) -> None:
        """Read what an earlier run left, if there was one. Raises DestinationError when it is damaged."""
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as lines:
                head = json.loads(next(lines, b""))
                if head["format"] != _FORMAT:
                    raise ValueError(f"its format is {head['format']!r}")
                self.data_info = str(head["data_info"])
                for line in lines:
                    if line.endswith(b"\n"):
                        image = Imported.from_json(line)
                        self.images[image.path] = image
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DestinationError(
                f"{self.path} is damaged ({error}): import cannot tell its own images from others. "
                "Choose another destination, or remove what it made there"
            ) from error

    def refuse_foreign(self, images: Path, table: Path, overwrite: bool) -> None:
        """Refuse a destination with images that no import put there, or a table that none made, or that was edited.

        overwrite: an edited table may go. Raises DestinationError.
        """
        foreign = next((path for path in _paths(images) if path not in self.images), None)
        if foreign is not None:
            raise DestinationError(
                f"{images} holds {printable(foreign)}, which no import put there. Choose another destination"
            )
        if not table.exists():
            return
        if not self.path.exists():
            raise DestinationError(f"{table} was not made by an import. Choose another destination")
        if not overwrite and digest_file(table) != self.data_info:
            raise DestinationError(
                f"{table} was changed since it was made, and a rerun would undo that. --overwrite makes it anew"
            )

    def write(self) -> None:
        """Write everything anew, all or nothing."""
        with replacing(self.path) as file:
            file.write((json.dumps({"format": _FORMAT, "data_info": self.data_info}) + "\n").encode())
            file.writelines(image.to_json().encode() for image in self.images.values())

    def append(self, images: Iterable[Imported]) -> None:
        """Add images, durable when this returns."""
        images = list(images)
        self.images.update((image.path, image) for image in images)
        with write_errors(self.path), self.path.open("ab") as file:
            file.writelines(image.to_json().encode() for image in images)
            file.flush()
            os.fsync(file.fileno())


def _paths(images: Path) -> Iterator[str]:
    """Every file below a folder, and every link to a folder; latentmill's work folder is left out."""
    prefix = len(os.path.join(images, ""))  # noqa: PTH118 - with its separator
    for folder, folders, files in os.walk(images):
        paths = [os.path.join(folder, name) for name in folders]  # noqa: PTH118
        links = [path for path in paths if os.path.islink(path)]  # noqa: PTH114
        folders[:] = [name for name in folders if name != WORK_FOLDER]
        for path in (*links, *(os.path.join(folder, name) for name in files)):  # noqa: PTH118
            yield path[prefix:].replace(os.sep, "/")
