"""The models that have short names, and what is known of them without loading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Entry(Protocol):
    """A model with a short name."""

    @property
    def name(self) -> str: ...
    @property
    def repository(self) -> str: ...


@dataclass(frozen=True)
class ModelEntry:
    """A VAE: where it is, and its figures as diffusers' config states them (checked when it is loaded)."""

    name: str
    repository: str
    latent_channels: int
    downscale_factor: int
    scaling_factor: float
    shift_factor: float | None
    note: str


@dataclass(frozen=True)
class TextModelEntry:
    """A text encoder: where it is, and D, the width of its feature vectors."""

    name: str
    repository: str
    width: int
    note: str


MINI = "mini"
FAKE = "fake"
DEFAULT_MODEL = "sd-vae-ft-mse"
DEFAULT_TEXT_MODEL = "pixart-sigma-t5"

MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(DEFAULT_MODEL, "stabilityai/sd-vae-ft-mse", 4, 8, 0.18215, None, "default; REPA, SiT, DiT"),
        ModelEntry("sd-vae-ft-ema", "stabilityai/sd-vae-ft-ema", 4, 8, 0.18215, None, "DiT"),
        ModelEntry("sdxl-vae-fp16-fix", "madebyollin/sdxl-vae-fp16-fix", 4, 8, 0.13025, None, "PixArt-Sigma"),
    )
}

TEXT_MODELS: dict[str, TextModelEntry] = {
    entry.name: entry
    for entry in (
        TextModelEntry(
            DEFAULT_TEXT_MODEL, "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers", 4096, "default; PixArt-Sigma"
        ),
        TextModelEntry("t5-v1_1-xxl", "city96/t5-v1_1-xxl-encoder-bf16", 4096, "the encoder alone, in bfloat16"),
    )
}
