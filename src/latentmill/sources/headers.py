"""What the headers of many image files say: size, orientation and format, read in parallel and without decoding."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from stat import S_ISREG

from latentmill.batching import prefetched
from latentmill.decoding import DEFAULT_MAX_PIXELS, image_header
from latentmill.errors import SampleError

_READ_AHEAD_BYTES = 1 << 16  # holds the header of nearly every photo, its EXIF included
_KEYS_A_TASK = 32


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


def read_headers(
    root: Path, keys: Sequence[str], threads: int, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Iterator[ImageHeader | HeaderFault]:
    """The header of every image, in the order of `keys` (paths relative to `root`), read by `threads` threads."""

    def read(start: int) -> list[ImageHeader | HeaderFault]:
        return [read_header(root, key, max_pixels) for key in keys[start : start + _KEYS_A_TASK]]

    for headers in prefetched(read, range(0, len(keys), _KEYS_A_TASK), threads, 2 * threads):
        yield from headers
