"""Finding a vision encoder and its image processor's settings: a short name, a hub repository, or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from latentmill.encoders.hub import (
    config_digest,
    config_of,
    download,
    json_table,
    model_files,
    repository_of,
    weights_digest,
)
from latentmill.encoders.vision_input import Processor
from latentmill.encoders.vision_processor import processor_of
from latentmill.errors import ModelError
from latentmill.formats.metadata import VisionModelInfo
from latentmill.registry import MINI, VISION_MODELS

_WEIGHTS = "model"
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_PROJECTING = "CLIPVisionModelWithProjection"


@dataclass(frozen=True)
class VisionFamily:
    """What differs between families. defaults: of config.json, as transformers' config classes have them.

    asked: whether `interpolate_pos_encoding` must be asked for at other sizes than the model's own. resampled: whether
    REPA resamples its position embeddings otherwise than transformers does. part: key of the vision tower's config.
    """

    class_name: str
    processor: str
    patch: int
    width: int = 768
    asked: bool = False
    resampled: bool = False
    part: str = ""


_FAMILIES = {  # by model_type
    "dinov2": VisionFamily("Dinov2Model", "BitImageProcessor", 14, resampled=True),
    "dinov2_with_registers": VisionFamily("Dinov2WithRegistersModel", "BitImageProcessor", 16),
    "dinov3_vit": VisionFamily("DINOv3ViTModel", "DINOv3ViTImageProcessor", 16, width=384),
    "clip": VisionFamily(_PROJECTING, "CLIPImageProcessor", 32, asked=True, part="vision_config"),
    "clip_vision_model": VisionFamily("CLIPVisionModel", "CLIPImageProcessor", 32, asked=True),
    "siglip": VisionFamily("SiglipVisionModel", "SiglipImageProcessor", 16, asked=True, part="vision_config"),
    "siglip_vision_model": VisionFamily("SiglipVisionModel", "SiglipImageProcessor", 16, asked=True),
}


@dataclass(frozen=True)
class ResolvedVisionModel:
    """A vision encoder on this disk. side: of its own input, in pixels.

    pooled_width: of the pooled vector; None where the model has none. projected: whether that is a projection.
    """

    folder: Path
    info: VisionModelInfo
    family: VisionFamily
    processor: Processor
    side: int
    pooled_width: int | None
    projected: bool


def resolve_vision(name: str, revision: str | None = None, subfolder: str | None = None) -> ResolvedVisionModel:
    """Find a vision encoder by short name, hub repository or folder, downloading it where needed.

    Of a whole CLIP or SigLIP, the vision tower is taken. Every byte of the weights is read, for their digest. Raises
    ModelError.
    """
    if name == MINI:
        raise ModelError(f"there is no {MINI} vision encoder: give one of {', '.join(VISION_MODELS)}, or a folder")
    if Path(name).is_dir():
        return _described(_inside(Path(name), subfolder), name, revision, subfolder, is_local=True)
    repository = repository_of(name, VISION_MODELS, "a folder with config.json and preprocessor_config.json")
    prefix = f"{subfolder}/" if subfolder else ""
    wanted = model_files(prefix, _WEIGHTS) + [prefix + file for file in _PROCESSOR_FILES]
    snapshot = download(repository, revision, wanted)
    return _described(_inside(snapshot, subfolder), repository, snapshot.name, subfolder)


def _inside(folder: Path, subfolder: str | None) -> Path:
    inner = folder / subfolder if subfolder else folder
    if not inner.is_dir():
        raise ModelError(f"{folder} has no subfolder {subfolder}")
    return inner


def _described(
    folder: Path, name: str, revision: str | None, subfolder: str | None, is_local: bool = False
) -> ResolvedVisionModel:
    config = config_of(folder, f"{name} is no model folder: it has no config.json (see --subfolder)", name)
    family = _family_of(config, name)
    vision = config.get(family.part, {}) if family.part else config
    if not isinstance(vision, dict):
        raise ModelError(f"{family.part} in the config.json of {name} is not a table")
    projected = family.class_name == _PROJECTING
    patch, width = _number(vision, "patch_size", family.patch, name), _number(vision, "hidden_size", family.width, name)
    pooled = width if vision.get("vision_use_head", True) else None
    table = _processor_table(folder, name)
    info = VisionModelInfo(
        name=name,
        revision=revision,
        subfolder=subfolder,
        class_name=family.class_name,
        weights_sha256=weights_digest(folder, _WEIGHTS, name, is_local),
        config_sha256=config_digest(config),
        processor_sha256=config_digest(table),
        is_local=is_local,
        width=width,
        patch_size=patch,
    )
    return ResolvedVisionModel(
        folder,
        info,
        family,
        processor_of(table, family.processor, name),
        _number(vision, "image_size", 224, name),
        _number(config, "projection_dim", 512, name) if projected else pooled,
        projected,
    )


def _family_of(config: Mapping[str, object], name: str) -> VisionFamily:
    kind = config.get("model_type", config.get("_class_name", "model of no known kind"))
    family = _FAMILIES.get(str(kind))
    if family is None:
        hint = "; of SigLIP 2, the models of a fixed resolution are of type siglip" if kind == "siglip2" else ""
        raise ModelError(
            f"{name} is a {kind}; vision features are computed with a model of type {', '.join(_FAMILIES)}{hint}"
        )
    classes = config.get("architectures")
    if kind == "clip_vision_model" and isinstance(classes, list) and _PROJECTING in classes:
        return replace(family, class_name=_PROJECTING)
    return family


def _number(table: Mapping[str, object], key: str, default: int, name: str) -> int:
    found = table.get(key, default)
    if not isinstance(found, int) or found < 1:
        raise ModelError(f"{key} in the config.json of {name} must be a whole number. Found: {found}")
    return found


def _processor_table(folder: Path, name: str) -> dict[str, object]:
    """The settings of the image processor, in a file of their own or among those of other processors."""
    own, joint = (folder / file for file in _PROCESSOR_FILES)
    if own.is_file():
        return json_table(own, name)
    found = json_table(joint, name).get("image_processor") if joint.is_file() else None
    if not isinstance(found, dict):
        raise ModelError(f"{name} has no {own.name}: it says how images are brought to the model")
    return found
