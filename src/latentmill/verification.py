"""Whether a dataset is, byte for byte, what was made, and whether latents pair with their images."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latentmill.checksums import crc32
from latentmill.errors import SourceError
from latentmill.files import digest, digest_lines
from latentmill.formats.labels import labels_bytes
from latentmill.formats.layouts import layout_of_dataset
from latentmill.formats.metadata import (
    DATASET_JSON,
    INDEX_COLUMNS,
    INDEX_JSONL,
    METADATA_JSON,
    RECIPE_TOML,
    REJECTS_JSONL,
    REPORT_JSON,
    WORK_FOLDER,
    Metadata,
    index_rows,
    is_as_written,
    open_beside,
    read_beside,
    read_labels,
    row_geometry,
)
from latentmill.formats.payload import ARRAY_ERRORS
from latentmill.formats.reader import Reader
from latentmill.formats.stored_zip import changed_records
from latentmill.formats.vision import stored_shape
from latentmill.nearby import instead_of, result_near
from latentmill.outcome import Event, Tell, quiet
from latentmill.stages import Layout
from latentmill.verification_index import columns_fault, zip_fault
from latentmill.verification_pairs import pair_problems
from latentmill.wording import hinted

_OWN_FILES = frozenset(
    {DATASET_JSON, METADATA_JSON, INDEX_COLUMNS, INDEX_JSONL, REJECTS_JSONL, REPORT_JSON, RECIPE_TOML}
)
_TELL_EVERY = 256


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class VerifyReport:
    """What was checked, and every problem found; sound when there is none."""

    kind: str
    files: int = 0
    problems: list[Problem] = field(default_factory=list)
    summary: str = ""

    def add(self, where: str, what: str) -> None:
        self.problems.append(Problem(where, what))

    def _repr_html_(self) -> str:
        from latentmill.showing.results import verify_html

        return verify_html(self)

    def __repr__(self) -> str:
        from latentmill.showing.results import verify_text

        return verify_text(self)


def datasets_in(path: Path) -> list[Path]:
    """The path itself; or, of a folder that is no dataset but holds some (a PixArt root), those."""
    beside = path / METADATA_JSON
    if not path.is_dir() or beside.exists() or (path / WORK_FOLDER).is_dir() or (path / INDEX_JSONL).exists():
        return [path]
    inner = path / "InternData"
    folders = sorted((inner if inner.is_dir() else path).glob("*/"))
    return [each for each in folders if (each / METADATA_JSON).exists() or (each / WORK_FOLDER).is_dir()] or [path]


def verify(
    dataset: str | Path, images: str | Path | None = None, tell: Tell = quiet, sample: int | None = None
) -> VerifyReport:
    """Check digests, counts, names, shapes, dtypes, finiteness and labels; with `images`, that they pair.

    The data, `dataset.json`, the index and `latentmill.json` are checked to the byte. What is for a person and no
    loader reads is not: `latentmill-recipe.toml`, `latentmill-report.json`, `latentmill-rejects.jsonl`.

    sample: read the bytes of so many files alone, evenly spread; all else is checked of every file.
    Of a folder of several datasets (a PixArt root), all are checked; `images` then goes with its latents. Raises
    SourceError where there is nothing that latentmill made to check against.
    """
    path = Path(dataset)
    inner = datasets_in(path)
    if inner != [path]:
        return _verify_several(inner, images, tell, sample)
    metadata, report = _metadata(path)
    if metadata is None:
        return report
    if images is not None and metadata.kind != "latents":
        raise SourceError(f"--images pairs latents with images, and {path} holds {metadata.kind}")
    _check_index(path, metadata, report)
    rows = list(index_rows(path)) if not report.problems else []
    if report.problems:
        return report
    stored = [row for row in rows if "name" in row]
    reader = Reader(path)
    _check_names(reader, metadata, stored, report)
    _check_counts(metadata, rows, report)
    if fault := columns_fault(path, metadata, stored):
        report.add(INDEX_COLUMNS, fault)
    if layout_of_dataset(metadata).labelled:
        _check_labels(path, stored, report)
    _check_empty_caption(reader, metadata, report)
    read = stored if sample is None else stored[:: max(1, -(-len(stored) // sample))]
    sums = _check_files(reader, metadata, read, report, tell)
    if len(read) == len(stored):
        _check_statistics(metadata, sums, report)
    _check_records(path, stored, report)
    report.summary = "digests, names, labels, shapes and values checked"
    if len(read) < len(stored):
        report.summary += f"; the bytes of {len(read):,} files alone"
    if images is not None:
        for problem in pair_problems(rows, metadata, path, Path(images), tell):
            report.add(*problem)
        report.summary += ", paired with the images"
    return report


def _verify_several(paths: list[Path], images: str | Path | None, tell: Tell, sample: int | None) -> VerifyReport:
    whole = VerifyReport("several")
    for path in paths:
        report = verify_one_of_several(path, images, tell, sample)
        whole.files += report.files
        for problem in report.problems:
            whole.add(f"{path.name}/{problem.where}", problem.what)
    whole.summary = f"{len(paths)} datasets checked"
    return whole


def verify_one_of_several(
    path: Path, images: str | Path | None = None, tell: Tell = quiet, sample: int | None = None
) -> VerifyReport:
    """As `verify`; what cannot be checked is a problem of its own, and `images` are of latents only."""
    try:
        metadata = Metadata.read_beside(path)
        return verify(path, images if metadata is not None and metadata.kind == "latents" else None, tell, sample)
    except SourceError as error:
        report = VerifyReport("unknown")
        report.add(path.name, str(error))
        return report


def _metadata(path: Path) -> tuple[Metadata | None, VerifyReport]:
    if not path.exists():
        raise SourceError(hinted(f"there is nothing at {path}", instead_of(path)))
    report = VerifyReport("unknown")
    if fault := zip_fault(path):
        report.add(str(path), fault)
        return None, report
    try:
        metadata = Metadata.read_beside(path)
    except SourceError as error:
        report.add(METADATA_JSON, str(error))
        return None, report
    if metadata is not None:
        report.kind = metadata.kind
        return metadata, report
    if (path / WORK_FOLDER).is_dir():
        raise SourceError(f"{path} is not finished: run its command again to go on, then verify")
    if read_beside(path, INDEX_JSONL) is None and read_beside(path, DATASET_JSON) is None:
        raise SourceError(hinted(f"{path} holds nothing that latentmill made (no {METADATA_JSON})", result_near(path)))
    report.add(METADATA_JSON, "is missing")
    return None, report


def _check_index(path: Path, metadata: Metadata, report: VerifyReport) -> None:
    stream = open_beside(path, INDEX_JSONL)
    if stream is None:
        report.add(INDEX_JSONL, "is missing")
        return
    try:
        with stream:
            found = digest_lines(line.decode() for line in stream)
    except (*ARRAY_ERRORS, UnicodeDecodeError) as error:
        report.add(INDEX_JSONL, f"cannot be read: {error}")
        return
    if found != metadata.index_digest:
        report.add(INDEX_JSONL, f"was changed: its digest is not the one in {METADATA_JSON}")


def _check_names(reader: Reader, metadata: Metadata, stored: list[dict[str, Any]], report: VerifyReport) -> None:
    expected = {row["name"] for row in stored}
    names = list(reader.names())
    report.files = len(names)
    own = _OWN_FILES | ({metadata.text.empty} if metadata.text else set())
    for name in sorted(set(names) - expected - own):
        report.add(name, "is a stray file: the index does not know it")
    for name in sorted(name for name, count in Counter(names).items() if count > 1):
        report.add(name, "is in the archive more than once")
    layout = layout_of_dataset(metadata)
    for row in stored:
        if row["name"] != layout.name(row["index"], row["key"]):
            report.add(row["name"], f"should be named {layout.name(row['index'], row['key'])}")


def _check_counts(metadata: Metadata, rows: list[dict[str, Any]], report: VerifyReport) -> None:
    found = {
        "listed": len(rows),
        "stored": sum("name" in row for row in rows),
        "rejected": sum("reject" in row for row in rows),
        "skipped": sum("skipped" in row for row in rows),
    }
    for name, count in metadata.counts.model_dump().items():
        if found[name] != count:
            report.add(METADATA_JSON, f"counts {count:,} {name}, the index {found[name]:,}")


def _check_labels(path: Path, stored: list[dict[str, Any]], report: VerifyReport) -> None:
    try:
        text = read_beside(path, DATASET_JSON)
        if text is None:
            report.add(DATASET_JSON, "is missing")
            return
        read_labels(text, DATASET_JSON)
        table = json.loads(text)
    except (SourceError, ValueError) as error:
        report.add(DATASET_JSON, str(error))
        return
    if table.keys() != {"labels"}:
        report.add(DATASET_JSON, f'must hold "labels" alone. Found: {", ".join(table)[:80]}')
        return
    labels = table["labels"]
    complete = all(row["label"] is not None for row in stored)
    expected = [[row["name"], row["label"]] for row in stored] if complete else None
    if labels == expected:
        if text != labels_bytes((row["name"], row["label"]) for row in stored):
            report.add(DATASET_JSON, "was changed: the labels are those of the index, written in other bytes")
        return
    if labels is None or expected is None or len(labels) != len(expected):
        size = "null" if labels is None else f"{len(labels):,} labels"
        report.add(DATASET_JSON, f"holds {size}, the index {len(expected) if expected else 'null'}")
        return
    for found, row in zip(labels, expected, strict=True):
        if found != row:
            report.add(DATASET_JSON, f"says {found}, the index {row}")


def _check_files(
    reader: Reader,
    metadata: Metadata,
    stored: list[dict[str, Any]],
    report: VerifyReport,
    tell: Tell,
) -> list[tuple[float, ...]]:
    """Every file's digest, shape, dtype and values. Gives the per-channel sums of sound moments."""
    layout, sums = layout_of_dataset(metadata), []
    for position, row in enumerate(stored):
        if position % _TELL_EVERY == 0:
            tell(Event("progress", "", len(stored), position))
        try:
            data = reader.read(row["name"])
        except (FileNotFoundError, KeyError):
            report.add(row["name"], "is missing")
            continue
        except ARRAY_ERRORS as error:
            report.add(row["name"], f"cannot be read: {error}")
            continue
        if digest(data) != row["digest"]:
            report.add(row["name"], f"was changed: its bytes are not those made from {row['key']}")
            continue
        problem = _check_array(layout, _expected(metadata, row), data)
        if problem:
            report.add(row["name"], problem)
        elif "sums" in row:
            sums.append(tuple(row["sums"]))
    return sums


def _check_empty_caption(reader: Reader, metadata: Metadata, report: VerifyReport) -> None:
    if metadata.text is None:
        return
    try:
        data = reader.read(metadata.text.empty)
    except ARRAY_ERRORS:
        report.add(metadata.text.empty, "is missing or cannot be read: the features of the empty caption")
        return
    if digest(data) != metadata.text.empty_digest:
        report.add(metadata.text.empty, "was changed after it was made")


def _expected(metadata: Metadata, row: dict[str, Any]) -> tuple[str, tuple[int | None, ...]]:
    """The dtype and shape that a row's array must have; None where any length will do."""
    if metadata.text is not None:
        return metadata.text.dtype, (row["tokens"], metadata.text.width)
    geometry = row_geometry(row)
    if metadata.vision is not None:
        return metadata.vision.dtype, stored_shape(metadata.vision, None if geometry is None else geometry.bucket)
    if metadata.latent is None:
        width, height = metadata.image_size or (None, None)
        return "uint8", (height, width, 3)
    channels, height, width = metadata.latent.shape
    if height is None and geometry is not None and metadata.model is not None:
        height, width = (side // metadata.model.downscale_factor for side in geometry.bucket)
    return metadata.latent.dtype, (channels, height, width)


def _check_array(layout: Layout, expected: tuple[str, tuple[int | None, ...]], data: bytes) -> str:
    try:
        array = layout.from_bytes(data)
    except ARRAY_ERRORS as error:
        return f"cannot be decoded: {error}"
    dtype, shape = expected
    fits = len(shape) == array.ndim and all(want in (None, is_) for want, is_ in zip(shape, array.shape, strict=True))
    if not fits or array.dtype != dtype:
        return f"is {array.dtype} {array.shape}, expected {dtype} {shape}"
    if not np.isfinite(array).all():
        return "holds NaN or infinity"
    return ""


def _check_records(path: Path, stored: list[dict[str, Any]], report: VerifyReport) -> None:
    """Every byte that no digest in the index covers: of the metadata, and of a zip's own records."""
    if not is_as_written(read_beside(path, METADATA_JSON) or b""):
        report.add(METADATA_JSON, "was changed after it was written")
    if path.is_dir() or report.problems:
        return
    names = (INDEX_JSONL, INDEX_COLUMNS, DATASET_JSON, METADATA_JSON)
    own = {name: data for name in names if (data := read_beside(path, name)) is not None}
    members = [(row["name"], row["size"], row["crc"]) for row in stored]
    members += [(name, len(data), crc32(data)) for name, data in own.items()]
    for name in changed_records(path, members):
        report.add(name, "what the archive records of it was changed")


def _check_statistics(metadata: Metadata, sums: list[tuple[float, ...]], report: VerifyReport) -> None:
    if metadata.statistics is None or report.problems or not sums:
        return
    channels = len(metadata.statistics.mean)
    mean = np.mean(np.array(sums)[:, :channels], axis=0)
    if not np.allclose(mean, metadata.statistics.mean, rtol=1e-6, atol=1e-9):
        report.add(
            METADATA_JSON, f"its channel means {metadata.statistics.mean} are not those of the data {mean.tolist()}"
        )
