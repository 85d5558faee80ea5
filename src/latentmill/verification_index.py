"""Whether an archive's directory can be read, and whether the index's columns say what its lines do."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latentmill.formats.columns_writer import ColumnsWriter, Row, columns_bytes
from latentmill.formats.metadata import INDEX_COLUMNS, INDEX_JSONL, Metadata, open_beside
from latentmill.formats.payload import ARRAY_ERRORS


def zip_fault(path: Path) -> str:
    """Why an archive's directory cannot be read; "" where it can, and of a folder."""
    if path.is_dir():
        return ""
    if not zipfile.is_zipfile(path):
        return "is not a zip archive that can be read (cut off, or damaged at its end)"
    try:
        zipfile.ZipFile(path).close()
    except ARRAY_ERRORS as error:
        return f"is not a zip archive that can be read: {error}"
    return ""


def columns_fault(path: Path, metadata: Metadata, stored: Iterable[dict[str, Any]]) -> str:
    """What is wrong with the columns, compared byte for byte with those of the lines' `stored` rows; "" if nothing."""
    try:
        stream = open_beside(path, INDEX_COLUMNS)
        if stream is None:
            return "is missing"
        with stream:
            found = stream.read()
    except ARRAY_ERRORS as error:
        return f"cannot be read: {error}"
    writer = ColumnsWriter(None, not path.is_dir())
    for row in stored:
        writer.add(Row.of_json(row))
    if columns_bytes(writer, metadata.index_digest) != found:
        return f"was changed, or is of an earlier state: it does not say what {INDEX_JSONL} does"
    return ""
