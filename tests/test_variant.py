"""Augmented variants: every pixel against NumPy and Pillow by hand, boxes, and what must not depend on them."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from feature_jobs import FOLDERS, Data, index, run_images, small
from latentmill import api
from latentmill.errors import ConfigError, SampleError
from latentmill.formats.metadata import RECIPE_TOML, Metadata
from latentmill.records import Geometry
from latentmill.transforms.crop import PLACED, center_crop, center_crop_dhariwal, crop_geometry
from latentmill.transforms.fit import geometry
from latentmill.transforms.variant import PLAIN, Variant, offset, variants
from latentmill.verification import verify
from support import contents

SIZES = [(60, 41), (33, 90), (48, 48), (150, 70), (64, 65), (37, 36)]  # (height, width)
SIDE = 32
SHOWN = {"flip": "both", "crops": 3, "crop_seed": 4}
SUFFIXES = ("", "-flip", "-crop1", "-crop1-flip", "-crop2", "-crop2-flip")
place = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate(SIZES):
        coarse = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def photo(photos: Path, number: int) -> Image.Image:
    return Image.open(photos / f"{number}.png").convert("RGB")


def halved(image: Image.Image) -> Image.Image:
    """What ADM crops from (openai/guided-diffusion, image_datasets.py), from its published description."""
    while min(*image.size) >= 2 * SIDE:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = SIDE / min(*image.size)
    return image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC)


def by_hand(image: Image.Image, transform: str, how: dict[str, Any]) -> np.ndarray:
    top, left, bottom, right = how["crop"]
    if transform == "center-crop-dhariwal":
        image = halved(image)
        assert how["scaled"] == [image.height, image.width]
        return np.asarray(image.crop((left, top, right, bottom)))
    assert how["scaled"] == [image.height, image.width]
    assert (bottom - top, right - left) == (min(image.size),) * 2
    return np.asarray(image.crop((left, top, right, bottom)).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def pictures(dataset: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(dataset.rglob("*.png"))]


# names and places


def test_names_and_fingerprints() -> None:
    found = variants("both", 3, 4)
    assert [variant.suffix for variant in found] == list(SUFFIXES)
    assert found[3].beside(Path("a/b")) == Path("a/b-crop1-flip")
    assert found[1].beside(Path("a/b.zip")) == Path("a/b-flip.zip")
    assert [variant.fingerprint() for variant in found[:2]] == [{}, {"flip": True}]
    for variant in found[2:]:
        assert Variant.of({"other": 1, **variant.fingerprint()}) == variant
    assert Variant.of({}) == PLAIN


def test_a_place_is_the_same_on_every_machine() -> None:
    """Literals: a change would make datasets that are begun with one version and updated with another differ."""
    assert PLAIN.place("c0/a.png") is None
    assert Variant(crop=1).place("c0/a.png") == (0.7526629969943315, 0.6044541767332703)
    assert Variant(flip=True, crop=1).place("c0/a.png") == Variant(crop=1).place("c0/a.png")
    assert Variant(crop=1).place("caf\udce9.png") is not None  # a name that is not UTF-8
    different = {Variant(crop=c, seed=s).place(k) for c, s, k in itertools.product((1, 2), (0, 1), "ab")}
    assert len(different) == 8


def test_places_are_spread_evenly() -> None:
    for axis in range(2):
        counts = Counter(offset(4, Variant(crop=1).place(f"{number}")[axis]) for number in range(2000))
        assert sorted(counts) == [0, 1, 2, 3, 4]
        assert max(abs(count - 400) for count in counts.values()) < 80


@given(st.integers(0, 100_000), place)
def test_a_window_stays_inside(free: int, shares: tuple[float, float]) -> None:
    assert 0 <= offset(free, shares[0]) <= free
    assert offset(0, shares[0]) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 2, 7, 16, 32]))
def test_boxes_of_the_centre_are_those_of_the_plain_crops(height: int, width: int, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    short = min(height, width)
    how = crop_geometry("center-crop", (height, width), (short, short))
    top, left, bottom, right = how.crop
    assert np.array_equal(center_crop(pixels, short, short), pixels[top:bottom, left:right])
    if max(height, width) / short * side > 4000:
        return
    how = crop_geometry("center-crop-dhariwal", (height, width), (side, side))
    scaled = Image.fromarray(pixels)
    while min(scaled.size) >= 2 * side:
        scaled = scaled.resize((scaled.width // 2, scaled.height // 2), Image.Resampling.BOX)
    scaled = scaled.resize(how.scaled[::-1], Image.Resampling.BICUBIC)
    top, left, bottom, right = how.crop
    assert np.array_equal(center_crop_dhariwal(pixels, side, side), np.asarray(scaled.crop((left, top, right, bottom))))


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.integers(1, 900), st.integers(1, 900)), st.tuples(st.integers(1, 90), st.integers(1, 90)), place)
def test_cover_elsewhere_differs_in_the_box_alone(
    size: tuple[int, int], bucket: tuple[int, int], shares: tuple[float, float]
) -> None:
    try:
        how, centred = geometry("cover", size, bucket, shares), geometry("cover", size, bucket)
    except SampleError:
        return
    assert Geometry(how.size, how.scaled, centred.crop, how.bucket) == centred
    top, left, bottom, right = how.crop
    assert (bottom - top, right - left) == bucket
    assert 0 <= top <= bottom <= how.scaled[0]
    assert 0 <= left <= right <= how.scaled[1]


def test_what_does_not_crop_has_no_other_crops() -> None:
    for fit in ("stretch", "pad"):
        with pytest.raises(ConfigError, match=f"crops need fit cover: nothing is cropped else. Found: '{fit}'"):
            geometry(fit, (10, 20), (8, 8), (0.5, 0.5))


# datasets


@pytest.mark.parametrize("transform", sorted(PLACED))
def test_pixels_of_every_variant(photos: Path, tmp_path: Path, transform: str) -> None:
    settings = {"transform": transform, "resolution": f"{SIDE}x{SIDE}", "num_workers": 1}
    api.convert(photos, tmp_path / "out", **settings, **SHOWN)
    api.convert(photos, tmp_path / "alone", **settings)
    plain, alone = contents(tmp_path / "out"), contents(tmp_path / "alone")
    assert {name for name in plain if plain[name] != alone[name]} <= {RECIPE_TOML}
    assert not [row for row in index(tmp_path / "out") if "geometry" in row]
    starts = set()
    for crop in ("", "-crop1", "-crop2"):
        upright, flipped = pictures(tmp_path / f"out{crop}"), pictures(tmp_path / f"out{crop}-flip")
        for number, (one, other) in enumerate(zip(upright, flipped, strict=True)):
            assert np.array_equal(other, np.flip(one, axis=1)), number
        if not crop:
            continue
        rows = [index(tmp_path / f"out{crop}{flip}") for flip in ("", "-flip")]
        for number, (row, mirrored) in enumerate(zip(*rows, strict=True)):
            assert row["geometry"] == mirrored["geometry"]
            assert row["geometry"]["size"] == list(SIZES[number])
            assert row["geometry"]["bucket"] == [SIDE, SIDE]
            assert np.array_equal(upright[number], by_hand(photo(photos, number), transform, row["geometry"]))
            starts.add((number, *row["geometry"]["crop"]))
    assert len(starts) > len(SIZES) + 2  # crops of one image lie in different places
    square = SIZES.index((48, 48))
    assert np.array_equal(pictures(tmp_path / "out-crop1")[square], pictures(tmp_path / "out")[square])
    for suffix in SUFFIXES:
        assert verify(tmp_path / f"out{suffix}").problems == []


def test_latents_of_every_variant_pair_with_its_pixels(photos: Path, tmp_path: Path) -> None:
    settings = {"transform": "center-crop", "resolution": f"{SIDE}x{SIDE}", "model_url": "fake", "threads": 1}
    api.encode(photos, tmp_path / "z", images=tmp_path / "x", **settings, **SHOWN)
    for suffix in SUFFIXES:
        assert verify(tmp_path / f"z{suffix}", images=tmp_path / f"x{suffix}").problems == []
        pixels = pictures(tmp_path / f"x{suffix}")
        for number, picture in enumerate(pixels):  # the fake encoder's mean is that of 8x8 blocks
            blocks = picture.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 127.5 - 1
            moments = np.load(tmp_path / f"z{suffix}" / f"00000/img-mean-std-{number:08d}.npy")
            assert np.allclose(moments[:3], blocks, atol=1e-5)
        assert Metadata.read_beside(tmp_path / f"z{suffix}").classes is None


def test_the_seed_moves_the_crops_and_nothing_else_does(photos: Path, tmp_path: Path) -> None:
    settings = {"transform": "center-crop", "resolution": f"{SIDE}x{SIDE}", "num_workers": 1, "crops": 2}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        api.convert(photos, tmp_path / name, crop_seed=seed, **settings)
    again = [contents(tmp_path / f"{name}-crop1") for name in "ab"]
    assert {name for name in again[0] if again[0][name] != again[1][name]} <= {RECIPE_TOML}  # it tells the place
    assert contents(tmp_path / "a", data_only=True) == contents(tmp_path / "c", data_only=True)
    boxes = [[row["geometry"]["crop"] for row in index(tmp_path / f"{name}-crop1")] for name in "ac"]
    assert boxes[0] != boxes[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return small(tmp_path_factory.mktemp("data"), tall=False)


def test_buckets_of_every_variant(data: Data, tmp_path: Path) -> None:
    run_images(data, tmp_path, fit="cover", flip="both", crops=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FOLDERS[run_images] + s for s in SUFFIXES[:4])
    moved = 0
    for suffix, variant in zip(SUFFIXES[:4], variants("both", 2, 0), strict=True):
        folder = tmp_path / (FOLDERS[run_images] + suffix)
        assert verify(folder).problems == []
        for row in index(folder):
            how = row["geometry"]
            (height, width), (top, left, bottom, right) = how["scaled"], how["crop"]
            if variant.crop:
                shares = variant.place(row["key"])
                free = height - how["bucket"][0], width - how["bucket"][1]
                assert (top, left) == tuple(int(share * (room + 1)) for share, room in zip(shares, free, strict=True))
                moved += (top, left) != (round(free[0] / 2), round(free[1] / 2))
            image = Image.open(data.images / row["key"]).convert("RGB")
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[top:bottom, left:right]
            pixels = np.flip(pixels, axis=1) if variant.flip else pixels
            blocks = pixels.reshape(len(pixels) // 8, 8, -1, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 127.5 - 1
            assert np.allclose(np.load(folder / row["name"])[:3], blocks, atol=1e-5), (suffix, row["key"])
    assert moved
