"""Writing a plan: what is listed now is paired with what was made before, and the rest cut into batches and shards."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from latentmill.files import LineDigest, digest_lines, remove_tree, replace_text, replacing, write_errors
from latentmill.formats.metadata import Value, row_json
from latentmill.formats.rows import compact, quoted
from latentmill.manifest import PLAN_FORMAT, Kept, Plan
from latentmill.matching import Matcher
from latentmill.records import Listing, SampleRef, everything
from latentmill.stages import Batching


class Changes(NamedTuple):
    """What an update will do, counted. `redo`: of what is dropped, images that are still there but changed."""

    compute: int
    keep: int
    rename: int
    drop: int
    redo: int


def listing_digest(listing: Listing) -> str:
    """Changes when an image is added, removed, changed, renumbered or relabelled, a class renamed, or more wanted.

    Also when the source tells another size of an image, or leaves it out by another rule.
    """
    all_wanted = listing.wanted is everything
    unwanted = (f"unwanted {ref.key}" for ref in (() if all_wanted else listing.refs()) if not listing.wanted(ref))
    return digest_lines(chain(map(_listing_line, listing.refs()), listing.classes or (), unwanted))


def _listing_line(ref: SampleRef) -> str:
    line = f"{ref.index} {ref.key} {ref.stat} {ref.label} {ref.digest}"
    return f"{line} {ref.size} {ref.skip}" if ref.size or ref.skip else line


def _planned_line(ref: SampleRef, first: bool) -> bytes:
    """What `Plan.refs` reads: whether the image begins a batch, what all images have, and what only some have."""
    label = "null" if ref.label is None else ref.label
    where = compact(ref.where) if ref.where else "[]"
    more: dict[str, object] = {}
    if ref.caption is not None or ref.size is not None or ref.skip:
        more = {name: getattr(ref, name) for name in ("skip", "size", "tokens") if getattr(ref, name)}
        if ref.caption is not None:
            more["caption"] = ref.caption
    return (
        f"[{int(first)},[{ref.index},{quoted(ref.key)},{quoted(ref.stat)},{label},{where},{quoted(ref.digest)},"
        f"{quoted(ref.fault)}],{compact(more) if more else '{}'}]\n"
    ).encode()


def _kept_line(item: Kept) -> bytes:
    row = row_json(item.outcome)
    return f'{{"row":{row},"where":{json.dumps(item.where)}}}\n'.encode()


@dataclass(frozen=True)
class Update:
    """What an update starts from.

    earlier: results that lie on disk, in order of key. name_of: the name that an output gives a sample. match: how
    images find their earlier results. accept: told what would change, and the source digest that the dataset would
    have; unless it gives True, all stays as it was.
    """

    earlier: Iterator[Kept]
    name_of: Callable[[str, SampleRef], str]
    match: Matcher
    accept: Callable[[Changes, str], bool]


@dataclass(frozen=True)
class ShardSize:
    """A shard ends before the batch that would begin at `images` samples or `cost` (see `stages.Batching`) or more.

    Where several workers share the work, shards get smaller towards its end, so that all of them end together: a shard
    has half of what is then left for each, rounded up to a multiple of `step`.
    """

    images: int
    cost: float = math.inf
    workers: int = 1
    step: int = 1

    def of(self, left: int) -> int:
        """The samples after which a shard ends that begins with so many left; its last batch may reach beyond."""
        most = self.images if self.workers == 1 else min(self.images, -(-left // (2 * self.workers)))
        return -(-max(1, most) // self.step) * self.step


def cut_shards(batches: Iterable[tuple[int, int, float]], samples: int, size: ShardSize) -> list[tuple[int, int]]:
    """Whole batches in shards: where each begins, and its samples. batches: likewise, and their costs; in order."""
    shards: list[tuple[int, int]] = []
    filled, spent, most, left = 0, 0.0, 0, samples
    for begins, count, cost in batches:
        if not shards or filled >= most or spent >= size.cost:
            shards.append((begins, 0))
            filled, spent, most = 0, 0.0, size.of(left)
        filled, spent, left = filled + count, spent + cost, left - count
        shards[-1] = (shards[-1][0], filled)
    return shards


def write_plan(
    work: Path,
    listing: Listing,
    batching: Batching,
    shard_size: Callable[[], ShardSize],
    *,
    fingerprint: dict[str, Value],
    layouts: dict[str, str],
    asked_digest: str | None = None,
    update: Update | None = None,
) -> tuple[Plan | None, Changes]:
    """Write the next plan of a work folder, and remove the ones before it; None where an update was not accepted.

    shard_size: asked once there is anything to compute. asked_digest: of the listing; None where it is not known yet,
    which spares listing twice.
    """
    last = max((int(path.name[5:]) for path in work.glob("plan-*")), default=0)
    folder = work / f"plan-{last + 1:04d}"
    remove_tree(folder)
    with write_errors(folder):
        (folder / "shards").mkdir(parents=True)
    writer = _PlanWriter(batching, shard_size, update)
    with (
        replacing(folder / "samples.jsonl") as samples,
        replacing(folder / "kept.jsonl") as kept,
        replacing(folder / "dropped.jsonl") as dropped,
    ):
        refs = writer.to_compute(listing, kept, dropped)
        for ref, first in batching.cut(refs):
            samples.write(writer.compute(ref, first))
    source = writer.source_digest(listing.classes)
    plan = Plan(
        folder,
        last + 1,
        update=update is not None,
        listed=writer.listed,
        asked_digest=asked_digest or (source if listing.wanted is everything else listing_digest(listing)),
        source_digest=source,
        fingerprint=fingerprint,
        layouts=layouts,
        classes=listing.classes,
        sorted=batching.sorts,
        shards=writer.shards(),
    )
    changes = Changes(plan.images, writer.kept, writer.rename, writer.drop, writer.redo)
    if update is not None and not update.accept(changes, source):
        return None, changes
    table = {key: value for key, value in vars(plan).items() if key != "folder"}
    replace_text(folder / "plan.json", json.dumps({"format": PLAN_FORMAT, **table}))
    for old_folder in work.glob("plan-*"):
        if old_folder != folder:
            remove_tree(old_folder)
    return plan, changes


class _PlanWriter:
    """Counts while a plan is written; cuts what is to be computed into shards once it is known how much that is."""

    def __init__(self, batching: Batching, shard_size: Callable[[], ShardSize], update: Update | None) -> None:
        self.batching, self.update = batching, update
        self._ask_shard_size = shard_size
        self.begins, self.counts, self.costs = array("q"), array("q"), array("d")  # of the batches
        self.offset = self.listed = self.kept = self.rename = self.drop = self.redo = 0
        self.dropped_key = ""
        self.computed: set[str] = set()  # keys, in an update until anything is kept
        self._digest = LineDigest()

    def to_compute(self, listing: Listing, kept: BinaryIO, dropped: BinaryIO) -> Iterator[SampleRef]:
        """What is listed and not there yet; what an update keeps and drops is written on the way."""
        if self.update is None:
            pairs: Iterator[tuple[SampleRef | None, Kept | None]] = ((ref, None) for ref in listing.refs())
        else:
            pairs = self.update.match(listing.refs(), self.update.earlier)
        for ref, old in pairs:
            if old is not None and ref is None:
                dropped.write(self._discard(old))
            if ref is None or (old is None and not listing.wanted(ref)):
                continue
            self.listed += 1
            self._digest.add(_listing_line(ref))
            if old is not None:
                kept.write(self._keep(ref, old))
                continue
            self.redo += ref.key == self.dropped_key
            if self.update is not None and not self.kept:
                self.computed.add(ref.key)
            yield ref

    @cached_property
    def shard_size(self) -> ShardSize:
        return self._ask_shard_size()

    def source_digest(self, classes: list[str] | None) -> str:
        """What `listing_digest` would give where all that is listed is wanted."""
        for name in classes or ():
            self._digest.add(name)
        return self._digest.hex()

    def compute(self, ref: SampleRef, first: bool) -> bytes:
        line = _planned_line(ref, first)
        if first or not self.begins:
            self.shard_size  # noqa: B018 - measuring may refuse the job, and as yet there is no plan
            self.begins.append(self.offset)
            self.counts.append(0)
            self.costs.append(0.0)
        self.counts[-1] += 1
        self.costs[-1] += self.batching.cost(ref)
        self.offset += len(line)
        return line

    def shards(self) -> list[tuple[int, int]]:
        if not self.begins:
            return []
        batches = zip(self.begins, self.counts, self.costs, strict=True)
        return cut_shards(batches, sum(self.counts), self.shard_size)

    def _discard(self, old: Kept) -> bytes:
        self.drop += 1
        self.dropped_key = old.outcome.ref.key
        self.redo += self.dropped_key in self.computed
        return _kept_line(old)

    def _keep(self, ref: SampleRef, old: Kept) -> bytes:
        assert self.update is not None
        name_of = self.update.name_of
        files = {output: replace(stored, name=name_of(output, ref)) for output, stored in old.outcome.files.items()}
        self.kept += 1
        self.computed.clear()
        self.rename += any(files[output].name != where for output, where in old.where.items())
        return _kept_line(Kept(replace(old.outcome, ref=ref, files=files), old.where))
