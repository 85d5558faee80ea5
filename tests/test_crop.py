"""The four crops: geometry, rounding, skips, and what is too thin; test_golden.py holds them to the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latentmill.errors import SampleError
from latentmill.transforms.crop import CROPS, center_crop, center_crop_dhariwal, center_crop_wide, none
from support import PHOTOS


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def dhariwal_by_pillow(pixels: np.ndarray, side: int) -> np.ndarray:
    """The crop of ADM (openai/guided-diffusion, image_datasets.py), written again from its published description."""
    image = Image.fromarray(pixels)
    while min(*image.size) >= 2 * side:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = side / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 2, 7, 16, 32]))
def test_dhariwal_is_adms_crop_at_every_size(height: int, width: int, side: int) -> None:
    pixels = noise(height, width)
    if max(height, width) / min(height, width) * side > 4000:
        return
    assert np.array_equal(center_crop_dhariwal(pixels, side, side), dhariwal_by_pillow(pixels, side))


def test_dhariwal_leaves_a_picture_of_the_right_size_alone() -> None:
    pixels = noise(64, 64)
    assert np.array_equal(center_crop_dhariwal(pixels, 64, 64), pixels)
    wide = noise(64, 71)
    assert np.array_equal(center_crop_dhariwal(wide, 64, 64), wide[:, 3:67])  # (71 - 64) // 2 = 3, floor


@pytest.mark.parametrize(("height", "width"), [(9, 14), (14, 9), (9, 9), (10, 15), (15, 10)])
def test_center_crop_takes_the_middle_square_rounded_down(height: int, width: int) -> None:
    pixels, side = noise(height, width), min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    assert np.array_equal(center_crop(pixels, side, side), pixels[top : top + side, left : left + side])


@pytest.mark.parametrize(("height", "width"), [(5, 8), (6, 9), (8, 5), (1, 4)])
def test_center_crop_resizes_the_square_by_lanczos(height: int, width: int) -> None:
    pixels, side = noise(height, width), min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    expected = np.asarray(square.resize((16, 8), Image.Resampling.LANCZOS))
    assert np.array_equal(center_crop(pixels, 16, 8), expected)


def test_center_crop_wide_puts_the_band_on_black() -> None:
    pixels = np.asarray(Image.open(PHOTOS / "shapes" / "edge_512x426.jpg"))
    result = center_crop_wide(pixels, 128, 72)
    rows = round(128 * 426 / 512)  # 106
    top = (426 - rows) // 2
    band = Image.fromarray(pixels[top : top + rows]).resize((128, 72), Image.Resampling.LANCZOS)
    assert result.shape == (128, 128, 3)
    assert np.array_equal(result[28:100], np.asarray(band))
    assert not result[:28].any()
    assert not result[100:].any()


def test_center_crop_wide_leaves_out_what_is_too_small() -> None:
    assert center_crop_wide(noise(100, 127), 128, 72) is None  # narrower than asked for
    assert center_crop_wide(noise(71, 128), 128, 72) is None  # round(128 * 71 / 128) = 71 rows
    assert center_crop_wide(noise(72, 128), 128, 72) is not None
    # round is half to even: 128 * 143 / 256 = 71.5 becomes 72
    assert center_crop_wide(noise(143, 256), 128, 72) is not None
    # and 128 * 145 / 256 = 72.5 becomes 72, not 73
    assert center_crop_wide(noise(145, 256), 128, 73) is None


def test_none_resizes_without_regard_to_the_shape() -> None:
    pixels = noise(30, 50)
    assert none(pixels, 50, 30) is pixels
    expected = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.LANCZOS))
    assert np.array_equal(none(pixels, 16, 16), expected)


def test_a_picture_too_thin_for_memory_is_refused() -> None:
    """A strip of 1 x 6,000 pixels scaled to a shorter side of 512 would take nearly 5 GB."""
    for strip in (noise(1, 6000), noise(6000, 1)):
        with pytest.raises(SampleError, match="too thin") as refused:
            center_crop_dhariwal(strip, 512, 512)
        assert refused.value.stage == "transform"


@pytest.mark.parametrize("name", sorted(CROPS))
def test_results_are_uint8_rgb_of_the_wanted_size(name: str) -> None:
    width, height = (32, 32) if name == "center-crop-dhariwal" else (32, 16)
    result = CROPS[name](noise(70, 90), width, height)
    assert result.dtype == np.uint8
    assert result.shape == ((32, 32, 3) if name in ("center-crop-dhariwal", "center-crop-wide") else (16, 32, 3))
