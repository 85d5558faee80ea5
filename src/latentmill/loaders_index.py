"""The samples of a dataset, of one variant or of several together: columns mapped from the disk, not held."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from latentmill.errors import SourceError
from latentmill.formats.columns import NO_BOX, Columns, mapped_columns
from latentmill.formats.columns_texts import Texts
from latentmill.formats.columns_writer import ColumnsWriter, box_of, columns_bytes
from latentmill.formats.index_lines import stored_rows
from latentmill.formats.metadata import INDEX_COLUMNS, INDEX_JSONL, Metadata
from latentmill.formats.zip_tail import last_member
from latentmill.loaders_keys import ABSENT, same_texts
from latentmill.records import Array
from latentmill.transforms.crop import crop_geometry


def read_columns(path: Path, metadata: Metadata) -> Columns:
    """A finished dataset's index as columns; of an earlier version's, made from its lines. Raises SourceError."""
    found = _beside(path)
    if found is not None and found.index_digest == metadata.index_digest:
        return found
    if found is not None:
        warnings.warn(f"{path} has an {INDEX_COLUMNS} of an earlier state: its {INDEX_JSONL} is read", stacklevel=3)
    writer = ColumnsWriter(None, not path.is_dir())
    for row in stored_rows(path):
        writer.add(row)
    columns = Columns(columns_bytes(writer, metadata.index_digest), f"{INDEX_JSONL} in {path}")
    if len(columns) and not (np.diff(columns.number.astype(np.int64)) > 0).all():
        raise SourceError(f"{INDEX_JSONL} in {path} is damaged: its numbers do not ascend")
    return columns


def _beside(path: Path) -> Columns | None:
    where = f"{INDEX_COLUMNS} in {path}"
    if path.is_dir():
        file = path / INDEX_COLUMNS
        return mapped_columns(file, 0, file.stat().st_size, where, check=True) if file.is_file() else None
    member = last_member(path, INDEX_COLUMNS)
    return None if member is None else mapped_columns(path, member.start, member.size, where, check=True)


class Index:
    """N samples, in order of number, of V variants.

    tables: of each variant. rows: int32 (N, V), where in its table each sample is, -1 where it lacks it; None where
    there is one variant, and all of its rows are samples. boxes: (N, V, 8), how it was cropped there (height, width of
    the source image; top, left, bottom, right of what is shown in the scaled image; height, width of the bucket); None
    where that is not recorded. Pickled without what can be mapped again.
    """

    def __init__(self, tables: Sequence[Columns], rows: Array | None, boxes: Array | None) -> None:
        self.tables, self.rows, self._own_boxes = list(tables), rows, boxes
        self._open()

    def _open(self) -> None:
        first = self.tables[0]
        if self.rows is None:
            self.numbers: Array = first.number
            self.labels: Array = first.label
            self._keys = first.keys
            self._main = self._main_rows = None
        else:
            self._main = (self.rows != ABSENT).argmax(axis=1).astype(np.uint8)
            self._main_rows = np.take_along_axis(self.rows, self._main[:, None].astype(np.int64), 1)[:, 0]
            self.numbers = self._of_main([table.number for table in self.tables])
            self.labels = self._of_main([table.label for table in self.tables])

    def _of_main(self, columns: Sequence[Array]) -> Array:
        """Every sample's value, of the first variant that has it."""
        assert self._main is not None and self._main_rows is not None
        result = np.zeros(len(self._main), np.result_type(*columns))
        for variant, column in enumerate(columns):
            has = self._main == variant
            result[has] = column[self._main_rows[has]]
        return result

    def __getstate__(self) -> dict[str, object]:
        return {"tables": self.tables, "rows": self.rows, "_own_boxes": self._own_boxes}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.tables[0]) if self.rows is None else len(self.rows)

    @property
    def known(self) -> Array:
        """bool (N, V): which variants have the sample."""
        return np.ones((len(self), 1), bool) if self.rows is None else self.rows != ABSENT

    @property
    def boxes(self) -> Array | None:
        if self._own_boxes is not None or self.tables[0].box is None or len(self.tables) > 1:
            return self._own_boxes
        box = self.tables[0].box
        return (box if self.rows is None else box[self.rows[:, 0]])[:, None]

    @property
    def buckets(self) -> Array | None:
        """int64 (N, 2): height and width, of every variant the same; None where they are not recorded."""
        boxes = self.boxes
        return None if boxes is None else boxes[:, :, 6:].max(axis=1).astype(np.int64)

    def row(self, position: int, variant: int) -> int:
        """Where the sample is in this variant's table."""
        return position if self.rows is None else self.rows.item(position, variant)

    def box(self, position: int, variant: int) -> Array | None:
        """int64 (8,): how the sample is cropped in this variant."""
        if self._own_boxes is not None:
            found = self._own_boxes[position, variant]
        elif (box := self.tables[0].box) is not None:
            found = box[self.row(position, variant)]
        else:
            return None
        result: Array = found.astype(np.int64)
        return result

    def key(self, position: int) -> str:
        if self._main is None or self._main_rows is None:
            return self._keys[position]
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        return self.tables[int(self._main[position])].keys[int(self._main_rows[position])]

    def keys(self) -> Texts:
        """Every sample's key."""
        if self.rows is None:
            return self.tables[0].keys
        assert self._main is not None and self._main_rows is not None
        if len(self.tables) == 1:
            return self.tables[0].keys.take(self._main_rows)
        return Texts.of([self.key(position) for position in range(len(self))])

    def draw(self, position: int) -> tuple[int, int]:
        """One of the variants that have the sample, each as likely, and its row; without variants nothing is drawn."""
        rows = self.rows
        if rows is None:
            return 0, position
        if rows.shape[1] == 1:
            return 0, rows.item(position, 0)
        choices = np.flatnonzero(rows[position] != ABSENT)
        variant = choices.item(int(torch.randint(len(choices), (), device="cpu")))
        return variant, rows.item(position, variant)

    def keep(self, positions: Array) -> None:
        """Drop all samples but these."""
        rows = np.arange(len(self), dtype=np.int32)[:, None] if self.rows is None else self.rows
        self.rows = rows[positions]
        self._own_boxes = None if self._own_boxes is None else self._own_boxes[positions]
        self._open()

    def drop(self, known: Array) -> None:
        """Let no variant have a sample of which `known`, bool (N, V), says that it has not."""
        if known.all():
            return
        rows = np.arange(len(self), dtype=np.int32)[:, None] if self.rows is None else self.rows
        self.rows = np.where(known, rows, ABSENT)


def read_index(paths: Sequence[Path], metadata: Metadata) -> Index:
    """What is stored in any of these variants of one dataset. metadata: of the first. Raises SourceError."""
    tables = [read_columns(path, metadata if not n else _metadata(path)) for n, path in enumerate(paths)]
    for table, path in zip(tables, paths, strict=True):
        if not len(table):
            raise SourceError(f"{path} holds no latents, or its {INDEX_JSONL} is missing")
    rows = None if len(tables) == 1 else _rows_of(tables)
    if rows is not None:
        _check_same(tables, rows, paths)
    return Index(tables, rows, _boxes(tables, rows, metadata))


def _metadata(path: Path) -> Metadata:
    found = Metadata.read_beside(path)
    assert found is not None
    return found


def _rows_of(tables: Sequence[Columns]) -> Array:
    """int32 (N, V): where every number of any variant is in each of them; -1 where it is not."""
    numbers = np.unique(np.concatenate([table.number for table in tables]))
    rows = np.full((len(numbers), len(tables)), ABSENT, np.int32)
    for variant, table in enumerate(tables):
        rows[np.searchsorted(numbers, table.number), variant] = np.arange(len(table))
    return rows


def _check_same(tables: Sequence[Columns], rows: Array, paths: Sequence[Path]) -> None:
    """Refuse variants that were not made of the same images: by key, and by the digest of their bytes."""
    main = (rows != ABSENT).argmax(axis=1)
    for first in range(len(tables)):
        for other in range(first + 1, len(tables)):
            both = np.flatnonzero((main == first) & (rows[:, other] != ABSENT))
            ours, theirs = tables[first], tables[other]
            ours_at, theirs_at = rows[both, first], rows[both, other]
            differs = {
                "images": ~same_texts(ours.keys, ours_at, theirs.keys, theirs_at),
                "bytes": (ours.source[ours_at] != theirs.source[theirs_at]).any(axis=1),
            }
            for what, where in differs.items():
                if where.any():
                    row = int(ours_at[where.argmax()])
                    raise SourceError(
                        f"{paths[first]} and {paths[other]} were made of different {what} of number "
                        f"{ours.number[row]} ({ours.keys[row]}): run their command again"
                    )


def _boxes(tables: Sequence[Columns], rows: Array | None, metadata: Metadata) -> Array | None:
    """Boxes of every variant, where any has them and the one table does not hold them whole; see `_completed`."""
    if all(table.box is None for table in tables):
        return None
    if rows is None:
        box = tables[0].box
        assert box is not None
        if box[:, 6:].all():
            return None
        return _completed(box[:, None].astype(np.int32), np.ones((len(box), 1), bool), tables, rows, metadata)
    boxes = np.zeros((*rows.shape, len(NO_BOX)), np.int32)
    for variant, table in enumerate(tables):
        has = rows[:, variant] != ABSENT
        if table.box is not None:
            boxes[has, variant] = table.box[rows[has, variant]]
    return _completed(boxes, rows != ABSENT, tables, rows, metadata)


def _completed(
    boxes: Array, known: Array, tables: Sequence[Columns], rows: Array | None, metadata: Metadata
) -> Array | None:
    """Boxes where any variant has them: the centre's are not stored, but follow from the image's size."""
    has = boxes[:, :, 6:].all(axis=2)
    missing = known & ~has
    if not missing.any() or not has.any():
        return boxes if has.any() else None
    sizes = boxes[:, :, :2].max(axis=1)
    unknown = np.flatnonzero(missing.any(axis=1) & ~sizes.all(axis=1))
    if len(unknown):
        raise SourceError(
            f"it is not known how {Index(tables, rows, None).key(int(unknown[0]))} was cropped, since no variant by "
            "crop holds it: make them anew (--overwrite), or load with variants=False"
        )
    return np.where(missing[:, :, None], _centred(sizes, metadata)[:, None], boxes)


def _centred(sizes: Array, metadata: Metadata) -> Array:
    """int32 (N, 8): boxes of the plain crop of images of these (height, width), (N, 2); any, where that is 0."""
    width, height = map(int, str(metadata.fingerprint["resolution"]).split("x"))
    transform = str(metadata.fingerprint["transform"])
    distinct, which = np.unique(sizes, axis=0, return_inverse=True)
    boxes = [box_of(crop_geometry(transform, (h, w), (height, width))) if h else NO_BOX for h, w in distinct.tolist()]
    table: Array = np.array(boxes, np.int32)[which.reshape(-1)]
    return table
