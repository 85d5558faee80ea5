"""The command that shows a result: `report` makes a page of it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentmill.command import AFTER, add
from latentmill.guard import EXIT_FOUND, guarded, importing
from latentmill.terminal import Display, clock, counted, out, shown, warn

if TYPE_CHECKING:
    from latentmill.report.facts import ReportFacts

_TOLD = 20  # notes


class Verify(StrEnum):
    auto = "auto"
    full = "full"
    sample = "sample"
    none = "none"


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add(
        app, report, AFTER,
        "latentmill report data/vae-sd --open",
        "latentmill report data --out report.html --source photos --sample 64",
    )  # fmt: skip


def report(
    root: Annotated[
        Path, typer.Argument(metavar="DIR_OR_ZIP", help="Any result that latentmill made, or a folder of several.")
    ],
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page to write.")] = Path("report.html"),
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser when it is done.")] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Samples to show and decode. Default: 32, fewer decoded where that takes over 25 seconds.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="Folder, zip or table of the photos. Default: as stored with the result.", show_default=False
        ),
    ] = None,
    verify: Annotated[
        Verify,
        typer.Option(help="Read every file, 1,000 files and the whole index, nothing, or what the size allows."),
    ] = Verify.auto,
    vae: Annotated[
        str | None,
        typer.Option(
            help="Decodes the latents, and may be downloaded. Default: the model that made them, where it is here.",
            show_default=False,
        ),
    ] = None,
    decode: Annotated[bool, typer.Option("--decode/--no-decode", help="Show what comes back from latents.")] = True,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="To decode on: auto, cpu, mps or cuda.")] = "auto",
) -> None:
    """Show a result in one HTML page: is it sound, what will a model see, how is it distributed, how fast was it.

    The page needs no network. Exit code 1 where something is wrong with the result, as of `verify`.
    """

    def work() -> int:
        with importing():
            from latentmill.report.make import make_report

        with Display("report", "samples", commits=False) as display:
            facts = make_report(
                root, out_file, source=source, sample=sample, verify=verify.value, vae=vae,
                decode=decode, device=device, tell=display.tell,
            )  # fmt: skip
        code = _summarise(facts, out_file)
        if open_it:
            _show(out_file)
        return code

    guarded(work, commits=False)


def _summarise(facts: ReportFacts, place: Path) -> int:
    """What a person and a program want to know; gives the exit code."""
    from latentmill.estimate import human
    from latentmill.events import emit

    problems = sum(len(dataset.soundness.problems) for dataset in facts.datasets)
    notes = [f"{dataset.name}: {note}" for dataset in facts.datasets for note in dataset.notes]
    size = place.stat().st_size
    checked = all(dataset.soundness.checked for dataset in facts.datasets)
    fine = "[green]nothing wrong found[/]" if checked else "[yellow]not checked[/] (--verify none)"
    verdict = f"[red]{counted(problems, 'problems')}[/]" if problems else fine
    if facts.left_out:
        verdict = f"[red]{counted(len(facts.left_out), 'datasets')} not shown[/], of the others {verdict}"
    samples = sum(len(dataset.shown) for dataset in facts.datasets)
    told = f"{counted(len(facts.datasets), 'datasets')}, {counted(samples, 'samples')}, {clock(facts.seconds)}"
    out.print(f"[green]report done:[/] {shown(place)} ({human(size)}): {told}; {verdict}")
    for each in facts.left_out:
        out.print(f"  {shown(each)}")
    for note in notes[:_TOLD]:
        out.print(f"  {shown(note)}")
    emit(
        "result", dest=str(place), bytes=size, datasets=len(facts.datasets), samples=samples, problems=problems,
        seconds=round(facts.seconds, 3), notes=notes, left_out=list(facts.left_out),
    )  # fmt: skip
    return EXIT_FOUND if problems or facts.left_out else 0


def _show(place: Path) -> None:
    """Open the page in the person's browser."""
    import webbrowser

    if not webbrowser.open(place.absolute().as_uri()):
        warn(f"no browser was found: open {place.absolute()} yourself")
