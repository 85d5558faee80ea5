"""Vision features as a Dataset reads them: aligned with its samples by the image's path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from latentmill.errors import SourceError
from latentmill.formats.columns_texts import Texts
from latentmill.formats.metadata import METADATA_JSON, Metadata
from latentmill.loaders_arrays import ArrayFiles
from latentmill.loaders_index import read_columns
from latentmill.loaders_keys import ABSENT, found_in
from latentmill.records import Array


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
        self.columns = read_columns(folder, metadata)
        self._files = ArrayFiles(folder, metadata, self.columns)
        self._rows = np.zeros(0, np.int32)  # of a sample's file

    def align(self, keys: Texts | Sequence[str]) -> Array:
        """Find the features of these samples; gives which of them have some."""
        wanted = keys if isinstance(keys, Texts) else Texts.of(keys)
        self._rows = found_in(wanted, self.columns.keys).astype(np.int32)
        known: Array = self._rows != ABSENT
        return known

    def keep(self, positions: Array) -> None:
        """Drop all samples but these."""
        self._rows = self._rows[positions]

    def read(self, position: int, key: str) -> torch.Tensor:
        """(N, D), (1, D) or (1 + N, D), as stored: float32 or float16. Raises SourceError where the sample has none."""
        row = int(self._rows[position])
        if row == ABSENT:
            raise SourceError(f"{key} has no vision features in {self.folder}")
        return torch.from_numpy(self._files.read(row, int(self.columns.number[row]), key))
