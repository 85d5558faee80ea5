"""What a command came to, as a person reads it: the summary, how to go on, tables; and all of screen and progress."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentmill.event_results import emit_job
from latentmill.events import for_program
from latentmill.progress import Board as Board
from latentmill.progress import Display as Display
from latentmill.screen import clock as clock
from latentmill.screen import counted as counted
from latentmill.screen import err as err
from latentmill.screen import out as out
from latentmill.screen import print_whole as print_whole
from latentmill.screen import shown as shown
from latentmill.screen import warn as warn

if TYPE_CHECKING:
    from latentmill.outcome import Result
    from latentmill.transforms.bucket_report import BucketReport

_SHOWN_LEFT_OUT = 20
_SHOWN_REASONS = 3  # of rejects
_TRANSFORMING = ("convert", "encode")  # what leaves images out by a transform's rule, not by the reader's


def summarise(command: str, result: Result, source: Path, what: str = "images", job: str = "") -> None:
    """One screen: what was made, what was left out and why, how long it took, where things are; and the event of it.

    job: its name in events, by default the command.
    """
    from latentmill.api import is_dataset
    from latentmill.estimate import human

    emit_job(job or command, result)
    if result.already_done:
        stored = counted(result.stored, what)
        out.print(f"[green]already finished:[/] {shown(result.dest)} holds all {stored}; nothing to do")
    else:
        rate = result.computed / result.seconds if result.seconds else 0.0
        done = f"{counted(result.computed, what)} in {clock(result.seconds)} ({rate:,.1f}/s), {human(result.bytes)}"
        out.print(f"[green]{command} done:[/] {shown(result.dest)}: {result.stored:,} stored; {done}")
    if result.skipped:
        from latentmill.formats.pixart import MAX_RATIO

        rule = (
            "the transform's rule" if command in _TRANSFORMING else f"the reader's rule: height/width over {MAX_RATIO}"
        )
        out.print(f"  {result.skipped:,} left out by {rule}")
    for note, count in result.notes.items():
        out.print(f"  {count:,} {note}{_explained(note)}")
    if result.rejected:
        rejected = f"[yellow]{result.rejected:,} rejected[/]: {shown(result.rejects)}"
        out.print(f"  {rejected}")
        for line in _reasons(result.rejects):
            out.print(f"    {shown(line)}")
        if out.quiet and not for_program():
            err.print(rejected)
        if command == "encode" and is_dataset(source):
            out.print(
                f"  [yellow]{shown(source)} now holds images without a latent[/]: trainers that pair by position need "
                "pairs; encode from the photos with --images to get them"
            )
    out.print(f"  report: {shown(result.report)}")


def _reasons(rejects: Path | None) -> Iterator[str]:
    """The commonest reasons of rejects, each with how many have it and one that does. rejects: the file of them."""
    if rejects is None:
        return
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with rejects.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            counts[row["reason"]] += 1
            examples.setdefault(row["reason"], row["key"])
    for reason, count in counts.most_common(_SHOWN_REASONS):
        yield f"{count:,}: {reason} ({examples[reason]})"
    if len(counts) > _SHOWN_REASONS:
        yield f"and {counted(len(counts) - _SHOWN_REASONS, 'other reasons')}"


def _explained(note: str) -> str:
    from latentmill.records import RECOMPUTED_FLOAT32, SMALLER_BATCH, TILED, TRUNCATED

    texts = {
        RECOMPUTED_FLOAT32: "too large for half precision",
        SMALLER_BATCH: "for want of memory",
        TILED: "close to what the whole image gives, not the same",
        TRUNCATED: "longer than --max-length tokens",
    }
    return f" ({texts[note]})" if note in texts else ""


def suggest(made: Sequence[Path], loadable: bool = True) -> None:
    """One line: how to look at what was made. loadable: by `latentmill.load`."""
    if not made:
        return
    place = shown(shlex.quote(str(made[0] if len(made) == 1 else _root(made))))
    load = f"; train: latentmill.load({shown(repr(str(made[0])))})" if loadable and len(made) == 1 else ""
    out.print(f"look: latentmill report {place}; check: latentmill verify {place}{load}")


def _root(made: Sequence[Path]) -> Path:
    """The folder that several results have in common, where they lie side by side; else the first of them."""
    parents = {path.parent for path in made}
    return parents.pop() if len(parents) == 1 else made[0]


def print_buckets(report: BucketReport) -> None:
    """What a bucket table does to images, a line for each bucket that has any."""
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
    print_whole(table)
    out.print(f"{len(rows)} of {counted(len(report.table.buckets), 'buckets')} have images")
    for item in report.left_out[:_SHOWN_LEFT_OUT]:
        err.print(f"[yellow]left out:[/] {shown(item.key)}: {shown(item.reason)}")
    if len(report.left_out) > _SHOWN_LEFT_OUT:
        err.print(f"… and {len(report.left_out) - _SHOWN_LEFT_OUT:,} more are left out")
