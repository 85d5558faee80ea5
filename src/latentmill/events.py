"""Events for programs: with `--json` one JSON object a line on stdout; with `--log-file` the same in the log.

Every event has `event` (its kind), `version` (of this schema, an integer), `time` (UTC, ISO 8601) and `command`. Names
that a later version adds are no new version; one that changes its meaning or goes is. Kinds, and what each has besides:

start      latentmill (its version), arguments (as typed), settings (of the command, by name)
plan       job, text: what will be done, for a person
progress   job, what (is counted), total, done, committed (a kill cannot take them back), rejected, skipped, rate (a
           second, smoothed), eta_seconds, stage (that limits, where known), cpu_share (of the usable cores, 0..1), gpus
           (memory_used, memory_total in bytes, utilization 0..1); at most one a second and job, and the last
warning    text
reject     job, key, stage, reason: a sample that was left out, told when its job is done
result     what the command came to; of a job: dest, stored, rejected, skipped, computed, bytes, seconds, notes, report,
           rejects (a file), already_done
error      text, type (of latentmill.errors); of a wrong command line: usage
end        exit_code, seconds: always the last

A command whose process was killed, and that goes on in another, tells a second start and a warning; one that is killed
for good tells no end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from latentmill.streams import lost

VERSION = 1


@dataclass
class _Telling:
    """Where events go. stream: with --json, the real stdout. command: that is running."""

    stream: TextIO | None = None
    command: str = ""


_telling = _Telling()


def listening() -> bool:
    """Whether anybody reads events, so that making one is worth its time."""
    from latentmill.logfile import is_open

    return _telling.stream is not None or is_open()


def for_program() -> bool:
    """Whether a program reads events on stdout (`--json`)."""
    return _telling.stream is not None


def emit(event: str, **values: Any) -> None:
    """Tell of an event; values: anything that JSON has, paths, and numbers of NumPy. Without --json, to the log."""
    from latentmill.logfile import write

    if _telling.stream is not None:
        head = {"event": event, "version": VERSION, "time": _now(), "command": _telling.command}
        _write(_telling.stream, _text({**head, **values}) + "\n")
    if event not in ("plan", "progress", "warning", "error"):  # which the log has as a person sees them
        write(f"{event} {_text(values)}", "DETAIL")


def _write(stream: TextIO, line: str) -> None:
    """One line, at once. Where nobody reads any more, the command ends, as it does for those that a person reads."""
    try:
        stream.write(line)
        stream.flush()
    except OSError as error:
        _telling.stream = None
        raise lost(stream, error) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON does not have: a path as text, a number of NumPy as one of Python, any other thing as it is written."""
    return value.item() if hasattr(value, "item") and not isinstance(value, Path) else str(value)


@contextmanager
def events_of(command: str, as_json: bool, settings: Mapping[str, Any]) -> Iterator[None]:
    """Around a command: its first event and its last. as_json: stdout is for events alone meanwhile.

    What a library prints there goes to stderr instead.
    """
    import latentmill

    before = _telling.stream, _telling.command
    started = time.monotonic()
    code: object = 0
    with _stdout_alone() if as_json else nullcontext() as stream:
        _telling.stream, _telling.command = stream, command
        try:
            if listening():
                emit("start", latentmill=latentmill.__version__, arguments=sys.argv[1:], settings=dict(settings))
            yield
        except BaseException as error:
            code = getattr(error, "exit_code", 1)
            raise
        finally:
            if listening():
                emit("end", exit_code=code, seconds=round(time.monotonic() - started, 3))
            _telling.stream, _telling.command = before


@contextmanager
def _stdout_alone() -> Iterator[TextIO]:
    """The real stdout, which nobody else can write to meanwhile: no library, and no process that is started."""
    try:
        stdout, stderr = sys.stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # no files, as in a test or a notebook
        stream = sys.stdout
        with redirect_stdout(sys.stderr):
            yield stream
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(stdout), "w", encoding="utf-8") as real:
        os.dup2(stderr, stdout)
        try:
            yield real
        finally:
            sys.stdout.flush()
            os.dup2(real.fileno(), stdout)
