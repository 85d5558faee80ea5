"""The module that is compiled of `native/`: whether it is there, and of this version."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from latentmill.errors import ConfigError

Found = TypeVar("Found")

_INTERFACE = 5  # as in native/module.c; another one takes other arguments


def load() -> ModuleType:
    """Raises ImportError, which says what to do. What it computes is for its users to compare."""
    try:
        module = import_module("latentmill.transforms._resample")
    except ModuleNotFoundError as error:
        raise ImportError(
            "it was not built: install a C compiler and Python's headers, and latentmill again"
        ) from error
    if getattr(module, "INTERFACE", None) != _INTERFACE:
        raise ImportError("it was built of another version: install latentmill again")
    return module


def compiled(name: str) -> Callable[..., Any] | None:
    """One of its functions; None where it cannot be used, or has none of that name on this system."""
    try:
        return getattr(load(), name, None)
    except ImportError:
        return None


def choose(variable: str, other: str, what: str, find: Callable[[], Found]) -> tuple[Found | None, str]:
    """What `find` gives, or None and why `other` does the work. Raises ConfigError.

    variable: of the environment: "native", `other`, or not set. what: that is compiled. find: raises ImportError.
    """
    asked = os.environ.get(variable, "")
    if asked not in ("", "native", other):
        raise ConfigError(f"{variable} must be native or {other}, or not set. Found: {asked!r}")
    if asked == other:
        return None, f"{variable} is {other}"
    try:
        return find(), ""
    except ImportError as error:
        if asked == "native":
            raise ConfigError(f"{variable} is native, but the compiled {what} cannot be used: {error}") from error
        return None, f"the compiled {what} cannot be used: {error}"
