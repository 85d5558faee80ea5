"""Running a command: options to settings, events to what a person sees, errors to one line and an exit code.

Exit codes: 0 done; 1 `verify` found something wrong; 2 could not be done; 3 done, with rejects; 130 stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from latentmill.errors import LatentmillError
from latentmill.terminal import Display, err, shown, summarise

if TYPE_CHECKING:
    from latentmill.common import Prepared
    from latentmill.outcome import Tell

EXIT_FOUND, EXIT_FAILED, EXIT_REJECTS, EXIT_STOPPED = 1, 2, 3, 130


@dataclass
class _State:
    """debug: let errors through with their traceback."""

    debug: bool = False


state = _State()


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as the Python calls take them: an option's choice as its text."""
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}


def run_job(command: str, values: dict[str, Any]) -> None:
    """Run one of the jobs of `api` with settings as options gave them, and exit by its outcome."""
    settings = plain(values)
    source = settings.pop("source")

    def job() -> int:
        from latentmill import api

        with Display(command) as display:
            result = getattr(api, command)(source, settings.pop("dest"), tell=display.tell, **settings)
        summarise(command, result, Path(source))
        return EXIT_REJECTS if result.rejected else 0

    guarded(job)


def run_features(jobs: list[tuple[str | None, Callable[[Tell], Prepared]]]) -> int:
    """Prepare every job, so that none begins before all have been checked; then run each. Gives the exit code."""
    ready = []
    for label, prepare in jobs:
        what = "captions" if label else "images"
        display = Display(f"{what} {label}" if label else what, what)
        ready.append((display, prepare(display.tell)))
    rejected = 0
    for display, job in ready:
        with display:
            result = job.run()
        summarise(display.command, result, Path(), display.what)
        rejected += result.rejected
    return EXIT_REJECTS if rejected else 0


def guarded(work: Callable[[], int]) -> None:
    """Run a command; an error becomes one line on stderr and an exit code."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        code = work()
    except KeyboardInterrupt:
        for again in (signal.SIGINT, signal.SIGTERM):  # the way out is short; a second one would only garble it
            signal.signal(again, signal.SIG_IGN)
        err.print("stopped. What is committed stays; run the same command again to go on")
        code = EXIT_STOPPED
    except LatentmillError as error:
        if state.debug:
            raise
        err.print(f"[red]error:[/] {shown(error)}")
        code = EXIT_FAILED
    except Exception as error:
        if state.debug:
            raise
        err.print(f"[red]error:[/] a fault in latentmill: {type(error).__name__}: {shown(error)} (--debug tells more)")
        code = EXIT_FAILED
    raise typer.Exit(code)
