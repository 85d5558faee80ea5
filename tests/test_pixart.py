"""The files of PixArt's readers: names that they open, names that are refused, and what is in a file."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmill.errors import SourceError
from latentmill.formats.layouts import layout_of
from latentmill.formats.pixart import (
    PixArtLatents,
    PixArtText,
    ReaderKind,
    check_names,
    feature_name,
    latents_folder,
    text_folder,
)
from latentmill.formats.repa import ImageLayout, LatentLayout
from latentmill.stages import Layout
from pixart_reader import TrainerReader


def reader(kind: ReaderKind) -> TrainerReader:
    return TrainerReader(Path(), kind == "multi", 512)


@pytest.mark.parametrize(
    ("key", "multi", "single"),
    [
        ("000000000000.png", "000000000000.npz", "000000000000.npz"),
        ("a/x.png", "a_x.npz", "x.npz"),
        ("a/b/c.png", "a/b_c.npz", "c.npz"),
        ("c/d/e.v2.png", "c/d_e.v2.npz", "e.v2.npz"),
        ("with space/ünï 猫.JPEG", "with space_ünï 猫.npz", None),
        ("a.jpg/x.png", "a.npz_x.npz", "x.npz"),
        ("x.png.webp", "x.npz.npz", None),
        (".png", ".npz", ".npz"),
    ],
)
def test_names_are_those_that_the_reader_opens(key: str, multi: str, single: str | None) -> None:
    assert feature_name(key, "multi", ".npz") == reader("multi").opened(key, ".npz") == multi
    assert feature_name(key, "single", ".npz") == reader("single").opened(key, ".npz")
    check_names([key], "multi", ".npz")
    if single is not None:
        assert feature_name(key, "single", ".npz") == single
        check_names([key], "single", ".npz")
    else:
        with pytest.raises(SourceError, match=r"maps names in \.png only"):
            check_names([key], "single", ".npz")


parts = st.text(st.sampled_from("ab .ü_"), min_size=1, max_size=3)
extensions = st.sampled_from([".png", ".jpg", ".webp", ".jpeg", ".JPEG", ".JPG", ".PNG", ".bmp"])
paths = st.builds(
    lambda folders, stem, ext: "/".join([*folders, stem + ext]), st.lists(parts, max_size=2), parts, extensions
)


@given(st.lists(paths, min_size=1, max_size=5, unique=True), st.sampled_from(["multi", "single"]))
def test_what_is_let_through_gives_every_image_a_file_of_its_own(keys: list[str], kind: ReaderKind) -> None:
    opened = [reader(kind).opened(key, ".npy") for key in keys]
    clear = len(set(opened)) == len(opened) and all(name.endswith(".npy") for name in opened)
    try:
        check_names(keys, kind, ".npy")
    except SourceError:
        assert not clear
    else:
        assert clear
        assert [PixArtLatents(kind).name(0, key) for key in keys] == opened


@pytest.mark.parametrize(
    ("keys", "kind", "said"),
    [
        (["a/x.png", "b/x.png"], "single", "b/x.png and a/x.png (both are x.npy)"),
        (["a/b/c.png", "a/./b/c.png"], "multi", "a/./b/c.png and a/b/c.png (both are a/b_c.npy)"),
        (["a/x.png", "a_x.png"], "multi", "both are a_x.npy"),
        (["x.png", "x.jpg"], "multi", "both are x.npy"),
        (["x.PNG"], "multi", "x.PNG (the multi-scale reader maps names in .png, .jpg, .webp, .jpeg, .JPEG, .JPG only)"),
        (["x.bmp"], "multi", "x.bmp (the multi-scale reader maps"),
        (["x.jpg"], "single", "x.jpg (the single-scale reader maps names in .png only)"),
        (["a/" + "x" * 250 + ".png"], "multi", "(its file name would be over 255 bytes)"),
        (["ü" * 127 + ".png"], "multi", "(its file name would be over 255 bytes)"),
        ([".latentmill/a/x.png"], "multi", "folder of latentmill's own"),
        (["x.jpg", "x.png/a/y.png"], "multi", "x.jpg and x.png/a/y.png (x.npy cannot be a file and a folder)"),
        (["x.png/a/y.png", "x.jpg"], "multi", "x.jpg and x.png/a/y.png (x.npy cannot be a file and a folder)"),
    ],
)
def test_what_the_reader_cannot_find_is_refused_by_name(keys: list[str], kind: ReaderKind, said: str) -> None:
    with pytest.raises(SourceError, match=re.escape(said)) as caught:
        check_names(["fine.png", *keys], kind, ".npy")
    assert "fine.png" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_longest_name_and_the_empty_captions() -> None:
    check_names(["y" * 251 + ".png", "a/" + "x" * 249 + ".png"], "multi", ".npy")
    for key in ("latentmill-empty.png", "latentmill-empty.jpg"):
        check_names([key], "multi", ".npy")
        with pytest.raises(SourceError, match=rf"{key} and the features of the empty caption"):
            check_names([key], "multi", ".npz")


def test_many_refusals_are_counted() -> None:
    with pytest.raises(SourceError, match="and 95 more") as caught:
        check_names([f"{number}.bmp" for number in range(100)], "multi", ".npy")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("label", "suffix", "folder"),
    [
        ("prompt", "", "caption_features_new"),
        ("sharegpt4v", "", "sharegpt4v_caption_features_new"),
        ("long_prompt", "", "long_caption_features_new"),
        ("prompt", "v2", "caption_features_new_v2"),
        ("prompt_2", "prompt_x", "2_caption_features_new_prompt_x"),
    ],
)
def test_folders_of_captions(label: str, suffix: str, folder: str) -> None:
    assert text_folder(label, suffix) == folder


def test_folders_of_latents() -> None:
    assert latents_folder(512, True) == "img_sdxl_vae_features_512resolution_ms_new"
    assert latents_folder(256, False) == "img_sdxl_vae_features_256resolution_new"


# files of text features


def vectors(length: int, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, width)).astype(np.float16)


@pytest.mark.parametrize("padded", [None, 300])
@pytest.mark.parametrize(("length", "width"), [(1, 64), (20, 64), (300, 64), (150, 4096)])
def test_a_file_holds_the_real_tokens(padded: int | None, length: int, width: int) -> None:
    layout = PixArtText("multi", padded)
    found = layout.to_bytes(vectors(length, width))
    with np.load(io.BytesIO(found)) as file:
        feature, mask = file["caption_feature"], file["attention_mask"]
    stored = padded or length
    assert (feature.dtype, feature.shape) == (np.float16, (1, stored, width))
    assert (mask.dtype, mask.shape) == (np.int16, (1, stored))
    assert mask[0].tolist() == [1] * length + [0] * (stored - length)
    np.testing.assert_array_equal(feature[0, :length], vectors(length, width))
    np.testing.assert_array_equal(feature[0, length:], np.repeat(vectors(length, width)[-1:], stored - length, axis=0))
    np.testing.assert_array_equal(layout.from_bytes(found), vectors(length, width))
    assert found == layout.to_bytes(vectors(length, width))


def test_padding_takes_little_room() -> None:
    trimmed, padded = (len(PixArtText("multi", length).to_bytes(vectors(10, 4096))) for length in (None, 300))
    assert padded < 1.3 * trimmed


@pytest.mark.parametrize(
    ("feature", "mask", "padded"),
    [
        ((1, 5, 8), [1, 1, 0, 1, 1], None),
        ((1, 5, 8), [1, 1, 1, 0, 0], None),
        ((1, 5, 8), [1, 1, 1, 1, 1], 300),
        ((1, 5, 8), [0, 0, 0, 0, 0], 5),
        ((1, 5, 8), [1, 1, 1, 1], None),
        ((5, 8), [1, 1, 1, 1, 1], None),
    ],
)
def test_a_file_of_another_making_is_no_feature(feature: tuple[int, ...], mask: list[int], padded: int | None) -> None:
    file = io.BytesIO()
    np.savez(file, caption_feature=np.ones(feature, np.float16), attention_mask=np.array([mask], np.int16))
    with pytest.raises(ValueError, match=r"belong together|are real"):
        PixArtText("multi", padded).from_bytes(file.getvalue())


def test_a_file_without_a_mask_or_of_other_numbers_is_no_feature() -> None:
    for arrays in (
        {"caption_feature": np.ones((1, 2, 8), np.float16)},
        {"caption_feature": np.ones((1, 2, 8), np.float32), "attention_mask": np.ones((1, 2), np.int16)},
    ):
        file = io.BytesIO()
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=r"attention_mask|float32"):
            PixArtText("multi").from_bytes(file.getvalue())


def test_a_large_trimmed_file_is_stored_and_a_trainer_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(PixArtText("multi").to_bytes(vectors(200, 4096)))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    with np.load(path) as file:
        assert file["caption_feature"].shape == (1, 200, 4096)


@pytest.mark.parametrize("padded", [None, 30])
def test_a_pooled_vector_lies_beside_the_features(padded: int | None) -> None:
    layout, pooled = PixArtText("multi", padded, 20), vectors(1, 20, seed=1)[0]
    data = layout.to_bytes(vectors(9), {"pooled": pooled})
    with np.load(io.BytesIO(data)) as file:
        assert (file["pooled"].dtype, file["pooled"].shape) == (np.float16, (1, 20))
        assert {name: file[name].shape[:2] for name in ("caption_feature", "attention_mask")} == {
            "caption_feature": (1, padded or 9),
            "attention_mask": (1, padded or 9),
        }
    features, found = layout.both_of(data)
    np.testing.assert_array_equal(features, vectors(9))
    np.testing.assert_array_equal(found, pooled)
    np.testing.assert_array_equal(layout.from_bytes(data), vectors(9))
    with pytest.raises(ValueError, match=r"pooled float16 \(1, 20\), not float16 \(1, 21\)"):
        PixArtText("multi", padded, 21).from_bytes(data)
    with pytest.raises(ValueError, match="pooled not there"):
        layout.from_bytes(PixArtText("multi", padded).to_bytes(vectors(9)))


def test_a_file_of_a_pooled_vector_alone() -> None:
    layout = PixArtText("multi", None, 20, features=False)
    data = layout.to_bytes(vectors(1, 20))
    with np.load(io.BytesIO(data)) as file:
        assert file.files == ["pooled"]
    array, pooled = layout.both_of(data)
    np.testing.assert_array_equal(array, vectors(1, 20))
    np.testing.assert_array_equal(pooled, vectors(1, 20)[0])
    with pytest.raises(ValueError, match="pooled not there"):
        layout.from_bytes(PixArtText("multi").to_bytes(vectors(9)))


# codes


@pytest.mark.parametrize(
    "layout",
    [
        *(PixArtLatents(kind) for kind in ("multi", "single")),
        *(PixArtText(kind, padded) for kind in ("multi", "single") for padded in (None, 120)),
        *(PixArtText("multi", padded, 768) for padded in (None, 120)),
        PixArtText("single", None, 768, features=False),
        *(LatentLayout(statistic) for statistic in ("moments", "mean", "sample")),
        ImageLayout(),
    ],
)
def test_a_code_tells_the_whole_layout(layout: Layout) -> None:
    assert layout_of(layout.code) == layout


@pytest.mark.parametrize(
    "code",
    [
        "",
        "pixart",
        "pixart/text/multi/pooled-",
        "pixart/text/multi-only",
        "pixart/latents/multi/padded-3",
        "repa/latents/x",
        "webdataset/1",
    ],
)
def test_an_unknown_code_is_refused(code: str) -> None:
    with pytest.raises(SourceError, match="a layout that this version does not know"):
        layout_of(code)
