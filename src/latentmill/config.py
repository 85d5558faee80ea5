"""The settings of every command, validated where they are defined: a message says what was expected, what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from latentmill.config_types import (
    CROPPING,
    FILES,
    LOCAL,
    RAY,
    BatchSize,
    Device,
    FailureLimit,
    FolderPart,
    Limit,
    PixelRange,
    Positive,
    RunnerName,
    Size,
    SourceKind,
    Transform,
)
from latentmill.devices import gpus
from latentmill.errors import ConfigError


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        name = info.field_name or ""
        if isinstance(value, bool) and cls.model_fields[name].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


class SourceSettings(_Settings):
    """The one source of a recipe, and how its images are decoded; see `sources.captioned` and `decoding`.

    source: a folder or zip of images, or a table. images: the images' folder of a table. start_index, end_index: the
    rows of a captioned source that are wanted, [start, end); what other slices made is kept. source_kind: in a recipe
    `kind`; `files` or one that another package brings, which is told `source` and source_options, there `options`.
    """

    source: Path
    source_kind: SourceKind = FILES
    source_options: dict[str, Any] = {}
    images: Path | None = None
    caption_extension: str = ".txt"
    multi_line: bool = False
    path_column: str | None = None
    caption_columns: dict[str, str] | list[str] | None = None
    missing_caption: Literal["reject", "empty"] = "reject"
    max_images: Positive | None = None
    start_index: Annotated[int, Field(ge=0)] = 0
    end_index: Annotated[int, Field(ge=0)] | None = None
    exif: Literal["ignore", "apply"] = "ignore"
    alpha: Literal["drop", "white", "black"] = "drop"
    max_pixels: Positive = 178_956_970

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.end_index is not None and self.end_index < self.start_index:
            raise ValueError(f"end-index must not be below start-index ({self.start_index}). Found: {self.end_index}")
        if self.source_options and self.source_kind == FILES:
            raise ValueError("options are of a source that another package brings: [source] needs its kind")
        return self

    @property
    def rows_end(self) -> int | None:
        """The row before which to stop, of `end_index` and `max_images`."""
        if self.max_images is None:
            return self.end_index
        end = self.start_index + self.max_images
        return end if self.end_index is None else min(end, self.end_index)


class RunSettings(_Settings):
    """How jobs are run. num_workers: processes of pixels alone, else loading threads of a machine; None: one a core.

    threads: of a forward on the CPU; None takes what the destination was begun with, else the usable cores.
    trust_source: what is finished or begun goes by its own ledger, and the source is not listed for it.
    wait: for another process that writes to the same place. runner: `local`, `ray`, or one that another package brings.
    device: `cuda` (every GPU), `cuda:0,1` and `cpu:N` run an encoder process each. ray_address: of the cluster to join;
    None takes RAY_ADDRESS, else starts one on this machine.
    """

    device: Device = "auto"
    threads: Positive | None = None
    num_workers: Positive | None = None
    max_failures: Limit = FailureLimit.parse("10%")
    check: Literal["stat", "digest"] = "stat"
    overwrite: bool = False
    trust_source: bool = False
    wait: bool = False
    runner: RunnerName = LOCAL
    ray_address: str | None = None

    @model_validator(mode="after")
    def _check_runner(self) -> Self:
        if self.ray_address is not None and self.runner != RAY:
            raise ValueError(f"ray-address is of runner ray (--runner ray). Found: runner {self.runner}")
        if self.runner == RAY and gpus(self.device):
            raise ValueError(f"device of runner ray must be cuda, for every GPU of the cluster. Found: {self.device}")
        return self

    @model_validator(mode="after")
    def _check_trust(self) -> Self:
        against = "overwrite" if self.overwrite else f"check {self.check}" if self.check != "stat" else ""
        if self.trust_source and against:
            raise ValueError(f"trust-source takes what is there as it is. Found: {against} beside it; leave one out")
        return self


class OutputSettings(SourceSettings, RunSettings):
    """What every output of a recipe takes. dest: its own folder or zip."""

    dest: Path

    @model_validator(mode="after")
    def _check_trusted_rows(self) -> Self:
        if self.trust_source and (self.start_index or self.end_index is not None):
            raise ValueError(
                "trust-source does not tell which rows were made. Found: start-index or end-index beside it; "
                "leave out trust-source"
            )
        return self


class VariantSettings(OutputSettings):
    """Augmented variants of an output, each in a sibling folder; a loader picks among them at training time.

    flip: `both` makes every image mirrored too, in `DEST-flip`. crops: how many of every image, the transform's own
    first, the others at places drawn by `crop_seed` and the image's path, in `DEST-crop1`, `DEST-crop2`, …
    resize: `fast` decodes large JPEGs at reduced scale; see `transforms.reduction`.
    """

    flip: Literal["none", "both"] = "none"
    crops: Positive = 1
    crop_seed: Annotated[int, Field(ge=0)] = 0
    resize: Literal["exact", "fast"] = "exact"


class CropSettings(VariantSettings):
    """What every output takes whose images all become one size."""

    transform: Transform = "none"
    resolution: Size | None = None

    @model_validator(mode="after")
    def _check_resolution(self) -> Self:
        if self.transform != "none" and self.resolution is None:
            raise ValueError(f"transform {self.transform} needs a resolution (--resolution WxH)")
        if self.crops > 1 and self.transform not in CROPPING:
            raise ValueError(f"crops are of a transform that crops ({', '.join(CROPPING)}). Found: {self.transform}")
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


class PixelSettings(CropSettings):
    """Cropped pixels, as EDM2 and REPA trainers read them."""

    batch_size: Positive = 32


class _VaeSettings(_Settings):
    """What both layouts of latents take. model: a short name, a hub repository or a folder.

    channels_last, compile: faster on a GPU, and other bytes; see `encoders.vae.VaeSpec`.
    """

    model: str = "sd-vae-ft-mse"
    revision: str | None = None
    subfolder: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pixel_range: PixelRange = (-1.0, 1.0)
    store: Literal["moments", "mean", "sample"] = "moments"
    seed: int = 0
    save_dtype: Literal["float32", "float16"] = "float32"
    indivisible: Literal["refuse", "crop", "pad"] = "refuse"
    channels_last: bool = False
    compile: bool = False


class LatentSettings(CropSettings, _VaeSettings):
    """Latents of one size, as REPA and SiT trainers read them. pixels: where the cropped pixels go as well.

    batch_size and threads: None takes what the destination was begun with, else the default. batch_size auto: likewise,
    else what is measured to be fastest.
    """

    pixels: Path | None = None
    batch_size: BatchSize | None = None


class BucketSettings(VariantSettings, _VaeSettings):
    """Latents in aspect buckets, as PixArt's readers open them.

    fit: None takes `stretch` for multi-scale, else `cover`.
    reader: whose file names; None takes what the destination was begun with, else multi, or single for squares.
    batch_size: None takes what the destination was begun with, else what suits the resolution.
    """

    model: str = "sdxl-vae-fp16-fix"
    reader: Literal["multi", "single"] | None = None
    resolution: Positive = 512
    multi_scale: bool = False
    buckets: str = "reference"
    fit: Literal["stretch", "cover", "pad"] | None = None
    batch_size: BatchSize | None = None
    tiling: Literal["auto", "always", "never"] = "auto"

    @model_validator(mode="after")
    def _check_buckets(self) -> Self:
        if not self.multi_scale and self.buckets != "reference":
            raise ValueError(f"buckets are of multi-scale features (--multi-scale). Found: buckets {self.buckets!r}")
        if self.crops > 1 and self.fit != "cover" and (self.fit or self.multi_scale):
            raise ValueError(f"crops need fit cover: nothing is cropped else. Found: {self.fit or 'stretch'}")
        return self


class VisionSettings(CropSettings):
    """Features of a vision encoder. tokens: of patches, the pooled one, or both. input: see `encoders.vision_input`.

    naming: of the files, by number as class-conditional data, or by the image's path for one of PixArt's readers.
    batch_size: as of LatentSettings.
    """

    model: str = "dinov2-vitb14"
    revision: str | None = None
    subfolder: str | None = None
    tokens: Literal["patch", "pooled", "both"] = "patch"
    input: Literal["processor", "repa"] = "processor"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    save_dtype: Literal["float32", "float16"] = "float32"
    naming: Literal["repa", "pixart/multi", "pixart/single"] = "repa"
    batch_size: BatchSize | None = None


class CaptionSettings(OutputSettings):
    """Text features. label: which of the captions. pad: store max_length positions, as the reference does.

    model: a short name, a hub repository or a folder; in a recipe also a set, as `sd3`, which becomes an output for
    each of its encoders: `member` is its short name, `encoder` its name in the set. repository: a folder or repository
    to take in place of the one that a short name stands for. encoding: how the model is used, where otherwise than its
    own pipeline does (see `encoders.text_settings`); max_length: likewise.
    token_budget: tokens a forward, padding included. images_reader: of VAE features that are made in the same call, and
    that these are to be found with; unless `reader` says otherwise.
    """

    model: str = "pixart-sigma-t5"
    member: str | None = None
    encoder: str = ""
    repository: str | None = None
    revision: str | None = None
    encoding: dict[str, Any] = {}
    label: FolderPart = "prompt"
    reader: Literal["multi", "single"] | None = None
    images_reader: Literal["multi", "single"] | None = None
    max_length: Annotated[int, Field(ge=2)] | None = None
    pad: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    token_budget: Positive = 4096


class FolderSettings(_Settings):
    """Of the names of PixArt's feature folders. suffix: comes last, after a `_`."""

    suffix: FolderPart = ""


class DecodeSettings(_Settings):
    """`latentmill decode`. model_url: None takes the model that the latents' metadata names."""

    source: Path
    dest: Path
    max_images: Positive | None = None
    max_failures: Limit = FailureLimit.parse("10%")
    check: Literal["stat", "digest"] = "stat"
    overwrite: bool = False
    model_url: str | None = None
    batch_size: Positive = 8
    threads: Positive | None = None
    device: Device = "auto"


Settings = TypeVar("Settings", bound=_Settings)
_SHOWN = 200  # characters of what was found
_WORDS = {  # by pydantic's type of an error
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text",
    "path_type": "must be a path, as text",
}


def validated(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Settings from values; raises ConfigError with one line for the first that is wrong."""
    return validated_in(kind, values, lambda name: name.replace("_", "-"))


def validated_in(kind: type[Settings], values: dict[str, Any], beginning: Callable[[str], str]) -> Settings:
    """As `validated`; an error begins with `beginning` of the setting's name ("" for what concerns several)."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        message = _WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        if not name:
            raise ConfigError(f"{beginning('')}{message}") from error
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise ConfigError(f"there is no setting {name}. There are: {known}") from error
        message = message.replace("Input should be", "must be")
        raise ConfigError(f"{beginning(name)} {message}. Found: {_found(first['input'])}") from error


def _found(value: object) -> str:
    shown = repr(str(value) if isinstance(value, Path) else value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
