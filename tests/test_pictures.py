"""Pictures of a report: their size and kind, and the part of the original that a crop kept."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from latentmill.errors import ConfigError
from latentmill.records import Array, Geometry
from latentmill.report.pictures import kept_box, picture, shaded
from latentmill.transforms.crop import center_crop_dhariwal, crop_geometry
from latentmill.transforms.fit import geometry, resampled


def noise(height: int, width: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_longest_side_is_bounded_and_nothing_is_enlarged() -> None:
    small = picture(noise(60, 90), "a photo", side=45)
    assert (small.width, small.height, small.media_type, small.alt) == (45, 30, "image/jpeg", "a photo")
    assert Image.open(io.BytesIO(small.data)).size == (45, 30)
    assert (picture(noise(60, 90), "", side=500).width, picture(noise(60, 90), "").height) == (90, 60)


def test_a_png_keeps_every_pixel_and_a_jpegs_quality_counts() -> None:
    pixels = noise(40, 50)
    kept = picture(pixels, "", media="image/png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(kept.data))), pixels)
    assert kept.media_type == "image/png"
    rough, fine = (picture(pixels, "", quality=quality).data for quality in (30, 95))
    assert len(rough) < len(fine)
    assert Image.open(io.BytesIO(fine)).format == "JPEG"


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_picture_is_refused(wrong: Array) -> None:
    with pytest.raises(ConfigError, match="must be uint8"):
        picture(wrong, "")


def test_only_what_lies_outside_the_box_is_shaded() -> None:
    pixels = noise(30, 40)
    found = shaded(pixels, (5, 8, 25, 32))
    inside = np.zeros((30, 40), bool)
    inside[5:25, 8:32] = True
    assert np.array_equal(found[inside], pixels[inside])
    assert not np.array_equal(found[~inside], pixels[~inside])
    assert np.array_equal(shaded(pixels, (0, 0, 30, 40)), pixels)


@pytest.mark.parametrize("size", [(70, 120), (131, 65), (200, 200)])
def test_the_box_is_what_a_crop_shows(size: tuple[int, int]) -> None:
    """What lies outside, beyond the filters' reach, changes nothing; what lies inside does, up to its edges."""
    for how, crop in (
        (crop_geometry("center-crop-dhariwal", size, (32, 32)), lambda pixels: center_crop_dhariwal(pixels, 32, 32)),
        (_cover(size), lambda pixels: resampled(pixels, _cover(size), "bicubic")),
    ):
        top, left, bottom, right = kept_box(how)
        reach = 2 + 3 * max(size) // 32
        pixels = noise(*size)
        outside = shaded(pixels, _grown((top, left, bottom, right), reach, size))
        assert np.array_equal(crop(outside), crop(pixels))
        inside = _grown((top, left, bottom, right), -reach, size)
        within = np.s_[inside[0] : inside[2], inside[1] : inside[3]]
        changed = pixels.copy()
        changed[within] = 255 - changed[within]
        assert (crop(changed) != crop(pixels)).mean() > 0.3


def _cover(size: tuple[int, int]) -> Geometry:
    return geometry("cover", size, (48, 32))


def _grown(box: tuple[int, int, int, int], by: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = box
    return max(0, top - by), max(0, left - by), min(size[0], bottom + by), min(size[1], right + by)


def test_a_padded_picture_kept_everything() -> None:
    assert kept_box(geometry("pad", (50, 100), (64, 64))) == (0, 0, 50, 100)
