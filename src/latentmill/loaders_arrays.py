"""Arrays of a finished dataset by their row in its index: the fast way where files are as written, else any way."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from latentmill.checksums import crc32
from latentmill.formats.columns import Columns
from latentmill.formats.layouts import layout_of_dataset
from latentmill.formats.metadata import LatentInfo, Metadata
from latentmill.formats.payload import npy_header
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


class _Known(NamedTuple):
    """What all NPY files of one shape are, but for their numbers."""

    header: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, latent: LatentInfo) -> _Known | None:
        """None where every bucket has a shape of its own."""
        shape = tuple(side for side in latent.shape if side is not None)
        if len(shape) < len(latent.shape):
            return None
        dtype = np.dtype(np.dtype(latent.dtype).newbyteorder("<").str)
        header = npy_header(dtype, shape)
        return cls(header, dtype, shape, len(header) + prod(shape) * dtype.itemsize)


class ArrayFiles:
    """Arrays in files of a dataset's layout, by row, number and key. Picklable, safe under fork, spawn and threads."""

    def __init__(self, path: Path, metadata: Metadata, columns: Columns) -> None:
        self._files, self._layout = _Files(path, columns), layout_of_dataset(metadata)
        self._views = isinstance(self._layout, _VIEWING)
        self._known = None if metadata.latent is None else _Known.of(metadata.latent)

    def read(self, row: int, number: int, key: str) -> Array:
        """As stored, in memory of its own. Raises what `Reader.read` and the layout's `from_bytes` do."""
        name = self._layout.name(number, key)
        if self._views:
            place = self._files.place(row)
            known = self._known
            if known is not None and known.size == place.size:
                header, array = bytearray(len(known.header)), np.empty(known.shape, known.dtype)
                if self._filled(name, place, [memoryview(header), array.data]) and header == known.header:
                    return array
            data = np.empty(place.size, np.uint8).data
            if self._filled(name, place, [data]):
                return self._layout.from_bytes(data)  # type: ignore[arg-type]
        return self._layout.from_bytes(self._files.reader.read(name))

    def _filled(self, name: str, place: Place, buffers: Sequence[memoryview]) -> bool:
        """Whether the buffers now hold the file, as it was written."""
        if not self._files.reader.fill(name, place, buffers):
            return False
        if place.crc is None:
            return True
        total = 0
        for buffer in buffers:
            total = crc32(buffer, total)
        return total == place.crc


class PictureFiles:
    """Pictures of an image dataset, by row and number. Picklable, safe under fork, spawn and threads."""

    def __init__(self, path: Path, metadata: Metadata, columns: Columns) -> None:
        self._files, self._layout = _Files(path, columns), ImageLayout()
        self._stored = StoredPngs(*reversed(metadata.image_size)) if metadata.image_size else None

    def read(self, row: int, number: int) -> torch.Tensor:
        """uint8 (3, H, W). Raises what `Reader.read` and `payload.png_pixels` do."""
        name = self._layout.name(number)
        if self._stored is not None:
            place = self._files.place(row)
            if place.size == self._stored.size:
                found = self._stored.planes(lambda buffers: self._files.reader.fill(name, place, buffers))
                if found is not None:
                    return torch.from_numpy(found)
        return torch.from_numpy(planes(self._layout.from_bytes(self._files.reader.read(name))))
