"""From what is stored of a latent to what a model is trained on: a draw or the mean, normalised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from latentmill.encoders.normalization import Affine
from latentmill.records import Array
from latentmill.transforms.resample import draw


@dataclass(frozen=True)
class Draws:
    """Float32 (2C, h, w) of moments, or (C, h, w), to a normalised latent.

    moments: whether mean and standard deviation are stored. sampled: of moments, a draw from PyTorch's global
    generator, as `mean + std * torch.randn_like(std)` gives it; else the mean.
    """

    affine: Affine
    moments: bool
    sampled: bool

    def __call__(self, stored: Array) -> torch.Tensor:
        """A tensor of its own memory: bit for bit what the formula gives in PyTorch, whose small steps cost more."""
        if not self.moments:
            return self._normalised(stored, np.empty_like(stored))
        half = len(stored) // 2
        mean, std = stored[:half], stored[half:]
        if not self.sampled:
            return self._normalised(mean, np.empty_like(mean))
        noise = torch.randn(std.shape)
        z, shift, scale = noise.numpy(), self.affine.shift, self.affine.scale
        if self._plain and isinstance(shift, float) and isinstance(scale, float) and stored.flags.c_contiguous:
            draw(stored, z, shift, scale)
            return noise
        np.multiply(std, z, out=z)
        np.add(mean, z, out=z)
        return self._normalised(z, z)

    @property
    def _plain(self) -> bool:
        """Whether the normalisation is a shift and a scale."""
        return self.affine.patch == 1 and not self.affine.divides

    def _normalised(self, z: Array, out: Array) -> torch.Tensor:
        """(z - shift) * scale, into `out`, which may be z; what is more than that by `Affine.apply`."""
        affine = self.affine
        if not self._plain:
            return affine.apply(torch.from_numpy(z))
        shift, scale = affine.shift, affine.scale
        if not isinstance(shift, float):
            z = np.subtract(z, shift.numpy(), out=out)
        elif shift:
            z = np.subtract(z, shift, out=out)
        return torch.from_numpy(np.multiply(z, scale if isinstance(scale, float) else scale.numpy(), out=out))
