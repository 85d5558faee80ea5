"""Arrays of a finished dataset by their row in its index: the fast way where files are as written, else any way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from latentmill.checksums import crc32
from latentmill.formats.columns import Columns
from latentmill.formats.layouts import layout_of_dataset
from latentmill.formats.metadata import Metadata
from latentmill.formats.pixart import PixArtLatents
from latentmill.formats.reader import Place, Reader
from latentmill.formats.repa import ImageLayout, LatentLayout
from latentmill.formats.stored_png import StoredPngs
from latentmill.formats.vision import VisionLayout
from latentmill.records import Array
from latentmill.transforms.resample import planes

_VIEWING = (LatentLayout, PixArtLatents, VisionLayout)  # their `from_bytes` takes any buffer, and may give a view of it


class _Files:
    """Files of one dataset, at their places in its columns."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.reader = Reader(path)
        self._columns = columns

    def place(self, row: int) -> Place:
        columns = self._columns
        if columns.offset is None:
            return Place(int(columns.size[row]))
        return Place(int(columns.size[row]), int(columns.offset[row]), int(columns.crc[row]))


class ArrayFiles:
    """Arrays in files of a dataset's layout, by row, number and key. Picklable, safe under fork, spawn and threads."""

    def __init__(self, path: Path, metadata: Metadata, columns: Columns) -> None:
        self._files, self._layout = _Files(path, columns), layout_of_dataset(metadata)
        self._views = isinstance(self._layout, _VIEWING)

    def read(self, row: int, number: int, key: str) -> Array:
        """As stored, in memory of its own. Raises what `Reader.read` and the layout's `from_bytes` do."""
        name = self._layout.name(number, key)
        if self._views:
            place = self._files.place(row)
            data = np.empty(place.size, np.uint8).data
            if self._files.reader.fill(name, place, [data]) and (place.crc is None or crc32(data) == place.crc):
                return self._layout.from_bytes(data)  # type: ignore[arg-type]
        return self._layout.from_bytes(self._files.reader.read(name))


class PictureFiles:
    """Pictures of an image dataset, by row and number. Picklable, safe under fork, spawn and threads."""

    def __init__(self, path: Path, metadata: Metadata, columns: Columns) -> None:
        self._files, self._layout = _Files(path, columns), ImageLayout()
        self._stored = StoredPngs(*reversed(metadata.image_size)) if metadata.image_size else None

    def read(self, row: int, number: int) -> torch.Tensor:
        """uint8 (3, H, W). Raises what `Reader.read` and `payload.png_pixels` do."""
        name, pixels = self._layout.name(number), None
        if self._stored is not None:
            place = self._files.place(row)
            if place.size == self._stored.size:
                pixels = self._stored.pixels(lambda buffers: self._files.reader.fill(name, place, buffers))
        if pixels is None:
            pixels = self._layout.from_bytes(self._files.reader.read(name))
        return torch.from_numpy(planes(pixels))
