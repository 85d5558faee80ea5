"""The text-to-image commands: `pixart`, `import` and `buckets`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from latentmill.command import BEFORE, PREPARE, add
from latentmill.event_results import emit_buckets, emit_import
from latentmill.guard import EXIT_REJECTS, feature_shown, guarded, importing, plain, run_recipes
from latentmill.options import (
    SOURCE_HELP,
    VAE_PANEL,
    Alpha,
    AlphaOption,
    BatchSize,
    Buckets,
    CaptionColumn,
    CaptionExtension,
    CaptionLabel,
    ChannelsLast,
    Check,
    CheckOption,
    CompileOption,
    Crops,
    CropSeed,
    DataInfo,
    Device,
    Dtype,
    Exclude,
    Exif,
    ExifOption,
    Fit,
    FitOption,
    Flip,
    FlipOption,
    Images,
    Indivisible,
    IndivisibleOption,
    Link,
    LoadingThreads,
    MaxFailures,
    MaxLength,
    MaxPixels,
    Missing,
    MissingCaption,
    MultiLine,
    MultiScale,
    Overwrite,
    Pad,
    PathColumn,
    PixelRange,
    RayAddress,
    Reader,
    Resize,
    ResizeOption,
    ResolutionOption,
    Revision,
    RunnerOption,
    SaveDtype,
    Store,
    StoredDtype,
    StoreOption,
    Subfolder,
    TextEncoder,
    TextRevision,
    Threads,
    Tiling,
    TilingOption,
    TokenBudget,
    TrustSource,
    Vae,
    caption_columns,
)
from latentmill.terminal import Display, counted, out, print_buckets, shown, warn


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    add(
        app,
        import_,
        PREPARE,
        "latentmill import photos data",
        "latentmill import table.csv data --images photos --path-column file --caption-column prompt=text",
        name="import",
    )
    add(
        app,
        pixart,
        PREPARE,
        "latentmill pixart --data-info data/InternData/data_info.json --dest data/InternData --multi-scale",
        "latentmill pixart --data-info photos --dest features --vae sdxl-vae-fp16-fix --resolution 1024 --multi-scale "
        "--buckets auto:12 --fit cover",
    )
    add(
        app,
        buckets,
        BEFORE,
        "latentmill buckets data/InternData/data_info.json --resolution 1024 --buckets auto:12 --fit cover",
    )


def pixart(
    data_info: DataInfo,
    dest: Annotated[Path, typer.Option(help="Folder of the feature folders (InternData).", show_default=False)],
    vae: Vae = None,
    resolution: ResolutionOption = 512,
    multi_scale: MultiScale = False,
    text_encoder: TextEncoder = None,
    caption_label: CaptionLabel = None,
    max_length: MaxLength = None,
    pad: Pad = False,
    reader: Annotated[
        Reader | None,
        typer.Option(help="Of PixArt's two, the one that file names are for. Default: multi; single for squares."),
    ] = None,
    buckets: Buckets = "reference",
    fit: FitOption = None,
    batch_size: BatchSize = None,
    token_budget: TokenBudget = 4096,
    tiling: TilingOption = Tiling.auto,
    resize: ResizeOption = Resize.exact,
    flip: FlipOption = Flip.none,
    crops: Crops = 1,
    crop_seed: CropSeed = 0,
    indivisible: IndivisibleOption = Indivisible.refuse,
    store: StoreOption = Store.moments,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the models.", rich_help_panel=VAE_PANEL)] = Dtype.float32,
    save_dtype: StoredDtype = SaveDtype.float32,
    channels_last: ChannelsLast = False,
    compile: CompileOption = False,  # noqa: A002  # the option's name
    pixel_range: PixelRange = "-1,1",
    revision: Revision = None,
    subfolder: Subfolder = None,
    text_revision: TextRevision = None,
    threads: Threads = None,
    num_workers: LoadingThreads = None,
    suffix: Annotated[str, typer.Option(help="Appended to the feature folders' names, after a _.")] = "",
    start_index: Annotated[int, typer.Option(metavar="N", help="First row to make, counted from 0.")] = 0,
    end_index: Annotated[int | None, typer.Option(metavar="N", help="Row before which to stop.")] = None,
    exclude: Exclude = None,
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
    runner: RunnerOption = "local",
    ray_address: RayAddress = None,
    check: CheckOption = Check.stat,
    trust_source: TrustSource = False,
    overwrite: Overwrite = False,
) -> None:
    """VAE and text features of captioned images, in the folders that PixArt-Sigma's trainer reads.

    With --vae alone, images; with --text-encoder alone, captions; with neither, both by the default models.
    """
    settings = _settings(locals())
    settings["caption_label"] = caption_label or ["prompt"]

    def jobs() -> int:
        with importing():
            from latentmill.features import feature_recipe

        recipe, warnings = feature_recipe(settings.pop("data_info"), settings.pop("dest"), **settings)
        for warning in warnings:
            warn(warning)
        return run_recipes([recipe], feature_shown)

    guarded(jobs)


def import_(
    source: Annotated[Path, typer.Argument(metavar="SRC", help=SOURCE_HELP, show_default=False)],
    dest: Annotated[
        Path, typer.Argument(metavar="DEST", help="Folder to make: InternImgs, InternData.", show_default=False)
    ],
    link: Annotated[Link, typer.Option(help="How images get there.")] = Link.hard,
    flatten: Annotated[bool, typer.Option("--flatten", help="a/b/c.png becomes a_b_c.png.")] = False,
    png: Annotated[bool, typer.Option("--png", help="Encode JPEGs as PNG too, for the single-scale reader.")] = False,
    exif: ExifOption = Exif.ignore,
    missing_caption: MissingCaption = Missing.reject,
    exclude: Exclude = None,
    images: Images = None,
    caption_extension: CaptionExtension = ".txt",
    multi_line: MultiLine = False,
    path_column: PathColumn = None,
    caption_column: CaptionColumn = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make every image anew, and a table that was edited since.")
    ] = False,
) -> None:
    """Captioned images to a PixArt dataset: InternImgs with names its readers find, InternData/data_info.json."""
    settings = _settings(locals())

    def work() -> int:
        from latentmill.importing import import_captioned

        with Display("import") as display:
            result = import_captioned(settings.pop("source"), settings.pop("dest"), tell=display.tell, **settings)
        emit_import(result)
        done = "[green]already imported:[/]" if result.already_done else "[green]import done:[/]"
        out.print(
            f"{done} {shown(result.dest)}: {counted(result.stored, 'images')} with "
            f"{', '.join(map(shown, result.names)) or 'no captions'}; "
            f"{result.placed:,} put into place, {result.removed:,} removed"
        )
        for note, count in result.notes.items():
            out.print(f"  {count:,} {note}")
        if result.rejected:
            out.print(f"  [yellow]{result.rejected:,} rejected[/]: {shown(result.rejects)}")
        out.print(f"  table: {shown(result.data_info)}\n  report: {shown(result.report)}")
        if result.placed:
            table, folder = (shown(shlex.quote(str(path))) for path in (result.data_info, result.data_info.parent))
            out.print(f"next: latentmill pixart --data-info {table} --dest {folder}")
        return EXIT_REJECTS if result.rejected else 0

    guarded(work)


def buckets(
    source: Annotated[Path, typer.Argument(metavar="SRC", help=SOURCE_HELP, show_default=False)],
    resolution: Annotated[
        int, typer.Option(metavar="N", help="256, 512, 1024, 2048 or 2880; any, with --buckets grid or auto.")
    ] = 512,
    table: Annotated[
        str,
        typer.Option(
            "--buckets",
            metavar="TABLE",
            help="reference; grid, grid:STEP or grid:STEP:LOW:HIGH (ratios); auto:N, fitted to the images.",
        ),
    ] = "reference",
    fit: Annotated[Fit, typer.Option(help="To the bucket: stretch, cover and crop, or pad.")] = Fit.stretch,
    exclude: Exclude = None,
    images: Images = None,
    path_column: PathColumn = None,
    exif: ExifOption = Exif.ignore,
) -> None:
    """Show what aspect buckets would do to a source's images: how many in each, what is cropped, what is left out."""

    def work() -> int:
        from latentmill.outputs.buckets import preview_buckets

        report = preview_buckets(
            source, resolution, table, str(fit), images=images, path_column=path_column, exif=str(exif), exclude=exclude
        )
        emit_buckets(source, report)
        print_buckets(report)
        return 0

    guarded(work, commits=False)


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Options as the Python calls take them."""
    settings = plain(values)
    columns = caption_columns(settings.pop("caption_column"))
    return settings if columns is None else {**settings, "caption_columns": columns}
