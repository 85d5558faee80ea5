"""One image after the other, each announced before it is touched: how the sample that kills its process is found.

A process that is killed tells nothing, so what it was about to do is told beforehand, and kept elsewhere. A death while
an image is loaded, encoded alone or written is that image's; one while a batch is encoded makes the batch a suspect,
whose samples are encoded alone the next time; one while a shard is committed is no image's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from latentmill.errors import SampleError
from latentmill.records import SMALLER_BATCH, Encoded, Outcome, Sample
from latentmill.sharing import Place, Wanted
from latentmill.stages import Encoder

WORKER = "worker"  # the stage of rejects whose sample kills its process
Named = tuple[int, int]  # a sample by its part and its index
Item = TypeVar("Item", bound=Sample | Outcome)


@dataclass(frozen=True)
class Doing:
    """What a worker is about to do. samples: those it is done to, first the one that `key` names; none of a commit."""

    what: Literal["load", "batch", "alone", "write", "commit"]
    samples: tuple[Named, ...]
    key: str


@dataclass(frozen=True)
class Findings:
    """What deaths have told. culprits: samples to be rejected, and why. suspects: batches by their first sample."""

    culprits: dict[Named, str] = field(default_factory=dict)
    suspects: frozenset[Named] = frozenset()

    def after(self, doing: Doing, reason: str) -> Findings:
        """What is known once a process has died while doing this."""
        if doing.what == "batch" and len(doing.samples) > 1:
            return replace(self, suspects=self.suspects | {doing.samples[0]})
        found = self.culprits | dict.fromkeys(doing.samples, reason)
        return Findings(found)  # what is left of a suspected batch is first tried as a whole: its bytes depend on that


class Care:
    """Carries a worker through images one by one. announce: returns when what it is told outlives this process."""

    def __init__(self, findings: Findings, announce: Callable[[Doing], None]) -> None:
        self.findings, self.announce = findings, announce

    def load(
        self, attempt: Callable[[list[Wanted]], list[tuple[Place, Sample | Outcome]]], wanted: list[Wanted]
    ) -> list[tuple[Place, Sample | Outcome]]:
        """One image for the parts that want it; known culprits are rejects, and are not touched."""
        culprits = self.findings.culprits
        found: list[tuple[Place, Sample | Outcome]] = [
            (place, Outcome(ref, stage=WORKER, reason=culprits[place.part, ref.index]))
            for place, ref in wanted
            if (place.part, ref.index) in culprits
        ]
        left = [each for each in wanted if (each.place.part, each.ref.index) not in culprits]
        if left:
            self.announce(Doing("load", tuple((place.part, ref.index) for place, ref in left), left[0].ref.key))
            found += attempt(left)
        return found

    def encode(self, part: int, encoder: Encoder, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """A batch; one that has killed, sample by sample, which is noted as a smaller batch."""
        names = tuple((part, sample.ref.index) for sample in samples)
        if names[0] not in self.findings.suspects:
            self.announce(Doing("batch", names, samples[0].ref.key))
            return encoder.encode(samples)
        return [self._alone(part, encoder, sample) for sample in samples]

    def _alone(self, part: int, encoder: Encoder, sample: Sample) -> Encoded | SampleError:
        self.announce(Doing("alone", ((part, sample.ref.index),), sample.ref.key))
        (result,) = encoder.encode([sample])
        if isinstance(result, SampleError):
            return result
        return replace(result, notes=tuple(dict.fromkeys((*result.notes, SMALLER_BATCH))))

    def written(self, part: int, items: Iterable[Item]) -> Iterator[Item]:
        """The items of a batch, each announced before it is written."""
        for item in items:
            if isinstance(item, Sample):
                self.announce(Doing("write", ((part, item.ref.index),), item.ref.key))
            yield item

    def committing(self) -> None:
        """Every image of a shard is written: from here on, a death is none of theirs."""
        self.announce(Doing("commit", (), ""))


class Inline:
    """Runs jobs at once, where `batching.Background` runs them behind: a death is then that of what was announced."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def drain(self) -> None:
        """All is done."""

    def close(self) -> None:
        """All is done."""
