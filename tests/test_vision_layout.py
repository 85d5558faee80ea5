"""Vision features on disk: names and bytes, what verify says of them, and reading them beside other data by key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentmill.errors import ConfigError, SourceError
from latentmill.files import digest, digest_lines
from latentmill.formats.columns_writer import ColumnsWriter, write_columns
from latentmill.formats.index_lines import stored_rows
from latentmill.formats.layouts import layout_of
from latentmill.formats.metadata import (
    DATASET_JSON,
    INDEX_COLUMNS,
    INDEX_JSONL,
    METADATA_JSON,
    Counts,
    Metadata,
    VisionInfo,
    row_json,
)
from latentmill.formats.payload import npy_bytes
from latentmill.formats.pixart import PixArtLatents
from latentmill.formats.vision import Naming, VisionLayout, stored_shape
from latentmill.loaders_vision import VisionFeatures
from latentmill.records import Geometry, Outcome, SampleRef, StoredFile
from latentmill.verification import verify

NAMINGS: tuple[Naming, ...] = ("repa", "pixart/multi", "pixart/single")
WIDTH = 6
BUCKETS = [(32, 64), (64, 32), (48, 48)]


def info(**changes: Any) -> VisionInfo:
    usual = {"tokens": "patch", "input": "repa", "input_size": None, "grid": None, "width": WIDTH, "dtype": "float32"}
    return VisionInfo(**{**usual, "compute_dtype": "float32", **changes})


def made(folder: Path, naming: Naming = "repa", **changes: Any) -> list[np.ndarray]:
    """A dataset of three images and one reject, each image of its own bucket, written as a job does."""
    layout, told = VisionLayout(naming), info(**changes)
    random, arrays, rows, labels = np.random.default_rng(0), [], [], []
    for number, bucket in enumerate(BUCKETS):
        count, width = stored_shape(told, bucket)
        arrays.append(random.standard_normal((count, width)).astype(told.dtype))
        data, key = layout.to_bytes(arrays[-1]), f"photos/{number}.png"
        name = layout.name(number, key)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        stored = StoredFile(name, len(data), digest(data), 0)
        geometry = Geometry(bucket, bucket, (0, 0, *bucket), bucket)
        rows.append(Outcome(SampleRef(number, key, "", 0), files={"vision": stored}, geometry=geometry))
        labels.append([name, 0])
    rows.append(Outcome(SampleRef(3, "photos/3.png", ""), stage="decode", reason="damaged"))
    lines = [row_json(row, "vision") + "\n" for row in rows]
    metadata = Metadata(
        kind="vision",
        layout=layout.code,
        counts=Counts(listed=4, stored=3, rejected=1, skipped=0),
        vision=told,
        source_digest="",
        index_digest=digest_lines(lines),
        fingerprint={},
        software={},
    )
    (folder / INDEX_JSONL).write_text("".join(lines))
    (folder / METADATA_JSON).write_text(metadata.to_json())
    if layout.labelled:
        (folder / DATASET_JSON).write_text(json.dumps({"labels": labels}))
    columns = ColumnsWriter(None, in_zip=False)
    for row in stored_rows(folder):
        columns.add(row)
    write_columns(folder / INDEX_COLUMNS, columns, metadata.index_digest)
    return arrays


# names and bytes


def test_by_number_they_sort_as_the_images_that_repa_pairs_them_with() -> None:
    layout = VisionLayout()
    assert layout.name(0) == "00000/img-feature-00000000.npy"
    assert layout.name(12_345_678, "any/key.png") == "12345/img-feature-12345678.npy"
    assert layout.member.fullmatch(layout.name(1234))
    assert layout.labelled
    with pytest.raises(ConfigError, match="at most 100,000,000 images"):
        layout.name(100_000_000)


def test_by_key_they_are_named_as_pixarts_latents() -> None:
    for reader in ("multi", "single"):
        layout = VisionLayout(f"pixart/{reader}")
        assert layout.name(7, "a/b/c.png") == PixArtLatents(reader).name(7, "a/b/c.png")
        assert not layout.labelled


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_code_gives_the_layout_back(naming: Naming) -> None:
    layout = VisionLayout(naming)
    assert layout.kind == "vision"
    assert layout.code == f"vision/{naming}"
    assert layout_of(layout.code) == layout


@pytest.mark.parametrize("code", ["vision/", "vision/pixart", "vision/repa/8", "vision"])
def test_other_codes_are_not_known(code: str) -> None:
    with pytest.raises(SourceError, match=f"does not know: {code!r}"):
        layout_of(code)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bytes_and_back(dtype: str) -> None:
    array = np.random.default_rng(0).standard_normal((12, WIDTH)).astype(dtype)
    found = VisionLayout().from_bytes(VisionLayout().to_bytes(array))
    assert found.dtype == dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize("array", [np.zeros((1, 4, 6), np.float32), np.zeros(6, np.float32), np.zeros((4, 6), int)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{array.shape}, not (N, D) of floats")):
        VisionLayout().from_bytes(npy_bytes(array))


def test_the_shape_of_a_file_follows_from_the_metadata() -> None:
    assert stored_shape(info(), (256, 128)) == (16 * 8, WIDTH)
    assert stored_shape(info(tokens="both"), (256, 128)) == (1 + 16 * 8, WIDTH)
    assert stored_shape(info(tokens="pooled"), (256, 128)) == (1, WIDTH)
    assert stored_shape(info(grid=(4, 3)), (256, 128)) == (12, WIDTH)
    assert stored_shape(info(grid=(4, 3), tokens="both"), None) == (13, WIDTH)
    assert stored_shape(info(input="processor"), (256, 128)) == (None, WIDTH)


# verify


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("changes", [{}, {"tokens": "both", "grid": (2, 3), "dtype": "float16"}, {"tokens": "pooled"}])
def test_what_was_made_is_sound(tmp_path: Path, naming: Naming, changes: dict[str, Any]) -> None:
    made(tmp_path, naming, **changes)
    report = verify(tmp_path)
    assert report.problems == []
    assert report.kind == "vision"


def test_features_of_a_wrong_shape_or_kind_are_problems(tmp_path: Path) -> None:
    """They agree with the index, so that only what the metadata says of them tells."""
    made(tmp_path)
    metadata = json.loads((tmp_path / METADATA_JSON).read_text())
    for vision, problem in (
        ({"tokens": "both"}, "is float32 (8, 6), expected float32 (9, 6)"),
        ({"dtype": "float16"}, "is float32 (8, 6), expected float16 (8, 6)"),
        ({"width": 5}, "is float32 (8, 6), expected float32 (8, 5)"),
    ):
        changed = Metadata.model_validate({**metadata, "vision": {**metadata["vision"], **vision}})
        (tmp_path / METADATA_JSON).write_text(changed.to_json())
        assert f"00000/img-feature-00000000.npy: {problem}" in map(str, verify(tmp_path).problems)


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    made(tmp_path)
    file = tmp_path / "00000/img-feature-00000001.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (problem,) = verify(tmp_path).problems
    assert problem.where == "00000/img-feature-00000001.npy"
    assert "was changed" in problem.what


# reading


@pytest.mark.parametrize("naming", NAMINGS)
def test_features_are_read_by_the_key_of_the_sample(tmp_path: Path, naming: Naming) -> None:
    arrays = made(tmp_path, naming, dtype="float16")
    features = VisionFeatures(tmp_path)
    keys = ["photos/2.png", "other.png", "photos/3.png", "photos/0.png"]
    assert features.align(keys).tolist() == [True, False, False, True]
    found = features.read(0, keys[0])
    assert found.dtype == torch.float16
    assert np.array_equal(found.numpy(), arrays[2])
    with pytest.raises(SourceError, match=r"photos/3\.png has no vision features in"):
        features.read(2, keys[2])
    features.keep(np.array([0, 3]))
    assert np.array_equal(features.read(1, "photos/0.png").numpy(), arrays[0])


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SourceError, match="holds no vision features that latentmill made"):
            VisionFeatures(folder)
