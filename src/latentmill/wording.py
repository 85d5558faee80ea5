"""Paths and counts as a person reads them."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A path as it can be shown on one line: control characters, and bytes that are not UTF-8, become `\\xNN`."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), shown)


def counted(count: int, what: str) -> str:
    """`1 image`, `1,000 images`; what: in the plural."""
    return f"{count:,} {what.removesuffix('s') if count == 1 else what}"
