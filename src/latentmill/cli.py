"""The command line: the commands and what each prints. Exit codes are in `guard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentmill import cli_audit, cli_compare, cli_features, cli_recipe, cli_report, cli_tools, completing
from latentmill.command import AFTER, MACHINE, PREPARE, TRY, add, program
from latentmill.event_results import emit_models, emit_verified
from latentmill.events import emit
from latentmill.guard import EXIT_FOUND, EXIT_REJECTS, guarded, plain, run_job, run_program, state
from latentmill.options import (
    SPEED_PANEL,
    VAE_PANEL,
    Alpha,
    AlphaOption,
    ChannelsLast,
    Check,
    CheckOption,
    CompileOption,
    Crops,
    CropSeed,
    Dest,
    Device,
    Dtype,
    Exclude,
    Exif,
    ExifOption,
    Flip,
    FlipOption,
    Indivisible,
    IndivisibleOption,
    LoadingThreads,
    MaxFailures,
    MaxImages,
    MaxPixels,
    Overwrite,
    PixelRange,
    RayAddress,
    Resize,
    ResizeOption,
    Resolution,
    Revision,
    RunnerOption,
    SaveDtype,
    Source,
    Store,
    StoredDtype,
    StoreOption,
    Subfolder,
    Threads,
    TransformOption,
    TrustSource,
    Workers,
)
from latentmill.terminal import Display, out, shown, summarise

app = program(
    name="latentmill",
    help="Raw images and captions in, training-ready latents out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        import latentmill

        out.print(f"latentmill {latentmill.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool | None, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = None,
) -> None:
    state.debug = debug


def convert(
    source: Source,
    dest: Dest,
    resolution: Resolution = None,
    transform: TransformOption = "none",
    exclude: Exclude = None,
    max_images: MaxImages = None,
    num_workers: Workers = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Images handed to a worker at a time.", rich_help_panel=SPEED_PANEL)
    ] = 32,
    resize: ResizeOption = Resize.exact,
    flip: FlipOption = Flip.none,
    crops: Crops = 1,
    crop_seed: CropSeed = 0,
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
    """Crop and resize photos into a dataset of equal square PNGs (EDM2 and REPA layout)."""
    run_job("convert", {**locals()})


def encode(
    source: Source,
    dest: Dest,
    model_url: Annotated[
        str,
        typer.Option(
            "--model-url",
            "--vae",
            help="Short name (see `latentmill models`), hub repository, or folder.",
            autocompletion=completing.vaes,
        ),
    ] = "sd-vae-ft-mse",
    revision: Revision = None,
    subfolder: Subfolder = None,
    images: Annotated[Path | None, typer.Option(help="Also write the cropped pixels here, in the same pass.")] = None,
    resolution: Resolution = None,
    transform: TransformOption = "none",
    exclude: Exclude = None,
    max_images: MaxImages = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Images a forward; auto measures which is fastest. Default: 8.",
            show_default=False,
            rich_help_panel=SPEED_PANEL,
            autocompletion=completing.batch_sizes,
        ),
    ] = None,
    num_workers: LoadingThreads = None,
    threads: Threads = None,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the model.", rich_help_panel=VAE_PANEL)] = Dtype.float32,
    channels_last: ChannelsLast = False,
    compile: CompileOption = False,  # noqa: A002  # the option's name
    pixel_range: PixelRange = "-1,1",
    store: StoreOption = Store.moments,
    seed: Annotated[int, typer.Option(help="Of the samples, with --store sample.", rich_help_panel=VAE_PANEL)] = 0,
    save_dtype: StoredDtype = SaveDtype.float32,
    resize: ResizeOption = Resize.exact,
    flip: FlipOption = Flip.none,
    crops: Crops = 1,
    crop_seed: CropSeed = 0,
    indivisible: IndivisibleOption = Indivisible.refuse,
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
    """Encode images to VAE latents; with --transform and --resolution, straight from raw photos."""
    run_job("encode", {**locals()})


def decode(
    source: Annotated[Path, typer.Option(help="Folder or .zip of latents that latentmill made.", show_default=False)],
    dest: Annotated[Path, typer.Option(help="Folder to write PNGs into.", show_default=False)],
    model_url: Annotated[
        str | None,
        typer.Option(
            "--model-url",
            "--vae",
            help="Default: the model that the latents' metadata names.",
            autocompletion=completing.vaes,
        ),
    ] = None,
    max_images: MaxImages = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Latents a forward.", rich_help_panel=SPEED_PANEL)] = 8,
    threads: Threads = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Decode latents back to PNGs, to look at what a model will learn to make."""
    settings = plain({**locals()})

    def job() -> int:
        from latentmill.api import decode as run

        with Display("decode") as display:
            result = run(settings.pop("source"), settings.pop("dest"), tell=display.tell, **settings)
        summarise("decode", result, source)
        return EXIT_REJECTS if result.rejected else 0

    guarded(job)


def verify(
    dataset: Annotated[
        Path, typer.Argument(metavar="DIR_OR_ZIP", help="A dataset that latentmill made, or a folder of several.")
    ],
    images: Annotated[Path | None, typer.Option(help="The images that the latents must pair with.")] = None,
) -> None:
    """Check a dataset's data, labels, index and metadata, byte for byte, against what was recorded when it was made.

    What is for a person is not checked: its recipe, report and list of rejects.
    """

    def check() -> int:
        from latentmill.verification import datasets_in, verify_one_of_several
        from latentmill.verification import verify as run

        wrong = False
        paths = datasets_in(dataset)
        for path in paths:
            with Display("verify", "files", commits=False) as display:
                report = (run if len(paths) == 1 else verify_one_of_several)(path, images, tell=display.tell)
            for problem in report.problems[:50]:
                out.print(f"[red]wrong[/]  {shown(problem)}")
            if len(report.problems) > 50:
                out.print(f"… and {len(report.problems) - 50:,} more")
            verdict = "[green]sound[/]" if not report.problems else f"[red]{len(report.problems):,} problems[/]"
            emit_verified(path, report)
            where = f"{shown(path)}: " if path != dataset else ""
            out.print(f"{where}{verdict}: {report.kind}, {report.files:,} files, {report.summary}")
            wrong |= bool(report.problems)
        return EXIT_FOUND if wrong else 0

    guarded(check, commits=False)


def models() -> None:
    """List the models that have short names, with what a trainer needs to know of them."""

    def show() -> int:
        from latentmill.model_tables import print_models

        emit_models()
        print_models()
        return 0

    guarded(show, commits=False)


def demo(
    dest: Annotated[Path, typer.Option("--out", help="Folder to make.")] = Path("latentmill-demo"),
) -> None:
    """See everything work on a dozen real photos with captions, without any download."""

    def show() -> int:
        from latentmill.demo import run

        run(dest, say=lambda text: out.print(text))
        emit("result", dest=dest)
        return 0

    guarded(show)


add(app, demo, TRY, "latentmill demo")
add(
    app, convert, PREPARE,
    "latentmill convert --source train --dest data/images --resolution 256x256 --transform center-crop-dhariwal",
    "latentmill convert --source train.zip --dest data/images.zip --resolution 512x512 --transform center-crop",
)  # fmt: skip
add(
    app, encode, PREPARE,
    "latentmill encode --source data/images --dest data/vae-sd",
    "latentmill encode --source train --dest data/vae-sd --images data/images --resolution 256x256 "
    "--transform center-crop-dhariwal",
    "latentmill encode --source data/images.zip --dest data/latents.zip --pixel-range 0,1 --device cuda "
    "--dtype bfloat16 --batch-size 32",
)  # fmt: skip
add(app, verify, AFTER, "latentmill verify data/vae-sd --images data/images", "latentmill verify data")
add(app, decode, AFTER, "latentmill decode --source data/vae-sd --dest decoded --max-images 64")
add(app, models, MACHINE, "latentmill models")
cli_audit.register(app)
cli_compare.register(app)
cli_features.register(app)
cli_recipe.register(app)
cli_report.register(app)
cli_tools.register(app)


def main() -> None:
    """The `latentmill` command."""
    run_program(app)


if __name__ == "__main__":
    main()
