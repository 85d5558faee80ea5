"""The families of VAEs: what each of diffusers' classes tells in its config, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from latentmill.errors import ModelError
from latentmill.formats.metadata import Normalization

if TYPE_CHECKING:
    import torch

Config = Mapping[str, Any]
Buffers = Mapping[str, list[float]]

_LOG_VARIANCE_LIMITS = (-30.0, 20.0)  # as diffusers' DiagonalGaussianDistribution clamps them
_BATCH_NORM_EPS = 1e-4  # AutoencoderKLFlux2's default
_BATCH_NORM_PATCH = 2  # Flux2Pipeline._patchify_latents


class Vae(Protocol):
    """What the families' classes have in common."""

    config: Mapping[str, Any]

    @property
    def dtype(self) -> torch.dtype: ...
    def encode(self, x: torch.Tensor) -> Any: ...
    def decode(self, z: torch.Tensor) -> Any: ...


@dataclass(frozen=True)
class Family:
    """One class of diffusers, by the names of its config.

    levels: the list with an item a level; the sides of each level but the first are half those of the one before.
    channels: C. width: channels of the first level, where they are no item of `levels`. folded: pixels of a side that
    become channels before the first level. latent: the encoder's output where there is no posterior. frames: whether
    it takes videos, of which an image is one frame. scaling_factor: where the config names none. tensors: of the first
    level's channels at full size that the encoder holds at its peak (measured: see `bytes_per_pixel`). buffers: what
    `normalization` needs of the weights.
    """

    class_name: str
    normalization: Callable[[Family, Config, Buffers], Normalization]
    levels: str = "block_out_channels"
    channels: str = "latent_channels"
    width: str = ""
    folded: str = ""
    latent: str = ""
    frames: bool = False
    scaling_factor: float | None = None
    tensors: int = 5
    buffers: tuple[str, ...] = ()

    @property
    def posterior(self) -> bool:
        """Whether the class gives a distribution rather than a latent."""
        return not self.latent

    def check(self, config: Config, name: str) -> None:
        """Raises ModelError where the config lacks what the class's figures are made of."""
        kinds: dict[str, type] = {self.levels: list, self.channels: int, **({self.width: int} if self.width else {})}
        if not all(isinstance(config.get(key), kind) for key, kind in kinds.items()):
            raise ModelError(f"the config.json of {name} lacks {' or '.join(kinds)}")

    def latent_channels(self, config: Config) -> int:
        return int(config[self.channels])

    def downscale_factor(self, config: Config) -> int:
        """Pixels of a side that one position stands for."""
        levels: list[int] = config[self.levels]
        return int(2 ** (len(levels) - 1)) * self._fold(config)

    def bytes_per_pixel(self, config: Config, item: int) -> float:
        """What encoding holds at its peak. item: bytes of a number.

        Measured of the encoders at 384x384, on a CPU: 20 bytes a channel and pixel in float32 and 10 in bfloat16 with
        AutoencoderKL; of AutoencoderDC, whose norms are computed in float32, up to 7 tensors; of the video models,
        which keep the frame of every convolution, 13 in float32 and up to 15 in bfloat16.
        """
        return self.tensors * self.tensor_bytes_per_pixel(config, item)

    def tensor_bytes_per_pixel(self, config: Config, item: int) -> float:
        """Of a tensor of the first level's channels. item: bytes of a number."""
        levels: list[int] = config[self.levels]
        width = int(config[self.width]) * levels[0] if self.width else levels[0]
        return width * item / self._fold(config) ** 2

    def encode(self, vae: Vae, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> float32 (N, 2C, h, w): posterior mean, then standard deviation; the latent where none."""
        import torch

        found = vae.encode(pixels.unsqueeze(2) if self.frames else pixels)
        given = found.latent_dist.parameters if self.posterior else getattr(found, self.latent)
        latent: torch.Tensor = (given.squeeze(2) if self.frames else given).float()
        if not self.posterior:
            return latent
        mean, log_variance = latent.chunk(2, dim=1)
        return torch.cat([mean, torch.exp(0.5 * log_variance.clamp(*_LOG_VARIANCE_LIMITS))], dim=1)

    def decode(self, vae: Vae, latents: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, 3, H, W)."""
        pixels: torch.Tensor = vae.decode(latents.unsqueeze(2) if self.frames else latents).sample
        return pixels.squeeze(2) if self.frames else pixels

    def _fold(self, config: Config) -> int:
        return int(config.get(self.folded) or 1)


def _scale_and_shift(family: Family, config: Config, buffers: Buffers) -> Normalization:
    return Normalization(
        kind="scale-shift",
        scaling_factor=factor(config, "scaling_factor", family.scaling_factor),
        shift_factor=factor(config, "shift_factor"),
    )


def _of_autoencoder_kl(family: Family, config: Config, buffers: Buffers) -> Normalization:
    """Scale and shift; (z - mean) * scaling_factor / std where the config has both, as in the SDXL pipelines."""
    plain = _scale_and_shift(family, config, buffers)
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return plain
    mean, std = _statistics(family, config)
    return Normalization(kind="per-channel", mean=mean, std=[value / (plain.scaling_factor or 1) for value in std])


def _per_channel(family: Family, config: Config, buffers: Buffers) -> Normalization:
    mean, std = _statistics(family, config)
    return Normalization(kind="per-channel", mean=mean, std=std)


def _batch_norm(family: Family, config: Config, buffers: Buffers) -> Normalization:
    """The running statistics after patching; float32 and PyTorch's own root, as in Flux2Pipeline."""
    import torch

    mean, variance = (buffers[name] for name in family.buffers)
    eps = factor(config, "batch_norm_eps", _BATCH_NORM_EPS)
    expected = family.latent_channels(config) * _BATCH_NORM_PATCH**2
    if not len(mean) == len(variance) == expected:
        raise ModelError(f"its batch norm must have {expected} channels. Found: {len(mean)} and {len(variance)}")
    std = torch.sqrt(torch.tensor(variance, device="cpu") + (eps or 0.0))
    return Normalization(kind="batch-norm", mean=mean, std=std.tolist(), patch=_BATCH_NORM_PATCH)


def _statistics(family: Family, config: Config) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel."""
    found = []
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        if not isinstance(values, list) or len(values) != family.latent_channels(config):
            raise ModelError(f"its config.json must have {family.latent_channels(config)} numbers in {key}")
        found.append([_number(value, key) for value in values])
    return found[0], found[1]


def factor(config: Config, key: str, default: float | None = None) -> float | None:
    """A number of the config. Raises ModelError."""
    value = config.get(key)
    return default if value is None else _number(value, key)


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"the {key} of its config.json must be a number. Found: {value!r}")
    return float(value)


KL = "AutoencoderKL"
FAMILIES: dict[str, Family] = {
    family.class_name: family
    for family in (
        Family(KL, _of_autoencoder_kl, scaling_factor=0.18215),
        Family("AutoencoderKLFlux2", _batch_norm, buffers=("bn.running_mean", "bn.running_var")),
        Family(
            "AutoencoderDC",
            _scale_and_shift,
            levels="encoder_block_out_channels",
            latent="latent",
            scaling_factor=1.0,
            tensors=7,
        ),
        Family(
            "AutoencoderTiny",
            _scale_and_shift,
            levels="encoder_block_out_channels",
            latent="latents",
            scaling_factor=1.0,
        ),
        Family(
            "AutoencoderKLQwenImage",
            _per_channel,
            levels="dim_mult",
            channels="z_dim",
            width="base_dim",
            frames=True,
            tensors=15,
        ),
        Family(
            "AutoencoderKLWan",
            _per_channel,
            levels="dim_mult",
            channels="z_dim",
            width="base_dim",
            folded="patch_size",
            frames=True,
            tensors=15,
        ),
    )
}


def family_of(class_name: object, name: str) -> Family:
    """The family of a config's `_class_name`. Raises ModelError."""
    found = FAMILIES.get(str(class_name))
    if found is None:
        raise ModelError(f"{name} is a {class_name}; latents are made with one of {', '.join(FAMILIES)}")
    return found
