"""What a source holds as the ledger of a destination has it, for outputs that trust their source to be as it was.

Nothing of the source is looked at. A finished dataset tells how many images it was made from; one that is begun, from
its plan, those that it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, chain
from pathlib import Path

from latentmill.config import OutputSettings, SourceSettings, VariantSettings
from latentmill.destination import being_cleared
from latentmill.formats.containers import Container, container
from latentmill.formats.metadata import Metadata
from latentmill.manifest import Plan, current_plan
from latentmill.records import Listing, SampleRef
from latentmill.transforms.variant import variants


def trusted_listing(chosen: SourceSettings) -> Listing | None:
    """The listing of an output that trusts its source; None where it does not, or not all of it is finished or begun.

    Also where a number of images is asked for that is not the one it was made from. Raises DestinationError and
    SourceError for what is damaged there.
    """
    if not isinstance(chosen, OutputSettings) or not chosen.trust_source:
        return None
    found = [_listing(container(path)) for path in _dests(chosen)]
    if any(each is None or chosen.max_images not in (None, each[1]) for each in found):
        return None
    return next(listing for listing, _ in filter(None, found))


def _dests(chosen: OutputSettings) -> list[Path]:
    """Of every variant, the plain one first."""
    if not isinstance(chosen, VariantSettings):
        return [chosen.dest]
    return [variant.beside(chosen.dest) for variant in variants(chosen.flip, chosen.crops, chosen.crop_seed)]


def _listing(place: Container) -> tuple[Listing, int] | None:
    """What a destination's ledger lists, and of how many images it is; None for what is neither finished nor begun."""
    if being_cleared(place):
        return None
    plan = current_plan(place.work)
    if plan is not None:
        return _of_plan(plan), plan.listed
    metadata = Metadata.read_beside(place.path)
    if metadata is None:
        return None
    count = metadata.counts.listed
    return Listing(count, metadata.classes, [], False, _none, trusted=True, result_size=metadata.image_size), count


def _none() -> Iterator[SampleRef]:
    """A finished dataset reads nothing of its source."""
    return iter(())


def _of_plan(plan: Plan) -> Listing:
    ends = list(accumulate(count for _, count in plan.shards))

    def refs() -> Iterator[SampleRef]:
        return chain.from_iterable(map(plan.refs, range(len(plan.shards))))

    def at(position: int) -> SampleRef:
        shard = next(shard for shard, end in enumerate(ends) if position < end)
        return plan.refs(shard)[position - ends[shard]]

    return Listing(plan.images, plan.classes, [], False, refs, trusted=True, _at=at)
