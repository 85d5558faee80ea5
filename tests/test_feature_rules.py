"""What becomes of rows that cannot be used, of slices, and of buckets: in the index, the report and the files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from latentmill.errors import LatentmillError, SampleError, SourceError
from latentmill.features import image_features, text_features
from latentmill.formats.metadata import Metadata, index_rows
from latentmill.outcome import Result
from latentmill.records import SampleRef
from latentmill.sources.features import FeatureImages
from latentmill.sources.headers import HeaderFault, ImageHeader, read_header
from pixart_reader import TINY_T5, Photos, distance, in_process
from support import PHOTOS, contents, identity

FAKE: dict[str, Any] = {"vae": "fake", "multi_scale": True, "threads": 1}
TEXT: dict[str, Any] = {"text_encoder": str(TINY_T5), "threads": 1}
TALL = "its ratio (height/width) is over 4.5"


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(tmp_path / "set")


def rows_by_key(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in index_rows(folder)}


def stored(folder: Path) -> set[str]:
    return {key for key, row in rows_by_key(folder).items() if "name" in row}


def rejects(folder: Path) -> dict[str, str]:
    return {key: ": ".join(row["reject"]) for key, row in rows_by_key(folder).items() if "reject" in row}


def report_of(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.report.read_text())
    return found


# rows that cannot be used


def test_each_fault_of_an_image_is_told_and_the_others_go_on(photos: Photos, tmp_path: Path) -> None:
    photos.add("good.png", 60, 80)
    photos.add("a/tall.png", 460, 100)
    photos.add("edge.png", 450, 100)  # a ratio of exactly 4.5 is read
    photos.add("other.png", 60, 80, width=90)
    photos.add("broken.png", 60, 80)
    photos.add("gone.png", 60, 80)
    photos.add("b/folder.png", 60, 80)
    (photos.images / "broken.png").write_bytes((photos.images / "broken.png").read_bytes()[:60])
    (photos.images / "gone.png").unlink()
    (photos.images / "b" / "folder.png").unlink()
    (photos.images / "b" / "folder.png").mkdir()
    result = image_features(photos.table(), tmp_path / "out", **FAKE)
    assert (result.listed, result.stored, result.skipped, result.rejected) == (7, 2, 1, 4)
    assert stored(result.dest) == {"good.png", "edge.png"}
    told = rejects(result.dest)
    assert told["other.png"] == "decode: the image is 80x60 (width x height), its row says 90x60"
    assert told["broken.png"].startswith("decode: ")
    assert told["gone.png"] == "list: No such file or directory"
    assert told["b/folder.png"] == "list: not a file"
    assert rows_by_key(result.dest)["a/tall.png"]["skipped"] == TALL
    report = report_of(result)
    assert report["skipped_by_reason"] == {TALL: 1}
    assert report["images"]["skipped"] == ["a/tall.png"]
    assert report["counts"] == {"listed": 7, "stored": 2, "rejected": 4, "skipped": 1}
    assert result.rejects is not None
    assert {json.loads(line)["key"] for line in result.rejects.read_text().splitlines()} == told.keys()
    assert {path.name for path in result.dest.glob("**/*.npy")} == {"good.npy", "edge.npy"}


def test_rows_of_one_image_with_several_captions_are_one_image(photos: Photos, tmp_path: Path) -> None:
    """As captions of COCO are often listed; for text they would be two features under one name."""
    photos.add("x.png", 60, 80)
    table = photos.table()
    (row,) = json.loads(table.read_text())
    table.write_text(json.dumps([{**row, "prompt": "one"}, {**row, "prompt": "two"}]))
    assert stored(image_features(table, tmp_path / "out", **FAKE).dest) == {"x.png"}
    with pytest.raises(SourceError, match="rows 1 and 2 are different rows for one image"):
        text_features(table, tmp_path / "out", text_encoder="mini")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["img_sdxl_vae_features_512resolution_ms_new"]


def test_without_sizes_in_the_table_the_headers_tell(photos: Photos, tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(60, 80), (460, 100), (100, 60)]):
        photos.add(f"{number}.png", height, width)
    photos.add("no.png", 10, 10)
    (photos.images / "no.png").write_bytes(b"no picture")
    bare = [{"path": row["path"], "prompt": "x"} for row in photos.rows]
    said = image_features(photos.table(), tmp_path / "said", **FAKE)
    photos.rows = bare
    read = image_features(photos.table(), tmp_path / "read", **FAKE)
    assert (read.stored, read.skipped, read.rejected) == (said.stored, said.skipped, said.rejected) == (2, 1, 1)
    assert contents(said.dest, data_only=True) == contents(read.dest, data_only=True)


def test_missing_captions_by_both_policies(photos: Photos, tmp_path: Path) -> None:
    photos.add("full.png", 8, 8, prompt=" a cat\n")
    photos.add("empty.png", 8, 8, prompt="  ")
    photos.add("none.png", 8, 8, prompt=None)
    photos.add("number.png", 8, 8, prompt=5)
    rejected = text_features(photos.table(), tmp_path / "reject", **TEXT)
    assert (rejected.stored, rejected.rejected) == (1, 3)
    assert rejects(rejected.dest) == {
        "empty.png": "list: caption prompt is empty",
        "none.png": "list: no caption prompt",
        "number.png": "list: caption prompt: not a text but 5",
    }
    empty = text_features(photos.table(), tmp_path / "empty", missing_caption="empty", **TEXT)
    assert (empty.stored, empty.rejected) == (3, 1)
    bytes_of = {path.name: path.read_bytes() for path in empty.dest.glob("*.npz")}
    assert bytes_of["empty.npz"] == bytes_of["none.npz"] == bytes_of["latentmill-empty.npz"] != bytes_of["full.npz"]
    assert rows_by_key(empty.dest)["full.png"]["caption"] == "a cat"


def test_a_caption_that_is_nowhere_is_refused_with_those_that_are(photos: Photos, tmp_path: Path) -> None:
    photos.add("x.png", 8, 8, sharegpt4v="a", story="b")
    with pytest.raises(SourceError, match=r"'long'\. There are: prompt, sharegpt4v"):
        text_features(photos.table(), tmp_path / "out", label="long", **TEXT)
    for row in photos.rows:
        del row["prompt"], row["sharegpt4v"], row["story"]
    with pytest.raises(SourceError, match=r"'prompt'\. There are: none"):
        text_features(photos.table(), tmp_path / "out", **TEXT)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["x.PNG"], "x.PNG (the multi-scale reader maps"),
        (["x.bmp"], "x.bmp (the multi-scale reader maps"),
        (["a/x.png", "a_x.png"], "a_x.png and a/x.png"),
        (["latentmill-empty.png"], "latentmill-empty.png and the features of the empty caption"),
    ],
)
def test_names_are_refused_before_anything_is_written(
    photos: Photos, tmp_path: Path, names: list[str], said: str
) -> None:
    for name in ("fine.png", *names):
        photos.add(name, 8, 8)
    for option in ("--vae", "fake"), ("--text-encoder", TINY_T5):
        if "empty" in said and "--vae" in option:
            continue
        done = in_process("pixart", "--data-info", photos.table(), "--dest", tmp_path / "out", *option, "--multi-scale")
        assert done.exit_code == 2
        assert said in done.stderr
        assert "latentmill import" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_a_header_that_cannot_be_read_is_tried_again(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that was away leaves no trace in a file's size or time."""
    for number in range(4):
        photos.add(f"{number}.png", 60 + 40 * number, 80)
        photos.rows[number] = {"path": f"{number}.png"}

    def away(root: Path, key: str, max_pixels: int) -> ImageHeader | HeaderFault:
        return read_header(root, key) if key == "0.png" else HeaderFault(key, "read", "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("latentmill.sources.features.read_header", away)
        result = image_features(photos.table(), tmp_path / "out", **FAKE)
    assert (result.stored, result.rejected) == (1, 3)
    assert all(reason.startswith("read: ") for reason in rejects(result.dest).values())
    again = image_features(photos.table(), tmp_path / "out", **FAKE)
    assert (again.stored, again.rejected, again.computed) == (4, 0, 3)


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_turned_photos_go_to_the_bucket_of_what_is_seen(tmp_path: Path, exif: str) -> None:
    shutil.copytree(PHOTOS / "shapes", tmp_path / "photos", ignore=lambda _, names: {n for n in names if n[0] in "ot"})
    with Image.open(PHOTOS / "shapes" / "exif_rotated.jpg") as image:
        expected = (ImageOps.exif_transpose(image) if exif == "apply" else image).size[::-1]
    result = image_features(tmp_path / "photos", tmp_path / "out", exif=exif, **FAKE)
    assert result.rejected == 0
    how = rows_by_key(result.dest)["exif_rotated.jpg"]["geometry"]
    assert how["size"] == list(expected)
    assert (how["bucket"][0] > how["bucket"][1]) == (expected[0] > expected[1])


def test_the_strangest_names_come_through(photos: Photos, tmp_path: Path) -> None:
    names = [
        "y" * 251 + ".png",
        "a b/.c/ü 猫.v1.webp",
        "[red].jpg",
        "%s{}.JPEG",
        "new\nline.png",
        os.fsdecode(b"\xff/\xfe.png"),
    ]
    for name in names:
        photos.add(name, 20, 30, prompt="one for all")
    images = image_features(photos.table(), tmp_path / "out", **FAKE)
    texts = text_features(photos.table(), tmp_path / "out", **TEXT)
    assert stored(images.dest) == stored(texts.dest) == set(names)
    for folder, suffix in ((images.dest, "npy"), (texts.dest, "npz")):
        for name in names:
            opened = "_".join(name.rsplit("/", 1)).rpartition(".")[0] + "." + suffix
            assert (folder / opened).is_file(), opened
    again = image_features(photos.table(), tmp_path / "out", **FAKE)
    assert again.already_done


# slices


@pytest.fixture
def mixed(photos: Photos) -> Photos:
    """Twelve rows, not in order of path; too tall ones, rejects and missing captions among them."""
    for number, name in enumerate(["k.png", "a/b.png", "tall1.png", "m.png", "c/d/e.v2.png", "z.png",
                                   "odd.png", "tall2.png", "b.png", "gone.png", "y/y.png", "n.png"]):  # fmt: skip
        height = 470 if name.startswith("tall") else 40 + 8 * number
        more = {"prompt": ""} if number in (1, 8) else {"prompt": "a cat and a dog " * (number + 1)}
        photos.add(name, height, 100, **more)
    photos.rows[6]["height"] += 1
    (photos.images / "gone.png").unlink()
    return photos


def made(kind: str, table: Path, dest: Path, slices: list[tuple[int, int | None]]) -> list[Result]:
    work, settings = (image_features, FAKE) if kind == "images" else (text_features, TEXT)
    return [work(table, dest, start_index=start, end_index=end, **settings) for start, end in slices]


def same_features(one: Path, other: Path) -> None:
    """Equal in all but the last bits of features, which depend on the company in a batch."""
    rows, others = rows_by_key(one), rows_by_key(other)
    assert rows.keys() == others.keys()
    for key, row in rows.items():
        bits = dict.fromkeys(("size", "digest", "crc"))
        assert row | bits == others[key] | bits
        if "name" in row:
            with np.load(one / row["name"]) as ours, np.load(other / row["name"]) as theirs:
                assert distance(ours["caption_feature"], theirs["caption_feature"]) < 2e-3
    apart = (".npz", "index.jsonl", "index.bin")
    left = [
        {name: data for name, data in contents(folder).items() if not name.endswith(apart)} for folder in (one, other)
    ]
    for files in left:
        table = json.loads(files.pop("latentmill.json"))
        files["metadata"] = json.dumps({**table, "index_digest": "", "own_digest": ""}).encode()
    assert left[0] == left[1]


@pytest.mark.parametrize("kind", ["images", "text"])
@pytest.mark.parametrize(
    "slices",
    [
        [(0, 3), (3, 12)],
        [(3, 12), (0, 3)],
        [(8, 10), (0, 5), (5, 8), (10, 50_000_000)],
        [(2, 5), (0, None)],
    ],
    ids=str,
)
def test_slices_add_up_to_a_whole_run(
    mixed: Photos, tmp_path: Path, kind: str, slices: list[tuple[int, int | None]]
) -> None:
    table = mixed.table()
    whole = made(kind, table, tmp_path / "whole", [(0, None)])[0]
    found = made(kind, table, tmp_path / "slices", slices)
    if kind == "images":
        assert contents(found[-1].dest) == contents(whole.dest)
    else:
        same_features(found[-1].dest, whole.dest)
    assert (found[-1].listed, found[-1].stored, found[-1].rejected) == (whole.listed, whole.stored, whole.rejected)


@pytest.mark.parametrize("slices", [[(0, 3), (3, 12)], [(3, 12), (0, 3)]], ids=str)
def test_what_a_slice_could_not_read_stays_on_record(
    mixed: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slices: list[tuple[int, int | None]]
) -> None:
    plain = FeatureImages.read

    def read(self: FeatureImages, ref: SampleRef) -> bytes:
        if ref.key in ("a/b.png", "z.png"):
            raise SampleError("read", "Input/output error")
        return plain(self, ref)

    monkeypatch.setattr(FeatureImages, "read", read)
    table = mixed.table()
    whole = made("images", table, tmp_path / "whole", [(0, None)])[0]
    found = made("images", table, tmp_path / "slices", slices)[-1]
    assert contents(found.dest) == contents(whole.dest)
    assert {"a/b.png", "z.png"} < rejects(whole.dest).keys()


@pytest.mark.parametrize("kind", ["images", "text"])
def test_a_slice_again_says_that_it_is_done(mixed: Photos, tmp_path: Path, kind: str) -> None:
    for row in mixed.rows:  # nothing to reject, which would be tried again
        row["prompt"] = row["prompt"] or "a word"
    mixed.add("gone.png", 80, 100)
    mixed.rows.pop()
    mixed.rows[9].update(height=80, ratio=0.8)
    mixed.rows[6]["height"] -= 1
    table = mixed.table()
    first, again = made(kind, table, tmp_path / "out", [(0, 3), (0, 3)])
    assert (first.computed > 0, first.already_done) == (True, False)
    assert again.already_done
    before = {path: identity(path) for path in first.dest.rglob("*") if path.is_file()}
    _, smaller, rest, whole = made(kind, table, tmp_path / "out", [(0, 3), (1, 2), (3, 12), (0, None)])
    assert smaller.already_done
    assert whole.already_done and not rest.already_done
    kept = {path: stat for path, stat in before.items() if path.suffix in (".npy", ".npz") and "empty" not in path.name}
    assert {path: identity(path) for path in kept} == kept


def test_images_count_after_the_ratio_filter_and_captions_before(mixed: Photos, tmp_path: Path) -> None:
    table = mixed.table()
    images = made("images", table, tmp_path / "out", [(1, 4)])[0]
    assert stored(images.dest) == {"a/b.png", "m.png", "c/d/e.v2.png"}
    texts = made("text", table, tmp_path / "out", [(0, 4)])[0]
    assert stored(texts.dest) == {"k.png", "tall1.png", "m.png"}
    assert rejects(texts.dest) == {"a/b.png": "list: caption prompt is empty"}


def test_the_ratio_filter_asks_the_table_and_not_the_image(mixed: Photos, tmp_path: Path) -> None:
    """A too tall image that is gone would else push the others into another slice."""
    (mixed.images / "tall1.png").unlink()
    result = made("images", mixed.table(), tmp_path / "out", [(1, 4)])[0]
    assert stored(result.dest) == {"a/b.png", "m.png", "c/d/e.v2.png"}
    assert rows_by_key(result.dest)["tall1.png"]["skipped"] == TALL


def test_a_slice_beyond_the_rows_is_empty_and_no_failure(mixed: Photos, tmp_path: Path) -> None:
    table = mixed.table()
    beyond, whole = made("text", table, tmp_path / "out", [(100, 200), (0, None)])
    assert (beyond.stored, beyond.listed) == (0, 0)
    assert whole.stored == 10


# buckets


def test_fitted_buckets_stay_when_images_are_added(photos: Photos, tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(60, 60), (90, 60), (60, 90), (40, 80)]):
        photos.add(f"{number}.png", height, width)
    settings = {**FAKE, "buckets": "auto:2"}
    first = image_features(photos.table(), tmp_path / "out", **settings)
    table = table_of(first.dest)
    before = {path: identity(path) for path in first.dest.glob("*.npy")}
    for number in range(4, 9):
        photos.add(f"{number}.png", 30, 110)
    more = image_features(photos.table(), tmp_path / "out", **settings)
    assert (more.stored, more.computed) == (9, 5)
    assert table_of(more.dest) == table
    assert {path: identity(path) for path in before} == before
    anew = image_features(photos.table(), tmp_path / "out", **settings, overwrite=True)
    assert table_of(anew.dest) != table
    assert anew.computed == 9


def table_of(folder: Path) -> str:
    metadata = Metadata.read_beside(folder)
    assert metadata is not None and metadata.buckets is not None
    return metadata.buckets.table


@pytest.mark.parametrize("fit", ["stretch", "cover", "pad"])
@pytest.mark.parametrize("buckets", ["reference", "grid:64:0.5:2"])
def test_the_stored_geometry_is_what_was_done(photos: Photos, tmp_path: Path, fit: str, buckets: str) -> None:
    """What size conditioning is told makes the very pixels that the latent was made of."""
    for number, (height, width) in enumerate([(60, 80), (301, 100), (77, 401), (512, 512), (90, 61)]):
        photos.add(f"{number}.png", height, width)
    folder = image_features(photos.table(), tmp_path / "out", fit=fit, buckets=buckets, **FAKE).dest
    for row in photos.rows:
        found = rows_by_key(folder)[row["path"]]
        how: Mapping[str, list[int]] = found["geometry"]
        assert how["size"] == [row["height"], row["width"]]
        top, left, bottom, right = how["crop"]
        assert [bottom - top, right - left] == how["bucket"]
        latent = np.load(folder / found["name"])
        assert list(latent.shape) == [8, how["bucket"][0] // 8, how["bucket"][1] // 8]
        with Image.open(photos.images / row["path"]) as image:
            scaled = image.resize(how["scaled"][::-1], Image.Resampling.BICUBIC)
        pixels = np.asarray(scaled.crop((left, top, right, bottom)), np.float32)
        blocks = pixels.reshape(latent.shape[1], 8, latent.shape[2], 8, 3).mean(axis=(1, 3)) / 127.5 - 1
        np.testing.assert_allclose(latent[:3], blocks.transpose(2, 0, 1), atol=1e-5)
        overlap = (min(bottom, how["scaled"][0]) - max(top, 0)) * (min(right, how["scaled"][1]) - max(left, 0))
        whole = {"stretch": how["bucket"], "cover": how["bucket"], "pad": how["scaled"]}[fit]
        assert overlap == whole[0] * whole[1]


def test_the_bucket_report_adds_up(photos: Photos, tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(60, 80), (60, 80), (300, 100), (512, 512), (460, 100)]):
        photos.add(f"{number}.png", height, width)
    result = image_features(photos.table(), tmp_path / "out", fit="cover", **FAKE)
    buckets = [row for row in report_of(result)["buckets"] if row["images"]]
    assert sum(row["images"] for row in buckets) == result.stored == 4
    assert [(row["images"], row["bucket"]) for row in buckets if row["ratio"] == 1.0] == [(1, [512, 512])]
    shapes = [tuple(np.load(path).shape[1:]) for path in result.dest.glob("*.npy")]
    assert sorted(shapes) == sorted(
        (row["bucket"][0] // 8, row["bucket"][1] // 8) for row in buckets for _ in range(row["images"])
    )
    square = next(row for row in buckets if row["bucket"] == [512, 512])
    assert (square["cropped_away"], square["distortion"], square["upscaled"]) == (0, 0, 0)


def test_the_buckets_command_shows_the_same_without_encoding(photos: Photos, tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(60, 80), (60, 80), (512, 512), (460, 100)]):
        photos.add(f"{number}.png", height, width)
    photos.add("gone.png", 60, 80)
    (photos.images / "gone.png").unlink()
    before = contents(photos.data.parent)
    done = in_process("buckets", photos.table(), "--fit", "cover")
    assert done.exit_code == 0, done.output
    lines = {line.strip().split("  ")[0]: line.split() for line in done.stdout.splitlines()}
    assert lines["512 x 512"][4] == "1"
    assert lines["416 x 576"][4] == "2"
    assert lines["all"][1] == "3"
    assert "2 of 40 buckets have images" in done.stdout
    assert f"left out: 3.png: {TALL}" in done.stderr
    assert "left out: gone.png: No such file or directory" in done.stderr
    assert contents(photos.data.parent) | {"InternData/data_info.json": b""} == before | {
        "InternData/data_info.json": b""
    }
    assert not (tmp_path / "out").exists()
    fitted = in_process("buckets", photos.table(), "--buckets", "auto:2", "--resolution", "256", "--fit", "pad")
    assert fitted.exit_code == 0, fitted.output
    assert "2 of 2 buckets have images" in fitted.stdout


# settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--vae", "fake", "--multi-scale", "--resolution", "300"), "resolution must be one of"),
        (("--vae", "fake", "--resolution", "0"), "resolution must be greater than or equal to 1. Found: 0"),
        (("--vae", "fake", "--resolution", "300"), "multiples of 8. Found: 300x300"),
        (("--vae", "fake", "--buckets", "auto:3"), "--multi-scale"),
        (("--vae", "fake", "--multi-scale", "--buckets", "auto"), "buckets must be reference, grid"),
        (("--vae", "fake", "--multi-scale", "--buckets", "grid:7"), "multiple of 8"),
        (("--vae", "fake", "--multi-scale", "--buckets", "grid:64:2:1"), "Found: 2.0 to 1.0"),
        (("--vae", "fake", "--multi-scale", "--buckets", "auto:0"), "at least 1. Found: 0"),
        (("--vae", "fake", "--multi-scale", "--batch-size", "0"), "Found: "),
        (("--vae", "fake", "--multi-scale", "--batch-size", "many"), "batch-size must be"),
        (("--vae", "fake", "--multi-scale", "--batch-size", "-1"), "batch-size must be"),
        (("--vae", "fake", "--multi-scale", "--pixel-range", "0,255"), "pixel-range must be -1,1 or 0,1"),
        (("--vae", "fake", "--multi-scale", "--device", "gpu"), "device must be auto, cpu"),
        (("--vae", "fake", "--multi-scale", "--threads", "0"), "threads must be"),
        (("--vae", "fake", "--multi-scale", "--num-workers", "0"), "num-workers must be"),
        (("--vae", "fake", "--multi-scale", "--max-failures", "200%"), "max-failures must be"),
        (("--vae", "fake", "--multi-scale", "--start-index", "-1"), "start-index must be"),
        (("--vae", "fake", "--multi-scale", "--start-index", "5", "--end-index", "3"), "end-index"),
        (("--vae", "fake", "--multi-scale", "--suffix", "a/b"), "suffix must be a part of a folder's name"),
        (("--vae", "fake", "--multi-scale", "--caption-column", "x=gone"), "has no column gone"),
        (("--vae", "fake", "--multi-scale", "--path-column", "gone"), "gone"),
        (("--vae", "fake", "--multi-scale", "--images", "nowhere"), "no folder"),
        (("--vae", "nowhere/there", "--multi-scale"), "nowhere/there"),
        (("--text-encoder", TINY_T5, "--max-length", "1"), "max-length must be"),
        (("--text-encoder", TINY_T5, "--token-budget", "0"), "token-budget must be"),
        (("--text-encoder", TINY_T5, "--caption-label", "../x"), "label must be a part of a folder's name"),
        (("--text-encoder", TINY_T5, "--caption-label", ""), "is called ''"),
        (("--text-encoder", TINY_T5, "--caption-label", "sharegpt4v"), "There are: prompt"),
        (("--text-encoder", "nowhere/there"), "nowhere/there"),
    ],
    ids=lambda value: " ".join(map(str, value[2:])) if isinstance(value, tuple) else None,
)
def test_a_wrong_setting_is_one_line_and_writes_nothing(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], said: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    photos.add("x.png", 60, 80)
    done = in_process("pixart", "--data-info", photos.table(), "--dest", tmp_path / "out", *arguments)
    assert done.exit_code == 2, done.output
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert "fault in latentmill" not in lines[0]
    assert not list(tmp_path.glob("out/**/*"))


def test_an_unknown_setting_of_the_python_call_is_named(photos: Photos, tmp_path: Path) -> None:
    with pytest.raises(LatentmillError, match="resolutions"):
        image_features(photos.data, tmp_path / "out", resolutions=512)


def test_a_destination_among_the_images_is_refused(photos: Photos, tmp_path: Path) -> None:
    photos.add("x.png", 60, 80)
    with pytest.raises(LatentmillError, match="lies among the source's images"):
        image_features(photos.images, photos.images / "out", **FAKE)
    with pytest.raises(LatentmillError, match="Not a directory"):
        image_features(photos.table(), photos.table(), **FAKE)
