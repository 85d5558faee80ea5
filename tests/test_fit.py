"""Stretch, cover and pad: the reference's features through a VAE, its arithmetic at every size, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from latentmill.errors import ConfigError, SampleError
from latentmill.records import Geometry
from latentmill.transforms.bucket import BucketTable, reference_table, square_table
from latentmill.transforms.fit import FILTERS, default_filter, distortion, geometry, kept, resampled, upscaled
from support import DATA, PHOTOS, TINY_VAE

INTERN = DATA / "pixart" / "InternData"
ROWS: list[dict[str, Any]] = json.loads((INTERN / "data_info.json").read_text())
TOLERANCE = 1e-4  # of features in float32

side = st.integers(1, 5000)
pair = st.tuples(side, side)
bucket = st.tuples(st.integers(1, 300), st.integers(1, 300))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(TINY_VAE).eval()


@pytest.mark.parametrize(
    ("table", "fit", "method", "folder"),
    [
        (reference_table(512), "stretch", default_filter(512), "img_sdxl_vae_features_512resolution_ms_new"),
        (square_table(256), "cover", default_filter(256, False), "img_sdxl_vae_features_256resolution_new"),
    ],
    ids=["multi-scale", "single-scale"],
)
def test_features_are_the_references(
    vae: AutoencoderKL, table: BucketTable, fit: str, method: str, folder: str
) -> None:
    for row in ROWS:
        pixels = np.asarray(Image.open(PHOTOS / row["source"]).convert("RGB"))
        how = geometry(fit, pixels.shape[:2], table.nearest(*pixels.shape[:2]).size)
        scaled = torch.tensor(resampled(pixels, how, method)).permute(2, 0, 1)[None].contiguous() / 127.5 - 1
        with torch.inference_mode():
            posterior = vae.encode(scaled).latent_dist
        found = torch.cat([posterior.mean, posterior.std], dim=1)[0].numpy()
        expected = np.load(INTERN / folder / row["path"].replace(".png", ".npy"))
        assert found.shape == expected.shape, row["source"]
        assert np.abs(found - expected).max() <= TOLERANCE, row["source"]


def reader_size(size: tuple[int, int], closest: tuple[int, int]) -> tuple[int, int]:
    """What the reference's reader resizes to (PixArt-Sigma, InternalDataMSSigma), from its description."""
    if closest[0] / size[0] > closest[1] / size[1]:
        return closest[0], int(size[1] * closest[0] / size[0])
    return int(size[0] * closest[1] / size[1]), closest[1]


@settings(max_examples=400, deadline=None)
@given(pair, bucket)
def test_cover_covers_and_keeps_the_centre(size: tuple[int, int], target: tuple[int, int]) -> None:
    try:
        how = geometry("cover", size, target)
    except SampleError:
        assert np.prod(reader_size(size, target)) > 100_000_000
        return
    assert how.scaled == reader_size(size, target)
    top, left, bottom, right = how.crop
    assert 0 <= top < bottom <= how.scaled[0]
    assert 0 <= left < right <= how.scaled[1]
    assert (bottom - top, right - left) == target
    assert (top, left) == tuple(int(round((a - b) / 2)) for a, b in zip(how.scaled, target, strict=True))  # noqa: RUF046
    assert how.scaled[0] == target[0] or how.scaled[1] == target[1]
    assert 0 < kept(how) <= 1


def test_cover_never_falls_short_by_rounding() -> None:
    """Same ratio, other size: the free side is the bucket's own, whatever float64 makes of the quotient."""
    for height in range(1, 120):
        for width in range(1, 120):
            for times in (3, 7, 49):
                how = geometry("cover", (height * times, width * times), (height, width))
                assert how.scaled == (height, width)


@settings(max_examples=400, deadline=None)
@given(pair, st.sampled_from([8, 256, 512]))
def test_cover_of_a_square_is_torchvisions_resize_and_centre_crop(size: tuple[int, int], target: int) -> None:
    """Resize(R): the shorter side R, the other int(R * long / short); what single-scale features are made with."""
    short, long = sorted(size)
    free = int(target * long / short)
    if free * target > 100_000_000:
        return
    expected = (target, free) if size[0] <= size[1] else (free, target)
    assert geometry("cover", size, (target, target)).scaled == expected


@settings(max_examples=400, deadline=None)
@given(pair, bucket)
@example((3, 4), (64, 64))
def test_pad_shows_all_within_the_bucket(size: tuple[int, int], target: tuple[int, int]) -> None:
    try:
        how = geometry("pad", size, target)
    except SampleError:
        assert max(size) / min(size) * 2 >= min(target)  # the thin side would be less than half a pixel
        return
    scale = min(target[0] / size[0], target[1] / size[1])
    assert how.scaled == (pytest.approx(size[0] * scale, abs=0.501), pytest.approx(size[1] * scale, abs=0.501))
    assert how.scaled[0] == target[0] or how.scaled[1] == target[1]
    top, left, bottom, right = how.crop
    assert top <= 0 <= how.scaled[0] <= bottom
    assert left <= 0 <= how.scaled[1] <= right
    assert (bottom - top, right - left) == target
    assert abs(-top - (bottom - how.scaled[0])) <= 2  # half to even may move the centre by a pixel
    assert kept(how) == 1


@pytest.mark.parametrize("method", FILTERS)
@pytest.mark.parametrize("fit", ["stretch", "cover", "pad"])
@pytest.mark.parametrize("size", [(30, 50), (50, 30), (300, 200), (24, 32), (25, 32)])
def test_pixels_are_pillows(fit: str, method: str, size: tuple[int, int]) -> None:
    pixels = noise(*size)
    how = geometry(fit, size, (24, 32))
    found = resampled(pixels, how, method)
    assert found.shape == (24, 32, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    whole = np.asarray(Image.fromarray(pixels).resize((how.scaled[1], how.scaled[0]), FILTERS[method]))
    top, left, bottom, right = how.crop
    margin = [(max(-top, 0), max(bottom - whole.shape[0], 0)), (max(-left, 0), max(right - whole.shape[1], 0)), (0, 0)]
    shown = whole[max(top, 0) : bottom, max(left, 0) : right]
    assert np.array_equal(found, np.pad(shown, margin))


def test_a_crop_starts_half_to_even() -> None:
    """Section 1's crops round down; torchvision's CenterCrop does not."""
    assert geometry("cover", (32, 43), (32, 32)).crop == (0, 6, 32, 38)  # 5.5 becomes 6
    assert geometry("cover", (32, 45), (32, 32)).crop == (0, 6, 32, 38)  # 6.5 becomes 6
    assert geometry("pad", (32, 21), (32, 32)).crop == (0, -6, 32, 26)


@pytest.mark.parametrize(("fit", "size"), [("cover", (1, 6000)), ("cover", (6000, 1)), ("pad", (2, 6000))])
def test_an_image_too_thin_is_refused(fit: str, size: tuple[int, int]) -> None:
    with pytest.raises(SampleError, match=f"{size[0]}x{size[1]} is too thin for a bucket of 512x512") as refused:
        geometry(fit, size, (512, 512))
    assert refused.value.stage == "transform"
    assert geometry("stretch", size, (512, 512)).scaled == (512, 512)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fit must be stretch, cover or pad. Found: 'crop'"):
        geometry("crop", (8, 8), (8, 8))


def test_what_a_report_needs_of_a_geometry() -> None:
    stretched = geometry("stretch", (100, 200), (100, 160))
    assert stretched == Geometry((100, 200), (100, 160), (0, 0, 100, 160), (100, 160))
    assert (kept(stretched), distortion(stretched), upscaled(stretched)) == (1, pytest.approx(0.25), False)
    covered = geometry("cover", (100, 200), (100, 100))
    assert (kept(covered), distortion(covered), upscaled(covered)) == (0.5, 0, False)
    padded = geometry("pad", (20, 40), (80, 80))
    assert (kept(padded), distortion(padded), upscaled(padded)) == (1, 0, True)
    assert upscaled(geometry("stretch", (100, 200), (101, 160)))


def test_the_filter_is_the_references() -> None:
    assert [default_filter(r) for r in (256, 512, 1024, 2048, 2880)] == ["bicubic"] * 3 + ["lanczos"] * 2
    assert default_filter(512, multi_scale=False) == "bilinear"
