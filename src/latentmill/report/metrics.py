"""How near two pictures are: PSNR, SSIM and FLIP of uint8 HWC RGB pixels of one size.

SSIM is scikit-image's: it counts only where the whole window lies on the picture, as the authors' program does. That of
torchmetrics counts the reflected border too, which moves the third decimal at 256x256, and takes 2 to 5 times as long.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np

from latentmill.errors import ConfigError
from latentmill.records import Array

SMALLEST = 11  # pixels of a side that SSIM's window needs
_PEAK = 255.0
_SIGMA = 1.5  # of SSIM's Gaussian; scikit-image's window is then 11 x 11


def need_metrics() -> None:
    """Raises ConfigError where the package that computes SSIM is not installed."""
    if find_spec("skimage") is None:
        raise ConfigError("SSIM needs scikit-image: pip install 'latentmill[report]'")


def can_flip() -> bool:
    """Whether the package that computes FLIP is installed."""
    return find_spec("flip_evaluator") is not None


def psnr(a: Array, b: Array) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels: 10 log10(255² / MSE); inf where they are equal.

    Raises ConfigError where the pictures differ in size or are not uint8 HWC RGB.
    """
    _check(a, b)
    difference = a.astype(np.int32) - b
    error = float(np.mean(np.square(difference, dtype=np.float64)))
    return 10 * math.log10(_PEAK**2 / error) if error else math.inf


def ssim(a: Array, b: Array) -> float:
    """Structural similarity of Wang et al. 2004 (doi:10.1109/TIP.2003.819861), at most 1: the mean of the channels'.

    Gaussian window of 11 x 11, sigma 1.5; K1 = 0.01, K2 = 0.03, without the sample covariance. The paper compares
    luminance; of R, G and B each, as is usual for VAEs, the figure is a little lower where colours differ.
    Raises ConfigError as `psnr`, for a side below 11 pixels, and where scikit-image is not installed.
    """
    _check(a, b)
    if min(a.shape[:2]) < SMALLEST:
        raise ConfigError(f"SSIM needs sides of {SMALLEST} pixels. Found: {a.shape[1]}x{a.shape[0]}")
    need_metrics()
    from skimage.metrics import structural_similarity

    how = {"gaussian_weights": True, "sigma": _SIGMA, "use_sample_covariance": False}
    return float(structural_similarity(a, b, data_range=_PEAK, channel_axis=-1, win_size=SMALLEST, **how))


def flip(reference: Array, test: Array) -> float:
    """FLIP (Andersson et al. 2020, doi:10.1145/3406183), by NVIDIA's own program, the mean over the pixels.

    How much a person sees of the difference when flipping between the two at 67 pixels a degree (a 4K screen 0.7 m
    wide, 0.7 m away): 0 nothing, 1 black against white. Raises ConfigError as `psnr`, and where it is not installed.
    """
    _check(reference, test)
    if not can_flip():
        raise ConfigError("FLIP needs flip-evaluator: pip install 'latentmill[compare]'")
    from flip_evaluator import evaluate

    # uint8 HWC -> float32 HWC 0..1, sRGB
    pictures = [np.ascontiguousarray(each, np.float32) / np.float32(_PEAK) for each in (reference, test)]
    _, mean, _ = evaluate(*pictures, "LDR", applyMagma=False)
    return float(mean)


def _check(a: Array, b: Array) -> None:
    for each in (a, b):
        if each.dtype != np.uint8 or each.ndim != 3 or each.shape[2] != 3 or not each.size:
            raise ConfigError(f"a picture must be uint8 (height, width, 3). Found: {each.dtype} {each.shape}")
    if a.shape != b.shape:
        raise ConfigError(f"both pictures must have one size. Found: {a.shape[:2]} and {b.shape[:2]} (height, width)")
