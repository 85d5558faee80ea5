"""Versions of installed packages, read without taking apart all of their metadata, which holds whole readmes."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

_FIELD = "Version:"


@cache
def installed_version(name: str) -> str | None:
    """The version of a distribution as its metadata tells it; None where it is not installed."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    for line in (found.read_text("METADATA") or "").partition("\n\n")[0].splitlines():
        if line.startswith(_FIELD):
            return line.removeprefix(_FIELD).strip()
    return found.version
