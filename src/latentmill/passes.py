"""Jobs over the same source run together, in one pass over its bytes: each image is read and decoded once for all.

Each job keeps its own plan, ledger and lock, so that each can be resumed, updated and added apart from the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from latentmill.errors import LatentmillError
from latentmill.job import Begun, Job
from latentmill.outcome import Event, Result
from latentmill.records import Listing, Progress, ShardReport
from latentmill.runners.local import run_local
from latentmill.worker import Part, Task, Unit


@dataclass(frozen=True)
class Prepared:
    """A job that has been checked and told, and only waits to be run. bytes: of its outputs on the disk, about."""

    job: Job
    listing: Listing
    bytes: int = 0

    def run(self) -> Result:
        """Run it alone. Raises LatentmillError."""
        (result,) = run_pass([self])
        if isinstance(result, LatentmillError):
            raise result
        return result


def run_pass(jobs: Sequence[Prepared]) -> list[Result | LatentmillError]:
    """Run jobs over one source together; gives what became of each, in their order.

    A job that refuses to begin (its settings are others than its destination was made with, say) leaves the rest to go
    on; its error stands in the place of its result. Any other failure ends the pass, and what is committed stays.
    """
    for each in jobs:
        _announce(each)
    with ExitStack() as held:
        held.enter_context(_torch_given_back())
        held.callback(_close_models, [each.job for each in jobs])
        begun = _all_begun(jobs, held)
        ready = {number: found for number, found in begun.items() if isinstance(found, Begun)}
        running = _execute([(jobs[number].job, ready[number]) for number in sorted(ready)])
        return [
            found if isinstance(found, LatentmillError) else jobs[number].job.end(found, running)
            for number, found in sorted(begun.items())
        ]


def _announce(prepared: Prepared) -> None:
    tell, listing = prepared.job.tell, prepared.listing
    if not any(map(listing.wanted, listing.refs())):
        tell(Event("warning", f"no row is in the slice; the source has {listing.count:,}"))
    for warning in listing.warnings:
        tell(Event("warning", warning))


def _all_begun(jobs: Sequence[Prepared], held: ExitStack) -> dict[int, Begun | LatentmillError]:
    """Every job locked and planned, in order of place, so that two processes never wait for each other."""
    begun: dict[int, Begun | LatentmillError] = {}
    for number in sorted(range(len(jobs)), key=lambda number: str(jobs[number].job.primary.path)):
        try:
            begun[number] = _begun(jobs[number], held)
        except LatentmillError as error:
            begun[number] = error
    return begun


def _begun(prepared: Prepared, held: ExitStack) -> Begun:
    prepared.job.refuse()
    with ExitStack() as own:
        own.enter_context(prepared.job.locked())
        begun = prepared.job.begin(prepared.listing)
        held.push(own.pop_all())
    return begun


def _execute(jobs: Sequence[tuple[Job, Begun]]) -> float:
    """Run what is not done yet; gives the seconds from the first batch to the last commit."""
    jobs = [(job, begun) for job, begun in jobs if begun.plan is not None]
    followers = [job.follow(begun) for job, begun in jobs]
    left = [(job, begun, follower) for (job, begun), follower in zip(jobs, followers, strict=True) if begun.todo]
    if not left:
        return 0.0
    parts = tuple(job.part(begun.plan) for job, begun, _ in left if begun.plan is not None)
    workers = min(job.workers for job, _, _ in left)
    units = units_of(parts, [begun.todo for _, begun, _ in left], workers)

    def emit(part: int, event: Progress | ShardReport) -> None:
        left[part][2].take(event)

    started = time.monotonic()
    task = Task(parts, max(job.load_threads for job, _, _ in left))
    run_local(task, units, min(workers, len(units)), emit)
    return time.monotonic() - started


def units_of(parts: Sequence[Part], todo: Sequence[Sequence[int]], workers: int) -> list[Unit]:
    """What workers take in turn: shards that share images belong together; with one worker, all do."""
    if workers <= 1:
        return [tuple(tuple(shards) for shards in todo)]
    if len(parts) == 1:
        return [((shard,),) for shard in todo[0]]
    spans = sorted((*_span(part, shard), number, shard) for number, part in enumerate(parts) for shard in todo[number])
    units: list[Unit] = []
    group: list[list[int]] = [[] for _ in parts]
    reach = ""
    for first, last, number, shard in spans:
        if first > reach and any(group):
            units.append(tuple(map(tuple, group)))
            group = [[] for _ in parts]
        group[number].append(shard)
        reach = max(reach, last)
    units.append(tuple(map(tuple, group)))
    return units


def _span(part: Part, shard: int) -> tuple[str, str]:
    """The first and the last key of a shard."""
    keys = [ref.key for ref in part.plan.refs(shard)]
    return min(keys), max(keys)


def _close_models(jobs: Sequence[Job]) -> None:
    """Let go of the models: what runs next loads its own, and they must not lie in memory together."""
    for job in jobs:
        close = getattr(job.encoder, "close", None)
        if close is not None:
            close()


@contextmanager
def _torch_given_back() -> Iterator[None]:
    """Leave the caller's PyTorch as it was, if the jobs used it."""
    try:
        yield
    finally:
        device = sys.modules.get("latentmill.encoders.device")
        if device is not None:
            device.restore_torch()
