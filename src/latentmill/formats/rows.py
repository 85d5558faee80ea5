"""One line for one image, in the ledger and in the index: its outcome as JSON, and back.

Jobs write and read millions of them, so the fields that every line has are put together by hand; the bytes are those
that `json.dumps` gives.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from json.encoder import encode_basestring_ascii
from typing import Any

from latentmill.records import Geometry, Outcome, SampleRef, StoredFile

quoted = encode_basestring_ascii
compact = json.JSONEncoder(separators=(",", ":")).encode


def row_json(outcome: Outcome, output: str | None = None) -> str:
    """One line of a ledger (`output` None: every output's file) or of one output's index."""
    ref = outcome.ref
    label = "null" if ref.label is None else ref.label
    return (
        f'{{"index":{ref.index},"key":{quoted(ref.key)},"stat":{quoted(ref.stat)},"label":{label},'
        f'"source":{quoted(outcome.digest)}{_noted(outcome)}{_became(outcome, output)}{_sums(outcome, output)}}}'
    )


def _noted(outcome: Outcome) -> str:
    """What only some images have: a caption, a geometry, notes."""
    ref = outcome.ref
    if ref.caption is None and outcome.geometry is None and not outcome.notes:
        return ""
    row: dict[str, object] = {}
    if ref.caption is not None:
        row |= {"caption": ref.caption, "tokens": ref.tokens}
    if outcome.geometry is not None:
        row["geometry"] = asdict(outcome.geometry)
    if outcome.notes:
        row["notes"] = list(outcome.notes)
    return f",{compact(row)[1:-1]}"


def _became(outcome: Outcome, output: str | None) -> str:
    if outcome.stage:
        return f"{reject_mark(outcome.stage)}{quoted(outcome.reason)}]"
    if outcome.skipped:
        return f',"skipped":{quoted(outcome.reason) if outcome.reason else "true"}'
    if output is None:
        files = (
            f"{quoted(name)}:[{quoted(file.name)},{file.size},{quoted(file.digest)},{file.crc}]"
            for name, file in outcome.files.items()
        )
        return f',"files":{{{",".join(files)}}}'
    file = outcome.files[output]
    return f',"name":{quoted(file.name)},"size":{file.size},"digest":{quoted(file.digest)},"crc":{file.crc}'


def reject_mark(stage: str) -> str:
    """What stands in the line of an image that was rejected at this stage, and in no other line."""
    return f',"reject":[{quoted(stage)},'


def _sums(outcome: Outcome, output: str | None) -> str:
    return f',"sums":{compact(list(outcome.sums))}' if outcome.sums and output != "images" else ""


def row_outcome(row: dict[str, Any], output: str | None = None) -> Outcome:
    """The inverse of `row_json`."""
    ref = SampleRef(
        row["index"], row["key"], row["stat"], row["label"], caption=row.get("caption"), tokens=row.get("tokens", 0)
    )
    if output is None:
        files = {name: StoredFile(*values) for name, values in row.get("files", {}).items()}
    elif "name" in row:
        files = {output: StoredFile(row["name"], row["size"], row["digest"], row["crc"])}
    else:
        files = {}
    stage, reason = row.get("reject", ("", ""))
    skipped = row.get("skipped", False)
    return Outcome(
        ref,
        row["source"],
        tuple(row.get("notes", ())),
        files,
        tuple(row.get("sums", ())),
        bool(skipped),
        stage,
        skipped if isinstance(skipped, str) else reason,
        row_geometry(row),
    )


def row_geometry(row: dict[str, Any]) -> Geometry | None:
    """How the row's image became its bucket's pixels; None where that is not recorded."""
    if "geometry" not in row:
        return None
    return Geometry(**{name: tuple(value) for name, value in row["geometry"].items()})
