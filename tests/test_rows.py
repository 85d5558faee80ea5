"""Lines put together by hand are, byte for byte, what `json.dumps` gives, and read back as what they were made of."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from latentmill.formats.metadata import rejected_at
from latentmill.formats.rows import row_json, row_outcome
from latentmill.matching import RETRIED
from latentmill.records import Geometry, Outcome, SampleRef, StoredFile

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)  # with surrogates, as odd paths have them
NUMBER = st.integers(0, 1 << 60)
PAIR = st.tuples(NUMBER, NUMBER)
FILES = st.dictionaries(TEXT, st.builds(StoredFile, TEXT, NUMBER, TEXT, NUMBER), min_size=1, max_size=3)
REFS = st.builds(
    SampleRef, NUMBER, TEXT, TEXT, st.none() | NUMBER, caption=st.none() | TEXT, tokens=st.just(0)
) | st.builds(SampleRef, NUMBER, TEXT, TEXT, caption=TEXT, tokens=NUMBER)
OUTCOMES = st.builds(
    Outcome,
    REFS,
    TEXT,
    st.lists(TEXT, max_size=2).map(tuple),
    FILES,
    st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
    st.booleans(),
    st.sampled_from(["", "", "read", "decode"]),
    TEXT,
    st.none() | st.builds(Geometry, PAIR, PAIR, st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), PAIR),
)


def expected(outcome: Outcome, output: str | None) -> str:
    """The form of a line, plainly."""
    ref = outcome.ref
    row: dict[str, object] = {"index": ref.index, "key": ref.key, "stat": ref.stat, "label": ref.label}
    row["source"] = outcome.digest
    if ref.caption is not None:
        row |= {"caption": ref.caption, "tokens": ref.tokens}
    if outcome.geometry is not None:
        row["geometry"] = asdict(outcome.geometry)
    if outcome.notes:
        row["notes"] = list(outcome.notes)
    if outcome.stage:
        row["reject"] = [outcome.stage, outcome.reason]
    elif outcome.skipped:
        row["skipped"] = outcome.reason or True
    elif output is None:
        row["files"] = {name: [f.name, f.size, f.digest, f.crc] for name, f in outcome.files.items()}
    else:
        stored = outcome.files[output]
        row |= {"name": stored.name, "size": stored.size, "digest": stored.digest, "crc": stored.crc}
    if outcome.sums and output != "images":
        row["sums"] = list(outcome.sums)
    return json.dumps(row, separators=(",", ":"))


@given(OUTCOMES)
def test_a_line_is_what_json_gives(outcome: Outcome) -> None:
    for output in (None, *outcome.files):
        assert row_json(outcome, output) == expected(outcome, output)
    back = row_outcome(json.loads(row_json(outcome)))
    assert row_json(back) == row_json(outcome)
    assert back.ref.key == outcome.ref.key
    if not (outcome.stage or outcome.skipped):
        assert back.files == outcome.files


def test_a_reject_is_found_by_its_stage_and_by_nothing_that_only_looks_so(tmp_path: Path) -> None:
    looks = ',"reject":["read",'
    kept = Outcome(SampleRef(0, looks, looks), looks, files={"images": StoredFile(looks, 1, looks, 2)}, notes=(looks,))
    decoded = Outcome(SampleRef(1, looks, ""), stage="decode", reason=looks)
    for last, found in (("decode", False), ("read", True), ("memory", True)):
        rejected = Outcome(SampleRef(2, "c", ""), stage=last, reason="none")
        lines = [row_json(outcome, "images") + "\n" for outcome in (kept, decoded, rejected)]
        (tmp_path / "latentmill-index.jsonl").write_text("".join(lines))
        assert rejected_at(tmp_path, RETRIED) is found
