"""The data flow of a shard: load -> encode in batches -> write -> commit. The same under every runner.

Loading runs ahead in threads, writing and committing behind in one thread, so that the three overlap and memory
is bounded by a few batches. On success every image of the shard is stored, skipped or rejected, and the ledger
says which. On any other failure, or when the run is cancelled, the shard leaves nothing behind.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from latentmill.batching import Background, prefetched
from latentmill.errors import SampleError
from latentmill.files import digest
from latentmill.formats.containers import Container, ShardSink
from latentmill.manifest import Plan
from latentmill.records import Encoded, Outcome, Progress, Sample, SampleRef, ShardReport
from latentmill.stages import Encoder, EncoderSpec, Layout, Load, Source

_WRITE_AHEAD = 2  # batches, and shards waiting for their sync, that may be queued behind the encoder
Emit = Callable[[Progress | ShardReport], None]


@dataclass(frozen=True)
class Output:
    """One dataset that is made: its layout, where it lies, and whether it stores pixels or what the encoder gives."""

    name: str
    layout: Layout
    container: Container
    encoded: bool


@dataclass(frozen=True)
class Task:
    """Everything a worker needs, picklable: what `run_shards` does is told by this and the shard numbers alone.

    batch_size: of most batches at most; loading runs two of them ahead.
    """

    plan: Plan
    source: Source
    load: Load
    encoder: EncoderSpec | None
    outputs: tuple[Output, ...]
    batch_size: int
    load_threads: int


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def run_shards(task: Task, shards: Iterable[int], emit: Emit, encoder: Encoder | None = None) -> None:
    """Run shards one after the other; loading runs on into the next one. `encoder`: opened here unless given."""
    if encoder is None and task.encoder is not None:
        encoder = task.encoder.open()
    started: deque[tuple[int, list[int]]] = deque()

    def refs() -> Iterator[SampleRef]:
        for shard in shards:
            batches = task.plan.batches(shard)
            started.append((shard, [len(batch) for batch in batches]))
            yield from chain.from_iterable(batches)

    ahead = max(2 * task.batch_size, 2 * task.load_threads)
    loaded = prefetched(lambda ref: _attempt(task, ref), refs(), task.load_threads, ahead)
    behind = Background(_WRITE_AHEAD)
    uncommitted: list[ShardSink] = []
    try:
        for first in loaded:
            shard, sizes = started.popleft()
            samples = chain([first], loaded)
            batches = (list(islice(samples, size)) for size in sizes)
            run_shard(task, shard, batches, encoder, behind, uncommitted, emit)
        behind.drain()
    finally:
        loaded.close()  # type: ignore[attr-defined]
        behind.close()
        for sink in uncommitted:
            sink.abort()


def run_shard(
    task: Task,
    shard: int,
    batches: Iterator[list[Sample | Outcome]],
    encoder: Encoder | None,
    behind: Background,
    uncommitted: list[ShardSink],
    emit: Emit,
) -> None:
    """One shard, from batches of loaded images to its ledger entry; writing and the commit are queued on `behind`.

    Its sinks stand in `uncommitted` until they are committed, for the caller to abort whatever goes wrong.
    """
    clock = _Clock()
    outcomes: list[Outcome] = []
    sinks: dict[str, ShardSink] = {}
    for output in task.outputs:
        sinks[output.name] = output.container.sink(shard, task.plan.publish)
        uncommitted.append(sinks[output.name])

    def write(batch: list[Sample | Outcome], results: dict[int, Encoded | SampleError]) -> None:
        with clock.time("write"):
            settled = [_store(task.outputs, sinks, item, results) for item in batch]
        outcomes.extend(settled)
        emit(Progress(len(settled), sum(bool(o.stage) for o in settled), sum(o.skipped for o in settled)))

    def commit() -> None:
        with clock.time("commit"):
            for sink in sinks.values():
                sink.commit()
                uncommitted.remove(sink)
        report = _report(shard, outcomes, clock)
        task.plan.commit(report, outcomes)
        emit(report)

    for batch in _timed(batches, clock):
        samples = [item for item in batch if isinstance(item, Sample)]
        with clock.time("encode"):
            encoded = encoder.encode(samples) if encoder and samples else [None] * len(samples)
        results = {s.ref.index: r for s, r in zip(samples, encoded, strict=True) if r is not None}
        behind.submit(lambda batch=batch, results=results: write(batch, results))  # type: ignore[misc]
    behind.submit(commit)


def _attempt(task: Task, ref: SampleRef) -> Sample | Outcome:
    """Read, decode and transform one image; its failure, or the transform's leaving it out, becomes its outcome."""
    found = ""
    if ref.skip:
        return Outcome(ref, skipped=True, reason=ref.skip)
    try:
        data = task.source.read(ref)
        found = digest(data)
        sample = task.load(ref, data)
    except SampleError as error:
        return Outcome(ref, found, stage=error.stage, reason=error.reason)
    if sample is None:
        return Outcome(ref, found, skipped=True)
    return replace(sample, digest=found)


def _store(
    outputs: Sequence[Output],
    sinks: dict[str, ShardSink],
    item: Sample | Outcome,
    results: dict[int, Encoded | SampleError],
) -> Outcome:
    """Write one image to every output, or to none where its encoding failed, so that pairs stay pairs."""
    if isinstance(item, Outcome):
        return item
    result = results.get(item.ref.index)
    if isinstance(result, SampleError):
        return Outcome(item.ref, item.digest, item.notes, stage=result.stage, reason=result.reason)
    files = {}
    for output in outputs:
        name = output.layout.name(item.ref.index, item.ref.key)
        encoded = result if output.encoded and result is not None else Encoded(item.array)
        files[output.name] = sinks[output.name].write(name, output.layout.to_bytes(encoded.array, encoded.beside))
    notes = item.notes + (result.notes if result else ())
    return Outcome(item.ref, item.digest, notes, files, result.sums if result else (), geometry=item.geometry)


def _timed(batches: Iterator[list[Sample | Outcome]], clock: _Clock) -> Iterator[list[Sample | Outcome]]:
    """Count the time that the next batch is waited for as `load`."""
    while True:
        with clock.time("load"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _report(shard: int, outcomes: list[Outcome], clock: _Clock) -> ShardReport:
    rejected = sum(bool(o.stage) for o in outcomes)
    skipped = sum(o.skipped for o in outcomes)
    seconds = {stage: round(value, 4) for stage, value in clock.seconds.items()}
    return ShardReport(shard, len(outcomes), len(outcomes) - rejected - skipped, rejected, skipped, seconds)
