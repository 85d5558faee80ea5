"""Statistics of latents, added up image by image, and the channels that carry nothing."""

from __future__ import annotations

import numpy as np

from latentmill.comparing.result import LatentFigures
from latentmill.encoders.normalization import normalise
from latentmill.encoders.vae import channel_sums
from latentmill.formats.metadata import ModelInfo
from latentmill.formats.payload import npy_bytes
from latentmill.records import Array

_SAME = 0.01  # of the largest channel's deviation: a channel below does not tell images apart
_NOISE = 0.99  # of a channel's variance that is the posterior's own: a channel above is noise to the decoder


class Gathering:
    """Sums over latents of one shape. `add` takes float32 (2C, h, w) moments, or (C, h, w) without a posterior."""

    def __init__(self, info: ModelInfo) -> None:
        self._info, self._images = info, 0
        self._sums = np.zeros(0)
        self._normalised = np.zeros(2)
        self._largest = 0.0
        self._shape = (0, 0, 0)

    def add(self, moments: Array) -> Array:
        """Gives the posterior's mean, (C, h, w)."""
        mean, std = np.split(moments, 2) if self._info.posterior else (moments, np.zeros_like(moments))
        sums = np.asarray(channel_sums(mean, std))
        self._sums = sums if not self._images else self._sums + sums
        self._normalised += self._as_trained(mean, std)
        self._largest = max(self._largest, float(np.abs(mean).max()))
        self._images += 1
        self._shape = mean.shape[0], mean.shape[1], mean.shape[2]
        return mean

    def _as_trained(self, mean: Array, std: Array) -> Array:
        """Mean and mean square of draws after the model's own normalisation; scaling a deviation is its slope."""
        import torch

        z, spread = torch.from_numpy(mean), torch.from_numpy(std)
        trained = normalise(z, self._info).double()
        slope = (normalise(z + spread, self._info).double() - trained).square()
        return np.array([float(trained.mean()), float((trained.square() + slope).mean())])

    def figures(self) -> LatentFigures:
        """Of what was added; at least one latent was."""
        mean, square, variance = np.split(self._sums / self._images, 3)
        spread = np.maximum(square - mean**2, 0)
        overall = float(mean.mean())
        deviation = float(np.sqrt(max((square + variance).mean() - overall**2, 0)))
        trained, trained_square = self._normalised / self._images
        std, sampled = np.sqrt(spread), np.sqrt(spread + variance)
        return LatentFigures(
            self._shape, mean, std, sampled, overall, deviation,
            (float(trained), float(np.sqrt(max(trained_square - trained**2, 0)))),
            dead_channels(std, sampled), self._largest,
        )  # fmt: skip


def dead_channels(std: Array, sampled: Array) -> tuple[int, ...]:
    """Channels that carry nearly nothing: constant, or nearly all of what a trainer draws is the posterior's noise.

    std: of the posterior's mean, sampled: of draws, both (C,). Constant: below 1 % of the largest channel's deviation.
    Noise: over 99 % of the variance of draws, as where the posterior has collapsed to its prior.
    """
    constant = std < _SAME * std.max()
    noise = sampled**2 - std**2 > _NOISE * sampled**2
    dead = constant | (noise & (sampled > 0)) | (std == 0)
    return tuple(int(channel) for channel in np.flatnonzero(dead))


def bytes_stored(shape: tuple[int, int, int], posterior: bool) -> dict[str, int]:
    """Of one image's .npy file, header included, by what is stored and by its dtype."""
    channels, height, width = shape
    found = {}
    for what, count in (("moments", 2 * channels), ("mean", channels)):
        if what == "mean" or posterior:
            for dtype in ("float32", "float16"):
                found[f"{what} {dtype}"] = len(npy_bytes(np.zeros((count, height, width), dtype)))
    return found
