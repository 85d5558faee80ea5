"""A VAE of every family, by diffusers' own class with small random weights, in the hub's folder form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

_FOUR = 4  # latent channels, and levels of a factor of 8
_DOWN, _UP = ("DownEncoderBlock2D",) * _FOUR, ("UpDecoderBlock2D",) * _FOUR
_KL = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": _DOWN,
    "up_block_types": _UP,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_STATISTICS = {"latents_mean": [-0.75, 0.1, 0.9, 1.55], "latents_std": [2.8, 1.4, 0.5, 3.3]}
_FRAMES = {"base_dim": 8, "z_dim": _FOUR, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1, **_STATISTICS}


def _kl(**config: Any) -> Any:
    return diffusers.AutoencoderKL(**{**_KL, **config})


def _flux2() -> Any:
    vae = diffusers.AutoencoderKLFlux2(**_KL, latent_channels=_FOUR)
    vae.bn.running_mean.copy_(torch.randn(16))
    vae.bn.running_var.copy_(torch.rand(16) * 4 + 0.1)
    return vae


def _dc() -> Any:
    widths = (8, 8, 8, 8, 16, 16)
    return diffusers.AutoencoderDC(
        latent_channels=_FOUR,
        attention_head_dim=8,
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )


def _tiny() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )


def _wan22() -> Any:
    """The form of Wan 2.2: pixels are folded 2 by 2 before the first level."""
    return diffusers.AutoencoderKLWan(
        **_FRAMES, decoder_base_dim=8, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        scale_factor_spatial=16,
    )  # fmt: skip


TINY: dict[str, Callable[[], Any]] = {
    "sd": lambda: _kl(scaling_factor=0.18215),
    "sdxl": lambda: _kl(scaling_factor=0.13025),
    "playground": lambda: _kl(scaling_factor=0.5, **_STATISTICS),
    "sd3": lambda: _kl(
        latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
    ),
    "flux.1": lambda: _kl(
        latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    ),
    "flux.2": _flux2,
    "dc-ae": _dc,
    "taesd": _tiny,
    "qwen-image": lambda: diffusers.AutoencoderKLQwenImage(**_FRAMES),
    "wan2.1": lambda: diffusers.AutoencoderKLWan(**_FRAMES),
    "wan2.2": _wan22,
}


def tiny_vae(name: str) -> Any:
    """The model, in evaluation mode; the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        return TINY[name]().eval().requires_grad_(False)


def saved_vae(name: str, folder: Path) -> Path:
    """The folder with its config.json and safetensors."""
    tiny_vae(name).save_pretrained(folder, safe_serialization=True)
    return folder
