"""The samples of a dataset, of one variant or of several together, in arrays that forked workers share."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentmill.errors import SourceError
from latentmill.formats.metadata import INDEX_JSONL, Metadata, index_rows, row_geometry
from latentmill.loaders_text import Texts
from latentmill.records import Array, Geometry
from latentmill.transforms.crop import crop_geometry

_NO_LABEL = -1
_NO_BOX = (0,) * 8


@dataclass
class Index:
    """N samples, in order of number, of V variants.

    numbers, labels: int64 (N,). keys: paths of the source images. known: bool (N, V), which variants have the sample.
    boxes: int32 (N, V, 8), how it was cropped there (height, width of the source image; top, left, bottom, right of
    what is shown in the scaled image; height, width of the bucket); None where that is not recorded.
    """

    numbers: Array
    labels: Array
    keys: Texts
    known: Array
    boxes: Array | None

    @property
    def buckets(self) -> Array | None:
        """int64 (N, 2): height and width, of every variant the same; None where they are not recorded."""
        return None if self.boxes is None else self.boxes[:, :, 6:].max(axis=1).astype(np.int64)

    def draw(self, position: int) -> int:
        """One of the variants that have the sample, each as likely; without variants nothing is drawn."""
        if self.known.shape[1] == 1:
            return 0
        choices = np.flatnonzero(self.known[position])
        return int(choices[int(torch.randint(len(choices), ()))])

    def keep(self, positions: Array) -> None:
        """Drop all samples but these."""
        keys = Texts()
        for position in positions:
            keys.add(self.keys[position])
        self.keys, self.numbers, self.labels = keys.close(), self.numbers[positions], self.labels[positions]
        self.known = self.known[positions]
        self.boxes = None if self.boxes is None else self.boxes[positions]


def read_index(paths: Sequence[Path], metadata: Metadata) -> Index:
    """What is stored in any of these variants of one dataset. metadata: of the first. Raises SourceError."""
    numbers, labels, keys = array("q"), array("q"), Texts()
    known, boxes = bytearray(), array("i")
    for rows in _merged(paths):
        first = next(iter(rows.values()))
        _check_same(rows, paths)
        numbers.append(first["index"])
        labels.append(_NO_LABEL if first["label"] is None else first["label"])
        keys.add(first["key"])
        for variant in range(len(paths)):
            known.append(variant in rows)
            boxes.extend(_box(row_geometry(rows[variant])) if variant in rows else _NO_BOX)
    held = np.array(known, bool).reshape(-1, len(paths))
    for variant, path in enumerate(paths):
        if not held[:, variant].any():
            raise SourceError(f"{path} holds no latents, or its {INDEX_JSONL} is missing")
    index = Index(np.array(numbers, np.int64), np.array(labels, np.int64), keys.close(), held, None)
    index.boxes = _completed(np.array(boxes, np.int32).reshape(*held.shape, 8), index, metadata)
    return index


def _merged(paths: Sequence[Path]) -> Iterator[dict[int, dict[str, Any]]]:
    """Every image's rows by variant, in order of number, as every index is."""

    def stored(variant: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        return ((row["index"], variant, row) for row in index_rows(paths[variant]) if "name" in row)

    rows = merge(*map(stored, range(len(paths))), key=itemgetter(0, 1))
    for _, group in groupby(rows, key=itemgetter(0)):
        yield {variant: row for _, variant, row in group}


def _check_same(rows: dict[int, dict[str, Any]], paths: Sequence[Path]) -> None:
    first, *others = rows
    for other in others:
        for name, what in (("key", "images"), ("source", "bytes")):
            if rows[first][name] != rows[other][name]:
                raise SourceError(
                    f"{paths[first]} and {paths[other]} were made of different {what} of number {rows[first]['index']} "
                    f"({rows[first]['key']}): run their command again"
                )


def _box(how: Geometry | None) -> tuple[int, ...]:
    return _NO_BOX if how is None else (*how.size, *how.crop, *how.bucket)


def _completed(boxes: Array, index: Index, metadata: Metadata) -> Array | None:
    """Boxes of every variant, where any has them: the centre's are not stored, but follow from the image's size."""
    has = boxes[:, :, 6:].all(axis=2)
    missing = index.known & ~has
    if not missing.any() or not has.any():
        return boxes if has.any() else None
    sizes = boxes[:, :, :2].max(axis=1)
    unknown = np.flatnonzero(missing.any(axis=1) & ~sizes.all(axis=1))
    if len(unknown):
        raise SourceError(
            f"it is not known how {index.keys[int(unknown[0])]} was cropped, since no variant by crop holds it: make "
            "them anew (--overwrite), or load with variants=False"
        )
    return np.where(missing[:, :, None], _centred(sizes, metadata)[:, None], boxes)


def _centred(sizes: Array, metadata: Metadata) -> Array:
    """int32 (N, 8): boxes of the plain crop of images of these (height, width), (N, 2); any, where that is 0."""
    width, height = map(int, str(metadata.fingerprint["resolution"]).split("x"))
    transform = str(metadata.fingerprint["transform"])
    distinct, which = np.unique(sizes, axis=0, return_inverse=True)
    boxes = [_box(crop_geometry(transform, (h, w), (height, width))) if h else _NO_BOX for h, w in distinct.tolist()]
    table: Array = np.array(boxes, np.int32)[which.reshape(-1)]
    return table
