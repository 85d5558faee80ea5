"""What a person sees on the terminal: the live bar, the plain lines where there is no terminal, the summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from latentmill.wording import counted as counted
from latentmill.wording import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from latentmill.outcome import Event, Result, Tell
    from latentmill.transforms.bucket_report import BucketReport

_SHOWN_LEFT_OUT = 20
_WIDEST = 1000  # characters of a table
_PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal
_TRANSFORMING = ("convert", "encode")  # what leaves images out by a transform's rule, not by the reader's

out = Console(highlight=False, emoji=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def shown(value: object) -> str:
    """Any text or path as it is printed: no markup, and nothing that the terminal's encoding lacks a byte for."""
    return escape(printable(str(value)))


def summarise(command: str, result: Result, source: Path, what: str = "images") -> None:
    """One screen: what was made, what was left out and why, how long it took, where things are."""
    from latentmill.api import is_dataset
    from latentmill.estimate import human

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
        out.print(f"  [yellow]{result.rejected:,} rejected[/]: {shown(result.rejects)}")
        if command == "encode" and is_dataset(source):
            out.print(
                f"  [yellow]{shown(source)} now holds images without a latent[/]: trainers that pair by position need "
                "pairs; encode from the photos with --images to get them"
            )
    out.print(f"  report: {shown(result.report)}")


def _explained(note: str) -> str:
    from latentmill.records import RECOMPUTED_FLOAT32, SMALLER_BATCH, TILED, TRUNCATED

    texts = {
        RECOMPUTED_FLOAT32: "too large for half precision",
        SMALLER_BATCH: "for want of memory",
        TILED: "close to what the whole image gives, not the same",
        TRUNCATED: "longer than --max-length tokens",
    }
    return f" ({texts[note]})" if note in texts else ""


def clock(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d} min"


def _bars() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rejects]}"),
        console=out,
        auto_refresh=False,
        transient=True,
    )


class Board:
    """Shows the events of several jobs that run together, a bar each."""

    def __init__(self, shown_as: Callable[[str], tuple[str, str]]) -> None:
        self._shown_as, self._progress = shown_as, _bars()
        self._displays: dict[str, Display] = {}
        self._warned: set[str] = set()

    def tell_of(self, name: str) -> Tell:
        """What takes the events of the job of this name."""
        if name not in self._displays:
            self._displays[name] = Display(*self._shown_as(name), self._progress)
        display = self._displays[name]

        def tell(event: Event) -> None:
            if event.kind != "warning" or event.text not in self._warned:
                display.tell(event)
            if event.kind == "warning":
                self._warned.add(event.text)  # the same source says it to each

        return tell

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error: object) -> None:
        for display in self._displays.values():
            display.named = len(self._displays) > 1
            display.__exit__(*error)


class Display:
    """Shows a job's events: a live bar on a terminal, a line now and then elsewhere.

    Redrawn only on events, without a thread of its own: workers are forked while it is on the screen.
    what: is counted, in the plural. progress: the bars that this one is among. named: whether what is committed is told
    with the command.
    """

    def __init__(self, command: str, what: str = "images", progress: Progress | None = None) -> None:
        self.command, self.what = command, what
        self.progress = progress or _bars()
        self.bar: TaskID | None = None
        self.named = False
        self.started = self.printed = time.monotonic()
        self.first_done = 0
        self.last: Event | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None and out.is_terminal:
            self.progress.stop()
        if error[0] is KeyboardInterrupt and self.last is not None:
            name = f"{self.command}: " if self.named else ""
            err.print(f"{name}{self.last.committed:,} of {counted(self.last.total, self.what)} are committed")

    def tell(self, event: Event) -> None:
        self.last = event if event.kind == "progress" else self.last
        if event.kind == "warning":
            err.print(f"[yellow]warning:[/] {shown(event.text)}")
        elif event.kind == "plan":
            out.print(f"{self.command}: {shown(event.text)}")
        elif self.bar is None:
            self.started, self.first_done = time.monotonic(), event.done
            self.bar = self.progress.add_task(
                self.command, total=event.total, completed=event.done, rate="", rejects=_rejects(event)
            )
            if out.is_terminal:
                self.progress.start()
        else:
            self._advance(event)

    def _advance(self, event: Event) -> None:
        now = time.monotonic()
        rate = f"{(event.done - self.first_done) / max(now - self.started, 1e-3):,.1f}/s"
        assert self.bar is not None
        self.progress.update(self.bar, completed=event.done, rate=rate, rejects=_rejects(event))
        if out.is_terminal:
            self.progress.refresh()
        elif now - self.printed > _PLAIN_SECONDS:
            self.printed = now
            left = (event.total - event.done) * (now - self.started) / max(event.done - self.first_done, 1)
            rejects = f", {_rejects(event)}" if event.rejected else ""
            out.print(f"{self.command}: {event.done:,} of {event.total:,}, {rate}, {clock(left)} left{rejects}")


def print_whole(table: Table) -> None:
    """Print a table with nothing cut off, however narrow the terminal is."""
    width = out.measure(table, options=out.options.update(max_width=_WIDEST)).maximum
    Console(width=max(width, out.width), highlight=False, emoji=False, soft_wrap=True, file=out.file).print(table)


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


def _rejects(event: Event) -> str:
    return f"{event.rejected:,} rejects" if event.rejected else ""
