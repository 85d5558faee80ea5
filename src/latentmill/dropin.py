"""The reference `dataset_tools.py`'s command line, with its options and their meaning, on latentmill's commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from latentmill.guard import begun, run_job, run_program
from latentmill.options import Transform

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

_Source = Annotated[Path, typer.Option(help="Folder or .zip of images.", show_default=False)]
_Dest = Annotated[Path, typer.Option(help="Folder or .zip to make.", show_default=False)]
_MaxImages = Annotated[int | None, typer.Option(help="Only the first N images.")]


@app.callback()
def _begin() -> None:
    """Convert photos to a dataset of equal square PNGs, and encode those to VAE latents."""
    begun()


@app.command()
def convert(
    source: _Source,
    dest: _Dest,
    max_images: _MaxImages = None,
    transform: Annotated[Transform | None, typer.Option(help="How images are cropped.")] = None,
    resolution: Annotated[str | None, typer.Option(metavar="WxH", help="Size of every result.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Processes. Default: the usable cores.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images handed to a worker at a time.")] = 32,
) -> None:
    """Crop and resize photos into a dataset of equal square PNGs."""
    run_job("convert", {**locals(), "transform": transform or Transform.none})


@app.command()
def encode(
    source: _Source,
    dest: _Dest,
    max_images: _MaxImages = None,
    model_url: Annotated[str, typer.Option(help="VAE: hub repository or folder.")] = "stabilityai/sd-vae-ft-mse",
    batch_size: Annotated[int | None, typer.Option(help="Images a forward. Default: 8.", show_default=False)] = None,
    num_workers: Annotated[int | None, typer.Option(help="Loading threads. Default: the usable cores.")] = None,
) -> None:
    """Encode a dataset of images to VAE latents."""
    run_job("encode", {**locals()})


def main() -> None:
    """Run the drop-in's command line."""
    sys.argv[0] = "dataset_tools.py"
    run_program(app)
