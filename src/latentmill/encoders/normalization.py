"""From latents as they are stored to what a model is trained on, and back, as diffusers' pipelines compute it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentmill.errors import ModelError
from latentmill.formats.metadata import ModelInfo, Normalization

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Affine:
    """(z - shift) * scale for latents (…, C, h, w), after `patch` x `patch` positions have become channels.

    shift, scale: a number, or float32 (C * patch², 1, 1). divides: (z - shift) / scale instead. The order of channels
    after patching is (C, row, column), that of Flux2Pipeline._patchify_latents.
    """

    shift: torch.Tensor | float
    scale: torch.Tensor | float
    divides: bool = False
    patch: int = 1

    def apply(self, z: torch.Tensor) -> torch.Tensor:
        """(…, C, h, w) -> (…, C * patch², h / patch, w / patch). Raises ModelError."""
        from torch.nn.functional import pixel_unshuffle

        if any(side % self.patch for side in z.shape[-2:]):
            raise ModelError(
                f"latents must have sides that are multiples of {self.patch} (height x width). Found: "
                f"{z.shape[-2]}x{z.shape[-1]}"
            )
        patched = pixel_unshuffle(z, self.patch) if self.patch > 1 else z
        shift, scale = _like(self.shift, z), _like(self.scale, z)
        return (patched - shift) / scale if self.divides else (patched - shift) * scale

    def undo(self, latent: torch.Tensor) -> torch.Tensor:
        """The inverse of `apply`."""
        from torch.nn.functional import pixel_shuffle

        shift, scale = _like(self.shift, latent), _like(self.scale, latent)
        z = latent * scale + shift if self.divides else latent / scale + shift
        return pixel_shuffle(z, self.patch) if self.patch > 1 else z


def normalise(z: torch.Tensor, info: ModelInfo) -> torch.Tensor:
    """Latents (…, C, h, w), as the VAE gave them -> what a model is trained on. Raises ModelError."""
    return affine(info).apply(z)


def denormalise(latent: torch.Tensor, info: ModelInfo) -> torch.Tensor:
    """The inverse of `normalise`: what the VAE's decoder takes."""
    return affine(info).undo(latent)


def affine(info: ModelInfo) -> Affine:
    """The normalisation of a model; that of a dataset of the first version has its scaling and shift factor alone."""
    import torch

    known = info.normalization or Normalization(
        kind="scale-shift", scaling_factor=info.scaling_factor, shift_factor=info.shift_factor
    )
    if known.kind == "scale-shift":
        return Affine(known.shift_factor or 0.0, known.scaling_factor or 1.0, patch=known.patch)
    mean, std = (torch.tensor(values, device="cpu").view(-1, 1, 1) for values in (known.mean, known.std))
    if known.kind == "batch-norm":
        return Affine(mean, std, divides=True, patch=known.patch)
    return Affine(mean, 1.0 / std, patch=known.patch)  # their pipelines multiply by the reciprocal


def _like(value: torch.Tensor | float, z: torch.Tensor) -> torch.Tensor | float:
    return value if isinstance(value, float) else value.to(z)
