"""From what is stored of a latent to what a model is trained on: a draw or the mean, normalised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from latentmill.encoders.normalization import Affine
from latentmill.records import Array
from latentmill.transforms.resample import compiled, draw

_draw = compiled("draw") or draw  # at every access: without the calls in between


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
        half, plain = len(stored) // 2, self._plain
        if not self.sampled:
            mean = stored[:half]
            return self._normalised(mean, np.empty_like(mean))
        z = np.empty((half, *stored.shape[1:]), np.float32)
        noise = torch.from_numpy(z).normal_()  # the numbers that `torch.randn` gives, for less
        if plain is not None and stored.flags.c_contiguous:
            _draw(stored, z, *plain)
            return noise
        np.multiply(stored[half:], z, out=z)
        np.add(stored[:half], z, out=z)
        return self._normalised(z, z)

    @cached_property
    def _plain(self) -> tuple[float, float] | None:
        """Shift and scale, where the normalisation is one of each."""
        affine = self.affine
        shift, scale = affine.shift, affine.scale
        both = isinstance(shift, float) and isinstance(scale, float) and affine.patch == 1 and not affine.divides
        return (shift, scale) if both else None  # type: ignore[return-value]

    def _normalised(self, z: Array, out: Array) -> torch.Tensor:
        """(z - shift) * scale, into `out`, which may be z; what is more than that by `Affine.apply`."""
        affine = self.affine
        if affine.patch != 1 or affine.divides:
            return affine.apply(torch.from_numpy(z))
        shift, scale = affine.shift, affine.scale
        if not isinstance(shift, float):
            z = np.subtract(z, shift.numpy(), out=out)
        elif shift:
            z = np.subtract(z, shift, out=out)
        return torch.from_numpy(np.multiply(z, scale if isinstance(scale, float) else scale.numpy(), out=out))
