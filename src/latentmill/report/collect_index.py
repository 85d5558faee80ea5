"""A dataset as a report looks at it: its metadata, its stored recipe, and its index read row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from latentmill.config import OutputSettings
from latentmill.errors import ConfigError, SourceError
from latentmill.formats.containers import container
from latentmill.formats.layouts import layout_of_dataset
from latentmill.formats.metadata import METADATA_JSON, RECIPE_TOML, REPORT_JSON, WORK_FOLDER, Metadata, index_rows
from latentmill.formats.reader import Reader
from latentmill.nearby import instead_of
from latentmill.records import Array
from latentmill.stages import Layout
from latentmill.verification import datasets_in
from latentmill.wording import hinted

Line = dict[str, Any]  # a line of the index, as `formats.rows` writes it
NO_LABEL = -1
_ORDER = ("latents", "text", "vision", "images")  # what a trainer reads comes first
_REJECTS_A_REASON = 4  # that are kept, to be shown
_REASONS = 1000  # that are kept apart: some name what is one image's alone


@dataclass(frozen=True)
class Opened:
    """One finished dataset."""

    path: Path
    metadata: Metadata

    @property
    def kind(self) -> str:
        return self.metadata.kind

    @cached_property
    def layout(self) -> Layout:
        return layout_of_dataset(self.metadata)

    @cached_property
    def reader(self) -> Reader:
        return Reader(self.path)

    def rows(self) -> Iterator[Line]:
        """Every line of the index. Raises SourceError."""
        return index_rows(self.path)

    def array(self, row: Line) -> Array:
        """A stored file's array. Raises `payload.ARRAY_ERRORS`."""
        return self.layout.from_bytes(self.reader.read(row["name"]))

    @cached_property
    def recipe(self) -> OutputSettings | str:
        """The settings that it was made with, from the recipe stored beside it; or why there are none."""
        from latentmill.recipe import Recipe

        file = container(self.path).side_file(RECIPE_TOML)
        if not file.is_file():
            return f"{file.name} is not there"
        try:
            return Recipe.read(file).chosen()[0].settings
        except (SourceError, ConfigError) as error:
            return str(error)

    @cached_property
    def report(self) -> Line:
        """What `latentmill-report.json` holds; {} where it is not there or cannot be read."""
        try:
            found = json.loads(container(self.path).side_file(REPORT_JSON).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def opened(path: Path) -> Opened | None:
    """The finished dataset at a path; None where there is none. Raises SourceError when it is damaged."""
    metadata = Metadata.read_beside(path) if path.exists() else None
    return None if metadata is None else Opened(path, metadata)


def datasets_under(root: Path) -> tuple[list[Opened], list[str]]:
    """The finished datasets of a result, which is one or a folder of several; and what of it is left out, and why.

    Raises SourceError where there is none.
    """
    if not root.exists():
        raise SourceError(hinted(f"there is nothing at {root}", instead_of(root)))
    found, notes = [], []
    for place in places_under(root):
        try:
            one = opened(place)
        except SourceError as error:
            notes.append(f"{place.name} is left out: {error}")
            continue
        if one is not None:
            found.append(one)
        elif (place / WORK_FOLDER).is_dir():
            notes.append(f"{place.name} is left out: it is not finished. Run its command again to go on")
    if not found:
        told = f" ({notes[0]})" if notes else f" (no {METADATA_JSON} in it or in a folder of it)"
        raise SourceError(f"{root} holds no finished dataset that latentmill made{told}")
    return sorted(found, key=lambda one: _ORDER.index(one.kind)), notes


def places_under(root: Path) -> list[Path]:
    """Where datasets may be: the root; its folders and zips; and those of the PixArt roots in it."""
    if not root.is_dir() or (root / METADATA_JSON).exists() or (root / WORK_FOLDER).is_dir():
        return [root]
    places = [path for path in datasets_in(root) if path != root]
    inner = (path.parent for path in sorted(root.glob(f"*/InternData/*/{METADATA_JSON}")))
    return [*places, *_zips(root), *inner]


def _zips(root: Path) -> list[Path]:
    """Zips that have a report of latentmill's beside them."""
    ending = "." + REPORT_JSON.removeprefix("latentmill-")
    return sorted(path for path in root.glob("*.zip") if path.with_name(path.name + ending).is_file())


@dataclass
class Overview:
    """What one pass over the index tells. Arrays have a value for each stored row, in order; empty where none has one.

    sizes, buckets: (N, 2), height and width. tokens: stored vectors of a caption. cut: whether truncation cut it.
    rejects: some of each reason. reasons: all of them.
    """

    labels: Array
    sizes: Array
    buckets: Array
    tokens: Array
    cut: Array
    bytes: int
    stored: int
    rejects: list[Line] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def overview(dataset: Opened) -> Overview:
    """Read the whole index once. Raises SourceError."""
    labels: list[int] = []
    geometry: list[tuple[int, ...]] = []
    tokens: list[int] = []
    cut: list[bool] = []
    rejects, reasons, size = [], Counter[str](), 0
    for row in dataset.rows():
        if "name" in row:
            labels.append(NO_LABEL if row["label"] is None else row["label"])
            size += row["size"]
            if "geometry" in row:
                geometry.append((*row["geometry"]["size"], *row["geometry"]["bucket"]))
            if "tokens" in row:
                tokens.append(row["tokens"])
                cut.append("truncated" in row.get("notes", ()))
        elif "reject" in row:
            stage, reason = row["reject"]
            told = f"{stage}: {reason}"
            told = told if told in reasons or len(reasons) < _REASONS else f"{stage}: other reasons"
            reasons[told] += 1
            if reasons[told] <= _REJECTS_A_REASON:
                rejects.append(row)
    boxes = np.array(geometry if len(geometry) == len(labels) else [], np.int64).reshape(-1, 4)
    return Overview(
        np.array(labels, np.int64), boxes[:, :2], boxes[:, 2:], np.array(tokens, np.int64), np.array(cut, bool),
        size, len(labels), rejects, reasons,
    )  # fmt: skip


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` positions, evenly, the first and the last among them: the same in every run."""
    if count <= wanted:
        return list(range(count))
    return sorted({int(at) for at in np.linspace(0, count - 1, wanted).round()})


def stored_at(dataset: Opened, positions: Collection[int]) -> dict[int, Line]:
    """The rows at these positions among the stored ones. Raises SourceError."""
    wanted, last = set(positions), max(positions, default=-1)
    found: dict[int, Line] = {}
    stored = (row for row in dataset.rows() if "name" in row)
    for position, row in enumerate(stored):
        if position > last:
            break
        if position in wanted:
            found[position] = row
    return found


def stored_with(dataset: Opened, column: str, values: Iterable[Any]) -> dict[Any, Line]:
    """The first stored row with each of these values in a column (`key`, `name`). Raises SourceError."""
    wanted = set(values)
    found: dict[Any, Line] = {}
    for row in dataset.rows():
        if "name" in row and row[column] in wanted and row[column] not in found:
            found[row[column]] = row
    return found
