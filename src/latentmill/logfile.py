"""The log file (`--log-file`): everything that a person sees, and details, appended line by line with times."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from latentmill.errors import ConfigError

_LIBRARIES = ("numpy", "pillow", "simplejpeg", "torch", "diffusers", "transformers")
_RESULT = ("latentmill.json", ".latentmill")
_LINE = re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+[+-]\d\d:\d\d [A-Z]+ ")
_LONGEST = 80  # bytes of a line that are enough to know it
_open: list[TextIO] = []  # at most one


def is_open() -> bool:
    """Whether there is a log file."""
    return bool(_open)


def write(text: str, level: str = "INFO") -> None:
    """Append a text, each of its lines with the time and a level (INFO, WARNING, ERROR, DETAIL); one write a line."""
    for file in _open:
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        for line in text.splitlines():
            if line.strip():
                with suppress(OSError):  # a disk that is full ends the work by itself, and is told on the screen
                    file.write(f"{now} {level:<7} {line.rstrip()}\n")
                    file.flush()


@contextmanager
def log_to(path: Path | None) -> Iterator[None]:
    """Append to this file meanwhile; None: to none. Raises ConfigError where it cannot be written."""
    if path is None:
        yield
        return
    try:
        _check_own(path)
        file = path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(
            f"--log-file must be a file that can be written, in a folder that exists. Found: {path} "
            f"({error.strerror or error})"
        ) from error
    with file:
        _open.append(file)
        try:
            write(_environment(), "DETAIL")
            yield
        finally:
            _open.remove(file)


def _check_own(path: Path) -> None:
    """Refuse to write into a result, or behind what is no log, as a caption. Raises ConfigError and OSError."""
    for folder in path.resolve().parents:
        if any((folder / name).exists() for name in _RESULT):
            raise ConfigError(f"--log-file must lie outside of what is made. Found: {path}, in {folder}")
    if path.is_file():
        with path.open("rb") as file:
            first = file.readline(_LONGEST)
        if first and not _LINE.match(first):
            raise ConfigError(f"--log-file must be a new file, or a log of latentmill's to append to. Found: {path}")


def _environment() -> str:
    """The machine and the versions of what computes; imports none of it."""
    from latentmill.system import available_memory, usable_cores
    from latentmill.versions import installed_version

    found = [f"{name} {version}" for name in _LIBRARIES if (version := installed_version(name))]
    memory = available_memory()
    free = f", {memory >> 20:,} MiB of memory free" if memory is not None else ""
    return (
        f"command {' '.join(sys.argv)}\nfolder {Path.cwd()}\n"
        f"latentmill {installed_version('latentmill')}, Python {platform.python_version()}, {', '.join(found)}\n"
        f"{platform.platform()}, {usable_cores()} usable cores{free}"
    )
