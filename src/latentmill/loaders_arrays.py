"""Arrays of a finished dataset by their row in its index: the fast way where files are as written, else any way."""

from __future__ import annotations

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

    def size(self, row: int) -> int:
        return self._columns.size.item(row)  # type: ignore[no-any-return]

    def fill(self, row: int, name: str, head: bytes, out: Any) -> bool:
        """Whether `out` now holds what stands behind the head in a file of just these two; of a zip as `row` places it.

        Raises OSError.
        """
        columns = self._columns
        if columns.offset is None:
            return self.reader.fill(name, head, out)
        place = Place(columns.size.item(row), columns.offset.item(row), columns.crc.item(row))
        return self.reader.fill_from_zip(name, place, head, out)

    def filled(self, row: int, name: str, head: bytes, out: Any) -> bool:
        """The same, and of a zip that the bytes have their sum."""
        columns = self._columns
        if columns.offset is None:
            return self.reader.fill(name, head, out)
        return self.fill(row, name, head, out) and bool(columns.crc.item(row) == crc32(out, crc32(head)))


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
        name, files, known = self._layout.name(number, key), self._files, self._known
        if self._views:
            size = files.size(row)
            if known is not None and known.size == size:
                array = np.empty(known.shape, known.dtype)
                if files.filled(row, name, known.header, array):
                    return array
            data = np.empty(size, np.uint8).data
            if files.filled(row, name, b"", data):
                return self._layout.from_bytes(data)  # type: ignore[arg-type]
        return self._layout.from_bytes(files.reader.read(name))


class PictureFiles:
    """Pictures of an image dataset, by row and number. Picklable, safe under fork, spawn and threads."""

    def __init__(self, path: Path, metadata: Metadata, columns: Columns) -> None:
        self._files, self._layout = _Files(path, columns), ImageLayout()
        self._stored = StoredPngs(*reversed(metadata.image_size)) if metadata.image_size else None

    def read(self, row: int, number: int) -> torch.Tensor:
        """uint8 (3, H, W). Raises what `Reader.read` and `payload.png_pixels` do."""
        name, stored, files = self._layout.name(number), self._stored, self._files
        if stored is not None and files.size(row) == stored.size:
            buffer = stored.buffer
            found = stored.planes(buffer) if files.fill(row, name, stored.head, buffer.data) else None
            if found is not None:
                return torch.from_numpy(found)
        return torch.from_numpy(planes(self._layout.from_bytes(files.reader.read(name))))
