"""What a report tells of one dataset: its index read once, samples of its files, and what goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from latentmill.errors import ConfigError, ModelError
from latentmill.outcome import Event, Tell, quiet
from latentmill.report.collect_around import Around, all_captions
from latentmill.report.collect_captions import COUNTED, Captions
from latentmill.report.collect_decoding import Decoding, decoding_of
from latentmill.report.collect_identity import identity, summary
from latentmill.report.collect_index import Line, Opened, Overview, overview, spread, stored_at
from latentmill.report.collect_latents import latent_facts
from latentmill.report.collect_shown import Gallery, counted_notes, ranked
from latentmill.report.collect_soundness import VerifyHow, soundness
from latentmill.report.collect_speed import speed_facts
from latentmill.report.collect_spread import HEADERS, bucket_facts, bucket_table, class_facts, recorded_sizes
from latentmill.report.facts import DatasetFacts, Shown
from latentmill.report.metrics import need_metrics
from latentmill.transforms.variant import Variant

SAMPLE = 32  # samples that are shown of a dataset, unless told otherwise
_DECODING_SECONDS = 25.0  # of all datasets, where the number of samples was not asked for
_A_BUCKET, _ALL_BUCKETS = 4, 96  # samples of every bucket, and of all of them
_EXTREMES = 6  # of the best reconstructions, and of the worst
_Buckets = dict[tuple[int, int], list[int]]  # positions of some stored rows, by (height, width)


@dataclass(frozen=True)
class Asked:
    """What a person wants of a report; see `collect.collect`. Raises ConfigError."""

    source: Path | None = None
    sample: int | None = None
    verify: VerifyHow = "auto"
    vae: str | None = None
    decode: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 1:
            raise ConfigError(f"sample must be 1 or more. Found: {self.sample}")
        if self.verify not in ("auto", "full", "sample", "none"):
            raise ConfigError(f"verify must be auto, full, sample or none. Found: {self.verify!r}")
        if self.vae is not None and not self.decode:
            raise ConfigError("vae names what decodes the latents. Found: no-decode beside it; leave one out")

    @property
    def count(self) -> int:
        return self.sample or SAMPLE


@dataclass
class Collector:
    """Collects one dataset after the other. others: datasets that only help to show these.

    sampled: what was not looked at as a whole, in words. decoded: seconds of decoding so far.
    """

    asked: Asked
    found: Sequence[Opened]
    others: Sequence[Opened] = ()
    tell: Tell = quiet
    sampled: list[str] = field(default_factory=list)
    decoded: float = 0.0

    @cached_property
    def _captions(self) -> dict[Path, Captions]:
        return dict(all_captions([*self.found, *self.others]))

    def facts_of(self, dataset: Opened) -> DatasetFacts:
        """Everything of one dataset. Raises SourceError, ModelError."""
        self.tell(Event("plan", f"looking at {dataset.path}"))
        seen = overview(dataset)
        rows, buckets = _chosen(dataset, seen, self.asked.count, self._captions.get(dataset.path))
        texts = [text for path, text in self._captions.items() if path == dataset.path or dataset.kind != "text"]
        around = Around.of(dataset, list(rows.values()), [*self.found, *self.others], texts, self.asked.source)
        facts = DatasetFacts(
            path=dataset.path,
            name=dataset.path.name or str(dataset.path.resolve().name),
            kind=dataset.kind,
            summary=summary(dataset),
            identity=identity(dataset, seen),
            soundness=soundness(dataset, seen, self.asked.verify, around.partner(), around.photos, self.tell),
            classes=class_facts(dataset, seen),
            bucket_table=bucket_table(dataset),
            speed=speed_facts(dataset),
        )
        if dataset.kind == "text" and any(each.kind != "text" for each in self.found):
            around.photos, around.notes = None, []  # the pictures are shown there
        facts = self._with_samples(facts, seen, rows, buckets, around)
        return self._with_arrays(facts, dataset, seen, around)

    def _with_samples(
        self, facts: DatasetFacts, seen: Overview, rows: dict[int, Line], buckets: _Buckets, around: Around
    ) -> DatasetFacts:
        """With samples, the best and the worst of them, and some of every bucket."""
        dataset, lines = around.dataset, list(rows.values())
        decoding = self._decoding(dataset, around.notes)
        gallery = Gallery(dataset, around.photos, around.pixels, decoding, _can_measure(around.notes))
        gallery.captions = around.captions_of(lines)
        asked = min(self.asked.count, len(lines))
        try:
            made = [self._told(gallery, line, number, asked) for number, line in enumerate(lines)]
        finally:
            if decoding is not None:
                self.decoded += decoding.spent
                decoding.close()
        if decoding is not None and decoding.done < asked and not gallery.problems:
            around.notes.append(
                f"{decoding.done} of the {asked} samples were decoded, as many as take {_DECODING_SECONDS:g} seconds: "
                f"--sample {asked} decodes all; a GPU is much faster"
            )
        if Variant.of(dataset.metadata.fingerprint).flip:
            around.notes.append("this variant is mirrored, as the samples show; their originals are not")
        around.notes += counted_notes(gallery.problems, around.photos)
        by_position = dict(zip(rows, made, strict=True))
        grids = {size: [by_position[at] for at in some if at in by_position] for size, some in buckets.items()}
        self._tell_sampled(dataset, f"{asked:,} of {seen.stored:,} samples are shown", asked < seen.stored)
        return _with_extremes(replace(facts, buckets=bucket_facts(dataset, seen, grids)), made[:asked])

    def _told(self, gallery: Gallery, line: Line, number: int, asked: int) -> Shown:
        """One sample; those beyond what was asked for, of buckets, are not decoded."""
        shown = gallery.shown(line, number < asked)
        if number < asked:
            self.tell(Event("progress", "", asked, number + 1))
        return shown

    def _decoding(self, dataset: Opened, notes: list[str]) -> Decoding | None:
        """Raises ModelError and ConfigError for a model that was asked for by name, for these latents alone."""
        if dataset.kind != "latents":
            return None
        if not self.asked.decode:
            notes.append("reconstructions are left out, as asked (--no-decode)")
            return None
        seconds = None if self.asked.sample is not None else max(0.0, _DECODING_SECONDS - self.decoded)
        try:
            return decoding_of(dataset, self.asked.vae, self.asked.device, seconds)
        except (ModelError, ConfigError) as error:
            if self.asked.vae is not None and sum(each.kind == "latents" for each in self.found) == 1:
                raise
            notes.append(f"reconstructions are not shown: {error}")
            return None

    def _with_arrays(self, facts: DatasetFacts, dataset: Opened, seen: Overview, around: Around) -> DatasetFacts:
        """With what is read of further files: latents, sizes, captions' lengths."""
        sizes = recorded_sizes(seen)
        if sizes is None and dataset.kind != "text":
            sizes = around.sizes(seen.stored)
            count = 0 if sizes is None else len(sizes.heights)
            self._tell_sampled(dataset, f"sizes are of {count:,} photos", seen.stored > HEADERS and count > 0)
        facts = replace(facts, sizes=sizes)
        if dataset.kind == "latents":
            latents = latent_facts(dataset, seen.stored)
            facts = replace(facts, latents=latents)
            if latents is not None:
                told = f"histograms of latents are of {latents.files:,} files"
                self._tell_sampled(dataset, told, latents.files < seen.stored)
        if dataset.kind == "text":
            text = self._captions[dataset.path]
            around.notes += text.notes
            facts = replace(facts, captions=(text.facts(seen),))
            self._tell_sampled(dataset, f"lengths are of {COUNTED:,} captions", seen.stored > COUNTED)
        if facts.soundness.checked.startswith("the whole index"):
            self._tell_sampled(dataset, f"checked were {facts.soundness.checked}", True)
        return replace(facts, notes=tuple(around.notes))

    def _tell_sampled(self, dataset: Opened, what: str, is_sampled: bool) -> None:
        if is_sampled:
            self.sampled.append(f"of {dataset.path.name}, {what}")


def _chosen(dataset: Opened, seen: Overview, count: int, captions: Captions | None) -> tuple[dict[int, Line], _Buckets]:
    """Rows by their positions, those that were asked for first; and positions of some rows of every bucket."""
    at = spread(seen.stored, count)
    if captions is not None and seen.cut.any():  # half of them captions that were cut: what one wants to see
        at = sorted({*captions.longest(seen, max(1, count // 2)), *spread(seen.stored, count)})[:count]
    buckets: _Buckets = {}
    if len(seen.buckets):
        sizes, which = np.unique(seen.buckets, axis=0, return_inverse=True)
        some = max(1, min(_A_BUCKET, _ALL_BUCKETS // len(sizes)))
        for number, (height, width) in enumerate(sizes.tolist()):
            inside = np.flatnonzero(which.reshape(-1) == number)
            buckets[height, width] = [int(inside[each]) for each in spread(len(inside), some)]
    more = sorted({each for some_of in buckets.values() for each in some_of} - set(at))
    found = stored_at(dataset, [*at, *more])
    return {each: found[each] for each in (*at, *more) if each in found}, buckets


def _with_extremes(facts: DatasetFacts, shown: Sequence[Shown]) -> DatasetFacts:
    ordered = ranked(shown)
    few = min(_EXTREMES, len(ordered) // 2)
    return replace(
        facts,
        shown=tuple(shown),
        best=tuple(ordered[:few]),
        worst=tuple(reversed(ordered[len(ordered) - few :])),
        qualities=tuple(each.quality for each in ordered if each.quality is not None),
    )


def _can_measure(notes: list[str]) -> bool:
    try:
        need_metrics()
    except ConfigError as error:
        notes.append(f"PSNR and SSIM are left out: {error}")
        return False
    return True
