"""Paths, counts and near misses as a person reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_ALSO = {"gpu": "cuda", "half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "full": "float32"}


def printable(text: str) -> str:
    """A path as it can be shown on one line: control characters, and bytes that are not UTF-8, become `\\xNN`."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), shown)


def counted(count: int, what: str) -> str:
    """`1 image`, `1,000 images`; what: in the plural."""
    return f"{count:,} {what.removesuffix('s') if count == 1 else what}"


def hinted(text: str, hint: str) -> str:
    """A message, and after it what may help, as `did_you_mean` gives it; that may be nothing."""
    return f"{text.removesuffix('.')}.{hint}" if hint else text


def did_you_mean(found: object, known: Iterable[str]) -> str:
    """` Did you mean x?` where a known name is near to the one that was found; else nothing."""
    from difflib import get_close_matches

    names = {name.lower(): name for name in known}
    word = str(found).lower()
    also = _ALSO.get(word, "")
    near = [also] if also in names else get_close_matches(word, names, 1)
    return f" Did you mean {names[near[0]]}?" if near else ""
