"""The plan of a job and the ledger of what is done: what makes a job resumable (`planning` writes the plan).

A work folder holds one folder per plan, `plan-0001`, `plan-0002`, …; the last whole one counts:

    plan.json       settings and the shard table; written last, so a plan is there whole or not at all
    samples.jsonl   what is to be computed, one line an image; a shard is a run of lines
    kept.jsonl      update only: what an earlier run made and still holds, with where it lies now
    dropped.jsonl   update only: what an earlier run made and is not wanted any more
    shards/         the ledger: one file a committed shard, written after the shard's data

A plan made after the source changed is an update: it computes what is new or changed into `new-0002/`; the
shift (see `shift.py`) then brings everything to its place.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from latentmill.errors import DestinationError
from latentmill.files import replace_text, replacing
from latentmill.formats.metadata import WORK_FOLDER, Value, row_json, row_outcome
from latentmill.records import Outcome, SampleRef, ShardReport

PLAN_FORMAT = 2
_MERGED_FILES = 256  # ledger entries read side by side
_decoder = json.JSONDecoder()


class Kept(NamedTuple):
    """An earlier run's result: its row, and where each output's file lies now, relative to that output's root."""

    outcome: Outcome
    where: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """One plan, as written to `plan.json`. `shards`: (byte offset in samples.jsonl, images) each.

    asked_digest: of the listing and what was wanted of it. source_digest: of what the dataset will hold; the same
    where all was wanted. layouts: the code of each output's layout.
    """

    folder: Path
    number: int
    update: bool
    listed: int
    asked_digest: str
    source_digest: str
    fingerprint: dict[str, Value]
    layouts: dict[str, str]
    classes: list[str] | None
    sorted: bool
    shards: list[tuple[int, int]]

    @property
    def images(self) -> int:
        """Images to compute."""
        return sum(count for _, count in self.shards)

    @property
    def publish(self) -> str:
        """The folder under an output's root that shards publish into; "" is the root itself."""
        return f"{WORK_FOLDER}/new-{self.number:04d}" if self.update else ""

    def refs(self, shard: int) -> list[SampleRef]:
        return [ref for ref, _ in self._rows(shard)]

    def batches(self, shard: int) -> list[list[SampleRef]]:
        """The samples of a shard in the batches that the plan made of them."""
        batches: list[list[SampleRef]] = []
        for ref, first in self._rows(shard):
            if first:
                batches.append([])
            batches[-1].append(ref)
        return batches

    def _rows(self, shard: int) -> Iterator[tuple[SampleRef, bool]]:
        offset, count = self.shards[shard]
        with (self.folder / "samples.jsonl").open("rb") as file:
            file.seek(offset)
            for _ in range(count):
                first, values, more = _parsed(file.readline().decode())
                index, key, stat, label, where, found, fault = values
                size = more.pop("size", None)
                yield (
                    SampleRef(index, key, stat, label, tuple(where), found, fault, size=size and tuple(size), **more),
                    bool(first),
                )

    # the ledger

    def _entry(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:08d}.jsonl"

    def commit(self, report: ShardReport, outcomes: list[Outcome]) -> None:
        """Write a shard's ledger entry, durably: from here on the shard is done."""
        ordered = sorted(outcomes, key=lambda outcome: outcome.ref.index)
        lines = [json.dumps(asdict(report)), *map(row_json, ordered)]
        replace_text(self._entry(report.shard), "\n".join(lines) + "\n")

    def done(self) -> list[int]:
        """The committed shards, ascending."""
        return sorted(int(path.stem) for path in (self.folder / "shards").glob("*.jsonl"))

    def is_done(self, shard: int) -> bool:
        return self._entry(shard).exists()

    def report(self, shard: int) -> ShardReport:
        with self._entry(shard).open() as file:
            return ShardReport(**json.loads(file.readline()))

    def computed(self) -> Iterator[Outcome]:
        """Outcomes of the committed shards, in order of index."""
        done = self.done()
        if not self.sorted:
            return chain.from_iterable(map(self._outcomes, done))
        runs = [done[start : start + _MERGED_FILES] for start in range(0, len(done), _MERGED_FILES)]
        if len(runs) > 1:  # more files than a process may open: first make fewer of them
            merged = [self._merged(run) for run in runs]
            return heapq.merge(*map(_read_outcomes, merged), key=_index)
        return heapq.merge(*map(self._outcomes, done), key=_index)

    def _merged(self, shards: list[int]) -> Path:
        """One file of the outcomes of these shards, in order of index."""
        path = self.folder / f"merged-{shards[0]:08d}.jsonl"
        with replacing(path) as file:
            file.write(b"\n")  # where a ledger entry has its report
            for outcome in heapq.merge(*map(self._outcomes, shards), key=_index):
                file.write(row_json(outcome).encode() + b"\n")
        return path

    def _outcomes(self, shard: int) -> Iterator[Outcome]:
        return _read_outcomes(self._entry(shard))

    def kept(self) -> Iterator[Kept]:
        yield from _read_kept(self.folder / "kept.jsonl")

    def dropped(self) -> Iterator[Kept]:
        yield from _read_kept(self.folder / "dropped.jsonl")

    def outcomes(self) -> Iterator[Outcome]:
        """Every outcome of the dataset, kept and computed, in order of index."""
        kept = (item.outcome for item in self.kept())
        return heapq.merge(kept, self.computed(), key=_index)

    def results(self, shifted: bool) -> Iterator[Kept]:
        """Everything that lies on disk under this plan, in order of key, for a later plan to keep."""
        computed = (
            Kept(o, {name: f"{self.publish}/{f.name}".lstrip("/") for name, f in o.files.items()})
            for o in self.computed()
        )
        if shifted:
            return heapq.merge(self.kept(), computed, key=_key)
        return heapq.merge(self.kept(), self.dropped(), computed, key=_key)

    def retire(self) -> None:
        """Let no plan count any more, this one last: the job is done, and its work folder may go in any order."""
        for file in sorted(self.folder.parent.glob("plan-*/plan.json")):
            file.unlink()

    # markers of the shift

    def marked(self, name: str) -> bool:
        return (self.folder / name).exists()

    def mark(self, name: str) -> None:
        replace_text(self.folder / name, "")


def _parsed(line: str) -> Any:
    """A line of the work folder, which holds one JSON value and was written whole."""
    return _decoder.raw_decode(line)[0]


def _key(item: Kept) -> str:
    return item.outcome.ref.key


def _index(outcome: Outcome) -> int:
    return outcome.ref.index


def _read_outcomes(path: Path) -> Iterator[Outcome]:
    with path.open() as file:
        file.readline()
        for line in file:
            yield row_outcome(_parsed(line))


def _read_kept(path: Path) -> Iterator[Kept]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            row = _parsed(line)
            yield Kept(row_outcome(row["row"]), row["where"])


def current_plan(work: Path) -> Plan | None:
    """The last whole plan in a work folder; None without one. Raises DestinationError when it is damaged."""
    for folder in sorted(work.glob("plan-*"), reverse=True):
        file = folder / "plan.json"
        if not file.exists():
            continue
        try:
            table = json.loads(file.read_text())
            if table.pop("format") != PLAN_FORMAT:
                raise DestinationError(f"{file} was written by another version of latentmill; --overwrite starts anew")
            table["shards"] = [tuple(row) for row in table["shards"]]
            return Plan(folder=folder, **table)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DestinationError(f"{file} is damaged ({error}); --overwrite starts anew") from error
    return None
