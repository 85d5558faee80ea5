"""The options that several commands share, as Typer takes them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Transform(StrEnum):
    none = "none"
    center_crop = "center-crop"
    center_crop_wide = "center-crop-wide"
    center_crop_dhariwal = "center-crop-dhariwal"


class Exif(StrEnum):
    ignore = "ignore"
    apply = "apply"


class Alpha(StrEnum):
    drop = "drop"
    white = "white"
    black = "black"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class SaveDtype(StrEnum):
    float32 = "float32"
    float16 = "float16"


class Store(StrEnum):
    moments = "moments"
    mean = "mean"
    sample = "sample"


class Check(StrEnum):
    stat = "stat"
    digest = "digest"


Source = Annotated[Path, typer.Option(help="Folder (walked recursively) or .zip of images.", show_default=False)]
Dest = Annotated[Path, typer.Option(help="Folder or .zip to make.", show_default=False)]
Resolution = Annotated[str | None, typer.Option(metavar="WxH", help="Size of every result, as 256x256 or 256,256.")]
TransformOption = Annotated[Transform, typer.Option(help="How an image becomes that size.")]
MaxImages = Annotated[int | None, typer.Option(metavar="N", help="Only the first N images of the source.")]
MaxPixels = Annotated[int, typer.Option(metavar="N", help="Reject images of more pixels (decompression bombs).")]
MaxFailures = Annotated[
    str,
    typer.Option(metavar="N|P%", help="Stop when more images are rejected; a percentage is judged after 100 images."),
]
CheckOption = Annotated[
    Check, typer.Option(help="How a rerun sees that an image changed: size and time, or its content.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew where latentmill made something before.")]
ExifOption = Annotated[Exif, typer.Option(help="Keep the stored orientation, or turn pictures upright.")]
AlphaOption = Annotated[Alpha, typer.Option(help="Drop transparency, or lay the picture on white or black.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]
