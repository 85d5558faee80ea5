"""The settings that several kinds of output share: the source, how jobs are run, variants, crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from latentmill.config_base import SettingsBase
from latentmill.config_types import (
    CROPPING,
    FILES,
    LOCAL,
    RAY,
    Device,
    FailureLimit,
    Limit,
    Positive,
    RunnerName,
    Size,
    SourceKind,
    Transform,
)
from latentmill.devices import gpus


class SourceSettings(SettingsBase):
    """The one source of a recipe, and how its images are decoded; see `sources.captioned` and `decoding`."""

    source: Path = Field(description="A folder or zip of images, or a table (.json, .jsonl, .csv, .tsv) of them.")
    source_kind: SourceKind = Field(
        FILES, description="`files`, or the name of a source that an installed package brings."
    )
    source_options: dict[str, Any] = Field(
        {}, description="Settings of a source that another package brings, which reads them itself."
    )
    images: Path | None = Field(
        None,
        description="The folder that a table's image paths are relative to. Default: `InternImgs` beside `InternData`, "
        "else the table's own folder.",
    )
    caption_extension: str = Field(".txt", description="Ending of the caption files beside a folder's images.")
    multi_line: bool = Field(
        False,
        description="Each line of a caption file that is not empty is a caption of its own: `prompt`, `prompt_2`, …",
    )
    path_column: str | None = Field(
        None, description="The column of a table with the images' paths. Default: found by the usual names."
    )
    caption_columns: dict[str, str] | list[str] | None = Field(
        None,
        description="The columns of a table with captions: a list, or a table of caption name and column. Default: "
        "found by the usual names.",
    )
    missing_caption: Literal["reject", "empty"] = Field(
        "reject", description="What becomes of an image without the caption: a reject, or one with the empty caption."
    )
    exclude: Path | None = Field(
        None,
        description="A file with the keys of images to leave out, one a line, as `latentmill audit --list` writes it.",
    )
    max_images: Positive | None = Field(None, description="Only the first so many images of the source; for a trial.")
    start_index: int = Field(
        0, ge=0, description="The first row that is wanted of a captioned source; what other slices made is kept."
    )
    end_index: int | None = Field(
        None, ge=0, description="The row of a captioned source before which to stop. Default: all rows."
    )
    exif: Literal["ignore", "apply"] = Field(
        "ignore", description="Keep pixels as they are stored, or turn pictures upright as their EXIF orientation says."
    )
    alpha: Literal["drop", "white", "black"] = Field(
        "drop", description="Drop transparency, or lay the picture on white or on black."
    )
    max_pixels: Positive = Field(
        178_956_970, description="Images of more pixels are rejected before they are decoded (decompression bombs)."
    )

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


class RunSettings(SettingsBase):
    """How jobs are run."""

    device: Device = Field(
        "auto",
        description="What models run on: `auto`, `cpu`, `mps`, `cuda` (every GPU), `cuda:0,1`, or `cpu:N` for N "
        "processes on the CPU; with several, each has a process of its own.",
    )
    threads: Positive | None = Field(
        None,
        description="CPU threads of a forward. Default: what the destination was begun with, else the usable cores.",
    )
    num_workers: Positive | None = Field(
        None,
        description="Processes, where only pixels are made; else loading threads of a machine. Default: one a usable "
        "core.",
    )
    max_failures: Limit = Field(
        FailureLimit.parse("10%"),
        description="Stop when more images than this are rejected: a number, or a percentage, which is judged once 100 "
        "images are seen.",
    )
    check: Literal["stat", "digest"] = Field(
        "stat", description="How a rerun sees that an image changed: by size and time, or by its content."
    )
    overwrite: bool = Field(False, description="Start anew where latentmill made something before.")
    trust_source: bool = Field(
        False,
        description="Take the source to be as it was: what is finished or begun goes by its own ledger, and the source "
        "is not listed.",
    )
    wait: bool = Field(
        False, description="Wait for another process that writes to the same place, instead of refusing."
    )
    runner: RunnerName = Field(
        LOCAL, description="Who runs the work: `local` (this machine), `ray`, or one that an installed package brings."
    )
    ray_address: str | None = Field(
        None,
        description="The Ray cluster to join, as `HOST:PORT` or `auto`. Default: `RAY_ADDRESS`, else one is started on "
        "this machine.",
    )

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
    """What every output of a recipe takes."""

    dest: Path = Field(description="The folder or zip that is made. Default in a recipe: the output's name, in `dest`.")

    @model_validator(mode="after")
    def _check_trusted_rows(self) -> Self:
        if self.trust_source and (self.start_index or self.end_index is not None):
            raise ValueError(
                "trust-source does not tell which rows were made. Found: start-index or end-index beside it; "
                "leave out trust-source"
            )
        return self


class VariantSettings(OutputSettings):
    """Augmented variants of an output, each in a sibling folder; a loader picks among them at training time."""

    flip: Literal["none", "both"] = Field(
        "none", description="`both`: every image is made mirrored too, in a folder whose name ends in `-flip`."
    )
    crops: Positive = Field(
        1,
        description="Crops of every image: the transform's own, then others at drawn places, in folders whose names "
        "end in `-crop1`, `-crop2`, …",
    )
    crop_seed: int = Field(
        0, ge=0, description="With the image's path, decides the places of the drawn crops, the same in every run."
    )
    resize: Literal["exact", "fast"] = Field(
        "exact",
        description="`fast` decodes large JPEGs at reduced scale before the crop, which changes pixels a little; see "
        "the performance page.",
    )


class CropSettings(VariantSettings):
    """What every output takes whose images all become one size."""

    transform: Transform = Field(
        "none",
        description="How an image becomes that size: `none`, `center-crop`, `center-crop-wide`, "
        "`center-crop-dhariwal`, or one that an installed package brings.",
    )
    resolution: Size | None = Field(
        None, description="Width and height of every result, as `256x256`. Default: the images' own, which must agree."
    )

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
