"""From settings to a finished dataset: look at the destination, plan or go on, run the shards, finish.

On success every output is whole and its work folder gone. When the job fails or is stopped, what is committed
stays, and the same call goes on from there. A finished job run again does nothing; one whose source has changed
becomes an update, which computes only what is new or changed and ends where a fresh run would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from latentmill.config_types import FailureLimit
from latentmill.destination import (
    being_cleared,
    clear,
    drop_changed_empty_caption,
    has_empty_caption,
    locked,
    refuse_damaged,
    refuse_foreign,
    refuse_unrelated,
    refuse_untied,
    sweep,
    tie,
)
from latentmill.errors import DestinationError, SettingsChangedError
from latentmill.files import remove_empty_folders, remove_tree
from latentmill.finish import Description, Tally, finish
from latentmill.formats.containers import Container
from latentmill.formats.metadata import (
    REJECTS_JSONL,
    REPORT_JSON,
    Metadata,
    Value,
    index_rows,
    row_outcome,
)
from latentmill.live import Live, unbroken
from latentmill.manifest import Kept, Plan, current_plan
from latentmill.matching import RETRIED, Matcher, Same, match_by_digest, match_by_key, still_there
from latentmill.outcome import Event, Result
from latentmill.planning import Changes, ShardSize, Update, listing_digest, write_plan
from latentmill.records import Listing, Outcome, SampleRef
from latentmill.shift import SHIFTED, SHIFTING, shift
from latentmill.stages import Batching, EncoderSpec, Load, Source
from latentmill.worker import Output, Part

SHARD_SECONDS = 20.0  # a kill costs at most this much of each worker's time, and the commit that was under way
_MAX_SHARD_IMAGES = 1024  # a worker holds the outcomes of one shard
_SHOWN_CHARACTERS = 80  # of a setting that differs
_SHARDS_PER_WORKER = 4  # so that small datasets keep every worker busy to the end


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

    batch_size: of most batches at most. measure: seconds that a unit of `batching.cost` takes with the encoder.
    patient: wait for another job that writes to the same place, instead of refusing. recipe: stored with the result.
    called: comes first in an error, where other jobs run beside this one.
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
    patient: bool = False
    recipe: str = ""
    called: str = ""
    tell: Callable[[Event], None] = field(default=lambda event: None)

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

    def begin(self, listing: Listing) -> Begun:
        """What is to be done, planned, under the lock. Raises LatentmillError."""
        started = time.monotonic()
        if self.overwrite or any(map(being_cleared, self.places)):
            clear(self.places)
        plan = current_plan(self.primary.work)
        if plan is not None:
            self._refuse_other_settings(plan.fingerprint)
            refuse_untied(self.places)
            if plan.marked(SHIFTING):  # an update was cut off while it renamed: first finish that
                self._finish(plan)
                plan = None
        plan, changes = self._plan(plan, listing, listing_digest(listing))
        if plan is None:
            for place in self.places:
                sweep(place)
            return Begun(None, None, set(), started)
        for output in self.outputs:
            remove_tree(output.container.work / "stage")
        done = set(plan.done())
        for output in self.outputs:
            output.container.absorb(unbroken(done))
        return Begun(plan, changes, done, started)

    def part(self, plan: Plan) -> Part:
        """What workers are to do."""
        return Part(plan, self.source, self.load, self.encoder, self.outputs, self.batch_size)

    def follow(self, begun: Begun) -> Live:
        """Follows the workers, from what is done already."""
        assert begun.plan is not None
        return Live(begun.plan, begun.done, self.outputs, self.max_failures, self.tell)

    def end(self, begun: Begun, running: float) -> Result:
        """Finish what workers have done. running: seconds from the first batch to the last commit."""
        if begun.plan is None:
            return self._already_done(time.monotonic() - begun.started)
        for output in self.outputs:
            output.container.absorb(len(begun.plan.shards))
        before = sum(begun.plan.shards[shard][1] for shard in begun.done)
        tally = self._finish(begun.plan, running)
        return self._result(
            tally, begun.plan.images - before, (time.monotonic() - begun.started, running), begun.changes
        )

    def _tell_waiting(self, text: str) -> None:
        self.tell(Event("warning", text))

    # planning

    def _plan(self, plan: Plan | None, listing: Listing, asked: str) -> tuple[Plan | None, Changes | None]:
        """The plan to carry out: the one under way, a new one, an update, or None where all is done."""
        if plan is not None:
            if plan.asked_digest == asked:
                done = sum(plan.shards[shard][1] for shard in plan.done())
                self.tell(Event("plan", f"going on: {done:,} of {plan.images:,} images are done"))
                return plan, None
            why = "the source changed since the job began"
            self._refuse_zips(why)
            self._withdraw(plan)
            earlier = plan.results(shifted=plan.marked(SHIFTED))
            return self._update(listing, asked, earlier, partial(self._accept, why))
        metadata = Metadata.read_beside(self.primary.path)
        refuse_unrelated(self.places, metadata)
        if metadata is not None:
            self._refuse_other_settings(metadata.fingerprint)
            return self._update_finished(metadata, listing, asked)
        tie(self.places)
        return self._write(listing, asked), None

    def _update_finished(self, metadata: Metadata, listing: Listing, asked: str) -> tuple[Plan | None, Changes | None]:
        why = "the source changed"
        if metadata.source_digest == asked:
            any_zip = any(place.is_zip for place in self.places)
            if self.check != "digest" and (any_zip or not self._any_unread(metadata)):
                return None, None
            why = "the source's content changed" if self.check == "digest" else "some images could not be read"
        else:
            self._refuse_zips(why)
        for output in self.outputs:
            theirs = Metadata.read_beside(output.container.path)
            assert theirs is not None
            refuse_damaged(output.container, theirs)

        def accept(changes: Changes, source_digest: str) -> bool:
            changed = metadata.source_digest != source_digest or changes.compute or changes.drop
            if not changed and has_empty_caption(self.primary, metadata):
                return False
            self._refuse_zips(why)
            self._accept(why, changes)
            drop_changed_empty_caption(self.primary, metadata)
            return True

        tie(self.places)
        return self._update(listing, asked, self._finished_results(), accept)

    def _refuse_zips(self, why: str) -> None:
        if any(place.is_zip for place in self.places):
            raise DestinationError(
                f"{why}, and a zip cannot be updated in place: make it anew with --overwrite, or use a folder"
            )

    def _accept(self, why: str, changes: Changes, source_digest: str = "") -> bool:
        """Refuse an update from what is plainly another source; tell any other."""
        if changes.drop and not changes.keep and not changes.redo:
            raise DestinationError(
                f"{self.primary.path} was made from another source: none of its {changes.drop:,} images is here. "
                "Choose another destination, or --overwrite it"
            )
        self.tell(
            Event(
                "plan",
                f"updating, since {why}: {changes.compute:,} to compute, {changes.keep:,} kept "
                f"({changes.rename:,} renamed), {changes.drop:,} dropped",
            )
        )
        return True

    def _withdraw(self, plan: Plan) -> None:
        """Remove what a shard published that was cut off before its ledger entry: no later plan would know of it."""
        for shard in set(range(len(plan.shards))) - set(plan.done()):
            for ref in plan.refs(shard):
                for output in self.outputs:
                    root = output.container.path / plan.publish
                    file = root / output.layout.name(ref.index, ref.key)
                    file.unlink(missing_ok=True)
                    remove_empty_folders(file.parent, root)

    def _update(
        self, listing: Listing, asked: str, earlier: Iterator[Kept], accept: Callable[[Changes, str], bool]
    ) -> tuple[Plan | None, Changes | None]:
        layouts = {output.name: output.layout for output in self.outputs}
        update = Update(
            earlier=earlier,
            name_of=lambda output, ref: layouts[output].name(ref.index, ref.key),
            match=self._matcher(listing),
            accept=accept,
        )
        plan, changes = self._new_plan(listing, asked, update)
        return plan, changes if plan else None

    def _new_plan(self, listing: Listing, asked: str, update: Update | None) -> tuple[Plan | None, Changes]:
        return write_plan(
            self.primary.work,
            listing,
            self.batching,
            lambda: self._shard_size(listing),
            fingerprint=self.fingerprint,
            layouts={output.name: output.layout.code for output in self.outputs},
            asked_digest=asked,
            update=update,
        )

    def _matcher(self, listing: Listing) -> Matcher:
        match = match_by_digest if listing.knows_digests else match_by_key
        same = Same(self.source, self.load, self.check, listing.wanted)
        files = [] if any(place.is_zip for place in self.places) else self.outputs
        roots = {output.name: output.container.path for output in files}
        return lambda refs, earlier: match(refs, still_there(earlier, roots, self.check), same)

    def _write(self, listing: Listing, asked: str) -> Plan:
        plan, _ = self._new_plan(listing, asked, None)
        assert plan is not None
        return plan

    def _shard_size(self, listing: Listing) -> ShardSize:
        """About SHARD_SECONDS of measured work a shard, and some shards for every worker."""
        stride = max(1, listing.count // 8)
        probe = [ref for position, ref in enumerate(listing.refs()) if position % stride == 0]
        seconds = max(self.measure(self.encoder, probe), 1e-6)
        by_workers = -(-listing.count // (self.workers * _SHARDS_PER_WORKER)) if self.workers > 1 else listing.count
        images = min(by_workers, _MAX_SHARD_IMAGES)
        if self.batching.sorts:
            return ShardSize(images, SHARD_SECONDS / seconds)
        batches = min(images, int(SHARD_SECONDS / seconds)) // self.batch_size
        return ShardSize(max(1, batches) * self.batch_size)

    def _finished_results(self) -> Iterator[Kept]:
        """What a finished dataset holds, in order of key: the rows of every output's index, side by side."""

        def outcomes_of(output: Output) -> Iterator[Outcome]:
            return (row_outcome(row, output.name) for row in index_rows(output.container.path))

        for outcomes in zip(*map(outcomes_of, self.outputs), strict=True):
            if len({outcome.ref.key for outcome in outcomes}) != 1:
                raise DestinationError("the outputs of this job were changed apart from each other; use --overwrite")
            files = {name: stored for outcome in outcomes for name, stored in outcome.files.items()}
            first = outcomes[0]
            merged = Outcome(
                first.ref, first.digest, first.notes, files, first.sums, first.skipped, first.stage, first.reason,
                first.geometry,
            )  # fmt: skip
            yield Kept(merged, {name: stored.name for name, stored in files.items()})

    def _any_unread(self, metadata: Metadata) -> bool:
        """Whether an image could not be read: that may have been mended without a trace in its size or time."""
        return metadata.counts.rejected > 0 and any(
            row_outcome(row).stage in RETRIED for row in index_rows(self.primary.path) if "reject" in row
        )

    def _refuse_other_settings(self, made_with: dict[str, Value]) -> None:
        different = [
            f"{name.replace('_', '-')}: was {_shown(made_with.get(name))}, now {_shown(self.fingerprint.get(name))}"
            for name in sorted(made_with.keys() | self.fingerprint.keys())
            if made_with.get(name) != self.fingerprint.get(name)
        ]
        if different:
            raise SettingsChangedError(
                f"{self.primary.path} was made with other settings ({'; '.join(different)}). "
                "Use the same settings to go on, another destination, or --overwrite to start anew"
            )

    # finishing

    def _finish(self, plan: Plan, running: float = 0.0) -> Tally:
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


def _shown(value: Value) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
