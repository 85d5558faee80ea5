"""What a job has to do: nothing, what an earlier run left undone, an update, or everything.

A finished job run again does nothing; one whose source has changed becomes an update, which computes only what is new
or changed and ends where a fresh run would. A job that trusts its source goes by what stands at the destination alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache, partial

from latentmill.destination import (
    being_cleared,
    clear,
    drop_changed_empty_caption,
    has_empty_caption,
    refuse_damaged,
    refuse_unrelated,
    refuse_untied,
    sweep,
    tie,
    to_clear,
)
from latentmill.errors import DestinationError, SettingsChangedError
from latentmill.files import remove_empty_folders, remove_tree
from latentmill.formats.metadata import METADATA_JSON, Metadata, Value, index_rows, rejected_at, row_outcome
from latentmill.job import Begun, Job
from latentmill.live import unbroken
from latentmill.manifest import Kept, Plan, current_plan
from latentmill.matching import RETRIED, Matcher, Same, match_by_digest, match_by_key, still_there
from latentmill.mending import is_sealed, mend
from latentmill.outcome import Event
from latentmill.planning import Changes, Update, listing_digest, write_plan
from latentmill.records import Listing, Outcome
from latentmill.shift import SHIFTED, SHIFTING
from latentmill.worker import Output

_SHOWN_CHARACTERS = 80  # of a setting that differs
Asked = Callable[[], str]  # the digest of what is listed and wanted, which takes seconds for a million images


def begin(job: Job, listing: Listing) -> Begun:
    """What is to be done, planned, under the job's lock. Raises LatentmillError."""
    started = time.monotonic()
    if to_clear(job.overwrite, *job.places) or any(map(being_cleared, job.places)):
        clear(job.places)
    plan = current_plan(job.primary.work)
    if plan is not None:
        _refuse_other_settings(job, plan.fingerprint)
        refuse_untied(job.places)
        if plan.marked(SHIFTING):  # an update was cut off while it renamed: first finish that
            job.finish(plan)
            plan = None
    plan, changes = _planned(job, plan, listing)
    if plan is None:
        for place in job.places:
            sweep(place)
        return Begun(None, None, set(), started)
    for place in job.places:
        remove_tree(place.work / "stage")
    done = set(plan.done())
    for place in job.places:
        place.settle(done, unbroken(done))
    return Begun(plan, changes, done, started)


def _planned(job: Job, plan: Plan | None, listing: Listing) -> tuple[Plan | None, Changes | None]:
    """The plan to carry out: the one under way, a new one, an update, or None where all is done."""
    asked = cache(lambda: listing_digest(listing))
    if plan is not None:
        if job.trust or plan.asked_digest == asked():
            done = sum(plan.shards[shard][1] for shard in plan.done())
            job.tell(Event("plan", f"going on: {done:,} of {plan.images:,} images are done"))
            return plan, None
        why = "the source changed since the job began"
        _refuse_zips(job, why)
        _withdraw(job, plan)
        earlier = plan.results(shifted=plan.marked(SHIFTED))
        return _update(job, listing, asked, earlier, partial(_accept, job, why))
    metadata = Metadata.read_beside(job.primary.path)
    refuse_unrelated(job.places, metadata)
    if metadata is not None:
        _refuse_other_settings(job, metadata.fingerprint)
        return _update_finished(job, metadata, listing, asked)
    if listing.trusted:
        raise DestinationError(f"{job.primary.path} was taken away meanwhile: run the same command again to make it")
    tie(job.places)
    plan, _ = _new_plan(job, listing, asked, None)
    assert plan is not None
    return plan, None


def _update_finished(
    job: Job, metadata: Metadata, listing: Listing, asked: Asked
) -> tuple[Plan | None, Changes | None]:
    why = "the source changed"
    if job.trust or metadata.source_digest == asked():
        mend(job.outputs, job.check, job.tell)
        why = _left_to_do(job, metadata)
        if not why:
            return None, None
    else:
        _refuse_zips(job, why)
    for place in job.places:
        theirs = Metadata.read_beside(place.path)
        assert theirs is not None
        refuse_damaged(place, theirs)
    resealed = job.check == "digest" and not all(map(is_sealed, job.places))

    def accept(changes: Changes, source_digest: str) -> bool:
        changed = metadata.source_digest != source_digest or changes.compute or changes.drop
        if not (changed or resealed) and has_empty_caption(job.primary, metadata):
            return False
        _refuse_zips(job, why)
        _accept(job, f"{METADATA_JSON} was damaged" if resealed and not changed else why, changes)
        drop_changed_empty_caption(job.primary, metadata)
        return True

    tie(job.places)
    return _update(job, listing, asked, _finished_results(job), accept)


def _left_to_do(job: Job, metadata: Metadata) -> str:
    """Why a finished job whose source is listed as it was is looked through all the same; "" where it is not."""
    if metadata.text is not None and not (job.primary.path / metadata.text.empty).is_file():
        if job.trust:
            raise DestinationError(
                f"{metadata.text.empty} is missing from {job.primary.path}: run the same command without "
                "--trust-source to make it again"
            )
        return f"{metadata.text.empty} is missing"
    if job.check == "digest":
        return "contents changed"
    looked_at = not job.trust and not any(place.is_zip for place in job.places)
    return "some images could not be read" if looked_at and _any_unread(job, metadata) else ""


def _refuse_zips(job: Job, why: str) -> None:
    if any(place.is_zip for place in job.places):
        raise DestinationError(
            f"{why}, and a zip cannot be updated in place: make it anew with --overwrite, or use a folder"
        )


def _accept(job: Job, why: str, changes: Changes, source_digest: str = "") -> bool:
    """Refuse an update from what is plainly another source; tell any other."""
    if changes.drop and not changes.keep and not changes.redo:
        raise DestinationError(
            f"{job.primary.path} was made from another source: none of its {changes.drop:,} images is here. "
            "Choose another destination, or --overwrite it"
        )
    job.tell(
        Event(
            "plan",
            f"updating, since {why}: {changes.compute:,} to compute, {changes.keep:,} kept "
            f"({changes.rename:,} renamed), {changes.drop:,} dropped",
        )
    )
    return True


def _withdraw(job: Job, plan: Plan) -> None:
    """Remove what a shard published that was cut off before its ledger entry: no later plan would know of it."""
    for shard in set(range(len(plan.shards))) - set(plan.done()):
        for ref in plan.refs(shard):
            for output in job.outputs:
                root = output.container.path / plan.publish
                file = root / output.layout.name(ref.index, ref.key)
                file.unlink(missing_ok=True)
                remove_empty_folders(file.parent, root)


def _update(
    job: Job, listing: Listing, asked: Asked, earlier: Iterator[Kept], accept: Callable[[Changes, str], bool]
) -> tuple[Plan | None, Changes | None]:
    layouts = {output.name: output.layout for output in job.outputs}
    update = Update(
        earlier=earlier,
        name_of=lambda output, ref: layouts[output].name(ref.index, ref.key),
        match=_matcher(job, listing),
        accept=accept,
    )
    plan, changes = _new_plan(job, listing, asked, update)
    return plan, changes if plan else None


def _new_plan(job: Job, listing: Listing, asked: Asked, update: Update | None) -> tuple[Plan | None, Changes]:
    return write_plan(
        job.primary.work,
        listing,
        job.batching,
        lambda: job.shard_size(listing),
        fingerprint=job.fingerprint,
        layouts={output.name: output.layout.code for output in job.outputs},
        asked_digest=asked() if update is not None else None,
        update=update,
    )


def _matcher(job: Job, listing: Listing) -> Matcher:
    match = match_by_digest if listing.knows_digests else match_by_key
    same = Same(job.source, job.load, job.check, listing.wanted)
    roots = {output.name: output.container.path for output in job.outputs if not output.container.is_zip}
    return lambda refs, earlier: match(refs, still_there(earlier, roots, job.check), same)


def _finished_results(job: Job) -> Iterator[Kept]:
    """What a finished dataset holds, in order of key: the rows of every output's index, side by side."""

    def outcomes_of(output: Output) -> Iterator[Outcome]:
        return (row_outcome(row, output.name) for row in index_rows(output.container.path))

    for outcomes in zip(*map(outcomes_of, job.outputs), strict=True):
        if len({outcome.ref.key for outcome in outcomes}) != 1:
            raise DestinationError("the outputs of this job were changed apart from each other; use --overwrite")
        files = {name: stored for outcome in outcomes for name, stored in outcome.files.items()}
        first = outcomes[0]
        merged = Outcome(
            first.ref, first.digest, first.notes, files, first.sums, first.skipped, first.stage, first.reason,
            first.geometry,
        )  # fmt: skip
        yield Kept(merged, {name: stored.name for name, stored in files.items()})


def _any_unread(job: Job, metadata: Metadata) -> bool:
    """Whether an image could not be read: that may have been mended without a trace in its size or time."""
    return metadata.counts.rejected > 0 and rejected_at(job.primary.path, RETRIED)


def _refuse_other_settings(job: Job, made_with: dict[str, Value]) -> None:
    different = [
        f"{name.replace('_', '-')}: was {_shown(made_with.get(name))}, now {_shown(job.fingerprint.get(name))}"
        for name in sorted(made_with.keys() | job.fingerprint.keys())
        if made_with.get(name) != job.fingerprint.get(name)
    ]
    if different:
        raise SettingsChangedError(
            f"{job.primary.path} was made with other settings ({'; '.join(different)}). "
            "Use the same settings to go on, another destination, or --overwrite to start anew"
        )


def _shown(value: Value) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
