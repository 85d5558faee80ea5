"""The files that an audit leaves: the list of keys to exclude, every finding as JSON, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentmill.auditing.findings import Audit
from latentmill.errors import DestinationError
from latentmill.files import counted, printable, replace_text
from latentmill.sources.excluding import write_exclusion


def check_places(source: Path, *files: Path | None) -> None:
    """Before the work: files can be made there, are not one file, and are not the source. Raises DestinationError."""
    given = [file for file in files if file is not None]
    for number, file in enumerate(given):
        if file.is_dir() or not file.parent.is_dir():
            found = "a folder" if file.is_dir() else f"no folder {file.parent}"
            raise DestinationError(f"expected a file to write, in a folder that is there. Found {found}: {file}")
        if file.resolve() in (source.resolve(), *(other.resolve() for other in given[:number])):
            raise DestinationError(f"{file} is already the source, or another of the files to write: choose another")


def write_list(found: Audit, file: Path, also: list[str]) -> int:
    """Write the list that `--exclude` takes; gives how many keys it holds. Raises ConfigError, DestinationError."""
    reasons = found.exclusions(also)
    beside = f", and {', '.join(also)}" if also else ""
    head = (
        f"Left out of {printable(str(found.source))}: {len(reasons):,} of {counted(found.images, 'images')}",
        f"What is unusable, and all but one of each group of equal images{beside}.",
        "A line that is removed is an image that is taken after all.",
    )
    write_exclusion(file, head, reasons.items())
    return len(reasons)


def write_json(found: Audit, file: Path) -> None:
    """Write every finding; names that are not UTF-8 have their bytes as JSON's surrogate escapes."""
    replace_text(file, json.dumps(found.as_table(), indent=1) + "\n")


def write_page(found: Audit, file: Path, settings: dict[str, Any]) -> None:
    """Draw the page; the pictures that it shows are read once more."""
    from latentmill.auditing.page import page_of

    replace_text(file, page_of(found, settings))
