"""PSNR, SSIM and FLIP: against the papers' own arithmetic, closed forms and scikit-image, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmill.decoding import decode
from latentmill.errors import ConfigError
from latentmill.records import Array
from latentmill.report import metrics
from latentmill.report.metrics import flip, psnr, ssim
from support import PHOTOS

MEASURES = [psnr, ssim, flip]


def photo(side: int = 96) -> Array:
    pixels, _ = decode(next(path for path in sorted(PHOTOS.rglob("*.jpg"))).read_bytes())
    return np.ascontiguousarray(pixels[:side, :side])


def noisy(pixels: Array, sigma: float) -> Array:
    noise = np.random.default_rng(1).normal(0, sigma, pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def wang_2004(x: Array, y: Array) -> float:
    """The paper's equation 13 on one channel, window by window, with its 11 x 11 Gaussian, in float64."""
    axis = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(axis, axis) / axis.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (each[top : top + 11, left : left + 11].astype(np.float64) for each in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + c1) * (2 * both + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )  # fmt: skip
    return float(np.mean(found))


def test_ssim_is_that_of_the_paper_on_each_channel() -> None:
    original = photo(40)
    changed = noisy(original, 12)
    expected = np.mean([wang_2004(original[..., channel], changed[..., channel]) for channel in range(3)])
    assert ssim(original, changed) == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 255), st.integers(0, 255))
def test_ssim_of_flat_pictures_is_its_luminance_term(a: int, b: int) -> None:
    c1 = (0.01 * 255) ** 2
    flat = [np.full((11, 13, 3), value, np.uint8) for value in (a, b)]
    assert ssim(*flat) == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), abs=1e-6)


@pytest.mark.parametrize(("step", "decibels"), [(1, 48.1308), (2, 42.1102), (255, 0.0)])
def test_psnr_of_a_known_error(step: int, decibels: float) -> None:
    dark = np.zeros((8, 9, 3), np.uint8)
    assert psnr(dark, dark + np.uint8(step)) == pytest.approx(decibels, abs=1e-4)


def test_psnr_is_scikit_images_whichever_picture_comes_first() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    original = photo()
    changed = noisy(original, 30)
    expected = peak_signal_noise_ratio(original, changed, data_range=255)
    assert psnr(original, changed) == pytest.approx(expected, abs=1e-9)
    assert psnr(changed, original) == psnr(original, changed)


def test_equal_pictures_have_the_best_value_and_more_noise_a_worse_one() -> None:
    original = photo()
    assert (psnr(original, original), ssim(original, original), flip(original, original)) == (math.inf, 1.0, 0.0)
    by_noise = [[measure(original, noisy(original, sigma)) for sigma in (2, 6, 18)] for measure in MEASURES]
    for values, worse in zip(by_noise, (-1, -1, 1), strict=True):
        assert sorted(values, key=lambda value: worse * value) == values
        assert len(set(values)) == 3


def test_flip_sees_a_tint_more_than_fine_noise_of_the_same_psnr() -> None:
    """What tells it from PSNR: the eye does not see a checkerboard of single pixels well, at 67 pixels a degree."""
    grey = np.full((96, 96, 3), 128, np.uint8)
    board = np.where(np.indices((96, 96)).sum(axis=0)[..., None] % 2, 12, -12)
    fine = (grey + board).astype(np.uint8)
    tint = (grey + np.array([12, -12, 12])).astype(np.uint8)
    assert psnr(grey, fine) == pytest.approx(psnr(grey, tint))
    assert flip(grey, fine) < 0.5 * flip(grey, tint)


def test_flip_lies_between_0_and_1() -> None:
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert 0.9 < flip(black, white) <= 1


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("other", "said"),
    [
        (np.zeros((16, 17, 3), np.uint8), "one size"),
        (np.zeros((16, 16, 3), np.float32), "must be uint8"),
        (np.zeros((16, 16, 4), np.uint8), "must be uint8"),
        (np.zeros((16, 16), np.uint8), "must be uint8"),
    ],
)
def test_what_is_no_pair_of_pictures_is_refused(
    measure: Callable[[Array, Array], float], other: Array, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        measure(np.zeros((16, 16, 3), np.uint8), other)


def test_ssim_needs_room_for_its_window() -> None:
    small = np.zeros((10, 40, 3), np.uint8)
    with pytest.raises(ConfigError, match="sides of 11 pixels"):
        ssim(small, small)


@pytest.mark.parametrize(
    ("package", "measure", "extra"),
    [("skimage", ssim, "report"), ("flip_evaluator", flip, "compare")],
)
def test_a_missing_package_is_named_with_the_command(
    package: str, measure: Callable[[Array, Array], float], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name == package else find_spec(name))
    picture = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ConfigError, match=rf"pip install 'latentmill\[{extra}\]'"):
        measure(picture, picture)
