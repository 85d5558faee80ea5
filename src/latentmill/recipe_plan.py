"""What a recipe would do, without doing it: counts, buckets, rejects seen, bytes and time of every output."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from latentmill.config import BucketSettings, LatentSettings
from latentmill.destination import stored_fingerprint
from latentmill.errors import ModelError, SampleError
from latentmill.formats.metadata import Metadata
from latentmill.job import Job
from latentmill.outcome import Event, Tell, quiet
from latentmill.outputs.buckets import bucket_report, bucket_table, fit_of
from latentmill.outputs.common import wanted_refs
from latentmill.outputs.kinds import PIXELS, TEXT
from latentmill.outputs.shared import Shared
from latentmill.passes import Prepared
from latentmill.recipe import Chosen, Recipe, resolved_settings
from latentmill.records import Listing
from latentmill.registry import MODELS
from latentmill.transforms.bucket_report import BucketReport

_PROBE_IMAGES = 8


@dataclass(frozen=True)
class OutputPlan:
    """What would become of one output.

    samples: images or captions that would be made. bytes: on the disk, about; None where that is not known. seconds: of
    its model (of all, for pixels), at most, from a short measured sample; None where that could not be had. state: of
    the destination. without: why there is no model, and so no estimate.
    """

    name: str
    kind: str
    dest: Path
    samples: int
    bytes: int | None
    seconds: float | None
    state: str = ""
    told: tuple[str, ...] = ()
    without: str = ""


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe would do. images: that the source holds. rejects: key and reason, seen while listing.

    reading: seconds to read and decode every image once, on one core; None where there is nothing to read. recipe:
    resolved, as TOML.
    """

    source: Path
    images: int
    outputs: list[OutputPlan]
    recipe: str
    rejects: dict[str, str] = field(default_factory=dict)
    buckets: dict[str, BucketReport] = field(default_factory=dict)
    reading: float | None = None

    @property
    def seconds(self) -> float | None:
        """Of all that could be measured, one after the other; None where nothing could."""
        known = [each.seconds for each in self.outputs if each.seconds is not None]
        return sum(known) + (self.reading or 0.0) if known else None


class _Planning:
    """Gathers a RecipePlan, output by output."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.shared = recipe, Shared()
        self.outputs: list[OutputPlan] = []
        self.resolved: dict[str, dict[str, object]] = {}
        self.rejects: dict[str, str] = {}
        self.buckets: dict[str, BucketReport] = {}
        self.images = 0
        self.reading: float | None = None

    def add(self, chosen: Chosen) -> None:
        told: list[Event] = []
        try:
            jobs = chosen.kind.prepare()(chosen.settings, self.shared, told.append)
        except ModelError as error:
            self._add_without_model(chosen, str(error))
            return
        self.resolved[chosen.name] = resolved_settings(jobs[0].job)
        for job in jobs:
            name = job.job.primary.path.name if len(jobs) > 1 else chosen.name
            self.outputs.append(_planned(name, chosen, job, tuple(event.text for event in told)))
            told = []
        self._look_at(chosen, jobs[0].listing)
        if chosen.kind is not TEXT and self.reading is None:
            self.reading = _seconds_to_read(jobs[0])

    def _add_without_model(self, chosen: Chosen, why: str) -> None:
        """What is known all the same: how many, and, of a VAE that has a short name, how many bytes."""
        listing = self._listing(chosen)
        if listing is None:
            samples = self.shared.captioned(chosen.settings, of_images=False).rows
            self.outputs.append(
                OutputPlan(chosen.name, chosen.kind.name, chosen.settings.dest, len(samples), None, None, without=why)
            )
            return
        count = len(wanted_refs(listing))
        size = _latent_bytes(chosen, listing)
        self.outputs.append(
            OutputPlan(chosen.name, chosen.kind.name, chosen.settings.dest, count, size, None, without=why)
        )
        self._look_at(chosen, listing)

    def _listing(self, chosen: Chosen) -> Listing | None:
        if chosen.kind is TEXT:
            return None
        if isinstance(chosen.settings, BucketSettings):
            return self.shared.keyed_images(chosen.settings)[1]
        return self.shared.numbered_images(chosen.settings, numbering=True)[1]

    def _look_at(self, chosen: Chosen, listing: Listing) -> None:
        self.images = max(self.images, listing.count)
        self.rejects |= {ref.key: ref.fault for ref in listing.refs() if ref.fault}
        if isinstance(chosen.settings, BucketSettings):
            table = bucket_table(chosen.settings, listing, {})
            self.buckets[chosen.name] = bucket_report(table, fit_of(chosen.settings), listing)


def plan_of(recipe: Recipe, tell: Tell = quiet) -> RecipePlan:
    """Everything but the work; nothing is written. Raises LatentmillError, but not for a model that cannot be had."""
    planning = _Planning(recipe)
    for chosen in recipe.chosen():
        tell(Event("plan", f"looking at {chosen.name}"))
        with recipe.naming(chosen):
            planning.add(chosen)
    source = recipe.chosen()[0].settings.source
    text = recipe.to_toml(planning.resolved)
    return RecipePlan(
        source, planning.images, planning.outputs, text, planning.rejects, planning.buckets, planning.reading
    )


def _planned(name: str, chosen: Chosen, prepared: Prepared, told: tuple[str, ...]) -> OutputPlan:
    job = prepared.job
    refs = wanted_refs(prepared.listing)
    a_unit = job.measure(job.encoder, refs[:: max(1, len(refs) // _PROBE_IMAGES)]) if refs else 0.0
    seconds = a_unit * sum(map(job.batching.cost, refs)) / (job.workers if chosen.kind is PIXELS else 1)
    return OutputPlan(name, chosen.kind.name, job.primary.path, len(refs), prepared.bytes, seconds, _state(job), told)


def _state(job: Job) -> str:
    """What stands at the destination."""
    found = stored_fingerprint(job.primary)
    if not found:
        return "new"
    if found != job.fingerprint and not job.overwrite:
        names = sorted(n for n in found.keys() | job.fingerprint.keys() if found.get(n) != job.fingerprint.get(n))
        return f"made with other settings ({', '.join(names)}): `run` refuses it"
    done = Metadata.read_beside(job.primary.path) is not None
    return "finished, to be looked at for changes" if done else "begun, to go on"


def _latent_bytes(chosen: Chosen, listing: Listing) -> int | None:
    """Of latents of a VAE that has a short name; None of others."""
    settings = chosen.settings
    if not isinstance(settings, LatentSettings | BucketSettings):
        return None
    entry = MODELS.get(settings.model)
    if entry is None:
        return None
    values = (
        entry.latent_channels * (2 if settings.store == "moments" else 1) * (4 if "32" in settings.save_dtype else 2)
    )
    if isinstance(settings, LatentSettings):
        if settings.result_size is None:
            return None
        sizes = [settings.result_size] * len(wanted_refs(listing))
    else:
        table = bucket_table(settings, listing, {})
        sizes = [table.nearest(*ref.size).size for ref in wanted_refs(listing) if ref.size]
    return sum(values * a * b // entry.downscale_factor**2 for a, b in sizes)


def _seconds_to_read(prepared: Prepared) -> float:
    """To read and decode every image once, from a few of them."""
    refs = wanted_refs(prepared.listing)
    probe = refs[:: max(1, len(refs) // _PROBE_IMAGES)][:_PROBE_IMAGES]
    start = time.perf_counter()
    for ref in probe:
        try:
            prepared.job.load.decode(prepared.job.source.read(ref))
        except SampleError:
            continue
    return (time.perf_counter() - start) / max(len(probe), 1) * len(refs)
