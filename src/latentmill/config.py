"""The settings of every command, validated where they are defined: a message says what was expected, what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from latentmill.config_base import SettingsBase
from latentmill.config_base import validated as validated
from latentmill.config_base import validated_in as validated_in
from latentmill.config_shared import CropSettings as CropSettings
from latentmill.config_shared import OutputSettings as OutputSettings
from latentmill.config_shared import RunSettings as RunSettings
from latentmill.config_shared import SourceSettings as SourceSettings
from latentmill.config_shared import VariantSettings as VariantSettings
from latentmill.config_types import BatchSize, Device, FailureLimit, FolderPart, Limit, PixelRange, Positive

_BATCH = (
    "Images a forward, or `auto`, which measures what is fastest. Default: what the destination was begun with, "
    "else {}."
)
_COMPUTE = "Precision of the computation: `float32`, `bfloat16` or `float16`."
_REVISION = "Branch, tag or commit of a hub repository. Default: its main branch; the commit is recorded."
_SUBFOLDER = "The model's folder inside the repository or folder. Default: found."


class PixelSettings(CropSettings):
    """Cropped pixels, as EDM2 and REPA trainers read them."""

    batch_size: Positive = Field(32, description="Images that a worker takes at a time.")


class _VaeSettings(SettingsBase):
    """What both layouts of latents take."""

    model: str = Field(
        "sd-vae-ft-mse",
        description="The VAE: a short name (see `latentmill models`), a hub repository `owner/name`, or a folder.",
    )
    revision: str | None = Field(None, description=_REVISION)
    subfolder: str | None = Field(None, description=_SUBFOLDER)
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description=_COMPUTE)
    pixel_range: PixelRange = Field(
        (-1.0, 1.0), description="Range of the VAE's input: `-1,1` (REPA, SiT, DiT, PixArt) or `0,1` (EDM2)."
    )
    store: Literal["moments", "mean", "sample"] = Field(
        "moments",
        description="What is stored of the posterior: its mean and standard deviation, its mean, or one sample. Models "
        "without a posterior need `mean`.",
    )
    seed: int = Field(0, description='Of the samples, with `store = "sample"`.')
    save_dtype: Literal["float32", "float16"] = Field("float32", description="Precision of the stored latents.")
    indivisible: Literal["refuse", "crop", "pad"] = Field(
        "refuse",
        description="What becomes of sides that the VAE's factor does not divide: refused, cropped, or padded on the "
        "right and at the bottom.",
    )
    channels_last: bool = Field(
        False, description="NHWC in memory; meant for GPUs; latents differ in their last digits."
    )
    compile: bool = Field(
        False, description="`torch.compile`, once for each shape; meant for GPUs; latents differ in their last digits."
    )


class LatentSettings(CropSettings, _VaeSettings):
    """Latents of one size, as REPA and SiT trainers read them."""

    pixels: Path | None = Field(
        None, description="Also write the cropped pixels here; neither is published without the other."
    )
    batch_size: BatchSize | None = Field(None, description=_BATCH.format("8"))


class BucketSettings(VariantSettings, _VaeSettings):
    """Latents in aspect buckets, as PixArt's readers open them."""

    model: str = Field(
        "sdxl-vae-fp16-fix",
        description="The VAE: a short name (see `latentmill models`), a hub repository `owner/name`, or a folder.",
    )
    reader: Literal["multi", "single"] | None = Field(
        None,
        description="Which of PixArt's readers file names are for. Default: what the destination was begun with, else "
        "`multi`, or `single` for squares.",
    )
    resolution: Positive = Field(
        512, description="Side of a square, or of the square whose area buckets have: 256, 512, 1024, 2048 or 2880."
    )
    multi_scale: bool = Field(False, description="Aspect buckets; without it, every image becomes a square.")
    buckets: str = Field(
        "reference",
        description="The bucket table: `reference` (PixArt's own), `grid`, `grid:STEP`, `grid:STEP:LOW:HIGH` (ratios), "
        "or `auto:N`, fitted to the images. With `grid` and `auto`, any resolution.",
    )
    fit: Literal["stretch", "cover", "pad"] | None = Field(
        None,
        description="How an image becomes its bucket's size: stretched, scaled to cover and cropped, or padded with "
        "black. Default: `stretch` for buckets, `cover` for squares.",
    )
    batch_size: BatchSize | None = Field(None, description=_BATCH.format("8 of 512x512, fewer of larger ones"))
    tiling: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Encode in tiles: images that do not fit in memory, all that are larger than a tile, or none.",
    )

    @model_validator(mode="after")
    def _check_buckets(self) -> Self:
        if not self.multi_scale and self.buckets != "reference":
            raise ValueError(f"buckets are of multi-scale features (--multi-scale). Found: buckets {self.buckets!r}")
        if self.crops > 1 and self.fit != "cover" and (self.fit or self.multi_scale):
            raise ValueError(f"crops need fit cover: nothing is cropped else. Found: {self.fit or 'stretch'}")
        return self


class VisionSettings(CropSettings):
    """Features of a vision encoder."""

    model: str = Field(
        "dinov2-vitb14",
        description="The vision encoder: a short name (see `latentmill models`), a hub repository, or a folder.",
    )
    revision: str | None = Field(None, description=_REVISION)
    subfolder: str | None = Field(None, description=_SUBFOLDER)
    tokens: Literal["patch", "pooled", "both"] = Field(
        "patch", description="Which features are stored: of the patches, the pooled vector, or both, the pooled first."
    )
    input: Literal["processor", "repa"] = Field(
        "processor",
        description="How pixels become the model's input: as its own image processor does, or as REPA's trainer does, "
        "so that patches lie where the latents' do.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description=_COMPUTE)
    save_dtype: Literal["float32", "float16"] = Field("float32", description="Precision of the stored features.")
    naming: Literal["repa", "pixart/multi", "pixart/single"] = Field(
        "repa",
        description="Names of the files: by number as class-conditional data, or by the image's path for one of "
        "PixArt's readers.",
    )
    batch_size: BatchSize | None = Field(None, description=_BATCH.format("8"))


class CaptionSettings(OutputSettings):
    """Text features of one of the captions."""

    model: str = Field(
        "pixart-sigma-t5",
        description="The text encoder: a short name, a hub repository or a folder; in a recipe also a set, as `sd3`, "
        "which becomes an output for each of its encoders.",
    )
    member: str | None = Field(
        None, description="The short name of one encoder of a set; stored recipes have it, yours need none."
    )
    encoder: str = Field("", description="The encoder's name in its set; stored recipes have it, yours need none.")
    repository: str | None = Field(
        None, description="A folder or repository to take in place of the one that a short name stands for."
    )
    revision: str | None = Field(None, description=_REVISION)
    encoding: dict[str, Any] = Field(
        {},
        description="How the model is used, where otherwise than its own pipeline does: `output`, `layers`, "
        "`positions`, `mask`, `template`, `drop`, `empty`, `clean`.",
    )
    label: FolderPart = Field("prompt", description="Which of an image's captions.")
    reader: Literal["multi", "single"] | None = Field(
        None, description="Which of PixArt's readers file names are for. Default: as of the images' features."
    )
    images_reader: Literal["multi", "single"] | None = Field(
        None,
        description="The reader of VAE features made in the same call; stored recipes have it, yours need none.",
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="Tokens that a caption may have; longer ones are cut, and counted. Default: the model's.",
    )
    pad: bool = Field(
        False, description="Store `max_length` positions of every caption, as PixArt's tool does, not the real tokens."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description=_COMPUTE)
    token_budget: Positive = Field(4096, description="Tokens a forward, padding included.")


class FolderSettings(SettingsBase):
    """Of the names of PixArt's feature folders."""

    suffix: FolderPart = Field("", description="Comes last in the folders' names, after a `_`.")


class DecodeSettings(SettingsBase):
    """`latentmill decode`."""

    source: Path = Field(description="A folder or zip of latents that latentmill made.")
    dest: Path = Field(description="The folder of PNGs that is made.")
    max_images: Positive | None = Field(None, description="Only the first so many latents.")
    max_failures: Limit = Field(FailureLimit.parse("10%"), description="Stop when more latents than this are rejected.")
    check: Literal["stat", "digest"] = Field(
        "stat", description="How a rerun sees that a latent changed: by size and time, or by its content."
    )
    overwrite: bool = Field(False, description="Start anew where latentmill made something before.")
    model_url: str | None = Field(None, description="The VAE. Default: the model that the latents' metadata names.")
    batch_size: Positive = Field(8, description="Latents a forward.")
    threads: Positive | None = Field(None, description="CPU threads of a forward. Default: the usable cores.")
    device: Device = Field("auto", description="What the model runs on, as of encoding.")
