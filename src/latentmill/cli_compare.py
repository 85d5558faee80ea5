"""The command that compares VAEs on one's own photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentmill import completing
from latentmill.command import BEFORE, add
from latentmill.events import emit
from latentmill.guard import EXIT_REJECTS, guarded, importing, plain
from latentmill.options import (
    SPEED_PANEL,
    Alpha,
    AlphaOption,
    Device,
    Dtype,
    Exclude,
    Exif,
    ExifOption,
    Indivisible,
    IndivisibleOption,
    Threads,
)
from latentmill.terminal import Display, err, out, print_whole, shown, warn

if TYPE_CHECKING:
    from latentmill.comparing.result import Comparison

_SHOWN_LEFT_OUT = 5
_Vaes = Annotated[
    list[str],
    typer.Option(
        "--vae",
        metavar="NAME",
        help="Short name, folder, or hub repository (owner/name/subfolder@revision). Repeatable.",
        show_default=False,
        autocompletion=completing.vaes,
    ),
]
_Transform = Annotated[
    str,
    typer.Option(metavar="NAME", help="How photos are cropped, as of convert.", autocompletion=completing.transforms),
]
_BatchSize = Annotated[
    int, typer.Option(metavar="N", help="Images a forward, of every VAE.", rich_help_panel=SPEED_PANEL)
]
_Dtype = Annotated[
    Dtype, typer.Option(help="Precision of encoding; decoding is in float32.", rich_help_panel=SPEED_PANEL)
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add(
        app,
        compare_vae,
        BEFORE,
        "latentmill compare-vae photos --vae sd-vae-ft-mse --vae sdxl-vae --vae dc-ae-f32c32",
        "latentmill compare-vae photos --vae mini --vae my/finetuned-vae --resolution 512x512 --sample 200",
        name="compare-vae",
    )


def compare_vae(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder or .zip of photos, or a table of them.")],
    vae: _Vaes,
    resolution: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Size of the crops. Default: 256x256; with --transform none, theirs."),
    ] = None,
    transform: _Transform = "center-crop-dhariwal",
    sample: Annotated[int, typer.Option(metavar="N", help="Photos, evenly spread over the source.")] = 64,
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The page to make, with pictures and charts.")
    ] = Path("compare-vae.html"),
    json_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write every figure here, as one JSON object.")
    ] = None,
    indivisible: IndivisibleOption = Indivisible.refuse,
    exclude: Exclude = None,
    exif: ExifOption = Exif.ignore,
    alpha: AlphaOption = Alpha.drop,
    batch_size: _BatchSize = 8,
    device: Device = "auto",
    dtype: _Dtype = Dtype.float32,
    threads: Threads = None,
) -> None:
    """Compare VAEs on your own photos, before you encode a million of them.

    Tells what each gives back of a sample, from the mean of its posterior: PSNR,
    SSIM, and FLIP (NVIDIA's measure of what a person sees when flipping between
    the two, 0 to 1; it needs no downloaded weights); what its latents are like,
    and the bytes and time they take. A VAE that fails is told, and the others go
    on (exit code 3).
    """
    settings = plain(
        {"resolution": resolution, "transform": transform, "sample": sample, "indivisible": indivisible,
         "exclude": exclude, "exif": exif, "alpha": alpha, "batch_size": batch_size, "device": device,
         "dtype": dtype, "threads": threads}
    )  # fmt: skip
    guarded(lambda: _work(source, vae, settings, out_file, json_file), commits=False)


def _work(source: Path, vaes: list[str], settings: dict[str, Any], page: Path, json_file: Path | None) -> int:
    import json

    from latentmill.files import check_written

    check_written(page, b"<!doctype html>")
    if json_file is not None:
        check_written(json_file, b"{")

    with importing():
        from latentmill.comparing.page import page as drawn
        from latentmill.comparing.session import compare_vae as compare
        from latentmill.files import replace_text
        from latentmill.report.svg import require_matplotlib

    require_matplotlib("compare")
    with Display("compare-vae", "photos", commits=False) as display:
        found = compare(source, vaes, tell=display.tell, **settings)
    _show(found)
    replace_text(page, drawn(found))
    out.print(f"page: {shown(page)}")
    table = found.as_table()
    if json_file is not None:
        replace_text(json_file, json.dumps(table, indent=2) + "\n")
        out.print(f"figures: {shown(json_file)}")
    emit("result", page=str(page), json_file=None if json_file is None else str(json_file), **table)
    return EXIT_REJECTS if found.failures else 0


def _show(found: Comparison) -> None:
    """The table, what its columns mean, and the reading."""
    from rich.table import Table

    from latentmill.comparing.overview import BEST, LEGEND, explained, lines
    from latentmill.report.metrics import can_flip

    headings, cells = lines(found)
    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if not place or heading == "notes" else "right", no_wrap=True)
    for line in cells:
        table.add_row(*(f"[green]{shown(cell)}[/]" if cell.endswith(BEST) else shown(cell) for cell in line))
    print_whole(table)
    used = found.conditions
    out.print(f"[dim]{LEGEND} {shown(explained(found.metrics))}[/]")
    out.print(f"[dim]{used.used:,} of {used.listed:,} photos, {used.size[1]}x{used.size[0]}, {shown(used.machine)}[/]")
    for key, reason in used.left_out[:_SHOWN_LEFT_OUT]:
        err.print(f"[yellow]not used:[/] {shown(key)}: {shown(reason)}")
    if len(used.left_out) > _SHOWN_LEFT_OUT:
        err.print(f"… and {len(used.left_out) - _SHOWN_LEFT_OUT:,} more photos could not be used")
    if not can_flip():
        warn("without FLIP, the perceptual measure: pip install 'latentmill[compare]'")
    out.print(shown(found.reading))
