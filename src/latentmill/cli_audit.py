"""The command that looks through photos and captions before anything is made of them: `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentmill import completing
from latentmill.command import BEFORE, add
from latentmill.events import emit
from latentmill.guard import EXIT_FOUND, guarded, plain
from latentmill.options import (
    TEXT_PANEL,
    CaptionColumn,
    CaptionExtension,
    Exclude,
    Images,
    MaxImages,
    MaxPixels,
    Missing,
    MissingCaption,
    MultiLine,
    PathColumn,
    Workers,
    caption_columns,
)
from latentmill.terminal import Display, counted, out, shown

_DISTANCE = 20  # as auditing.near.DISTANCE, whose module brings NumPy
_Source = Annotated[
    Path,
    typer.Argument(metavar="SRC", help="Folder or .zip of images, table, or PixArt dataset.", show_default=False),
]
_Resolution = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="Size that results will have: smaller images are told.",
        autocompletion=completing.resolutions,
    ),
]
_ListFile = Annotated[
    Path | None,
    typer.Option(
        "--list", metavar="FILE", help="Write the keys to leave out, which --exclude of other commands takes."
    ),
]
_ListAlso = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,…",
        help="Into the list beside what no run takes and all but one of equal images: near, captions, shapes, "
        "or kinds by their names.",
        show_default=False,
    ),
]
_Model = Annotated[
    str | None,
    typer.Option(
        help="Text encoder whose tokens captions are counted in.",
        rich_help_panel=TEXT_PANEL,
        autocompletion=completing.text_encoders,
    ),
]


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add(
        app,
        audit,
        BEFORE,
        "latentmill audit photos --resolution 256x256 --out audit.html --list exclude.txt",
        "latentmill convert --source photos --dest data/images --resolution 256x256 --exclude exclude.txt",
    )


def audit(
    source: _Source,
    resolution: _Resolution = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also make a page, with copies side by side.")
    ] = None,
    list_file: _ListFile = None,
    list_also: _ListAlso = None,
    json_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write every finding here, as one JSON object.")
    ] = None,
    max_duplicate_distance: Annotated[
        int, typer.Option(metavar="N", help="Bits of 144 in which the hashes of near duplicates may differ.")
    ] = _DISTANCE,
    model: _Model = None,
    exclude: Exclude = None,
    images: Images = None,
    caption_extension: CaptionExtension = ".txt",
    multi_line: MultiLine = False,
    path_column: PathColumn = None,
    caption_column: CaptionColumn = None,
    missing_caption: MissingCaption = Missing.reject,
    max_images: MaxImages = None,
    max_pixels: MaxPixels = 178_956_970,
    num_workers: Workers = None,
) -> None:
    """Look through photos and captions before anything is made of them.

    Finds what a run would reject (exit code 1), copies and near copies, images
    that are not what they seem, captions that are missing, shared or garbled,
    and names that collide. Nothing is written but what is asked for.
    """
    settings = plain(
        {"resolution": resolution, "max_duplicate_distance": max_duplicate_distance, "model": model, "exclude": exclude,
         "images": images, "caption_extension": caption_extension, "multi_line": multi_line, "path_column": path_column,
         "caption_columns": caption_columns(caption_column), "missing_caption": missing_caption,
         "max_images": max_images, "max_pixels": max_pixels, "num_workers": num_workers}
    )  # fmt: skip
    also = [name.strip() for name in (list_also or "").split(",") if name.strip()]
    guarded(lambda: _work(source, settings, out_file, list_file, json_file, also), commits=False)


def _work(
    source: Path,
    settings: dict[str, Any],
    page: Path | None,
    list_file: Path | None,
    json_file: Path | None,
    also: list[str],
) -> int:
    from latentmill.auditing.audit import audit as look_through
    from latentmill.auditing.findings import kinds_of
    from latentmill.auditing.show import show
    from latentmill.auditing.written import check_places, write_json, write_list, write_page

    check_places(source, page, list_file, json_file)
    for name in also:
        kinds_of(name)
    with Display("audit", commits=False) as display:
        found = look_through(source, tell=display.tell, **settings)
    show(found)
    if list_file is not None:
        left_out = write_list(found, list_file, also)
        told = f"{len(left_out):,} keys; take it with --exclude {shown(list_file)}"
        out.print(f"[green]list:[/] {shown(list_file)}: {told}")
        if uncaptioned := [key for key in found.unusable if key not in left_out]:
            told = counted(len(uncaptioned), "images")
            out.print(f"  {told} without a caption not in it: runs without captions take them (--list-also no-caption)")
    if page is not None:
        write_page(found, page, settings)
        out.print(f"[green]page:[/] {shown(page)}")
    if json_file is not None:
        write_json(found, json_file)
        out.print(f"[green]findings:[/] {shown(json_file)}")
    places = {"page": page, "list_file": list_file, "json_file": json_file}
    emit(
        "result",
        source=str(source),
        images=found.images,
        unusable=len(found.unusable),
        counts={kind.name: count for kind, count in found.kinds()},
        seconds=found.seconds,
        **{name: None if place is None else str(place) for name, place in places.items()},
    )
    return EXIT_FOUND if found.unusable else 0
