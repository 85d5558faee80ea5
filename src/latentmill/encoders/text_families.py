"""The families of text encoders: what transformers calls them, how each is loaded, and what a forward gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentmill.encoders.pretrained import load_pretrained
from latentmill.encoders.text_settings import PLAIN, TextSettings
from latentmill.errors import ModelError

if TYPE_CHECKING:
    import torch

    from latentmill.encoders.text_models import ResolvedTextModel

_PROJECTED = "CLIPTextModelWithProjection"


@dataclass(frozen=True)
class Family:
    """A `model_type` of transformers' config.json.

    class_name: transformers' class, without the heads that features do not need. tokenizer: its tokenizer's class.
    vocabulary: the file that makes it where there is no tokenizer.json. width: the config's name for D.
    max_length, settings: the usual ones, where no registry entry says others.
    inner: the attribute with the language model, where the class holds more. forward: further arguments of a forward.
    clamps: whether transformers hides overflow in float16 by clamping.
    """

    model_type: str
    class_name: str
    tokenizer: str
    vocabulary: str
    width: str
    max_length: int
    settings: TextSettings = PLAIN
    inner: str = ""
    forward: tuple[tuple[str, object], ...] = ()
    clamps: bool = False
    closes: bool = False

    @property
    def is_clip(self) -> bool:
        return self.class_name == "CLIPTextModel"


# CLIP's 77 positions are all attended to by what is trained with it, and no pipeline of diffusers passes it a mask.
_CLIP = {
    "class_name": "CLIPTextModel",
    "tokenizer": "CLIPTokenizerFast",
    "vocabulary": "vocab.json",
    "width": "hidden_size",
    "max_length": 77,
    "settings": TextSettings("both", positions="all", mask=False, clean="none"),
    "closes": True,
}
_T5 = {
    "tokenizer": "T5TokenizerFast",
    "vocabulary": "spiece.model",
    "width": "d_model",
    "clamps": True,
    "closes": True,
}
_DECODER = {"width": "hidden_size", "settings": TextSettings(clean="none"), "forward": (("use_cache", False),)}
_QWEN = _DECODER | {"tokenizer": "Qwen2TokenizerFast", "vocabulary": "vocab.json", "max_length": 512}
_GEMMA = _DECODER | {"tokenizer": "GemmaTokenizerFast", "vocabulary": "tokenizer.model", "max_length": 300}

_TABLE: dict[str, dict[str, Any]] = {
    "t5": _T5 | {"class_name": "T5EncoderModel", "max_length": 300},
    "umt5": _T5 | {"class_name": "UMT5EncoderModel", "max_length": 512},
    "clip_text_model": _CLIP,
    "clip": _CLIP,
    "gemma2": _GEMMA | {"class_name": "Gemma2Model"},
    "qwen2": _QWEN | {"class_name": "Qwen2Model"},
    "qwen3": _QWEN | {"class_name": "Qwen3Model"},
    "qwen2_5_vl": _QWEN | {"class_name": "Qwen2_5_VLModel", "inner": "language_model"},
}
FAMILIES: dict[str, Family] = {name: Family(name, **values) for name, values in _TABLE.items()}


@dataclass(frozen=True)
class Shape:
    """Of one model: D of a token's vector; D of the pooled one, None where it has none; positions, None: any number."""

    class_name: str
    width: int
    pooled_width: int | None
    longest: int | None


def family_of(config: Mapping[str, object], name: str) -> Family:
    """The family that a config.json is of. Raises ModelError."""
    kind = str(config.get("model_type", config.get("_class_name", "model of no known kind")))
    if kind not in FAMILIES:
        classes = ", ".join(dict.fromkeys(family.class_name for family in FAMILIES.values()))
        raise ModelError(
            f"{name} is a {kind}; captions are encoded with a {classes} (model_type {', '.join(FAMILIES)})"
        )
    return FAMILIES[kind]


def shape_of(family: Family, config: Mapping[str, object], name: str) -> Shape:
    """Class and widths that a config.json says. Raises ModelError."""
    nested = config.get("text_config")
    told = {**config, **nested} if isinstance(nested, dict) else config
    width = told.get(family.width)
    if not isinstance(width, int):
        raise ModelError(f"the config.json of {name} lacks {family.width}, the width of a feature vector")
    if not family.is_clip:
        return Shape(family.class_name, width, None, None)
    positions, projection = told.get("max_position_embeddings", 77), told.get("projection_dim", 512)
    assert isinstance(positions, int)
    assert isinstance(projection, int)
    projected = _PROJECTED in _names(config.get("architectures"))
    return (
        Shape(_PROJECTED, width, projection, positions)
        if projected
        else Shape("CLIPTextModel", width, width, positions)
    )


def _names(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def load_model(model: ResolvedTextModel, device: torch.device, dtype: torch.dtype) -> Any:
    """The encoder in evaluation mode, from safetensors. Raises ModelError, also where weights are missing.

    In float16, transformers keeps the layers of T5 that overflow most (`wo`) in float32.
    """
    import torch

    family, info = model.family, model.info
    loaded = load_pretrained(info.class_name, model.folder_encoder, info.name, device, dtype)
    encoder = getattr(loaded, family.inner) if family.inner else loaded
    if dtype == torch.float16 and family.clamps:
        for block in encoder.encoder.block:
            block.layer[0].register_forward_hook(_infinity_to_nan)
    return encoder


def _infinity_to_nan(module: object, inputs: object, output: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep an overflow of the attention visible: transformers would clamp infinity to a large, wrong number."""
    import torch

    return (output[0].masked_fill(output[0].isinf(), torch.nan), *output[1:])


def features_of(output: Any, layers: Sequence[int]) -> torch.Tensor:
    """Of a forward's output (N, L, D), or of several layers (N, L, layers x D), layer by layer."""
    import torch

    if not layers:
        hidden: torch.Tensor = output.last_hidden_state
        return hidden
    return torch.cat([output.hidden_states[layer] for layer in layers], dim=-1)


def pooled_of(output: Any) -> torch.Tensor:
    """(N, P): CLIP's vector at the closing token, projected where the model has a projection."""
    embeds: torch.Tensor | None = getattr(output, "text_embeds", None)
    return output.pooler_output if embeds is None else embeds
