"""Standard output and error of a program: where either cannot be written to any more, the program ends, and says so.

Whoever writes there (Rich, Typer, `print`) meets the same exception, which is an exit: nobody takes it for a fault.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

EXIT_FAILED = 2  # could not be done


class OutputLost(SystemExit):
    """What a program tells reaches nobody. gone: its reader has left, as `head` does. reason: a clause for a person."""

    def __init__(self, error: OSError) -> None:
        super().__init__(EXIT_FAILED)
        self.exit_code = EXIT_FAILED
        self.gone = isinstance(error, BrokenPipeError)
        unwritten = f"the output cannot be written: {error.strerror}"
        self.reason = "nobody reads the output any more" if self.gone else unwritten


def lost(stream: TextIO, error: OSError) -> OutputLost:
    """What to raise where a stream cannot be written to; what it still holds, or is yet given, goes nowhere."""
    with suppress(OSError, ValueError):  # a stream of no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return OutputLost(error)


class _Told(io.TextIOWrapper):
    """A standard stream that raises OutputLost."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise lost(self, error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise lost(self, error) from error


@contextmanager
def told() -> Iterator[None]:
    """While a program runs: its standard streams raise OutputLost, and take names of files that are not UTF-8."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = watched = [_watched(stream) for stream in before]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in watched:
            if isinstance(stream, _Told):
                stream.detach()  # else its end would close the stream that it stands for


def _watched(stream: Any) -> Any:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    stream.flush()
    return _Told(
        stream.buffer,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def flush_all() -> None:
    """What is told reaches its reader, or raises OutputLost."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
