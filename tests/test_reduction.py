"""How far JPEGs are decoded at reduced scale for `--resize fast`, and what that leaves as it was."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import latentmill
from latentmill import jpeg
from latentmill.errors import SettingsChangedError
from latentmill.formats.metadata import Metadata
from latentmill.loading import BucketLoad, DecodeImage, ImageLoad
from latentmill.recipe import Recipe
from latentmill.records import Array, SampleRef
from latentmill.transforms.bucket import table_for
from latentmill.transforms.reduction import LEFT, MOST, CropReduction, halvings
from latentmill.transforms.variant import Variant
from support import contents

PHOTOS = sorted((Path(latentmill.__file__).parent / "assets" / "photos").rglob("*.jpg"))
sides = st.integers(1, 6000)


def cut(path: Path, size: tuple[int, int], **options: Any) -> bytes:
    """The top left corner of a photo, of (height, width), as a JPEG."""
    file = io.BytesIO()
    Image.open(path).convert("RGB").crop((0, 0, size[1], size[0])).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def loaded(load: ImageLoad | BucketLoad, data: bytes, size: tuple[int, int]) -> tuple[Array, int]:
    """What is made of a photo, and how often it was halved while it was decoded."""
    decoded = load.decode(data)
    assert decoded.size == size
    sample = load(SampleRef(0, "a.jpg", "", size=size), decoded)
    assert sample is not None
    return sample.array, decoded.halvings


def crop(transform: str, side: int, **settings: Any) -> tuple[ImageLoad, ImageLoad]:
    """The exact load and the fast one."""
    told: dict[str, Any] = {"exif": "ignore", "alpha": "drop", "result_size": (side, side), **settings}
    exact, fast = (ImageLoad(transform, (side, side), fast=fast, **told) for fast in (False, True))
    return exact, fast


def decibels(found: Array, exact: Array) -> float:
    return float(10 * np.log10(255**2 / np.square(found.astype(float) - exact).mean()))


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.tuples(sides, sides))
def test_what_is_left_is_large_enough_and_displaces_nothing(
    size: tuple[int, int], scaled: tuple[int, int], begins: tuple[int, int]
) -> None:
    count = halvings(size, scaled, begins)
    if count:
        assert all(side % 2**count == 0 for side in (*size, *begins))
        assert all(side // 2**count >= LEFT * wanted for side, wanted in zip(size, scaled, strict=True))


@pytest.mark.parametrize(
    ("transform", "size", "expected"),
    [
        ("center-crop-dhariwal", (3000, 4000), 2),
        ("center-crop-dhariwal", (4096, 4096), MOST),
        ("center-crop-dhariwal", (3001, 4000), 0),  # an odd side
        ("center-crop-dhariwal", (375, 500), 0),  # not twice the result
        ("center-crop-dhariwal", (1020, 4000), 0),
        ("center-crop", (3000, 4000), 2),
        ("center-crop", (3000, 4004), 1),  # the square begins at column 502
        ("none", (3000, 1024), 1),
        ("center-crop-wide", (4096, 4096), 0),
    ],
)
def test_of_a_crop_to_256(transform: str, size: tuple[int, int], expected: int) -> None:
    assert CropReduction(transform, (256, 256))(size) == expected


@pytest.mark.parametrize("transform", ["none", "center-crop", "center-crop-dhariwal"])
@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_a_reduced_photo_is_within_the_bound(transform: str, path: Path) -> None:
    exact, fast = crop(transform, 64)
    data = cut(path, (296, 384))
    found, count = loaded(fast, data, (296, 384))
    assert count == 1
    made, none = loaded(exact, data, (296, 384))
    assert none == 0
    assert decibels(found, made) >= 42
    assert np.percentile(np.abs(found.astype(int) - made), 99.9) <= 14


def test_grey_and_on_its_side() -> None:
    path = PHOTOS[0]
    file = io.BytesIO()
    Image.open(path).convert("L").crop((0, 0, 384, 296)).save(file, "JPEG", quality=90)
    exact, fast = crop("center-crop-dhariwal", 64)
    assert decibels(loaded(fast, file.getvalue(), (296, 384))[0], loaded(exact, file.getvalue(), (296, 384))[0]) >= 42
    exif = Image.Exif()
    exif[0x0112] = 6
    data = cut(path, (296, 384), exif=exif)
    exact, fast = crop("center-crop-dhariwal", 64, exif="apply", variant=Variant(crop=1))
    found, count = loaded(fast, data, (384, 296))
    assert count == 1 and decibels(found, loaded(exact, data, (384, 296))[0]) >= 42


@pytest.mark.parametrize("size", [(295, 384), (200, 250)])
def test_what_is_not_reduced_is_exact(size: tuple[int, int]) -> None:
    for path in PHOTOS[:4]:
        exact, fast = crop("center-crop-dhariwal", 64)
        found, count = loaded(fast, cut(path, size), size)
        assert count == 0
        np.testing.assert_array_equal(found, loaded(exact, cut(path, size), size)[0])


def test_a_png_is_never_reduced() -> None:
    file = io.BytesIO()
    Image.open(PHOTOS[0]).convert("RGB").resize((512, 512)).save(file, "PNG")
    exact, fast = crop("none", 64)
    np.testing.assert_array_equal(
        loaded(fast, file.getvalue(), (512, 512))[0], loaded(exact, file.getvalue(), (512, 512))[0]
    )


def lossless(side: int) -> bytes:
    """A grey lossless JPEG (ITU T.81, process 14) of one level: each pixel is as the one before, told by one 0 bit."""
    frame = struct.pack(">HHBHHBBBB", 0xFFC3, 11, 8, side, side, 1, 1, 0x11, 0)
    codes = struct.pack(">HHB16BB", 0xFFC4, 20, 0, 1, *[0] * 15, 0)
    scan = struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8" + frame + codes + scan + bytes(side * side // 8) + b"\xff\xd9"


def test_a_lossless_jpeg_is_never_reduced() -> None:
    """libjpeg would write all of it to memory for a fraction."""
    exact, fast = crop("center-crop", 64)
    data = lossless(512)
    assert CropReduction("center-crop", (64, 64))((512, 512)) == 2
    found, count = loaded(fast, data, (512, 512))
    assert count == 0
    assert np.array_equal(found, loaded(exact, data, (512, 512))[0])
    assert (found == 128).all()
    assert fast.decode.needs(data) == 3 * 512 * 512


@pytest.mark.parametrize("filled", [b"\xff", b"\xff\x01", b"\xff\xd0"])
def test_a_frame_that_libjpeg_may_find_elsewhere_is_never_reduced(filled: bytes) -> None:
    """Bytes that fill a gap, behind which the lengths of segments lead elsewhere, to a frame that can be reduced."""
    whole = lossless(512)
    data = whole[:2] + filled + whole[2:]
    leads = 4 + int.from_bytes(data[4:6], "big")
    tables = cut(PHOTOS[0], (512, 512))[20:]  # behind JFIF's
    decoy = data.ljust(leads, b"\0")[:leads] + tables
    grey = jpeg.Header(512, 512, "Gray", "Gray")
    assert jpeg.reducible(whole[:2] + tables, grey)
    assert not jpeg.reducible(decoy, grey)


@pytest.mark.parametrize(("sampling", "most"), [("444", 2), ("422", 2), ("420", 2), ("440", 2), ("411", 0)])
def test_of_colours_at_a_quarter_of_the_width_nothing_is_reduced(sampling: str, most: int) -> None:
    """libjpeg repeats them at reduced scale: up to 71 levels from exact were seen."""
    pixels = np.asarray(Image.open(PHOTOS[0]).convert("RGB").resize((512, 512)))
    data = simplejpeg.encode_jpeg(pixels, 90, "RGB", sampling)
    assert loaded(crop("center-crop", 64)[1], data, (512, 512))[1] == most


def test_a_bucket_is_that_of_the_whole_photo() -> None:
    table = table_for("grid:8", 64)
    exact, fast = (BucketLoad(table, "cover", "bicubic", "ignore", "drop", fast=fast) for fast in (False, True))
    size = (296, 384)
    data = cut(PHOTOS[-1], size)
    found, count = loaded(fast, data, size)
    assert count == 1
    assert decibels(found, loaded(exact, data, size)[0]) >= 42
    decoded = fast.decode(data)
    samples = [load(SampleRef(0, "a.jpg", "", size=size), load.decode(data)) for load in (exact, fast)]
    assert samples[0] is not None and samples[1] is not None
    assert samples[0].geometry == samples[1].geometry
    assert decoded.pixels.shape[:2] == (148, 192)


def test_ways_of_decoding_are_shared_only_where_they_are_the_same() -> None:
    exact, fast = crop("none", 64)
    assert exact.decode == DecodeImage("ignore", "drop", exact.max_pixels)
    assert fast.decode != exact.decode
    assert fast.decode == crop("none", 64)[1].decode != crop("none", 32)[1].decode


def test_fast_is_told_in_the_fingerprint_and_exact_is_not(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for path in PHOTOS[:3]:
        (source / path.name).write_bytes(cut(path, (296, 384)))
    settings = {"transform": "center-crop-dhariwal", "resolution": "64x64", "num_workers": 1}
    exact = latentmill.convert(source, tmp_path / "exact", **settings).dest
    fast = latentmill.convert(source, tmp_path / "fast", resize="fast", **settings).dest
    made_with = [Metadata.read_beside(dest).fingerprint for dest in (exact, fast)]  # type: ignore[union-attr]
    assert "resize" not in made_with[0]
    assert made_with[1] == {**made_with[0], "resize": "fast"}
    with pytest.raises(SettingsChangedError, match="resize: was not set, now fast"):
        latentmill.convert(source, exact, resize="fast", **settings)
    told = {name: {"kind": "pixels", **settings, "resize": name} for name in ("exact", "fast")}
    for each in told.values():
        del each["num_workers"]
    Recipe(source, told, tmp_path / "both", {"num_workers": 1}).run()
    for dest in (exact, fast):
        assert contents(tmp_path / "both" / dest.name, data_only=True) == contents(dest, data_only=True)
