"""What a recipe would do, without doing it: counts, buckets, rejects seen, bytes and time of every output."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentmill.config import BucketSettings, SourceSettings
from latentmill.decoding import image_size
from latentmill.destination import stored_fingerprint
from latentmill.errors import DestinationError, ModelError, SampleError
from latentmill.formats.containers import container
from latentmill.formats.metadata import Metadata
from latentmill.job import Job
from latentmill.manifest import current_plan
from latentmill.outcome import Event, Tell, quiet
from latentmill.outputs.buckets import bucket_report, bucket_table, fit_of
from latentmill.outputs.common import wanted_refs
from latentmill.outputs.kinds import TEXT, Chosen
from latentmill.outputs.shared import Shared
from latentmill.passes import Prepared, close_models, torch_given_back
from latentmill.planning import listing_digest
from latentmill.recipe import Recipe
from latentmill.recipe_known import known_without_model
from latentmill.recipe_stored import resolved_settings
from latentmill.records import Listing, SampleRef
from latentmill.transforms.bucket import BucketTable
from latentmill.transforms.bucket_report import BucketReport
from latentmill.transforms.variant import Variant

_PROBE_IMAGES = 8
_LOOKED_AT, _LOOK_SECONDS = 2000, 3.0  # images whose headers are read, at most, and for how long


@dataclass(frozen=True)
class Standing:
    """What stands at a destination, in a word. left: the share that is to be made. why: for a person."""

    word: str
    left: float = 1.0
    why: str = ""


@dataclass(frozen=True)
class OutputPlan:
    """What would become of one output.

    samples: images or captions that it would hold. bytes: on the disk, about; None where that is not known. seconds: of
    its model for what is left to do (of all the work, for pixels), at most, from a short measured sample; None where
    that could not be had. told: by the output as it was prepared. without: why there is no model, and so no estimate.
    """

    name: str
    kind: str
    dest: Path
    samples: int
    bytes: int | None
    seconds: float | None
    standing: Standing
    told: tuple[str, ...] = ()
    without: str = ""


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe would do. images: that the source holds.

    rejects: key and reason, of what listing saw, and of the headers of `looked` images. reading: seconds to read and
    decode every image once, on one core; None where there is nothing to read. root: where the outputs go. recipe:
    resolved, as TOML that lies there.
    """

    source: Path
    images: int
    outputs: list[OutputPlan]
    root: Path
    recipe: str
    rejects: dict[str, str] = field(default_factory=dict)
    looked: int = 0
    buckets: dict[str, BucketReport] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    reading: float | None = None

    @property
    def seconds(self) -> float | None:
        """Of all that could be measured, one after the other; None where nothing could."""
        known = [each.seconds for each in self.outputs if each.seconds is not None]
        return sum(known) + (self.reading or 0.0) if known else None

    def _repr_html_(self) -> str:
        from latentmill.showing.plans import plan_html

        return plan_html(self)

    def __repr__(self) -> str:
        from latentmill.showing.plans import plan_text

        return plan_text(self)


class _Planning:
    """Gathers a RecipePlan, output by output."""

    def __init__(self, recipe: Recipe, outputs: Sequence[Chosen]) -> None:
        self.recipe = recipe
        self.shared = Shared(encoders=any(each.kind.encodes_images for each in outputs))
        self.outputs: list[OutputPlan] = []
        self.resolved: dict[str, dict[str, object]] = {}
        self.rejects: dict[str, str] = {}
        self.buckets: dict[str, BucketReport] = {}
        self.warnings: dict[str, None] = {}
        self.images = self.looked = 0
        self.reading: float | None = None

    def add(self, chosen: Chosen) -> None:
        told: dict[str, None] = {}

        def tell(event: Event) -> None:
            (self.warnings if event.kind == "warning" else told)[event.text] = None

        try:
            jobs = chosen.kind.prepare()(chosen.settings, self.shared, self.recipe.worded(tell))
            left = any(_standing(job.job, job.listing).left for job in jobs)
            a_unit = _seconds_a_unit(jobs[0]) if left else 0.0
        except ModelError as error:
            self._add_without_model(chosen, self.recipe.told_of(chosen, error), tell)
            return
        self.resolved[chosen.name] = resolved_settings(jobs[0].job)
        for number, job in enumerate(jobs):
            self.outputs.append(_planned(chosen, job, a_unit, () if number else tuple(told)))
        listing = jobs[0].listing
        self._look_at(chosen, listing, getattr(jobs[0].job.load, "table", None))
        if chosen.kind is not TEXT and self.reading is None:
            self._read_some(jobs[0], chosen.settings)

    def _add_without_model(self, chosen: Chosen, why: str, tell: Tell) -> None:
        known = known_without_model(chosen, self.shared, self.recipe.worded(tell))
        for variant in chosen.variants:
            dest = variant.beside(chosen.settings.dest)
            word = "begun or finished" if stored_fingerprint(container(dest)) else "new"
            self.outputs.append(
                OutputPlan(
                    chosen.name + variant.suffix, chosen.kind.name, dest, known.samples, known.bytes, None,
                    Standing(word), without=why,
                )
            )  # fmt: skip
        self._look_at(chosen, known.listing)

    def _look_at(self, chosen: Chosen, listing: Listing, table: BucketTable | None = None) -> None:
        """table: of the job; without one, as the settings alone tell it."""
        self.warnings |= dict.fromkeys(listing.warnings)
        for ref in listing.refs():
            if ref.fault:
                self._reject(ref.key, ref.fault)
        if chosen.kind is not TEXT:
            self.images = max(self.images, listing.count)
        if isinstance(chosen.settings, BucketSettings):
            self.looked = listing.count
            table = table or bucket_table(chosen.settings, listing, {})
            self.buckets[chosen.name] = bucket_report(table, fit_of(chosen.settings), listing)

    def _reject(self, key: str, reason: str) -> None:
        """Outputs may differ in why."""
        known = self.rejects.get(key)
        self.rejects[key] = reason if known is None or reason in known else f"{known}; {reason}"

    def _read_some(self, prepared: Prepared, settings: SourceSettings) -> None:
        """Read and decode a few images, and look at the headers of more."""
        refs = wanted_refs(prepared.listing)
        self.reading = _seconds_to_read(prepared.job, refs)
        started = time.monotonic()
        looked = 0
        for ref in refs[:: max(1, len(refs) // _LOOKED_AT)]:
            if ref.size is None and time.monotonic() - started < _LOOK_SECONDS:
                looked += 1
                try:
                    image_size(prepared.job.source.read(ref), settings.max_pixels)
                except SampleError as error:
                    self._reject(ref.key, str(error))
        self.looked = max(self.looked, looked)


def plan_of(recipe: Recipe, tell: Tell = quiet) -> RecipePlan:
    """Everything but the work; nothing is written. Raises LatentmillError, but not for a model that cannot be had."""
    told = {"trust_source": False}  # what has changed in the source is what one wants to know here
    outputs = [replace(each, settings=each.settings.model_copy(update=told)) for each in recipe.chosen()]
    recipe.check_source(outputs[0].settings)
    found = _Planning(recipe, outputs)
    with torch_given_back():
        for chosen in outputs:
            tell(Event("plan", f"looking at {chosen.name}"))
            with recipe.naming(chosen):
                found.add(chosen)
    return RecipePlan(
        outputs[0].settings.source,
        found.images,
        found.outputs,
        recipe.root,
        recipe.to_toml(found.resolved),
        found.rejects,
        found.looked,
        found.buckets,
        tuple(found.warnings),
        _left_to_read(found),
    )


def _left_to_read(found: _Planning) -> float | None:
    """Seconds: an image is read where any output of images has it left to do."""
    left = max((each.standing.left for each in found.outputs if each.kind != TEXT.name), default=0.0)
    return found.reading * left if found.reading is not None and left else None


def _planned(chosen: Chosen, prepared: Prepared, a_unit: float, told: tuple[str, ...]) -> OutputPlan:
    job, refs = prepared.job, wanted_refs(prepared.listing)
    standing = _standing(job, prepared.listing)
    seconds = a_unit * sum(map(job.batching.cost, refs)) / job.workers
    name = chosen.name + Variant.of(job.fingerprint).suffix
    return OutputPlan(
        name, chosen.kind.name, job.primary.path, len(refs), prepared.bytes, seconds * standing.left, standing, told
    )


def _seconds_a_unit(prepared: Prepared) -> float:
    """Measured with the model, which is let go of: that of the next output may need the memory. Raises ModelError."""
    job, refs = prepared.job, wanted_refs(prepared.listing)
    try:
        return job.measure(job.encoder, refs[:: max(1, len(refs) // _PROBE_IMAGES)]) if refs else 0.0
    finally:
        close_models([job])


def _standing(job: Job, listing: Listing) -> Standing:
    try:
        job.refuse()
        found, plan = stored_fingerprint(job.primary), current_plan(job.primary.work)
    except DestinationError as error:
        return Standing("refused", 0.0, str(error))
    if not found or job.overwrite:
        return Standing("made anew" if found else "new")
    if found != job.fingerprint:
        names = sorted(n for n in found.keys() | job.fingerprint.keys() if found.get(n) != job.fingerprint.get(n))
        return Standing("other settings", 0.0, f"made with other settings ({', '.join(names)}): `run` refuses it")
    if plan is not None:
        done = sum(plan.shards[shard][1] for shard in plan.done())
        return Standing("begun", 1 - done / max(plan.images, 1), f"begun: {done:,} of {plan.images:,} are done")
    metadata = Metadata.read_beside(job.primary.path)
    if metadata is not None and metadata.source_digest == listing_digest(listing):
        return Standing("finished", 0.0)
    return Standing("to update", 1.0, "finished, and the source has changed since: only what is new or changed is made")


def _seconds_to_read(job: Job, refs: Sequence[SampleRef]) -> float:
    """To read and decode every image once, from a few of them."""
    probe = refs[:: max(1, len(refs) // _PROBE_IMAGES)][:_PROBE_IMAGES]
    start = time.perf_counter()
    for ref in probe:
        try:
            job.load.decode(job.source.read(ref))
        except SampleError:
            continue
    return (time.perf_counter() - start) / max(len(probe), 1) * len(refs)
