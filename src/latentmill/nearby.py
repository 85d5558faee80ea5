"""What a path that is not there was probably meant to be."""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from latentmill.wording import printable

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?=[^/])", re.IGNORECASE)  # a Path has lost the second slash
_METADATA = "latentmill.json"
_ENTRIES = 10_000  # of a folder, at most: a guess is not worth more


def instead_of(path: Path) -> str:
    """` Did you mean …?` of a name near to it beside the first part that is missing; empty where there is none.

    Of a URL, that it is one.
    """
    if url := _URL.match(str(path)):
        return f" It is a URL, and {url[1]} cannot be read: download or mount it, and give what is on the disk then"
    if path.exists():
        return ""
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    near = get_close_matches(missing.name.lower(), names := _beside(missing), 1)
    if not near:
        return ""
    found = missing.with_name(names[near[0]]) / path.relative_to(missing)
    return f" Did you mean {printable(str(found))}?" if found.exists() else ""


def _beside(path: Path) -> dict[str, str]:
    """The entries of the folder that a path would be in, by their names in lower case; none that cannot be listed."""
    try:
        return {entry.name.lower(): entry.name for entry in islice(path.parent.iterdir(), _ENTRIES)}
    except OSError:
        return {}


def result_near(path: Path) -> str:
    """Where a result is near a folder that is none: above it, or in the folders of it; else what to give."""
    if (path.parent / _METADATA).exists():
        return f" Did you mean {printable(str(path.parent))}?"
    below = sorted(file.parent for file in path.glob(f"*/{_METADATA}"))
    if below:
        return f" Did you mean {printable(str(below[0]))}?"
    return " Give the folder or the .zip that a command wrote (its --dest)"
