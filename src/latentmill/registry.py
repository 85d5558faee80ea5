"""The models that have short names, and what is known of them without loading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from latentmill.encoders.text_settings import CHAT, INSTRUCTION, PLAIN, TextSettings
from latentmill.encoders.text_templates import QWEN_IMAGE, QWEN_IMAGE_TOKENS, SANA


class Entry(Protocol):
    """A model with a short name."""

    @property
    def name(self) -> str: ...
    @property
    def repository(self) -> str: ...


@dataclass(frozen=True)
class ModelEntry:
    """A VAE: where it is, and its figures, to list it and to plan without it. What is made follows its own config.json.

    scaling_factor: 1 where `normalization` is by statistics (see `metadata.Normalization`). subfolder: of the VAE in a
    pipeline's repository. posterior: whether moments can be stored. patch: positions of a side that become channels.
    """

    name: str
    repository: str
    latent_channels: int
    downscale_factor: int
    scaling_factor: float
    shift_factor: float | None
    note: str
    subfolder: str | None = None
    normalization: str = "scale-shift"
    posterior: bool = True
    patch: int = 1

    @property
    def pixel_multiple(self) -> int:
        """What both sides of an image must be multiples of, in pixels."""
        return self.downscale_factor * self.patch


@dataclass(frozen=True)
class TextModelEntry:
    """A text encoder: where it is, D, the width of its feature vectors, and how it is used by what is trained with it.

    max_length: of what is stored. subfolder, tokenizer: in the repository, and in a folder of the same form; None:
    `text_encoder` and `tokenizer`, or the repository's root.
    """

    name: str
    repository: str
    width: int
    note: str
    max_length: int = 300
    settings: TextSettings = PLAIN
    subfolder: str | None = None
    tokenizer: str | None = None


@dataclass(frozen=True)
class TextSetMember:
    """One text encoder of a set: its name in the set, and its entry."""

    name: str
    entry: TextModelEntry


@dataclass(frozen=True)
class VisionModelEntry:
    """A vision encoder: where it is, D, the width of a token, and pixels of a patch's side."""

    name: str
    repository: str
    width: int
    patch_size: int
    note: str


MINI = "mini"
FAKE = "fake"
DEFAULT_MODEL = "sd-vae-ft-mse"
DEFAULT_TEXT_MODEL = "pixart-sigma-t5"
DEFAULT_VISION_MODEL = "dinov2-vitb14"

MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(DEFAULT_MODEL, "stabilityai/sd-vae-ft-mse", 4, 8, 0.18215, None, "default; REPA, SiT, DiT"),
        ModelEntry("sd-vae-ft-ema", "stabilityai/sd-vae-ft-ema", 4, 8, 0.18215, None, "DiT"),
        ModelEntry("sdxl-vae-fp16-fix", "madebyollin/sdxl-vae-fp16-fix", 4, 8, 0.13025, None, "PixArt-Sigma"),
        ModelEntry("sdxl-vae", "stabilityai/sdxl-vae", 4, 8, 0.13025, None, "SDXL; overflows in float16"),
        ModelEntry(
            "sd3", "stabilityai/stable-diffusion-3-medium-diffusers", 16, 8, 1.5305, 0.0609, "SD3; gated", "vae"
        ),
        ModelEntry("flux.1", "black-forest-labs/FLUX.1-dev", 16, 8, 0.3611, 0.1159, "FLUX.1; gated", "vae"),
        ModelEntry(
            *("flux.2", "black-forest-labs/FLUX.2-dev", 32, 8, 1, None, "FLUX.2; gated"),
            *("vae", "batch-norm"),
            patch=2,
        ),
        ModelEntry(
            *("dc-ae-f32c32", "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", 32, 32, 0.41407, None, "Sana"),
            posterior=False,
        ),
        ModelEntry("taesd", "madebyollin/taesd", 4, 8, 1, 0, "previews of SD latents, scaled", posterior=False),
        ModelEntry("taesdxl", "madebyollin/taesdxl", 4, 8, 1, 0, "previews of SDXL latents, scaled", posterior=False),
        ModelEntry("taesd3", "madebyollin/taesd3", 16, 8, 1, 0, "previews of SD3 latents, scaled", posterior=False),
        ModelEntry("taef1", "madebyollin/taef1", 16, 8, 1, 0, "previews of FLUX.1 latents, scaled", posterior=False),
        ModelEntry("qwen-image", "Qwen/Qwen-Image", 16, 8, 1, None, "Qwen-Image", "vae", "per-channel"),
        ModelEntry(
            *("wan2.1", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 16, 8, 1, None, "Wan 2.1, one frame"),
            *("vae", "per-channel"),
        ),
    )
}

# Repositories and widths from memory; lengths, layers and templates as diffusers' pipelines have them.
_SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
_FLUX = "black-forest-labs/FLUX.1-dev"
_FIRST, _SECOND, _THIRD = (
    {"subfolder": f"text_encoder{number}", "tokenizer": f"tokenizer{number}"} for number in ("", "_2", "_3")
)
_AS_PADDED = TextSettings(positions="all", mask=False, clean="none")  # the pipeline tells nobody what is padding
_PENULTIMATE = TextSettings("both", (-2,), "all", mask=False, clean="none")

TEXT_MODELS: dict[str, TextModelEntry] = {
    entry.name: entry
    for entry in (
        TextModelEntry(
            DEFAULT_TEXT_MODEL, "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers", 4096, "default; PixArt-Sigma"
        ),
        TextModelEntry("t5-v1_1-xxl", "city96/t5-v1_1-xxl-encoder-bf16", 4096, "the encoder alone, in bfloat16"),
        TextModelEntry("sd3-clip-l", _SD3, 768, "SD3", 77, _PENULTIMATE, **_FIRST),
        TextModelEntry("sd3-clip-g", _SD3, 1280, "SD3", 77, _PENULTIMATE, **_SECOND),
        TextModelEntry("sd3-t5", _SD3, 4096, "SD3", 256, _AS_PADDED, **_THIRD),
        TextModelEntry(
            "flux.1-clip-l",
            _FLUX,
            768,
            "FLUX.1",
            77,
            TextSettings("pooled", clean="none"),
            **_FIRST,
        ),
        TextModelEntry("flux.1-t5", _FLUX, 4096, "FLUX.1", 512, _AS_PADDED, **_SECOND),
        TextModelEntry(
            "sana-gemma-2",
            "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
            2304,
            "Sana",
            300,
            TextSettings(template=SANA, drop=INSTRUCTION, empty="bare", clean="lower"),
            **_FIRST,
        ),
        TextModelEntry(
            "qwen-image-qwen2.5-vl",
            "Qwen/Qwen-Image",
            3584,
            "Qwen-Image",
            1024,
            TextSettings(template=QWEN_IMAGE, drop=QWEN_IMAGE_TOKENS, clean="none"),
            **_FIRST,
        ),
        TextModelEntry(
            "flux.2-klein-qwen3",
            "black-forest-labs/FLUX.2-klein-base-4B",
            2560,
            "FLUX.2 klein",
            512,
            TextSettings(layers=(9, 18, 27), positions="all", template=CHAT, clean="none"),
            **_FIRST,
        ),
        TextModelEntry(
            "wan-umt5", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 4096, "Wan", 512, TextSettings(clean="web"), **_FIRST
        ),
    )
}

# What one model is trained with: its text encoders, by the names that `assemble` knows them by.
TEXT_SETS: dict[str, tuple[TextSetMember, ...]] = {
    name: tuple(TextSetMember(short, TEXT_MODELS[model]) for short, model in members.items())
    for name, members in {
        "pixart-sigma": {"t5": DEFAULT_TEXT_MODEL},
        "sd3": {"clip-l": "sd3-clip-l", "clip-g": "sd3-clip-g", "t5": "sd3-t5"},
        "flux.1": {"clip-l": "flux.1-clip-l", "t5": "flux.1-t5"},
        "sana": {"gemma": "sana-gemma-2"},
        "qwen-image": {"qwen": "qwen-image-qwen2.5-vl"},
        "flux.2-klein": {"qwen": "flux.2-klein-qwen3"},
        "wan": {"t5": "wan-umt5"},
    }.items()
}

VISION_MODELS: dict[str, VisionModelEntry] = {
    entry.name: entry
    for entry in (
        VisionModelEntry("dinov2-vits14", "facebook/dinov2-small", 384, 14, "REPA"),
        VisionModelEntry(DEFAULT_VISION_MODEL, "facebook/dinov2-base", 768, 14, "default; REPA"),
        VisionModelEntry("dinov2-vitl14", "facebook/dinov2-large", 1024, 14, "REPA"),
        VisionModelEntry("dinov2-vitg14", "facebook/dinov2-giant", 1536, 14, "REPA"),
        VisionModelEntry("dinov2-vits14-reg", "facebook/dinov2-with-registers-small", 384, 14, "registers left out"),
        VisionModelEntry("dinov2-vitb14-reg", "facebook/dinov2-with-registers-base", 768, 14, "registers left out"),
        VisionModelEntry("dinov2-vitl14-reg", "facebook/dinov2-with-registers-large", 1024, 14, "registers left out"),
        VisionModelEntry("dinov2-vitg14-reg", "facebook/dinov2-with-registers-giant", 1536, 14, "registers left out"),
        VisionModelEntry("dinov3-vits16", "facebook/dinov3-vits16-pretrain-lvd1689m", 384, 16, "gated"),
        VisionModelEntry("dinov3-vitb16", "facebook/dinov3-vitb16-pretrain-lvd1689m", 768, 16, "gated"),
        VisionModelEntry("dinov3-vitl16", "facebook/dinov3-vitl16-pretrain-lvd1689m", 1024, 16, "gated"),
        VisionModelEntry("clip-vit-b32", "openai/clip-vit-base-patch32", 768, 32, "pooled: 512, projected"),
        VisionModelEntry("clip-vit-l14", "openai/clip-vit-large-patch14", 1024, 14, "REPA; pooled: 768, projected"),
        VisionModelEntry("siglip-so400m", "google/siglip-so400m-patch14-384", 1152, 14, "384 pixels"),
        VisionModelEntry("siglip2-so400m", "google/siglip2-so400m-patch14-384", 1152, 14, "384 pixels"),
    )
}
