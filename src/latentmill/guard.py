"""Running a command: options to settings, events to what a person sees, errors to one line and an exit code.

Exit codes: 0 done; 1 `verify` found something wrong; 2 could not be done; 3 done, with rejects; 130 stopped.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from latentmill import logfile
from latentmill.errors import LatentmillError
from latentmill.events import emit
from latentmill.streams import EXIT_FAILED as EXIT_FAILED
from latentmill.streams import OutputLost, flush_all, told
from latentmill.supervising import killed_before, told_ending
from latentmill.terminal import Board, err, shown, suggest, summarise, warn

if TYPE_CHECKING:
    from latentmill.outcome import Result
    from latentmill.recipe import Recipe

ShownAs = Callable[[str], tuple[str, str]]
EXIT_FOUND, EXIT_REJECTS, EXIT_STOPPED = 1, 3, 130
_STOPS = signal.SIGINT, signal.SIGTERM
_BLAS = "OPENBLAS_NUM_THREADS"
_GOES_ON = "What is committed stays; run the same command again to go on"
_BEGINS_ANEW = "Nothing was written; the same command begins anew"


@dataclass
class _State:
    """debug: show the traceback of an error. suggesting: say how to look at what was made; drop-in programs do not."""

    debug: bool = False
    suggesting: bool = False


state = _State()


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as the Python calls take them: an option's choice as its text."""
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports of a command: the garbage collector rests meanwhile, and passes over the modules ever after.

    Modules are no garbage, but every full collection looks at all that they hold, as does the one at the end of the
    process; and in forked workers, looking copies the pages that they share with their parent.
    """
    gc.disable()
    spared = _BLAS not in os.environ
    os.environ.setdefault(_BLAS, "1")  # no command needs more, and threads of OpenBLAS spin while they have no work
    try:
        yield
    finally:
        if spared:
            os.environ.pop(_BLAS, None)  # of NumPy's alone: PyTorch, which comes later, may have its own
        gc.freeze()
        gc.enable()


def run_program(app: typer.Typer) -> None:
    """Run a whole command line."""
    with told():
        try:
            try:
                app()
            finally:
                flush_all()
        except OutputLost as lost:
            if not lost.gone:
                with suppress(OutputLost):
                    err.print(f"[red]error:[/] {shown(lost.reason)}")
            sys.exit(EXIT_FAILED)


def begun() -> None:
    """As a command begins: the garbage collector, which rested, works from here on; a predecessor's death is told."""
    gc.freeze()  # Pydantic, of which the options of a command are made, came after its modules
    gc.enable()
    if (killed := killed_before()) is not None:
        warn(f"{told_ending(-killed)}. Going on, with the work in a process that may be replaced")


def run_job(command: str, values: dict[str, Any]) -> None:
    """Run `convert` or `encode` with settings as options gave them, and exit by its outcome."""
    settings = plain(values)
    source, dest = settings.pop("source"), settings.pop("dest")

    def job() -> int:
        with importing():
            from latentmill import api

        recipe = getattr(api, f"{command}_recipe")(source, dest, **settings)
        return run_recipes([recipe], lambda output: (command, "images"), Path(source))

    guarded(job)


def run_recipes(recipes: Sequence[Recipe], shown_as: ShownAs, source: Path = Path()) -> int:
    """Prepare every job, so that none begins before all have been checked; then run them. Gives the exit code.

    shown_as: of an output's name, what a person sees of it: the command's name, and what is counted, in the plural.
    """
    from latentmill.recipe import RecipeError

    board = Board(shown_as)
    ready = [(recipe, recipe.prepare(board.tell_of)) for recipe in recipes]
    refused: RecipeError | None = None
    rejected = loadable = False
    made: list[Path] = []
    for recipe, jobs in ready:
        results: Mapping[str, Result]
        with board:
            try:
                results = recipe.carry_out(jobs)
            except RecipeError as error:
                refused, results = error, error.results
        for name, result in results.items():
            command, what = shown_as(name)
            summarise(command, result, source, what, job=name)
            rejected |= bool(result.rejected)
            if result.computed:
                made.append(result.dest)
                loadable |= what == "images" and command != "convert"
    if state.suggesting and refused is None:
        suggest(made, loadable)
    if refused is not None:
        raise refused
    return EXIT_REJECTS if rejected else 0


def feature_shown(output: str) -> tuple[str, str]:
    """How the outputs of `pixart` are shown."""
    return output, output.partition(" ")[0]


def guarded(work: Callable[[], int], commits: bool = True) -> None:
    """Run a command; an error becomes one line on stderr and an exit code.

    commits: whether it commits what it makes bit by bit, so that it goes on where it was stopped.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        for again in _STOPS:  # the way out is short; a second one would only garble it
            signal.signal(again, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in _STOPS:
        signal.signal(number, stop)
    try:
        code = work()
    except KeyboardInterrupt:
        stopped = "stopped. " + (_GOES_ON if commits else _BEGINS_ANEW)
        err.print(stopped)
        emit("error", type="Stopped", text=stopped)
        code = EXIT_STOPPED
    except OutputLost as lost:
        text = f"{lost.reason}. {_GOES_ON}" if commits else lost.reason
        if commits or not lost.gone:  # who has seen enough of a list knows it
            err.print(f"[red]error:[/] {shown(text)}")
        emit("error", type="OutputLost", text=text)
        code = EXIT_FAILED
    except LatentmillError as error:
        _show_traceback()
        for each in getattr(error, "errors", {}).values() or (error,):  # of several outputs
            err.print(f"[red]error:[/] {shown(each)}")
            emit("error", type=type(each).__name__, text=str(each))
        code = EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - nobody is above to catch it
        _show_traceback()
        notes = [note for note in getattr(error, "__notes__", ()) if "\n" not in note]  # others are for --debug
        fault = ", ".join([f"a fault in latentmill: {type(error).__name__}: {error}", *notes])
        err.print(f"[red]error:[/] {shown(fault)} (--debug tells more)")
        emit("error", type=type(error).__name__, text=fault)
        code = EXIT_FAILED
    raise typer.Exit(code)


def _show_traceback() -> None:
    """On stderr with --debug; in the log file always."""
    import traceback

    text = traceback.format_exc()
    if state.debug:
        err.print(text, markup=False)
    else:
        logfile.write(text, "DETAIL")
