"""The text-to-image commands: `pixart`, `import` and `buckets`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from latentmill.guard import EXIT_REJECTS, guarded, plain
from latentmill.options import (
    Alpha,
    AlphaOption,
    Check,
    CheckOption,
    Device,
    Dtype,
    Exif,
    ExifOption,
    MaxFailures,
    MaxPixels,
    Overwrite,
    SaveDtype,
)
from latentmill.terminal import Display, err, out, shown, summarise


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


class Link(StrEnum):
    hard = "hard"
    copy = "copy"
    symlink = "symlink"


_SHOWN = 20  # of what is left out
_SOURCE_HELP = "Folder of images with captions beside them, or a table: PixArt's JSON, .jsonl, .csv, .tsv."
Images = Annotated[
    Path | None, typer.Option(help="Folder of a table's images. Default: InternImgs beside InternData, or the table's.")
]
CaptionExtension = Annotated[str, typer.Option(help="Of the caption files beside a folder's images.")]
MultiLine = Annotated[bool, typer.Option("--multi-line", help="Each line of a caption file is a caption.")]
PathColumn = Annotated[str | None, typer.Option(help="Column of a table with the images' paths.")]
CaptionColumn = Annotated[
    list[str] | None, typer.Option(metavar="NAME=COLUMN", help="Caption of a table, and its column; repeatable.")
]
MissingCaption = Annotated[Missing, typer.Option(help="Reject an image without the caption, or take the empty one.")]
DataInfo = Annotated[Path, typer.Option("--data-info", help=_SOURCE_HELP, show_default=False)]
ResolutionOption = Annotated[int, typer.Option(metavar="N", help="256 or 512; multi-scale 512, 1024, 2048 or 2880.")]
MultiScale = Annotated[bool, typer.Option("--multi-scale/--single-scale", help="Aspect buckets, or squares.")]
Buckets = Annotated[
    str,
    typer.Option(
        metavar="TABLE",
        help="reference; grid[:STEP[:LOW:HIGH]] of any resolution; auto:N[:STEP], fitted to the images.",
    ),
]
FitOption = Annotated[
    Fit | None,
    typer.Option(help="To the bucket: stretch, cover and crop, or pad. Default: stretch; single-scale: cover."),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(pixart)
    app.command("import")(import_)
    app.command()(buckets)


def pixart(
    data_info: DataInfo,
    dest: Annotated[Path, typer.Option(help="Folder of the feature folders (InternData).", show_default=False)],
    vae: Annotated[
        str | None, typer.Option(help="VAE: short name, hub repository or folder. Makes VAE features.")
    ] = None,
    resolution: ResolutionOption = 512,
    multi_scale: MultiScale = False,
    text_encoder: Annotated[
        str | None, typer.Option(help="T5: short name, hub repository or folder. Makes text features.")
    ] = None,
    caption_label: Annotated[list[str] | None, typer.Option(help="Which caption; repeatable. Default: prompt.")] = None,
    max_length: Annotated[int, typer.Option(metavar="N", help="Tokens that a caption may have.")] = 300,
    pad: Annotated[
        bool, typer.Option("--pad", help="Store N positions, as the reference does, not L real ones.")
    ] = False,
    reader: Annotated[
        Reader | None, typer.Option(help="Whose file names. Default: multi; single for single-scale VAE features.")
    ] = None,
    buckets: Buckets = "reference",
    fit: FitOption = None,
    batch_size: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Images a forward; auto tries. Default: 8 of 512x512.")
    ] = None,
    token_budget: Annotated[int, typer.Option(metavar="N", help="Tokens a forward of the text encoder.")] = 4096,
    tiling: Annotated[
        Tiling, typer.Option(help="Encode in tiles what does not fit in memory, all, or nothing.")
    ] = Tiling.auto,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the models.")] = Dtype.float32,
    save_dtype: Annotated[SaveDtype, typer.Option(help="Precision of the stored latents.")] = SaveDtype.float32,
    pixel_range: Annotated[str, typer.Option(metavar="-1,1|0,1", help="Range of the VAE's input.")] = "-1,1",
    revision: Annotated[str | None, typer.Option(help="Revision of the VAE's hub repository.")] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder of the VAE inside the model.")] = None,
    text_revision: Annotated[str | None, typer.Option(help="Revision of the text encoder's hub repository.")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="CPU threads. Default: the usable cores.")] = None,
    num_workers: Annotated[int | None, typer.Option(metavar="N", help="Loading threads. Default: the cores.")] = None,
    suffix: Annotated[str, typer.Option(help="Appended to the feature folders' names, after a _.")] = "",
    start_index: Annotated[int, typer.Option(metavar="N", help="First row that is wanted.")] = 0,
    end_index: Annotated[int | None, typer.Option(metavar="N", help="Row before which to stop.")] = None,
    images: Images = None,
    caption_extension: CaptionExtension = ".txt",
    multi_line: MultiLine = False,
    path_column: PathColumn = None,
    caption_column: CaptionColumn = None,
    missing_caption: MissingCaption = Missing.reject,
    exif: ExifOption = Exif.ignore,
    alpha: AlphaOption = Alpha.drop,
    max_pixels: MaxPixels = 178_956_970,
    max_failures: MaxFailures = "10%",
    check: CheckOption = Check.stat,
    overwrite: Overwrite = False,
) -> None:
    """VAE and text features of captioned images, in the folders that PixArt-Sigma's trainer reads.

    With --vae alone, images; with --text-encoder alone, captions; with neither, both by the default models.

    Example: latentmill pixart --data-info data/InternData/data_info.json --dest data/InternData --multi-scale
    """
    settings = _settings(locals())
    settings["caption_label"] = caption_label or ["prompt"]
    settings["batch_size"] = int(batch_size) if batch_size is not None and batch_size.isdigit() else batch_size

    def jobs() -> int:
        from latentmill.features import IMAGES, feature_jobs

        rejected = 0
        for label, run in feature_jobs(settings.pop("data_info"), settings.pop("dest"), **settings):
            name = "images" if label is IMAGES else f"captions {label}"
            with Display(name) as display:
                result = run(display.tell)
            summarise(name, result, Path(), "images" if label is IMAGES else "captions")
            rejected += result.rejected
        return EXIT_REJECTS if rejected else 0

    guarded(jobs)


def import_(
    source: Annotated[Path, typer.Argument(metavar="SRC", help=_SOURCE_HELP, show_default=False)],
    dest: Annotated[
        Path, typer.Argument(metavar="DEST", help="Folder to make: InternImgs, InternData.", show_default=False)
    ],
    link: Annotated[Link, typer.Option(help="How images get there.")] = Link.hard,
    flatten: Annotated[bool, typer.Option("--flatten", help="a/b/c.png becomes a_b_c.png.")] = False,
    exif: ExifOption = Exif.ignore,
    missing_caption: MissingCaption = Missing.reject,
    images: Images = None,
    caption_extension: CaptionExtension = ".txt",
    multi_line: MultiLine = False,
    path_column: PathColumn = None,
    caption_column: CaptionColumn = None,
) -> None:
    """Captioned images to a PixArt dataset: InternImgs with names its readers find, InternData/data_info.json.

    Example: latentmill import photos data --link symlink
    """
    settings = _settings(locals())

    def work() -> int:
        from latentmill.importing import import_captioned

        with Display("import") as display:
            result = import_captioned(settings.pop("source"), settings.pop("dest"), tell=display.tell, **settings)
        done = "[green]already imported:[/]" if result.already_done else "[green]import done:[/]"
        out.print(
            f"{done} {shown(result.dest)}: {result.stored:,} images with {', '.join(result.names) or 'no captions'}; "
            f"{result.placed:,} put into place, {result.removed:,} removed"
        )
        for note, count in result.notes.items():
            out.print(f"  {count:,} {note}")
        if result.rejected:
            out.print(f"  [yellow]{result.rejected:,} rejected[/]: {shown(result.rejects)}")
        out.print(f"  table: {shown(result.data_info)}\n  report: {shown(result.report)}")
        return EXIT_REJECTS if result.rejected else 0

    guarded(work)


def buckets(
    source: Annotated[Path, typer.Argument(metavar="SRC", help=_SOURCE_HELP, show_default=False)],
    resolution: ResolutionOption = 512,
    table: Annotated[str, typer.Option("--buckets", metavar="TABLE", help="As of `latentmill pixart`.")] = "reference",
    fit: Annotated[Fit, typer.Option(help="To the bucket: stretch, cover and crop, or pad.")] = Fit.stretch,
    images: Images = None,
    path_column: PathColumn = None,
    exif: ExifOption = Exif.ignore,
) -> None:
    """Show what aspect buckets would do to a source's images: how many in each, what is cropped, what is left out.

    Example: latentmill buckets data/InternData/data_info.json --resolution 1024 --buckets auto:12 --fit cover
    """

    def work() -> int:
        from latentmill.vae_features import preview_buckets

        report = preview_buckets(
            source, resolution, table, str(fit), images=images, path_column=path_column, exif=str(exif)
        )
        _print_buckets(report)
        return 0

    guarded(work)


def _print_buckets(report: Any) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("height x width", "ratio", "images", "cropped away", "distortion", "upscaled"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [row for row in report.rows() if row.images]
    for row in rows:
        table.add_row(f"{row.bucket[0]} x {row.bucket[1]}", f"{row.ratio:g}", f"{row.images:,}",
                      f"{row.cropped_away:.1%}", f"{row.distortion:.1%}", f"{row.upscaled:,}")  # fmt: skip
    total = report.totals()
    table.add_row("all", "", f"{total.images:,}", f"{total.cropped_away:.1%}", f"{total.distortion:.1%}",
                  f"{total.upscaled:,}", style="bold")  # fmt: skip
    out.print(table)
    out.print(f"{len(rows)} of {len(report.table.buckets)} buckets have images")
    for item in report.left_out[:_SHOWN]:
        err.print(f"[yellow]left out:[/] {shown(item.key)}: {shown(item.reason)}")
    if len(report.left_out) > _SHOWN:
        err.print(f"… and {len(report.left_out) - _SHOWN:,} more are left out")


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Options as the Python calls take them."""
    settings = plain(values)
    columns = settings.pop("caption_column")
    if columns:
        settings["caption_columns"] = dict(text.split("=", 1) if "=" in text else (text, text) for text in columns)
    return settings
