"""Of a finished dataset: whether what a finish writes beside the data is there and right; what can be is made again.

Labels and columns follow from the index alone, to the byte, so a folder's are made again. The index holds what nothing
else does, and nothing in a zip can be replaced: there it is one error, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentmill.destination import refuse_damaged
from latentmill.errors import DestinationError
from latentmill.files import digest_file, sync_folder, write_errors
from latentmill.formats.columns_writer import ColumnsWriter, write_columns
from latentmill.formats.containers import Container
from latentmill.formats.index_lines import stored_rows
from latentmill.formats.labels import LabelsWriter
from latentmill.formats.metadata import (
    DATASET_JSON,
    INDEX_COLUMNS,
    INDEX_JSONL,
    METADATA_JSON,
    Metadata,
    is_as_written,
    open_beside,
    read_beside,
)
from latentmill.outcome import Event, Tell
from latentmill.worker import Output


def mend(outputs: Sequence[Output], check: str, tell: Tell) -> None:
    """Look for what lies beside the data of finished outputs, under their lock; with `check` "digest" at its contents.

    What follows from the index is made again, and told. Raises DestinationError for what cannot be.
    """
    for output in outputs:
        metadata = Metadata.read_beside(output.container.path)
        assert metadata is not None
        if not output.container.is_zip:
            _mend_folder(output, metadata, check, tell)
        elif check == "digest":
            _refuse_damaged_zip(output.container.path)
        else:
            _refuse_incomplete_zip(output)


def is_sealed(place: Container) -> bool:
    """Whether `latentmill.json` is, byte for byte, as it was written."""
    return is_as_written(read_beside(place.path, METADATA_JSON) or b"")


def _mend_folder(output: Output, metadata: Metadata, check: str, tell: Tell) -> None:
    place = output.container
    names = [INDEX_COLUMNS, DATASET_JSON] if output.layout.labelled else [INDEX_COLUMNS]
    missing = [name for name in names if not (place.path / name).is_file()]
    if check != "digest" and not missing and (place.path / INDEX_JSONL).is_file():
        return
    refuse_damaged(place, metadata)
    with write_errors(place.path):
        folder = place.work / "finish"
        folder.mkdir(parents=True, exist_ok=True)
        _make_again(output, metadata, folder)
        for name in names:
            there, made = place.path / name, folder / name
            if name in missing or digest_file(there) != digest_file(made):
                made.replace(there)
                sync_folder(place.path)
                what = "was missing from" if name in missing else "was damaged in"
                tell(Event("plan", f"{name} {what} {place.path}: made again from {INDEX_JSONL}"))


def _make_again(output: Output, metadata: Metadata, folder: Path) -> None:
    """Write what follows from the index, as `finish` does, into a folder."""
    columns = ColumnsWriter(folder, in_zip=False)
    labels = LabelsWriter(folder / DATASET_JSON) if output.layout.labelled else None
    for row in stored_rows(output.container.path):
        columns.add(row)
        if labels is not None:
            labels.add(row.name, row.label)
    if labels is not None:
        labels.close()
    write_columns(folder / INDEX_COLUMNS, columns, metadata.index_digest)


def _refuse_incomplete_zip(output: Output) -> None:
    path = output.container.path
    for name in (INDEX_JSONL, DATASET_JSON) if output.layout.labelled else (INDEX_JSONL,):
        stream = open_beside(path, name)
        if stream is None:
            raise DestinationError(
                f"{name} is missing from {path}, and a zip cannot be mended in place: make it anew with --overwrite"
            )
        stream.close()


def _refuse_damaged_zip(path: Path) -> None:
    """Compare every member with its digest and what the archive records of it."""
    from latentmill.verification import verify  # decoders, which only this needs

    problems = verify(path).problems
    if problems:
        more = f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""
        raise DestinationError(
            f"{path} is damaged: {problems[0]}{more}. A zip cannot be mended in place: make it anew with --overwrite. "
            "Nothing was changed; `latentmill verify` lists all that is wrong"
        )
