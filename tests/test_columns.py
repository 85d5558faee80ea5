"""The index's columns: what is written is read back, its bytes depend on the rows alone, and damage shows."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import latentmill
from latentmill import api
from latentmill.errors import SourceError
from latentmill.formats import columns_writer
from latentmill.formats.columns import Columns, mapped_columns
from latentmill.formats.columns_texts import OwnHandle, Texts
from latentmill.formats.columns_writer import ColumnsWriter, Row, columns_bytes, write_columns
from latentmill.formats.index_lines import stored_rows
from latentmill.formats.metadata import INDEX_COLUMNS, INDEX_JSONL, index_rows, row_json
from latentmill.formats.stored_zip import local_header
from latentmill.loaders_keys import found_in
from latentmill.records import Geometry, Outcome, SampleRef, StoredFile
from support import contents, make_photos, without_columns

CROP = {"transform": "center-crop", "resolution": "32x32"}
COUNT = 12
DIGEST = "0123456789abcdef" * 2
SIDES = st.integers(0, 40_000)
GEOMETRIES = st.builds(
    lambda a, b, c: Geometry(a, a, (-3, *b, 50_000), c),
    *(st.tuples(SIDES, SIDES) for _ in range(3)),
)
TEXTS = st.text(max_size=12) | st.binary(max_size=12).map(os.fsdecode)
ROWS = st.lists(
    st.builds(
        Row,
        number=st.integers(0, 99_999_999),
        key=TEXTS,
        label=st.none() | st.integers(0, 2**40),
        source=st.just(DIGEST) | st.sampled_from(["f" * 32, "0" * 31 + "1"]),
        name=st.sampled_from(["00000/img00000000.png", "a.npy"]),
        size=st.integers(0, 2**32 - 2),
        digest=st.just(DIGEST),
        crc=st.integers(0, 2**32 - 1),
        geometry=st.none() | GEOMETRIES,
        caption=st.none() | TEXTS,
    ),
    max_size=6,
)


def written(rows: Sequence[Row], in_zip: bool = False) -> bytes:
    writer = ColumnsWriter(None, in_zip)
    for row in rows:
        writer.add(row)
    return bytes(columns_bytes(writer, DIGEST))


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, in_zip=st.booleans())
def test_what_is_written_is_read_back(rows: list[Row], in_zip: bool) -> None:
    data = written(rows, in_zip)
    found = Columns(memoryview(data), "here")
    assert len(found) == len(rows)
    assert found.number.tolist() == [row.number for row in rows]
    assert found.label.tolist() == [-1 if row.label is None else row.label for row in rows]
    assert [found.keys[n] for n in range(len(rows))] == [row.key for row in rows]
    assert found.size.tolist() == [row.size for row in rows]
    assert found.crc.tolist() == [row.crc for row in rows]
    assert [bytes(each).hex() for each in found.source] == [row.source for row in rows]
    starts, at = [], 0
    for row in rows:
        starts.append(at)
        at += len(local_header(row.name, row.size, row.crc)) + row.size
    assert (found.offset.tolist() if found.offset is not None else None) == (starts if in_zip else None)
    boxes = [columns_writer.box_of(row.geometry) for row in rows]
    assert (found.box.tolist() if found.box is not None else [(0,) * 8] * len(rows)) == [
        list(box) for box in boxes
    ] or (found.box is None and not any(map(any, boxes)))
    if any(row.caption is not None for row in rows):
        assert found.captions is not None
        assert [found.captions[n] for n in range(len(rows))] == [row.caption or "" for row in rows]
    assert written(rows, in_zip) == data
    assert pickle.loads(pickle.dumps(found)).number.tolist() == found.number.tolist()
    assert set(safetensors.numpy.load(data)) >= {"number", "label", "key", "size"}  # any tool reads it


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are told by /proc")
@pytest.mark.parametrize("before", [0, 5000])
def test_captions_are_read_without_their_pages(tmp_path: Path, before: int) -> None:
    rows = [Row(n, f"k{n}", 0, DIGEST, "a", 1, DIGEST, 1, None, f"{n} é " * 200) for n in range(4000)]
    (tmp_path / "index").write_bytes(bytes(before) + written(rows))
    size = (tmp_path / "index").stat().st_size - before
    found = mapped_columns(tmp_path / "index", before, size, "here", check=True)
    again = pickle.loads(pickle.dumps(found))
    for columns in (found, again):
        columns.release()
        assert columns.captions is not None
        assert [columns.captions[n] for n in range(0, 4000, 40)] == [row.caption for row in rows[::40]]
        assert columns.captions[-1] == rows[-1].caption
    kilobytes, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        mine = line.endswith(f"{tmp_path}/index") if "-" in line.split()[0] else mine
        kilobytes += int(line.split()[1]) if mine and line.startswith("Rss:") else 0
    assert 0 < kilobytes << 10 < size // 4  # of two mappings; a page at a time, they would be nearly whole


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"12345")
    with (tmp_path / "index").open("rb") as file:
        handle = OwnHandle(file.fileno(), "here")
    assert handle.read(1, 3) == b"234"
    with pytest.raises(SourceError, match="here was cut off since the dataset was loaded: load it again"):
        handle.read(3, 3)


def test_many_rows_take_temporary_files_and_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(n, f"k{n}", n % 7, DIGEST, f"{n}.npy", 10 + n % 3, f"{n:032x}", n) for n in range(1000)]
    expected = written(rows, in_zip=True)
    monkeypatch.setattr(columns_writer, "_ROWS_AT_ONCE", 64)
    monkeypatch.setattr(columns_writer, "_HELD_BYTES", 100)
    monkeypatch.setattr(columns_writer, "_BLOCK_BYTES", 256)
    writer = ColumnsWriter(tmp_path, in_zip=True)
    for row in rows:
        writer.add(row)
    write_columns(tmp_path / "index", writer, DIGEST)
    assert (tmp_path / "index").read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_any_flipped_byte_is_seen(tmp_path: Path) -> None:
    rows = [Row(n, f"k{n}", n, DIGEST, f"{n}.npy", 10, DIGEST, n, None, f"about {n}") for n in range(5)]
    data = written(rows)
    file = tmp_path / "index"
    for at in range(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(SourceError, match=r"here (is damaged|must be a latentmill-index)"):
            mapped_columns(file, 0, len(data), "here", check=True)
    for length in (0, 5, 100, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(SourceError, match="here is damaged"):
            mapped_columns(file, 0, length, "here", check=True)


@settings(max_examples=60, deadline=None)
@given(known=st.lists(TEXTS, unique=True, max_size=30), others=st.lists(TEXTS, max_size=10), data=st.data())
def test_keys_are_found_as_a_dictionary_finds_them(known: list[str], others: list[str], data: st.DataObject) -> None:
    wanted = data.draw(st.permutations([*known[::2], *others]))
    positions = {key: position for position, key in enumerate(known)}
    expected = [positions.get(key, -1) for key in wanted]
    assert found_in(Texts.of(wanted), Texts.of(known)).tolist() == expected
    assert found_in(Texts.of(known), Texts.of(known)).tolist() == list(range(len(known)))


def test_keys_whose_hashes_are_the_same_are_still_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import latentmill.loaders_keys as module

    monkeypatch.setattr(module, "_hashes", lambda texts: np.zeros(len(texts), np.uint64))
    assert found_in(Texts.of(["b", "c", "x"]), Texts.of(["a", "b", "c"])).tolist() == [1, 2, -1]
    assert found_in(Texts.of(["x"]), Texts.of(["a"])).tolist() == [-1]


# the lines that earlier versions have alone


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, notes=st.lists(st.sampled_from(["cmyk", "16-bit"])), sums=st.lists(st.floats(-9, 9), max_size=3))
def test_lines_are_read_by_the_pattern_as_by_json(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], notes: list[str], sums: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    outcomes = [
        Outcome(
            SampleRef(row.number, row.key, "1-2", row.label, caption=row.caption, tokens=3),
            row.source,
            tuple(notes),
            {"it": StoredFile(row.name, row.size, row.digest, row.crc)},
            tuple(sums),
            geometry=row.geometry,
        )
        for row in rows
    ]
    outcomes.append(Outcome(SampleRef(0, "left", ""), skipped=True, reason="too small"))
    outcomes.append(Outcome(SampleRef(1, 'bad"', ""), stage="decode", reason='"name":'))
    (folder / INDEX_JSONL).write_text("".join(row_json(outcome, "it") + "\n" for outcome in outcomes))
    by_json = [Row.of_json(row) for row in index_rows(folder) if "name" in row]
    assert [columns_writer.box_of(row.geometry) for row in stored_rows(folder)] == [
        columns_writer.box_of(row.geometry) for row in rows
    ]
    assert [row._replace(geometry=None) for row in stored_rows(folder)] == [
        row._replace(geometry=None) for row in by_json
    ]


# datasets


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    make_photos(root / "photos", COUNT)
    for ending in ("", ".zip"):
        places = {"images": root / f"x{ending}"}
        api.encode(root / "photos", root / f"z{ending}", model_url="fake", **places, **CROP)
    return root


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def samples(latents: Path, images: Path) -> list[dict[str, object]]:
    dataset = latentmill.load(latents, images, posterior="mean")
    return [dataset[position] for position in range(len(dataset))]


@pytest.mark.parametrize("ending", ["", ".zip"])
def test_a_dataset_of_an_earlier_version_is_read_alike_and_finished(data: Path, ending: str) -> None:
    latents, images = data / f"z{ending}", data / f"x{ending}"
    expected, whole = samples(latents, images), contents(data)
    for dataset in (latents, images):
        without_columns(dataset)
        assert [str(problem) for problem in latentmill.verify(dataset).problems] == [f"{INDEX_COLUMNS}: is missing"]
    before = contents(data)
    for found, wanted in zip(samples(latents, images), expected, strict=True):
        assert torch.equal(found["moments"], wanted["moments"])
        assert torch.equal(found["image"], wanted["image"])
        assert (found["key"], found["label"]) == (wanted["key"], wanted["label"])
    loader = DataLoader(latentmill.load(latents), batch_size=4, num_workers=1, multiprocessing_context="fork")
    assert [key for batch in loader for key in batch["key"]] == [sample["key"] for sample in expected]
    assert api.encode(data / "photos", latents, model_url="fake", images=images, **CROP).already_done
    assert contents(data) == (before if ending else whole)  # a folder gets its columns


def test_columns_of_an_earlier_state_are_told_and_not_used(data: Path) -> None:
    earlier = (data / "z" / INDEX_COLUMNS).read_bytes()
    make_photos(data / "photos" / "more", 2, seed=5)
    api.encode(data / "photos", data / "z", model_url="fake", images=data / "x", **CROP)
    assert len(latentmill.load(data / "z")) == COUNT + 2
    (data / "z" / INDEX_COLUMNS).write_bytes(earlier)
    with pytest.warns(UserWarning, match=r"has an latentmill-index\.bin of an earlier state"):
        assert len(latentmill.load(data / "z")) == COUNT + 2
    (problem,) = latentmill.verify(data / "z").problems
    assert problem.where == INDEX_COLUMNS


def test_damaged_columns_are_refused_with_what_to_do(data: Path) -> None:
    file = data / "z" / INDEX_COLUMNS
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(SourceError, match=r"latentmill-index\.bin in .*z is damaged: its CRC-32 .*JSON lines"):
        latentmill.load(data / "z")
    file.unlink()
    assert len(latentmill.load(data / "z")) == COUNT


def test_columns_of_an_update_are_those_of_a_fresh_run(data: Path, tmp_path: Path) -> None:
    (data / "photos" / "c0" / "photo00003.jpg").unlink()
    make_photos(data / "photos" / "b", 1, seed=5)
    api.encode(data / "photos", data / "z", model_url="fake", images=data / "x", **CROP)
    api.encode(data / "photos", tmp_path / "z", model_url="fake", images=tmp_path / "x", **CROP)
    for name in ("z", "x"):
        fresh = (tmp_path / name / INDEX_COLUMNS).read_bytes()
        assert (data / name / INDEX_COLUMNS).read_bytes() == fresh


def test_clearing_leaves_none(data: Path) -> None:
    from latentmill.destination import clear
    from latentmill.formats.containers import container

    place = container(data / "z")
    place.work.mkdir()
    clear([place])
    assert not (data / "z" / INDEX_COLUMNS).exists()


def test_a_pickled_dataset_holds_no_columns(made: Path) -> None:
    dataset = latentmill.load(made / "z.zip", made / "x.zip", posterior="mean")
    key = dataset.key(3)
    data = pickle.dumps(dataset)
    assert key.encode() not in data
    assert pickle.loads(data).key(3) == key


def test_a_worker_that_starts_after_an_update_says_so(data: Path) -> None:
    pickled = pickle.dumps(latentmill.load(data / "z"))
    first, *_ = sorted((data / "photos").rglob("*.jpg"))
    make_photos(data / "other", 1, seed=9)
    first.write_bytes(next((data / "other").rglob("*.jpg")).read_bytes())  # the same number of rows and bytes
    api.encode(data / "photos", data / "z", model_url="fake", images=data / "x", **CROP)
    with pytest.raises(SourceError, match="changed since the dataset was loaded"):
        pickle.loads(pickled)
