"""A model's preprocessor_config.json to the Processor that it describes."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from latentmill.encoders.vision_input import BICUBIC, BILINEAR, TORCH_MODES, Processor, Size
from latentmill.errors import ModelError

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Settings(BaseModel):
    """The keys of a preprocessor_config.json that matter here, with transformers' defaults of its class."""

    model_config = ConfigDict(extra="ignore")

    size: int | dict[str, int | None]
    crop_size: int | dict[str, int | None] | None = None
    do_resize: bool = True
    do_center_crop: bool = False
    do_rescale: bool = True
    do_normalize: bool = True
    resample: int = BICUBIC
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_SQUARE = {"height": 224, "width": 224}
_HALVES = (0.5, 0.5, 0.5)
_ON_FLOATS = "DINOv3ViTImageProcessor"
_DEFAULTS: dict[str, dict[str, object]] = {  # by class, from its attributes in transformers 5
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": _CLIP,
    "SiglipImageProcessor": {"size": _SQUARE, "image_mean": _HALVES, "image_std": _HALVES},
    _ON_FLOATS: {
        "size": _SQUARE,
        "resample": BILINEAR,
        "image_mean": _IMAGENET_MEAN,
        "image_std": _IMAGENET_STD,
    },
}


def processor_of(table: Mapping[str, object], usual: str, name: str) -> Processor:
    """The processor that a preprocessor_config.json describes.

    usual: its class where the file names none. A class that transformers calls `…Fast` is computed as the one
    without, by Pillow: theirs differ from it by rounding. Raises ModelError.
    """
    said = table.get("image_processor_type") or table.get("feature_extractor_type") or usual
    kind = str(said).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if kind not in _DEFAULTS:
        raise ModelError(
            f"the image processor of {name} must be one of {', '.join(_DEFAULTS)}. Found: {said}. Copy the model to a "
            "folder, with a preprocessor_config.json of one of these"
        )
    given = {key: value for key, value in table.items() if value is not None}
    try:
        settings = _Settings.model_validate(_DEFAULTS[kind] | given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"the preprocessor_config.json of {name} is not valid at {where}: {first['msg']}") from error
    return _processor(settings, kind == _ON_FLOATS, name)


def _processor(settings: _Settings, on_floats: bool, name: str) -> Processor:
    size, edge = (None, None) if not settings.do_resize else _target(settings.size, name)
    crop = _pair(settings.crop_size) if settings.do_center_crop else None
    modes = TORCH_MODES if on_floats else set(Image.Resampling)
    if settings.resample not in modes or (on_floats and crop) or (settings.do_center_crop and crop is None):
        raise ModelError(
            f"the preprocessor_config.json of {name} asks for what latentmill does not do: resample "
            f"{settings.resample}, crop_size {settings.crop_size}"
        )
    return Processor(
        size,
        edge,
        crop,
        settings.resample,
        settings.rescale_factor if settings.do_rescale else None,
        settings.image_mean if settings.do_normalize else (0.0, 0.0, 0.0),
        settings.image_std if settings.do_normalize else (1.0, 1.0, 1.0),
        on_floats,
    )


def _target(size: int | dict[str, int | None], name: str) -> tuple[Size | None, int | None]:
    """The size, or the length of the shorter side, that a resize is to give."""
    given = {"shortest_edge": size} if isinstance(size, int) else {key: side for key, side in size.items() if side}
    if given.keys() == {"shortest_edge"}:
        return None, given["shortest_edge"]
    if given.keys() != {"height", "width"}:
        raise ModelError(
            f"size in the preprocessor_config.json of {name} must have height and width, or shortest_edge. "
            f"Found: {size}"
        )
    return _pair(given), None


def _pair(size: int | Mapping[str, int | None] | None) -> Size | None:
    if size is None or isinstance(size, int):
        return None if size is None else (size, size)
    height, width = size.get("height"), size.get("width")
    return None if height is None or width is None else (height, width)
