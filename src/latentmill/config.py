"""The settings of every command, validated where they are defined: a message says what was expected, what was found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from latentmill.errors import ConfigError

FAILURES_JUDGED_AFTER = 100  # images, for a limit in percent
_SIZE = re.compile(r"(\d+)[x,](\d+)")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_RANGES = {"-1,1": (-1.0, 1.0), "0,1": (0.0, 1.0)}
_PATH_PART = re.compile(r"(?!\.)[^/\\\0]*")
_PERCENT_OR_COUNT = re.compile(r"(\d+(?:\.\d+)?)(%?)")

Transform = Literal["none", "center-crop", "center-crop-wide", "center-crop-dhariwal"]


@dataclass(frozen=True)
class FailureLimit:
    """At most `count` rejects, or at most `share` of the images, judged once 100 have been seen."""

    text: str
    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, value: object) -> FailureLimit:
        if isinstance(value, cls):
            return value
        match = _PERCENT_OR_COUNT.fullmatch(str(value))
        if match and match[2] and float(match[1]) <= 100:
            return cls(str(value), share=float(match[1]) / 100)
        if match and not match[2] and "." not in match[1]:
            return cls(str(value), count=int(match[1]))
        raise ValueError("must be a number of images, or a percentage up to 100%")

    def exceeded(self, rejected: int, images: int) -> bool:
        if self.count is not None:
            return rejected > self.count
        assert self.share is not None
        return images >= FAILURES_JUDGED_AFTER and rejected > self.share * images

    def __str__(self) -> str:
        return self.text


def _size(value: object) -> object:
    """(W, H) of `WxH` or `W,H`, or of a pair of integers."""
    if value is None:
        return value
    match = _SIZE.fullmatch("x".join(map(str, value)) if isinstance(value, tuple | list) else str(value))
    if not match or int(match[1]) == 0 or int(match[2]) == 0:
        raise ValueError("must be WxH with positive integers")
    return int(match[1]), int(match[2])


def _range(value: object) -> object:
    """(low, high) of `low,high`, or of a pair of numbers."""
    ends = tuple(value) if isinstance(value, tuple | list) else _RANGES.get(str(value).replace(" ", ""))
    if ends not in _RANGES.values():
        raise ValueError(f"must be {' or '.join(_RANGES)}")
    return ends


def _device(value: object) -> object:
    if not _DEVICE.fullmatch(str(value)):
        raise ValueError("must be auto, cpu, mps, cuda or cuda:N")
    return value


def _suffix(value: object) -> object:
    if not isinstance(value, str) or not _PATH_PART.fullmatch(value):
        raise ValueError("must be a part of a folder's name, without / and not starting with a dot")
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_size)]
Limit = Annotated[FailureLimit, BeforeValidator(FailureLimit.parse)]
Positive = Annotated[int, Field(ge=1)]
PixelRange = Annotated[tuple[float, float], BeforeValidator(_range)]
Device = Annotated[str, BeforeValidator(_device)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class JobSettings(_Settings):
    """What every job takes."""

    source: Path
    dest: Path
    max_images: Positive | None = None
    max_failures: Limit = FailureLimit.parse("10%")
    check: Literal["stat", "digest"] = "stat"
    overwrite: bool = False


class ImageSettings(JobSettings):
    """What every job takes that decodes and crops photos."""

    transform: Transform = "none"
    resolution: Size | None = None
    exif: Literal["ignore", "apply"] = "ignore"
    alpha: Literal["drop", "white", "black"] = "drop"
    max_pixels: Positive = 178_956_970

    @model_validator(mode="after")
    def _check_resolution(self) -> Self:
        if self.transform != "none" and self.resolution is None:
            raise ValueError(f"transform {self.transform} needs a resolution (--resolution WxH)")
        if self.resolution is None:
            return self
        width, height = self.resolution
        if self.transform == "center-crop-dhariwal" and width != height:
            raise ValueError(f"transform center-crop-dhariwal needs a square resolution. Found: {width}x{height}")
        if self.transform == "center-crop-wide" and height > width:
            raise ValueError(
                f"transform center-crop-wide needs a width of at least the height. Found: {width}x{height}"
            )
        return self

    @property
    def result_size(self) -> tuple[int, int] | None:
        """(width, height) of every result; None where it is the images' own."""
        if self.resolution is None:
            return None
        width, height = self.resolution
        return (width, width) if self.transform == "center-crop-wide" else (width, height)


class ConvertSettings(ImageSettings):
    """`latentmill convert`."""

    num_workers: Positive | None = None
    batch_size: Positive = 32


class EncodeSettings(ImageSettings):
    """`latentmill encode`. batch_size and threads: None takes what the destination was begun with, else the default."""

    images: Path | None = None
    model_url: str = "sd-vae-ft-mse"
    revision: str | None = None
    subfolder: str | None = None
    batch_size: Positive | None = None
    num_workers: Positive | None = None
    threads: Positive | None = None
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pixel_range: PixelRange = (-1.0, 1.0)
    store: Literal["moments", "mean", "sample"] = "moments"
    seed: int = 0
    save_dtype: Literal["float32", "float16"] = "float32"


class CaptionedSettings(_Settings):
    """How a captioned source is read; see `sources.captioned`. images: the images' folder of a table."""

    images: Path | None = None
    caption_extension: str = ".txt"
    multi_line: bool = False
    path_column: str | None = None
    caption_columns: dict[str, str] | list[str] | None = None
    missing_caption: Literal["reject", "empty"] = "reject"


class FeatureSettings(CaptionedSettings):
    """What both of PixArt's jobs take. data_info: any captioned source. dest: the folder of the feature folders.

    reader: None takes what the destination was begun with, else multi, or single for single-scale VAE features.
    start_index, end_index: the rows that are wanted, [start, end); what other slices made is kept. threads: None takes
    what the destination was begun with, else the usable cores. wait: for another process that writes to the same place.
    """

    data_info: Path
    dest: Path
    reader: Literal["multi", "single"] | None = None
    suffix: Annotated[str, BeforeValidator(_suffix)] = ""
    start_index: Annotated[int, Field(ge=0)] = 0
    end_index: Annotated[int, Field(ge=0)] | None = None
    threads: Positive | None = None
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_failures: Limit = FailureLimit.parse("10%")
    check: Literal["stat", "digest"] = "stat"
    overwrite: bool = False
    wait: bool = False

    @model_validator(mode="after")
    def _check_slice(self) -> Self:
        if self.end_index is not None and self.end_index < self.start_index:
            raise ValueError(f"end-index must not be below start-index ({self.start_index}). Found: {self.end_index}")
        return self


class ImageFeatureSettings(FeatureSettings):
    """VAE features. fit: None takes `stretch` for multi-scale, `cover` for single-scale.

    batch_size: None takes what the destination was begun with, else what suits the resolution.
    """

    vae: str = "sdxl-vae-fp16-fix"
    revision: str | None = None
    subfolder: str | None = None
    resolution: Positive = 512
    multi_scale: bool = False
    buckets: str = "reference"
    fit: Literal["stretch", "cover", "pad"] | None = None
    batch_size: Positive | Literal["auto"] | None = None
    num_workers: Positive | None = None
    pixel_range: PixelRange = (-1.0, 1.0)
    save_dtype: Literal["float32", "float16"] = "float32"
    tiling: Literal["auto", "always", "never"] = "auto"
    exif: Literal["ignore", "apply"] = "ignore"
    alpha: Literal["drop", "white", "black"] = "drop"
    max_pixels: Positive = 178_956_970

    @model_validator(mode="after")
    def _check_single(self) -> Self:
        if not self.multi_scale and self.buckets != "reference":
            raise ValueError(f"buckets are of multi-scale features (--multi-scale). Found: buckets {self.buckets!r}")
        return self


class TextFeatureSettings(FeatureSettings):
    """Text features. label: which of the captions. pad: store max_length positions, as the reference does.

    token_budget: tokens a forward, padding included. images_reader: of VAE features that are made in the same call, and
    that these are to be found with; unless `reader` says otherwise.
    """

    text_encoder: str = "pixart-sigma-t5"
    text_revision: str | None = None
    label: Annotated[str, BeforeValidator(_suffix)] = "prompt"
    max_length: Annotated[int, Field(ge=2)] = 300
    pad: bool = False
    token_budget: Positive = 4096
    images_reader: Literal["multi", "single"] | None = None


class DecodeSettings(JobSettings):
    """`latentmill decode`. model_url: None takes the model that the latents' metadata names."""

    model_url: str | None = None
    batch_size: Positive = 8
    threads: Positive | None = None
    device: Device = "auto"


Settings = TypeVar("Settings", bound=_Settings)


def validated(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Settings from values; raises ConfigError with one line for the first that is wrong."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        if not name:
            raise ConfigError(message) from error
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"there is no setting {name}. There are: {', '.join(kind.model_fields)}") from error
        message = message.replace("Input should be", "must be")
        raise ConfigError(f"{name.replace('_', '-')} {message}. Found: {_found(first['input'])}") from error


def _found(value: object) -> str:
    return repr(str(value) if isinstance(value, Path) else value)
