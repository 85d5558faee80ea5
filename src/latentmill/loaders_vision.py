"""Vision features as a Dataset reads them: aligned with its samples by the image's path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from latentmill.errors import SourceError
from latentmill.formats.containers import Reader
from latentmill.formats.layouts import layout_of_dataset
from latentmill.formats.metadata import METADATA_JSON, Metadata, index_rows
from latentmill.records import Array

_NONE = -1


def name_of(folder: Path) -> str:
    """What the features in a folder or zip are called: its name, without `.zip`."""
    path = folder.absolute()
    return path.stem if path.suffix.lower() == ".zip" else path.name


class VisionFeatures:
    """One encoder's features, in a folder or a zip. Positions are those of the samples that it is aligned with.

    Raises SourceError.
    """

    def __init__(self, folder: Path) -> None:
        metadata = Metadata.read_beside(folder) if folder.exists() else None
        if metadata is None or metadata.vision is None:
            raise SourceError(
                f"{folder} holds no vision features that latentmill made (no {METADATA_JSON} of that kind)"
            )
        self.folder, self.metadata, self.info = folder, metadata, metadata.vision
        self._layout, self._reader = layout_of_dataset(metadata), Reader(folder)
        self._numbers = np.zeros(0, np.int64)  # of a sample's file, in its layout

    def align(self, keys: Sequence[str]) -> Array:
        """Find the features of these samples; gives which of them have some."""
        positions = {key: position for position, key in enumerate(keys)}
        self._numbers = np.full(len(keys), _NONE, np.int64)
        for row in index_rows(self.folder):
            if "name" in row and row["key"] in positions:
                self._numbers[positions[row["key"]]] = row["index"]
        known: Array = self._numbers != _NONE
        return known

    def keep(self, positions: Array) -> None:
        """Drop all samples but these."""
        self._numbers = self._numbers[positions]

    def read(self, position: int, key: str) -> torch.Tensor:
        """(N, D), (1, D) or (1 + N, D), as stored: float32 or float16. Raises SourceError where the sample has none."""
        number = int(self._numbers[position])
        if number == _NONE:
            raise SourceError(f"{key} has no vision features in {self.folder}")
        return torch.from_numpy(self._layout.from_bytes(self._reader.read(self._layout.name(number, key))))
