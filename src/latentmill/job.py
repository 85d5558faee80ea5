"""A job, from its settings to a finished dataset: what it makes, where, in what shards, and how it is finished.

What there is to do is found in `beginning`. On success every output is whole and its work folder gone. When the job
fails or is stopped, what is committed stays, and the same call goes on from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from latentmill.config_types import FailureLimit
from latentmill.destination import locked, refuse_foreign, sweep
from latentmill.finish import Description, Tally, finish
from latentmill.formats.containers import Container
from latentmill.formats.metadata import REJECTS_JSONL, REPORT_JSON, Metadata, Value
from latentmill.live import Live
from latentmill.manifest import Plan
from latentmill.outcome import Event, Result
from latentmill.planning import Changes, ShardSize
from latentmill.records import Listing, SampleRef
from latentmill.shift import shift
from latentmill.stages import Batching, EncoderSpec, Load, Source
from latentmill.worker import Output, Part

SHARD_SECONDS = 20.0  # a kill costs at most this much of each worker's time, and the commit that was under way
_MAX_SHARD_IMAGES = 1024  # a worker holds the outcomes of one shard
_PROBE_IMAGES = 8


@dataclass(frozen=True)
class Begun:
    """A job's plan, None where all was done before; the shards that were; and since when (monotonic seconds)."""

    plan: Plan | None
    changes: Changes | None
    done: set[int]
    started: float

    @property
    def todo(self) -> list[int]:
        """The shards that are left to run."""
        return [] if self.plan is None else [s for s in range(len(self.plan.shards)) if s not in self.done]


@dataclass
class Job:
    """A job with its stages chosen. outputs: the first holds plan and ledger.

    batch_size: of most batches at most. workers: processes; devices: of each, where it encodes. whole: shards are of a
    multiple of so many samples, where batches are by count. measure: seconds that a unit of `batching.cost` takes with
    the encoder. trust: the source is taken to be as it was when the destination was begun. patient: wait for a job
    that writes to the same place, instead of refusing. recipe: stored with the result. called: comes first in an error,
    where other jobs run beside this one. followed: what follows its workers, once they are begun.
    """

    source: Source
    load: Load
    encoder: EncoderSpec | None
    outputs: tuple[Output, ...]
    describe: dict[str, Description]
    batching: Batching
    batch_size: int
    load_threads: int
    workers: int
    max_failures: FailureLimit
    measure: Callable[[EncoderSpec | None, list[SampleRef]], float]
    check: str = "stat"
    overwrite: bool = False
    trust: bool = False
    patient: bool = False
    recipe: str = ""
    called: str = ""
    tell: Callable[[Event], None] = field(default=lambda event: None)
    devices: tuple[str, ...] = ()
    whole: int = 1
    followed: Live | None = None

    @property
    def places(self) -> list[Container]:
        return [output.container for output in self.outputs]

    @property
    def primary(self) -> Container:
        return self.outputs[0].container

    @property
    def fingerprint(self) -> dict[str, Value]:
        return self.describe[self.outputs[0].name].fingerprint

    def refuse(self) -> None:
        """Refuse destinations that hold anything that latentmill did not write. Raises DestinationError."""
        for place in self.places:
            refuse_foreign(place, self.overwrite)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the destinations: one job at a time writes there."""
        return locked(self.places, self._tell_waiting if self.patient else None)

    def shard_size(self, listing: Listing) -> ShardSize:
        """About SHARD_SECONDS of measured work a shard, and some shards for every worker."""
        seconds = max(self.measure(self.encoder, listing.spread(_PROBE_IMAGES)), 1e-6)
        if self.batching.sorts:
            return ShardSize(_MAX_SHARD_IMAGES, SHARD_SECONDS / seconds, self.workers)
        batch = math.lcm(self.batch_size, self.whole)
        batches = min(_MAX_SHARD_IMAGES, int(SHARD_SECONDS / seconds)) // batch
        return ShardSize(max(1, batches) * batch, workers=self.workers, step=batch)

    def part(self, plan: Plan) -> Part:
        """What workers are to do."""
        return Part(plan, self.source, self.load, self.encoder, self.outputs, self.batch_size)

    def follow(self, begun: Begun) -> Live:
        """Follows the workers, from what is done already."""
        assert begun.plan is not None
        self.followed = Live(begun.plan, begun.done, self.outputs, self.max_failures, self.tell)
        return self.followed

    def end(self, begun: Begun, running: float) -> Result:
        """Finish what workers have done. running: seconds from the first batch to the last commit."""
        if begun.plan is None:
            return self._already_done(time.monotonic() - begun.started)
        for output in self.outputs:
            output.container.absorb(len(begun.plan.shards))
        before = sum(begun.plan.shards[shard][1] for shard in begun.done)
        tally = self.finish(begun.plan, running)
        return self._result(
            tally, begun.plan.images - before, (time.monotonic() - begun.started, running), begun.changes
        )

    def _tell_waiting(self, text: str) -> None:
        self.tell(Event("warning", text))

    def finish(self, plan: Plan, running: float = 0.0) -> Tally:
        """Bring everything to its place, write the metadata, and let go of the plan, whose shards are all done."""
        if plan.update:
            shift(plan, {output.name: output.container.path for output in self.outputs})
        seconds: dict[str, float] = {}
        for shard in plan.done():
            for stage, value in plan.report(shard).seconds.items():
                seconds[stage] = round(seconds.get(stage, 0.0) + value, 3)
        report: dict[str, object] = {
            "seconds_running": round(running, 3),
            "seconds_by_stage": seconds,
            "workers": self.workers,
            "timeline": [] if self.followed is None else self.followed.timeline.points,
        }
        tally = finish(plan, self.primary.work, self.outputs, self.describe, report, self.recipe)
        plan.retire()
        for place in self.places:
            sweep(place)
        return tally

    def _already_done(self, seconds: float) -> Result:
        metadata = Metadata.read_beside(self.primary.path)
        assert metadata is not None
        counts = metadata.counts
        rejects = self.primary.side_file(REJECTS_JSONL)
        return Result(
            dest=self.primary.path,
            listed=counts.listed,
            stored=counts.stored,
            rejected=counts.rejected,
            skipped=counts.skipped,
            computed=0,
            bytes=0,
            notes=metadata.notes,
            seconds=seconds,
            running_seconds=0.0,
            report=self.primary.side_file(REPORT_JSON),
            rejects=rejects if rejects.exists() else None,
            already_done=True,
        )

    def _result(self, tally: Tally, computed: int, seconds: tuple[float, float], changes: Changes | None) -> Result:
        rejects = self.primary.side_file(REJECTS_JSONL)
        return Result(
            dest=self.primary.path,
            listed=tally.listed,
            stored=tally.stored,
            rejected=tally.rejected,
            skipped=tally.skipped,
            computed=computed,
            bytes=tally.bytes,
            notes={note: len(keys) for note, keys in sorted(tally.notes.items())},
            seconds=seconds[0],
            running_seconds=seconds[1],
            report=self.primary.side_file(REPORT_JSON),
            rejects=rejects if rejects.exists() else None,
            changes=changes,
        )
