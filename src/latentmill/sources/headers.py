"""What the header of an image file says: size, orientation and format, read without decoding."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from stat import S_ISREG

from latentmill.decoding import DEFAULT_MAX_PIXELS, image_header
from latentmill.errors import SampleError

_READ_AHEAD_BYTES = 1 << 16  # holds the header of nearly every photo, its EXIF included


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """size: (height, width) as stored. orientation: EXIF's, 1..8. format: Pillow's name of it, told by the content."""

    key: str
    size: tuple[int, int]
    orientation: int
    format: str

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) after the EXIF orientation is applied; 5..8 turn by a quarter (TIFF 6.0, tag 274)."""
        return self.size[::-1] if self.orientation >= 5 else self.size


@dataclass(frozen=True, slots=True)
class HeaderFault:
    """An image whose header cannot be read. stage: `read` or `decode`, as of a SampleError."""

    key: str
    stage: str
    reason: str


def read_header(root: Path, key: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader | HeaderFault:
    """The header of one image file below `root`."""
    path = os.path.join(root, key)  # noqa: PTH118 - a million times
    try:
        if not S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a pipe would be waited for without end
            return HeaderFault(key, "read", "not a file")
        with BufferedReader(FileIO(path), _READ_AHEAD_BYTES) as file:
            return ImageHeader(key, *image_header(file, max_pixels))
    except OSError as error:
        return HeaderFault(key, "read", error.strerror or str(error))
    except SampleError as error:
        return HeaderFault(key, error.stage, error.reason)
