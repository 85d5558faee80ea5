"""Progress as a person sees it: a live bar for each job on a terminal, plain lines elsewhere, events for programs.

Redrawn only on events, without a thread of its own: workers are forked while it is on the screen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentmill.events import emit, listening
from latentmill.screen import clock, err, live, out, shown, warn
from latentmill.usage import Meter, Use
from latentmill.wording import counted

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.live import Live

    from latentmill.outcome import Event, Tell

_PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal
_EVENT_SECONDS = 1.0  # between events for programs
_DRAWN_SECONDS = 0.1
_MEMORY_SECONDS = 30.0  # of the rate: what is older counts less than 1/e
_NARROW = 60  # columns, below which there are a percentage and the time that is left
_COLUMNS, _SHORTEST_BAR, _LONGEST_BAR = 72, 8, 40  # columns of all but the bar; of the bar
_LANES = {"load": "loading", "encode": "encoding", "results": "encoding", "write": "writing", "commit": "writing"}


class Speed:
    """Samples a second, smoothed: an exponentially weighted mean over time, so that stalls show, hiccups do not.

    The weight of what was done falls with its age by a factor e in 30 s; in a job's first seconds it is the plain mean.
    """

    def __init__(self, now: float, done: int) -> None:
        self._time, self._done = now, done
        self._samples = self._seconds = 0.0

    def take(self, now: float, done: int) -> None:
        """Tell how many are done now."""
        passed = now - self._time
        if passed <= 0:
            return
        fading = math.exp(-passed / _MEMORY_SECONDS)
        self._samples = self._samples * fading + max(0, done - self._done)
        self._seconds = self._seconds * fading + passed
        self._time, self._done = now, done

    @property
    def rate(self) -> float:
        """A second; 0 where nothing is known yet."""
        return self._samples / self._seconds if self._seconds else 0.0

    def left(self, total: int) -> float | None:
        """Seconds until all are done; None where that cannot be told."""
        return (total - self._done) / self.rate if self.rate > 0 else None


@dataclass
class _Bar:
    """One job on the screen."""

    name: str
    total: int
    done: int
    rate: str = ""
    left: str = ""
    rejects: str = ""


class Bars:
    """The bars of the jobs that run together, and one line below them of what the machine does."""

    def __init__(self) -> None:
        self.live = live()
        self._meter = Meter()
        self._use = Use()
        self._bars: list[_Bar] = []
        self._screen: Live | None = None
        self._lanes: dict[str, dict[str, float]] = {}
        self._drawn = 0.0

    def add(self, name: str, total: int, done: int) -> _Bar:
        """A new bar, drawn where there is a terminal."""
        from rich.live import Live

        bar = _Bar(name, total, done)
        self._bars.append(bar)
        if self.live and self._screen is None:
            self._screen = Live(console=out, auto_refresh=False, transient=True)
            self._screen.start()
        self.draw(True)
        return bar

    def draw(self, now: bool = False) -> None:
        """Draw all of them anew, a few times a second at most."""
        if self._screen is None or (not now and time.monotonic() - self._drawn < _DRAWN_SECONDS):
            return
        self._drawn = time.monotonic()
        self._screen.update(_drawing(self._bars, self.words, out.width), refresh=True)

    def look(self, job: str, seconds: dict[str, float]) -> Use:
        """What is used now. seconds: of a job's stages, so far."""
        self._lanes[job] = seconds
        self._use = self._meter.look()
        return self._use

    @property
    def stage(self) -> str:
        """The stage that limits: of stages that work at the same time, the busiest; empty where that is not known."""
        lanes: dict[str, float] = {}
        for seconds in self._lanes.values():
            for stage, value in seconds.items():
                if lane := _LANES.get(stage):
                    lanes[lane] = lanes.get(lane, 0.0) + value
        return max(lanes, key=lambda lane: lanes[lane]) if any(lanes.values()) else ""

    @property
    def words(self) -> str:
        """What the machine does, in words; may be empty."""
        limit = f"limited by {self.stage}" if self.stage else ""
        return ", ".join(filter(None, (self._use.words, limit)))

    def stop(self) -> None:
        """Take the bars off the screen."""
        if self._screen is not None:
            self._screen.stop()
            self._screen = None
        self._bars.clear()


def _drawing(bars: Sequence[_Bar], words: str, width: int) -> Group:
    """The bars as Rich draws them, as much as a terminal of so many columns has room for: no line is wrapped."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    room = width - _COLUMNS
    table.add_column(no_wrap=True, max_width=max(8, width // 4))
    for _ in range(1 + (room >= _SHORTEST_BAR) + 3 * (width >= _NARROW)):
        table.add_column(no_wrap=True)
    for bar in bars:
        share = f"{bar.done / max(bar.total, 1):.0%}"
        row: list[RenderableType] = [Text(bar.name)]
        if room >= _SHORTEST_BAR:
            row.append(ProgressBar(max(bar.total, 1), bar.done, width=min(room, _LONGEST_BAR)))
        row.append(
            f"{bar.done:,}/{bar.total:,}"
            if width >= _NARROW
            else " ".join(filter(None, (share, bar.left, bar.rejects)))
        )
        if width >= _NARROW:
            row += [Text(bar.rate, style="cyan"), bar.left, Text(bar.rejects, style="yellow")]
        table.add_row(*row)
    status = Text(words, style="dim", no_wrap=True, overflow="ellipsis")
    return Group(table, status) if words else Group(table)


class Board:
    """Shows the events of several jobs that run together, a bar each."""

    def __init__(self, shown_as: Callable[[str], tuple[str, str]]) -> None:
        self._shown_as, self._bars = shown_as, Bars()
        self._displays: dict[str, Display] = {}
        self._warned: set[str] = set()

    def tell_of(self, name: str) -> Tell:
        """What takes the events of the job of this name."""
        if name not in self._displays:
            self._displays[name] = Display(*self._shown_as(name), self._bars, job=name)
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

    what: is counted, in the plural. bars: those that this one is among. named: whether what is committed is told with
    the command. job: its name in events, by default the command. commits: whether its work is kept when it is stopped.
    """

    def __init__(
        self, command: str, what: str = "images", bars: Bars | None = None, job: str = "", commits: bool = True
    ) -> None:
        self.command, self.what, self.job, self.commits = command, what, job or command, commits
        self.bars = bars or Bars()
        self.bar: _Bar | None = None
        self.named = False
        self.printed = self.emitted = time.monotonic()
        self.speed: Speed | None = None
        self.last: Event | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()
        if self.last is not None and self.speed is not None:
            self._emit(self.last, self.speed)
        if error[0] is KeyboardInterrupt and self.last is not None and self.commits:
            name = f"{self.command}: " if self.named else ""
            err.print(f"{name}{self.last.committed:,} of {counted(self.last.total, self.what)} are committed")

    def tell(self, event: Event) -> None:
        """Show one event."""
        if event.kind == "warning":
            warn(event.text, job=self.job)
        elif event.kind == "plan":
            out.print(f"{self.command}: {shown(event.text)}")
            emit("plan", job=self.job, text=event.text)
        else:
            self._advance(event)

    def _advance(self, event: Event) -> None:
        now = time.monotonic()
        self.last = event
        if self.speed is None:
            self.speed, self.printed = Speed(now, event.done), now
            self.bar = self.bars.add(self.command, event.total, event.done)
        self.speed.take(now, event.done)
        self.bars.look(self.job, event.seconds)
        rate, left = f"{self.speed.rate:,.1f}/s" if self.speed.rate else "", self.speed.left(event.total)
        remaining = "" if left is None or left <= 0 else f"{clock(left)} left"
        assert self.bar is not None
        self.bar.done, self.bar.rate, self.bar.left, self.bar.rejects = event.done, rate, remaining, _rejects(event)
        self.bars.draw(event.done >= event.total)
        if not self.bars.live and now - self.printed > _PLAIN_SECONDS:
            self.printed = now
            told = (f"{event.done:,} of {event.total:,}", rate, remaining, _rejects(event), self.bars.words)
            out.print(f"{self.command}: {', '.join(filter(None, told))}")
        if now - self.emitted > _EVENT_SECONDS:
            self._emit(event, self.speed)

    def _emit(self, event: Event, speed: Speed) -> None:
        if not listening():
            return
        self.emitted = time.monotonic()
        use, left = self.bars.look(self.job, event.seconds), speed.left(event.total)
        emit(
            "progress", job=self.job, what=self.what, total=event.total, done=event.done, committed=event.committed,
            rejected=event.rejected, skipped=event.skipped, rate=round(speed.rate, 3),
            eta_seconds=None if left is None else round(left, 1), stage=self.bars.stage or None,
            cpu_share=None if use.cpu_share is None else round(use.cpu_share, 3),
            gpus=[vars(gpu) for gpu in use.gpus],
        )  # fmt: skip


def _rejects(event: Event) -> str:
    return counted(event.rejected, "rejects") if event.rejected else ""
