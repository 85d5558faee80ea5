"""The options that several commands share, and those of the text-to-image ones, as Typer takes them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from latentmill import completing


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


class Fit(StrEnum):
    stretch = "stretch"
    cover = "cover"
    pad = "pad"


class Reader(StrEnum):
    multi = "multi"
    single = "single"


class Missing(StrEnum):
    reject = "reject"
    empty = "empty"


class Tiling(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


class Resize(StrEnum):
    exact = "exact"
    fast = "fast"


class Flip(StrEnum):
    none = "none"
    both = "both"


class Indivisible(StrEnum):
    refuse = "refuse"
    crop = "crop"
    pad = "pad"


class Link(StrEnum):
    hard = "hard"
    copy = "copy"
    symlink = "symlink"


SOURCE_PANEL, VAE_PANEL, TEXT_PANEL = "Source", "VAE", "Text features"  # panels of the help, by purpose
PICTURE_PANEL, SPEED_PANEL, RERUN_PANEL = "Pictures", "Speed and memory", "Rejects and reruns"
_FROM, _VAE, _TEXT = SOURCE_PANEL, VAE_PANEL, TEXT_PANEL
SOURCE_HELP = "Folder of images with captions beside them, or a table: PixArt's JSON, .jsonl, .csv, .tsv."

Source = Annotated[Path, typer.Option(help="Folder (walked recursively) or .zip of images.", show_default=False)]
Dest = Annotated[Path, typer.Option(help="Folder or .zip to make.", show_default=False)]
Resolution = Annotated[
    str | None,
    typer.Option(
        metavar="WxH", help="Size of every result, as 256x256 or 256,256.", autocompletion=completing.resolutions
    ),
]
TransformOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"How an image becomes that size: {', '.join(Transform)}, or one that another package brings.",
        autocompletion=completing.transforms,
    ),
]
MaxImages = Annotated[int | None, typer.Option(metavar="N", help="Only the first N images of the source.")]
Exclude = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Keys of images to leave out, one a line: a list that `audit --list` writes.",
        rich_help_panel=SOURCE_PANEL,
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(metavar="N", help="Reject images of more pixels (decompression bombs).", rich_help_panel=RERUN_PANEL),
]
MaxFailures = Annotated[
    str,
    typer.Option(
        metavar="N|P%",
        help="Stop when more images are rejected; a percentage is judged after 100 images.",
        rich_help_panel=RERUN_PANEL,
        autocompletion=completing.percentages,
    ),
]
CheckOption = Annotated[
    Check,
    typer.Option(
        help="How a rerun sees that an image changed: size and time, or its content.", rich_help_panel=RERUN_PANEL
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Start anew where latentmill made something before.", rich_help_panel=RERUN_PANEL),
]
TrustSource = Annotated[
    bool,
    typer.Option(
        "--trust-source",
        help="Take the source to be as it was, unlisted, where the result is finished or begun.",
        rich_help_panel=RERUN_PANEL,
    ),
]
ExifOption = Annotated[
    Exif, typer.Option(help="Keep the stored orientation, or turn pictures upright.", rich_help_panel=PICTURE_PANEL)
]
AlphaOption = Annotated[
    Alpha,
    typer.Option(help="Drop transparency, or lay the picture on white or black.", rich_help_panel=PICTURE_PANEL),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="auto, cpu, mps, cuda (every GPU), cuda:0,1, or cpu:N: an encoder process for each of N.",
        rich_help_panel=SPEED_PANEL,
        autocompletion=completing.devices,
    ),
]
RunnerOption = Annotated[
    str,
    typer.Option(
        "--runner",
        metavar="local|ray",
        help="This machine, or a Ray cluster with a shared file system.",
        rich_help_panel=SPEED_PANEL,
        autocompletion=completing.runners,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Cluster to join, or auto. Default: RAY_ADDRESS, else one started here.",
        rich_help_panel=SPEED_PANEL,
    ),
]

# of the text-to-image commands

Images = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a table's images. Default: InternImgs beside InternData, or the table's.",
        rich_help_panel=_FROM,
    ),
]
CaptionExtension = Annotated[
    str, typer.Option(help="Of the caption files beside a folder's images.", rich_help_panel=_FROM)
]
MultiLine = Annotated[
    bool, typer.Option("--multi-line", help="Each line of a caption file is a caption.", rich_help_panel=_FROM)
]
PathColumn = Annotated[
    str | None, typer.Option(help="Column of a table with the images' paths.", rich_help_panel=_FROM)
]
CaptionColumn = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=COLUMN", help="Caption of a table, and its column; repeatable.", rich_help_panel=_FROM),
]
MissingCaption = Annotated[
    Missing,
    typer.Option(help="Reject an image without the caption, or take the empty one.", rich_help_panel=_FROM),
]
DataInfo = Annotated[Path, typer.Option("--data-info", help=SOURCE_HELP, show_default=False)]
Vae = Annotated[
    str | None,
    typer.Option(
        help="Short name, hub repository or folder. Makes VAE features.",
        rich_help_panel=_VAE,
        autocompletion=completing.vaes,
    ),
]
ResolutionOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="256 or 512; multi-scale 512, 1024, 2048 or 2880. Any, with --buckets grid or auto.",
        rich_help_panel=_VAE,
    ),
]
MultiScale = Annotated[
    bool,
    typer.Option("--multi-scale", help="Aspect buckets, instead of squares.", rich_help_panel=_VAE),
]
Buckets = Annotated[
    str,
    typer.Option(
        metavar="TABLE",
        help="reference; grid, grid:STEP or grid:STEP:LOW:HIGH (ratios); auto:N, fitted to the images.",
        rich_help_panel=_VAE,
        autocompletion=completing.buckets,
    ),
]
FitOption = Annotated[
    Fit | None,
    typer.Option(
        help="To the bucket: stretch, cover and crop, or pad. Default: stretch; of squares, cover.",
        rich_help_panel=_VAE,
    ),
]
BatchSize = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Images a forward; auto measures which is fastest. Default: 8 of 512x512, fewer of larger ones.",
        rich_help_panel=SPEED_PANEL,
        autocompletion=completing.batch_sizes,
    ),
]
TilingOption = Annotated[
    Tiling,
    typer.Option(
        help="Encode in tiles: images that do not fit in memory, all larger ones, or none.",
        rich_help_panel=SPEED_PANEL,
    ),
]
ChannelsLast = Annotated[
    bool,
    typer.Option(
        "--channels-last",
        help="NHWC in memory: faster on a GPU; latents differ a little.",
        rich_help_panel=SPEED_PANEL,
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="torch.compile, once for each shape: faster on a GPU; latents differ a little.",
        rich_help_panel=SPEED_PANEL,
    ),
]
StoredDtype = Annotated[SaveDtype, typer.Option(help="Precision of the stored latents.", rich_help_panel=_VAE)]
PixelRange = Annotated[
    str,
    typer.Option(
        metavar="-1,1|0,1",
        help="Range of the VAE's input: -1,1 (REPA, SiT, DiT, PixArt) or 0,1 (EDM2).",
        rich_help_panel=_VAE,
        autocompletion=completing.pixel_ranges,
    ),
]
Revision = Annotated[str | None, typer.Option(help="Of the VAE's hub repository.", rich_help_panel=_VAE)]
Subfolder = Annotated[str | None, typer.Option(help="Folder of the VAE inside the model.", rich_help_panel=_VAE)]
Workers = Annotated[
    int | None, typer.Option(metavar="N", help="Processes. Default: the usable cores.", rich_help_panel=SPEED_PANEL)
]
LoadingThreads = Annotated[
    int | None,
    typer.Option(metavar="N", help="Loading threads. Default: the usable cores.", rich_help_panel=SPEED_PANEL),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", help="CPU threads a forward. Default: the usable cores.", rich_help_panel=SPEED_PANEL),
]
TextEncoder = Annotated[
    str | None,
    typer.Option(
        help="T5: short name, hub repository or folder. Makes text features.",
        rich_help_panel=_TEXT,
        autocompletion=completing.text_encoders,
    ),
]
CaptionLabel = Annotated[
    list[str] | None, typer.Option(help="Which caption; repeatable. Default: prompt.", rich_help_panel=_TEXT)
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Tokens that a caption may have; longer ones are cut. Default: the model's own, of T5 300.",
        rich_help_panel=_TEXT,
    ),
]  # fmt: skip
Pad = Annotated[
    bool,
    typer.Option(
        "--pad", help="Store --max-length positions, as the reference does, not only the real ones.",
        rich_help_panel=_TEXT,
    ),
]  # fmt: skip
TokenBudget = Annotated[
    int, typer.Option(metavar="N", help="Tokens a forward, padding included.", rich_help_panel=SPEED_PANEL)
]
TextRevision = Annotated[str | None, typer.Option(help="Of the text encoder's hub repository.", rich_help_panel=_TEXT)]

ResizeOption = Annotated[
    Resize,
    typer.Option(
        help="fast decodes large JPEGs at reduced scale: 99.9 % of a photo's values within 14 of 255 levels.",
        rich_help_panel=PICTURE_PANEL,
    ),
]
FlipOption = Annotated[
    Flip,
    typer.Option(
        help="both: every image mirrored too, in DEST-flip, for a loader to pick from.", rich_help_panel=PICTURE_PANEL
    ),
]
Crops = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Crops of every image: the transform's own, then others in DEST-crop1 and so on.",
        rich_help_panel=PICTURE_PANEL,
    ),
]
CropSeed = Annotated[int, typer.Option(metavar="N", help="Of the drawn crops' places.", rich_help_panel=PICTURE_PANEL)]
IndivisibleOption = Annotated[
    Indivisible,
    typer.Option(help="What becomes of sides that the VAE's factor does not divide.", rich_help_panel=PICTURE_PANEL),
]
StoreOption = Annotated[
    Store,
    typer.Option(
        help="The posterior's mean and deviation, its mean (of models without a posterior), or one sample.",
        rich_help_panel=_VAE,
    ),
]


def caption_columns(columns: list[str] | None) -> dict[str, str] | None:
    """Columns by caption name, of `NAME=COLUMN` or a name that is both; None where nothing is told."""
    if not columns:
        return None
    return {parts[0]: parts[-1] for parts in (text.split("=", 1) for text in columns)}
