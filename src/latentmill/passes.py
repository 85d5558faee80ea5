"""Jobs over the same source run together, in one pass over its bytes: each image is read and decoded once for all.

Each job keeps its own plan, ledger and lock, so that each can be resumed, updated and added apart from the others.
"""

from __future__ import annotations

import math
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from latentmill.batching import ByCount
from latentmill.beginning import begin
from latentmill.config_types import LOCAL, RAY
from latentmill.destination import stored_fingerprint, to_clear
from latentmill.errors import LatentmillError, TooManyFailuresError
from latentmill.files import counted
from latentmill.job import Begun, Job
from latentmill.outcome import Event, Result
from latentmill.plugins import RUNNERS, Runner, load
from latentmill.records import Listing, Progress, SampleRef, ShardReport
from latentmill.runners.local import run_local
from latentmill.stages import EncoderSpec
from latentmill.supervising import killed_before
from latentmill.worker import Part, Task, Unit

_WHOLE = 256  # images that a shard must be a multiple of, at most


@dataclass(frozen=True)
class Prepared:
    """A job that has been checked and told, and only waits to be run.

    bytes: of its outputs on the disk, about. runner: by name. address: of a Ray cluster.
    """

    job: Job
    listing: Listing
    bytes: int = 0
    runner: str = LOCAL
    address: str | None = None

    def run(self) -> Result:
        """Run it alone. Raises LatentmillError."""
        (result,) = run_pass([self])
        if isinstance(result, LatentmillError):
            raise result
        return result


def run_pass(jobs: Sequence[Prepared], then: Callable[[], None] | None = None) -> list[Result | LatentmillError]:
    """Run jobs over one source, of one runner, together; gives what became of each, in their order.

    A job that refuses to begin (its settings are others than its destination was made with, say) leaves the rest to go
    on; its error stands in the place of its result. Any other failure ends the pass, and what is committed stays.
    then: called when all is made, while no other process may write there.
    """
    run = runner_of(jobs[0].runner, jobs[0].address)
    for each in jobs:
        _announce(each)
    _align([each.job for each in jobs])
    _share_time([each.job for each in jobs])
    with ExitStack() as held:
        held.enter_context(torch_given_back())
        held.callback(close_models, [each.job for each in jobs])
        begun = _all_begun(jobs, held)
        ready = {number: found for number, found in begun.items() if isinstance(found, Begun)}
        running = _execute([(jobs[number].job, ready[number]) for number in sorted(ready)], run)
        results = [
            found if isinstance(found, LatentmillError) else jobs[number].job.end(found, running)
            for number, found in sorted(begun.items())
        ]
        if then is not None and len(ready) == len(jobs):
            then()
        return results


def _announce(prepared: Prepared) -> None:
    tell, listing = prepared.job.tell, prepared.listing
    if not listing.trusted and not any(map(listing.wanted, listing.refs())):
        tell(Event("warning", f"no row is in the slice; the source has {listing.count:,}"))
    for warning in listing.warnings:
        tell(Event("warning", warning))


def _align(jobs: Sequence[Job]) -> None:
    """Let jobs that worker processes share begin their shards at the same images, so that units are many and small.

    Batches of pixels alone get smaller, since a worker holds those of every job. An encoder's stay what they are.
    """
    if encoding := [job for job in jobs if job.encoder is not None]:
        _align_shards(jobs, min(job.workers for job in encoding))
        return
    if len(jobs) < 2 or not all(job.workers > 1 and isinstance(job.batching, ByCount) for job in jobs):
        return
    workers, size = min(job.workers for job in jobs), max(1, min(job.batch_size for job in jobs) // len(jobs))
    first = jobs[0].measure
    seconds: list[float] = []

    def measured(encoder: EncoderSpec | None, refs: list[SampleRef]) -> float:
        """Once for all: figures that differ a little would give shards that do."""
        seconds.extend([] if seconds else [first(encoder, refs)])
        return seconds[0]

    for job in jobs:
        job.workers, job.batch_size, job.batching, job.measure = workers, size, ByCount(size), measured


def _align_shards(jobs: Sequence[Job], workers: int) -> None:
    """Shards of whole batches of every job, as far as that makes none too large; as many processes as the encoders."""
    whole = math.lcm(*(job.batch_size for job in jobs if isinstance(job.batching, ByCount)))
    for job in jobs:
        job.workers, job.whole = workers, whole if len(jobs) > 1 and workers > 1 and whole <= _WHOLE else 1


def _share_time(jobs: Sequence[Job]) -> None:
    """Let shards be as long as the pass takes for them, of which each job is a part: a kill costs no more than alone.

    What is there already may have nothing left to do, and is not measured for the others.
    """
    if len(jobs) < 2 or all(job.workers > 1 and job.encoder is None for job in jobs):
        return
    own = [job.measure for job in jobs]
    begun = [not to_clear(job.overwrite, job.primary) and bool(stored_fingerprint(job.primary)) for job in jobs]
    new = [number for number, there in enumerate(begun) if not there]
    seconds: dict[int, float] = {}

    def of(number: int, refs: list[SampleRef]) -> float:
        if number not in seconds:
            seconds[number] = own[number](jobs[number].encoder, refs)
        return seconds[number]

    def measured(number: int) -> Callable[[EncoderSpec | None, list[SampleRef]], float]:
        return lambda encoder, refs: sum(of(each, refs) for each in sorted({number, *new}))

    for number, job in enumerate(jobs):
        job.measure = measured(number)


def _all_begun(jobs: Sequence[Prepared], held: ExitStack) -> dict[int, Begun | LatentmillError]:
    """Every job locked, then every job planned: of two processes that run the same jobs, one gets all of them.

    Locks are taken in order of place, so that the two never wait for each other.
    """
    begun: dict[int, Begun | LatentmillError] = {}
    locks: dict[int, ExitStack] = {}
    for number in sorted(range(len(jobs)), key=lambda number: str(jobs[number].job.primary.path)):
        lock = held.enter_context(ExitStack())
        try:
            jobs[number].job.refuse()
            lock.enter_context(jobs[number].job.locked())
            locks[number] = lock
        except LatentmillError as error:
            begun[number] = error
    for number, lock in sorted(locks.items()):
        try:
            begun[number] = _begun(jobs[number], lock)
        except LatentmillError as error:
            begun[number] = error
    return begun


def _begun(prepared: Prepared, lock: ExitStack) -> Begun:
    """Plan a job. Raises LatentmillError, and then lets go of its lock."""
    with ExitStack() as refused:
        refused.push(lock)
        begun = begin(prepared.job, prepared.listing)
        refused.pop_all()
    return begun


def runner_of(name: str, address: str | None = None) -> Runner:
    """The local runner, Ray's for the cluster at an address, or another package's. Raises ConfigError."""
    if name == LOCAL:
        return run_local
    if name == RAY:
        from latentmill.runners.ray_actors import run_ray
        from latentmill.runners.ray_cluster import check_installed

        check_installed()
        return partial(run_ray, address=address)
    found: Runner = load(RUNNERS, name)
    return found


def _execute(jobs: Sequence[tuple[Job, Begun]], run: Runner) -> float:
    """Run what is not done yet; gives the seconds from the first batch to the last commit."""
    jobs = [(job, begun) for job, begun in jobs if begun.plan is not None]
    followers = [job.follow(begun) for job, begun in jobs]
    left = [(job, begun, follower) for (job, begun), follower in zip(jobs, followers, strict=True) if begun.todo]
    if not left:
        return 0.0
    parts = tuple(job.part(begun.plan) for job, begun, _ in left if begun.plan is not None)
    workers = min(job.workers for job, _, _ in left)
    apart = workers > 1 or run is not run_local or killed_before() is not None  # in processes of their own
    units = units_of(parts, [begun.todo for _, begun, _ in left], workers + (apart and workers == 1))
    if apart:
        close_models([job for job, _ in jobs])  # each process loads its own

    def emit(part: int, event: Progress | ShardReport) -> None:
        job, _, follower = left[part]
        try:
            follower.take(event)
        except TooManyFailuresError as error:
            raise TooManyFailuresError(f"{job.called}{error}") from error

    started = time.monotonic()
    for _, _, follower in left:
        follower.timeline.began = started
    jobs_left = [job for job, _, _ in left]
    task = Task(parts, max(job.load_threads for job in jobs_left), _devices(jobs_left), not apart)
    run(task, units, workers, emit)
    _check_done([begun for _, begun, _ in left])
    return time.monotonic() - started


def _devices(jobs: Sequence[Job]) -> tuple[str, ...]:
    """Of each process: GPUs, where any job's encoder runs on them."""
    told = sorted((job.devices for job in jobs if job.devices), key=lambda devices: devices[0] == "cpu")
    return told[0] if told else ()


def _check_done(jobs: Sequence[Begun]) -> None:
    """Refuse to finish what a runner has left undone."""
    left = sum(len(set(begun.todo) - set(begun.plan.done())) for begun in jobs if begun.plan is not None)
    if left:
        raise LatentmillError(
            f"the runner ended with {counted(left, 'shards')} undone. Run the same command again to go on"
        )


def units_of(parts: Sequence[Part], todo: Sequence[Sequence[int]], workers: int) -> list[Unit]:
    """What workers take in turn: shards that share images belong together; with one worker, all do."""
    if workers <= 1:
        return [tuple(tuple(shards) for shards in todo)]
    if len(parts) == 1:
        return [((shard,),) for shard in todo[0]]
    spans = [{shard: _span(part, shard) for shard in shards} for part, shards in zip(parts, todo, strict=True)]
    units = _disjoint(spans)
    return units if len(units) >= workers else max(units, _neighbours(spans), key=len)


class _Span(NamedTuple):
    """Of a shard, the keys of its first image, of the middle one and of the last, in order of key."""

    first: str
    middle: str
    last: str


_Spans = Sequence[Mapping[int, _Span]]  # of each part, by shard


def _span(part: Part, shard: int) -> _Span:
    keys = sorted(ref.key for ref in part.plan.refs(shard))
    return _Span(keys[0], keys[len(keys) // 2], keys[-1])


def _disjoint(spans: _Spans) -> list[Unit]:
    """Units that have no image in common."""
    in_order = sorted((*span, number, shard) for number, own in enumerate(spans) for shard, span in own.items())
    units: list[Unit] = []
    group: list[list[int]] = [[] for _ in spans]
    reach = ""
    for first, _, last, number, shard in in_order:
        if first > reach and any(group):
            units.append(tuple(map(tuple, group)))
            group = [[] for _ in spans]
        group[number].append(shard)
        reach = max(reach, last)
    units.append(tuple(map(tuple, group)))
    return units


def _neighbours(spans: _Spans) -> list[Unit]:
    """As many units as the part of fewest shards has; where shards overlap, an image of two units is decoded twice.

    A shard goes where the middle of its images lies.
    """
    starts = sorted(span.first for span in min(filter(None, spans), key=len).values())
    groups: list[list[list[int]]] = [[[] for _ in spans] for _ in starts]
    for number, own in enumerate(spans):
        for shard, span in own.items():
            groups[max(0, bisect_right(starts, span.middle) - 1)][number].append(shard)
    return [tuple(tuple(sorted(shards)) for shards in group) for group in groups if any(group)]


def close_models(jobs: Sequence[Job]) -> None:
    """Let go of the models: what runs next loads its own, and they must not lie in memory together."""
    for job in jobs:
        close = getattr(job.encoder, "close", None)
        if close is not None:
            close()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def torch_given_back() -> Iterator[None]:
    """Leave the caller's PyTorch as it was, if the jobs used it."""
    try:
        yield
    finally:
        device = sys.modules.get("latentmill.encoders.device")
        if device is not None:
            device.restore_torch()
