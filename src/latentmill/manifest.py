"""The plan of a job and the ledger of what is done: what makes a job resumable, and an update cheap.

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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from latentmill.errors import DestinationError
from latentmill.files import digest_lines, remove_tree, replace_text, replacing, write_errors
from latentmill.formats.metadata import WORK_FOLDER, Value, row_json, row_outcome
from latentmill.records import Listing, Outcome, SampleRef, ShardReport

_FORMAT = 1


class Kept(NamedTuple):
    """An earlier run's result: its row, and where each output's file lies now, relative to that output's root."""

    outcome: Outcome
    where: dict[str, str]


class Changes(NamedTuple):
    """What an update will do, counted. `redo`: of what is dropped, images that are still there but changed."""

    compute: int
    keep: int
    rename: int
    drop: int
    redo: int


@dataclass(frozen=True)
class Plan:
    """One plan, as written to `plan.json`. `shards`: (byte offset in samples.jsonl, images) each."""

    folder: Path
    number: int
    update: bool
    listed: int
    source_digest: str
    fingerprint: dict[str, Value]
    classes: list[str] | None
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
        offset, count = self.shards[shard]
        with (self.folder / "samples.jsonl").open("rb") as file:
            file.seek(offset)
            rows = [json.loads(file.readline()) for _ in range(count)]
        return [SampleRef(i, key, stat, label, tuple(where), d, fault) for i, key, stat, label, where, d, fault in rows]

    # the ledger

    def _entry(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:08d}.jsonl"

    def commit(self, report: ShardReport, outcomes: list[Outcome]) -> None:
        """Write a shard's ledger entry, durably: from here on the shard is done."""
        lines = [json.dumps(asdict(report)), *(row_json(outcome) for outcome in outcomes)]
        replace_text(self._entry(report.shard), "\n".join(lines) + "\n")

    def done(self) -> list[int]:
        """The committed shards, ascending."""
        return sorted(int(path.stem) for path in (self.folder / "shards").glob("*.jsonl"))

    def report(self, shard: int) -> ShardReport:
        with self._entry(shard).open() as file:
            return ShardReport(**json.loads(file.readline()))

    def computed(self) -> Iterator[Outcome]:
        """Outcomes of the committed shards, in order."""
        for shard in self.done():
            with self._entry(shard).open() as file:
                file.readline()
                for line in file:
                    yield row_outcome(json.loads(line))

    def kept(self) -> Iterator[Kept]:
        yield from _read_kept(self.folder / "kept.jsonl")

    def dropped(self) -> Iterator[Kept]:
        yield from _read_kept(self.folder / "dropped.jsonl")

    def outcomes(self) -> Iterator[Outcome]:
        """Every outcome of the dataset, kept and computed, in order of index."""
        kept = (item.outcome for item in self.kept())
        return heapq.merge(kept, self.computed(), key=lambda outcome: outcome.ref.index)

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


def _key(item: Kept) -> str:
    return item.outcome.ref.key


def _read_kept(path: Path) -> Iterator[Kept]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            yield Kept(row_outcome(row["row"]), row["where"])


def _kept_line(item: Kept) -> bytes:
    row = row_json(item.outcome)
    return f'{{"row":{row},"where":{json.dumps(item.where)}}}\n'.encode()


def listing_digest(listing: Listing) -> str:
    """Changes when an image is added, removed, changed, renumbered or relabelled, or a class renamed."""
    images = (f"{ref.index} {ref.key} {ref.stat} {ref.label} {ref.digest}" for ref in listing.refs())
    return digest_lines(chain(images, listing.classes or ()))


def current_plan(work: Path) -> Plan | None:
    """The last whole plan in a work folder; None without one. Raises DestinationError when it is damaged."""
    for folder in sorted(work.glob("plan-*"), reverse=True):
        file = folder / "plan.json"
        if not file.exists():
            continue
        try:
            table = json.loads(file.read_text())
            if table.pop("format") != _FORMAT:
                raise DestinationError(f"{file} was written by another version of latentmill; --overwrite starts anew")
            table["shards"] = [tuple(row) for row in table["shards"]]
            return Plan(folder=folder, **table)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DestinationError(f"{file} is damaged ({error}); --overwrite starts anew") from error
    return None


def write_plan(
    work: Path,
    refs: Iterable[SampleRef],
    *,
    fingerprint: dict[str, Value],
    source_digest: str,
    classes: list[str] | None,
    shard_size: int,
    earlier: Iterator[Kept] | None = None,
    name_of: Callable[[str, int], str] | None = None,
    match: Matcher | None = None,
    accept: Callable[[Changes], bool] | None = None,
) -> tuple[Plan | None, Changes]:
    """Write the next plan of a work folder, and remove the ones before it.

    earlier: results that lie on disk, in order of key; makes the plan an update. name_of: the name that an output
    gives a number. match: how images find their earlier results (default: by key and `stat`). accept: told what
    would change; unless it gives True, all stays as it was, and the plan is None.
    """
    last = max((int(path.name[5:]) for path in work.glob("plan-*")), default=0)
    folder = work / f"plan-{last + 1:04d}"
    remove_tree(folder)
    with write_errors(folder):
        (folder / "shards").mkdir(parents=True)
    writer = _PlanWriter(shard_size, update=earlier is not None)
    with (
        replacing(folder / "samples.jsonl") as samples,
        replacing(folder / "kept.jsonl") as kept,
        replacing(folder / "dropped.jsonl") as dropped,
    ):
        for ref, old in (match or match_by_key)(refs, earlier or iter(())):
            writer.listed += ref is not None
            if ref is not None and old is not None:
                assert name_of is not None
                kept.write(writer.keep(ref, old, name_of))
                continue
            if old is not None:
                dropped.write(writer.discard(old))
            if ref is not None:
                samples.write(writer.compute(ref))
    plan = Plan(
        folder, last + 1, earlier is not None, writer.listed, source_digest, fingerprint, classes, writer.shards
    )
    changes = Changes(plan.images, writer.kept, writer.rename, writer.drop, writer.redo)
    if accept is not None and not accept(changes):
        return None, changes
    table = {key: value for key, value in vars(plan).items() if key != "folder"}
    replace_text(folder / "plan.json", json.dumps({"format": _FORMAT, **table}))
    for old_folder in work.glob("plan-*"):
        if old_folder != folder:
            remove_tree(old_folder)
    return plan, changes


class _PlanWriter:
    """Counts while a plan is written, and cuts what is to be computed into shards."""

    def __init__(self, shard_size: int, update: bool) -> None:
        self.shard_size, self.update = shard_size, update
        self.shards: list[tuple[int, int]] = []
        self.offset = self.listed = self.kept = self.rename = self.drop = self.redo = 0
        self.dropped_key = ""
        self.computed: set[str] = set()  # keys, in an update until anything is kept

    def compute(self, ref: SampleRef) -> bytes:
        self.redo += ref.key == self.dropped_key
        if self.update and not self.kept:
            self.computed.add(ref.key)
        row = [ref.index, ref.key, ref.stat, ref.label, ref.where, ref.digest, ref.fault]
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        if not self.shards or self.shards[-1][1] == self.shard_size:
            self.shards.append((self.offset, 0))
        self.shards[-1] = (self.shards[-1][0], self.shards[-1][1] + 1)
        self.offset += len(line)
        return line

    def discard(self, old: Kept) -> bytes:
        self.drop += 1
        self.dropped_key = old.outcome.ref.key
        self.redo += self.dropped_key in self.computed
        return _kept_line(old)

    def keep(self, ref: SampleRef, old: Kept, name_of: Callable[[str, int], str]) -> bytes:
        files = {
            output: replace(stored, name=name_of(output, ref.index)) for output, stored in old.outcome.files.items()
        }
        self.kept += 1
        self.computed.clear()
        self.rename += any(files[output].name != where for output, where in old.where.items())
        return _kept_line(Kept(replace(old.outcome, ref=ref, files=files), old.where))


SameContent = Callable[[SampleRef, Outcome], bool]
Matcher = Callable[[Iterable[SampleRef], Iterator[Kept]], Iterator[tuple[SampleRef | None, Kept | None]]]


def match_by_key(
    refs: Iterable[SampleRef],
    earlier: Iterator[Kept],
    same_content: SameContent = lambda ref, old: ref.stat == old.ref.stat,
) -> Iterator[tuple[SampleRef | None, Kept | None]]:
    """Pair what is listed now with what was made earlier: (ref, result to keep or None), (None, result to drop).

    Both come in order of key, so neither is held. A result whose image could not be read is never kept: a
    permission or a network may have been mended since, which no size or time shows.
    """
    old = next(earlier, None)
    for ref in refs:
        while old is not None and old.outcome.ref.key < ref.key:
            yield None, old
            old = next(earlier, None)
        found = None  # an update that was cut off may have left an image's old and its new result
        while old is not None and old.outcome.ref.key == ref.key:
            if found is None and old.outcome.stage not in ("read", "list") and same_content(ref, old.outcome):
                found = old
            else:
                yield None, old
            old = next(earlier, None)
        yield ref, found
    while old is not None:
        yield None, old
        old = next(earlier, None)


def match_by_digest(
    refs: Iterable[SampleRef],
    earlier: Iterator[Kept],
    same_content: SameContent = lambda ref, old: ref.stat == old.ref.stat,
) -> Iterator[tuple[SampleRef | None, Kept | None]]:
    """As `match_by_key`, for sources that tell each image's digest: an image that was only renumbered is found again.

    The digest is the source's word, not read from the bytes, so `same_content` is asked as well.
    """
    table: dict[str, dict[str, list[Kept]]] = {}  # digest -> stat -> results; copies of one image may be many
    for item in earlier:
        table.setdefault(item.outcome.digest, {}).setdefault(item.outcome.ref.stat, []).append(item)
    for ref in refs:
        by_stat = table.get(ref.digest, {}) if ref.digest else {}
        stat = ref.stat if ref.stat in by_stat else next(iter(by_stat), None)
        if stat is None or not same_content(ref, by_stat[stat][-1].outcome):
            yield ref, None
            continue
        yield ref, by_stat[stat].pop()
        if not by_stat[stat]:
            del by_stat[stat]
    left = (item for by_stat in table.values() for items in by_stat.values() for item in items)
    for item in sorted(left, key=_key):
        yield None, item
