"""Small vision models of the real classes with random weights, saved as the hub holds them, and their processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from latentmill.records import Sample, SampleRef
from support import PHOTOS

SIDE, PATCH, WIDTH = 48, 8, 24  # of every model's own input; DINOv2's patch is 14 where REPA's sizes matter
_SMALL = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_DINO = {**_SMALL, "mlp_ratio": 2}
_TEXT = {**_SMALL, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8}
PROJECTED = 20


def build(family: str, **changes: Any) -> Any:
    """A model by its model_type (`clip-projection`: the vision tower alone with its projection)."""
    t = transformers
    if family == "dinov2":
        model = t.Dinov2Model(t.Dinov2Config(**_DINO | changes))
    elif family == "dinov2_with_registers":
        model = t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**_DINO | {"num_register_tokens": 3} | changes))
    elif family == "dinov3_vit":
        model = t.DINOv3ViTModel(t.DINOv3ViTConfig(**_SMALL | {"num_register_tokens": 4} | changes))
    elif family == "clip":
        config = t.CLIPConfig(text_config=_TEXT, vision_config=_SMALL | changes, projection_dim=PROJECTED)
        model = t.CLIPModel(config)
    elif family == "clip_vision_model":
        model = t.CLIPVisionModel(t.CLIPVisionConfig(**_SMALL | changes))
    elif family == "clip-projection":
        config = t.CLIPVisionConfig(**_SMALL | {"projection_dim": PROJECTED} | changes)
        model = t.CLIPVisionModelWithProjection(config)
    elif family == "siglip":
        model = t.SiglipModel(t.SiglipConfig(text_config=_TEXT, vision_config=_SMALL | changes))
    else:
        model = t.SiglipVisionModel(t.SiglipVisionConfig(**_SMALL | changes))
    generator = torch.Generator().manual_seed(7)
    for value in model.parameters():
        value.data = 0.3 * torch.randn(value.shape, generator=generator)
    return model.eval()


def processor(family: str) -> Any:
    """Transformers' own processor as the family's repositories set it, for small pictures; None for DINOv3."""
    t = transformers
    if family.startswith("dinov2"):
        edge = {"shortest_edge": SIDE + 8}
        crop = {"height": SIDE, "width": SIDE}
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        return t.BitImageProcessorPil(size=edge, crop_size=crop, image_mean=mean, image_std=std)
    if family.startswith("clip"):
        return t.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    if family.startswith("siglip"):
        return t.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return None


DINOV3_PROCESSOR = {  # in the form of the hub's files
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "do_center_crop": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": SIDE, "width": SIDE},
}


def saved(folder: Path, family: str, **changes: Any) -> Path:
    """The model's folder, as the hub holds it."""
    build(family, **changes).save_pretrained(folder)
    own = processor(family)
    if own is None:
        (folder / "preprocessor_config.json").write_text(json.dumps(DINOV3_PROCESSOR))
    else:
        own.save_pretrained(folder)
    return folder


def photo(height: int, width: int, name: str = "animal/chelsea.JPEG") -> np.ndarray:
    """uint8 HWC of a real photo."""
    return np.asarray(Image.open(PHOTOS / name).convert("RGB").resize((width, height)))


def sample(pixels: np.ndarray, number: int = 0) -> Sample:
    return Sample(SampleRef(number, f"{number}.png", ""), pixels, f"digest of {number}")
