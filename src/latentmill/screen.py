"""The screen: where everything that a person reads is printed, and what of it is silent, plain or logged.

Colours are Rich's: none where NO_COLOR is set, TERM is dumb or the output is no terminal; FORCE_COLOR wants them there.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from latentmill import logfile
from latentmill.events import emit
from latentmill.wording import counted as counted
from latentmill.wording import printable

if TYPE_CHECKING:
    from rich.table import Table

_WIDEST = 1000  # characters of a table


class Screen(Console):
    """A console whose text goes to the log file too, without colours. level: of it there."""

    def __init__(self, level: str = "INFO", **settings: Any) -> None:
        super().__init__(highlight=False, emoji=False, soft_wrap=True, **settings)
        self._level = level

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and append to the log."""
        super().print(*objects, **options)
        if logfile.is_open():
            logfile.write(self._plain(objects, options), self._level)

    def _plain(self, objects: tuple[Any, ...], options: dict[str, Any]) -> str:
        text = io.StringIO()
        width = max(self.width, 120)
        Console(file=text, width=width, highlight=False, emoji=False, soft_wrap=True, color_system=None).print(
            *objects, **options
        )
        return text.getvalue()


out = Screen()
err = Screen("ERROR", stderr=True)
_warnings = Screen("WARNING", stderr=True)


def live() -> bool:
    """Whether bars can be drawn: on a real terminal that knows its control codes, and not with --quiet or --json."""
    file: IO[str] = out.file
    return not out.quiet and not out.is_dumb_terminal and file.isatty()


def warn(text: str, **more: Any) -> None:
    """A warning, of plain text: a line on stderr and an event. more: of the event, as `job`."""
    _warnings.print(f"[yellow]warning:[/] {shown(text)}")
    emit("warning", text=text, **more)


def shown(value: object) -> str:
    """Any text or path as it is printed: no markup, and nothing that the terminal's encoding lacks a byte for."""
    return escape(printable(str(value)))


def clock(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d} min"


def print_whole(table: Table) -> None:
    """Print a table with nothing cut off, however narrow the terminal is."""
    width = out.measure(table, options=out.options.update(max_width=_WIDEST)).maximum
    Screen(width=max(width, out.width), file=out.file, quiet=out.quiet).print(table)
