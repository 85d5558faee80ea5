"""The files that an audit leaves: the list of keys to exclude, every finding as JSON, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentmill.auditing.findings import Audit
from latentmill.errors import DestinationError
from latentmill.files import check_written, counted, printable, replace_text
from latentmill.sources.excluding import write_exclusion

_LIST, _PAGE, _JSON = b"# Left out of ", b"<!doctype html>", b"{"  # what each begins with


def check_places(source: Path, page: Path | None, list_file: Path | None, json_file: Path | None) -> None:
    """Before the work: files can be made there, or are of an audit before, are not one file, and are not the source.

    Raises DestinationError.
    """
    beginnings = {page: _PAGE, list_file: _LIST, json_file: _JSON}
    given = [file for file in (page, list_file, json_file) if file is not None]
    for number, file in enumerate(given):
        check_written(file, beginnings[file])
        if file.resolve() in (source.resolve(), *(other.resolve() for other in given[:number])):
            raise DestinationError(f"{file} is already the source, or another of the files to write: choose another")


def write_list(found: Audit, file: Path, also: list[str]) -> dict[str, str]:
    """Write the list that `--exclude` takes; gives its keys and the reasons. Raises ConfigError, DestinationError."""
    reasons = found.exclusions(also)
    beside = f", and {', '.join(also)}" if also else ""
    head = (
        f"Left out of {printable(str(found.source))}: {len(reasons):,} of {counted(found.images, 'images')}",
        f"Images that no run takes, and all but one of each group of equal ones{beside}.",
        "A line that is removed is an image that is taken after all.",
    )
    write_exclusion(file, head, reasons.items())
    return reasons


def write_json(found: Audit, file: Path) -> None:
    """Write every finding; names that are not UTF-8 have their bytes as JSON's surrogate escapes."""
    replace_text(file, json.dumps(found.as_table(), indent=1) + "\n")


def write_page(found: Audit, file: Path, settings: dict[str, Any]) -> None:
    """Draw the page; the pictures that it shows are read once more."""
    from latentmill.auditing.page import page_of

    replace_text(file, page_of(found, settings))
