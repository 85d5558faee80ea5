"""From what is stored of a latent to what a model is trained on: a draw or the mean, normalised."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from latentmill.encoders.normalization import Affine
from latentmill.normals import draw, normals
from latentmill.records import Array


class _Key(threading.local):
    """Where a thread's next key is drawn: for half of what a new tensor costs."""

    def __init__(self) -> None:
        self.number = np.empty(1, np.int64)
        with torch.inference_mode(False):  # else it could not be written to outside of that mode
            self.tensor = torch.from_numpy(self.number)


_key = _Key()


def drawn_key() -> int:
    """63 bits of PyTorch's global CPU generator, whose state goes on by that much."""
    key = _key
    key.tensor.random_()
    return key.number.item()


@dataclass(frozen=True)
class Draws:
    """Float32 (2C, h, w) of moments, or (C, h, w), to a normalised latent.

    moments: whether mean and standard deviation are stored. sampled: of moments, a draw, `mean + std * z`, else the
    mean. z are the normal numbers (`normals`) of a key that each access takes from PyTorch's global CPU generator, so
    that after `torch.manual_seed` draws repeat, to the bit, on any machine.
    """

    affine: Affine
    moments: bool
    sampled: bool

    def __call__(self, stored: Array) -> torch.Tensor:
        """A tensor of its own memory: bit for bit what the formulas give in PyTorch, whose small steps cost more."""
        if not self.moments:
            return self._normalised(stored, np.empty_like(stored))
        half, plain = len(stored) // 2, self._plain
        if not self.sampled:
            mean = stored[:half]
            return self._normalised(mean, np.empty_like(mean))
        z = np.empty((half, *stored.shape[1:]), np.float32)
        key = drawn_key()
        if plain is not None and stored.flags.c_contiguous and stored.flags.aligned:
            draw(stored, key, z, *plain)
            return torch.from_numpy(z)
        normals(key, z)
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
