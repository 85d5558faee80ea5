"""The data flow of a pass: load -> encode in batches -> write -> commit, of one job or of several over the same images.

Loading runs ahead in threads, writing and committing behind in one thread, so that the three overlap and memory is
bounded. An image that several jobs want is read once, and decoded once for each way of decoding. On success every
image is stored, skipped or rejected, and its shard's ledger says which. On any other failure, or when the run is
cancelled, the shards that are not committed leave nothing behind; what a killed worker leaves, the next run removes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

import numpy as np

from latentmill.batching import Background, prefetched
from latentmill.careful import Care, Inline
from latentmill.encoders import heap
from latentmill.formats.containers import Container, ShardSink
from latentmill.formats.stored_zip import member_bytes
from latentmill.manifest import Plan
from latentmill.records import Outcome, Progress, Sample, ShardReport
from latentmill.room import Room, bounded
from latentmill.sharing import Loading, Place, Wanted
from latentmill.stages import Encoder, EncoderSpec, Layout, Load, Resting, Results, Source, Submitting, WarmingUp
from latentmill.storing import stored

_KEY = attrgetter("key")
_NO_ARRAY = np.empty(0, np.uint8)
_WRITE_AHEAD = 2  # batches, and shards waiting for their sync, that may be queued behind the encoder
Emit = Callable[[int, Progress | ShardReport], None]  # with the number of the part that it is of
Item = TypeVar("Item", bound=Sample | Outcome)
Unit = tuple[tuple[int, ...], ...]  # of each part, the shards to run; what belongs together because images are shared


@dataclass(frozen=True)
class Output:
    """One dataset that is made: its layout, where it lies, and whether it stores pixels or what the encoder gives.

    like: shape and dtype of the arrays that it stores, where they are known and files of zeros are of the same size.
    """

    name: str
    layout: Layout
    container: Container
    encoded: bool
    like: tuple[tuple[int, ...], str] | None = None

    @cached_property
    def file_bytes(self) -> int | None:
        """Bytes of each file, as one of zeros has them; None where that is not known."""
        return None if self.like is None else len(self.layout.to_bytes(np.zeros(*self.like)))

    def reserve(self, plan: Plan, shard: int) -> None:
        """Find a place in a zip for a shard that is about to be run beside others."""
        each = self.file_bytes if self.container.is_zip else None
        if each is not None:
            self.container.reserve(shard, partial(self._most, plan, each))

    def _most(self, plan: Plan, each: int, shard: int) -> int:
        """Bytes of a shard in a zip if no image is rejected."""
        refs = (ref for ref in plan.refs(shard) if not (ref.fault or ref.skip))
        return sum(member_bytes(self.layout.name(ref.index, ref.key), each) for ref in refs)


@dataclass(frozen=True)
class Part:
    """What one job has a worker do. batch_size: of most batches at most."""

    plan: Plan
    source: Source
    load: Load
    encoder: EncoderSpec | None
    outputs: tuple[Output, ...]
    batch_size: int


@dataclass(frozen=True)
class Task:
    """Everything a worker needs, picklable: what `run_units` does is told by this and the units alone.

    Parts are of one source's images, told apart by key. Loading runs ahead as far as its memory allows (see `room`), at
    most two of the largest batches, or two images for each thread where those are more. load_threads: of a machine; see
    `shared`. devices: one for each process, as `cuda:1`; none where nothing is encoded.
    alone: no other process writes to the same destinations. placed: shards have places in a zip (`Output.reserve`).
    """

    parts: tuple[Part, ...]
    load_threads: int
    devices: tuple[str, ...] = ()
    alone: bool = False
    placed: bool = False

    def shared(self, processes: int) -> Task:
        """The task of one of so many processes of a machine, which share its cores for loading."""
        return replace(self, load_threads=max(1, self.load_threads // processes) if self.load_threads else 0)


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)


class _Shard:
    """A shard under way: the batches that are being filled, what became of its images, and its sinks."""

    def __init__(self, part: int, number: int, sizes: Sequence[int]) -> None:
        self.part, self.number, self._sizes = part, number, sizes
        self._filling: dict[int, list[Sample | Outcome]] = {}
        self._left = len(sizes)
        self.outcomes: list[Outcome] = []
        self.sinks: dict[str, ShardSink] = {}
        self.clock = _Clock()

    def add(self, batch: int, item: Sample | Outcome) -> list[Sample | Outcome] | None:
        """Take one image; gives its batch when that is full."""
        filling = self._filling.setdefault(batch, [])
        filling.append(item)
        if len(filling) < self._sizes[batch]:
            return None
        self._left -= 1
        return self._filling.pop(batch)

    @property
    def complete(self) -> bool:
        return self._left == 0


def run_units(task: Task, units: Iterable[Unit], emit: Emit, care: Care | None = None) -> None:
    """Run units one after the other; loading runs on into the next one. care: nothing runs beside anything else."""
    run = _Run(task, emit, care)
    ahead = 2 * max(task.load_threads, *(part.batch_size for part in task.parts))
    threads = task.load_threads if care is None else 0
    load = Loading(task.parts, reuse=threads == 0)
    loaded = (
        bounded(load, run.wanted(units), Room(threads), ahead)
        if threads
        else prefetched(partial(care.load, load) if care else load, run.wanted(units), 0, 0)
    )
    heap.keep_small()
    try:
        run.all(loaded)
    finally:
        loaded.close()  # type: ignore[attr-defined]
        run.close()
        heap.keep_small()


class _Run:
    """One worker's run: batches are filled as images come, encoded when full, written and committed behind."""

    def __init__(self, task: Task, emit: Emit, care: Care | None) -> None:
        self.task, self.emit, self.care = task, emit, care
        self.encoders: list[Encoder | None] = [part.encoder.open() if part.encoder else None for part in task.parts]
        self.running: Encoder | None = None
        self.shards: dict[tuple[int, int], _Shard] = {}
        self.behind: Background | Inline = Inline() if care else Background(_WRITE_AHEAD)
        self.uncommitted: list[ShardSink] = []

    def wanted(self, units: Iterable[Unit]) -> Iterator[list[Wanted]]:
        """What is to be loaded, image by image, each for all the parts that want it.

        One part alone goes by its plan, batch by batch. Several go by key, side by side.
        """
        alone = len(self.task.parts) == 1
        for unit in units:
            streams = [self._stream(part, shards) for part, shards in enumerate(unit)]
            if alone:
                yield from ([item] for item in streams[0])
                continue
            in_order = [
                sorted(stream, key=_KEY) if part.plan.sorted else stream
                for part, stream in zip(self.task.parts, streams, strict=True)
            ]
            for _, group in groupby(merge(*in_order, key=_KEY), key=_KEY):
                yield list(group)

    def _stream(self, part: int, shards: Iterable[int]) -> Iterator[Wanted]:
        for shard in shards:
            batches = self.task.parts[part].plan.batches(shard)
            self.shards[part, shard] = _Shard(part, shard, [len(batch) for batch in batches])
            for number, batch in enumerate(batches):
                for ref in batch:
                    yield Wanted(Place(part, shard, number), ref)

    def all(self, loaded: Iterator[list[tuple[Place, Sample | Outcome]]]) -> None:
        """Take every image that was loaded, in turn. Returns when all is committed."""
        while True:
            start = time.perf_counter()
            items = next(loaded, None)
            if items is None:
                break
            first = items[0][0]
            self.shards[first.part, first.shard].clock.add("load", time.perf_counter() - start)
            while items:
                self._take(items)
        self.behind.drain()

    def _take(self, items: list[tuple[Place, Sample | Outcome]]) -> None:
        """The first of what was loaded, of which nothing is held here when this waits."""
        place = items[0][0]
        shard = self.shards[place.part, place.shard]
        batch = shard.add(place.batch, items.pop(0)[1])
        if batch is None:
            return
        if not shard.sinks:
            self._open_sinks(shard)
        samples, ended = self._encoded(shard, batch)
        if samples and all(output.encoded for output in self.task.parts[shard.part].outputs):
            batch, samples = _without_arrays(batch), _without_arrays(samples)
        self.behind.submit(partial(self._write, shard, batch, samples, ended))
        if shard.complete:
            del self.shards[place.part, place.shard]
            self.behind.submit(partial(self._commit, shard))

    def _open_sinks(self, shard: _Shard) -> None:
        part = self.task.parts[shard.part]
        for output in part.outputs:
            shard.sinks[output.name] = output.container.sink(
                shard.number, part.plan.publish, self.task.alone, self.task.placed
            )
            self.uncommitted.append(shard.sinks[output.name])

    def _encoded(self, shard: _Shard, batch: list[Sample | Outcome]) -> tuple[list[Sample], Results]:
        """The samples of a batch, and the call that ends their encoding; none where nothing is encoded."""
        samples = [item for item in batch if isinstance(item, Sample)]
        encoder = self.encoders[shard.part]
        if encoder is None or not samples:
            return [], list
        self._take_turns(encoder)
        _set_threads(self.task.parts[shard.part].encoder)
        if isinstance(encoder, WarmingUp) and not self.care:  # in care, `encode` prepares, once it is announced
            with shard.clock.time("warm-up"):
                encoder.warm_up(samples)
        with shard.clock.time("encode"):
            if isinstance(encoder, Submitting) and not self.care:
                return samples, encoder.submit(samples)
            results = self.care.encode(shard.part, encoder, samples) if self.care else encoder.encode(samples)
        return samples, lambda: results

    def _take_turns(self, encoder: Encoder) -> None:
        """Let the encoder that ran before end what it computes: two at once would wait for each other's threads."""
        if isinstance(self.running, Resting) and self.running is not encoder:
            self.running.rest()
        self.running = encoder

    def _write(self, shard: _Shard, batch: list[Sample | Outcome], samples: list[Sample], ended: Results) -> None:
        outputs = self.task.parts[shard.part].outputs
        with shard.clock.time("results"):
            results = {sample.ref.index: each for sample, each in zip(samples, ended(), strict=True)}
        items = self.care.written(shard.part, batch) if self.care else batch
        with shard.clock.time("write"):
            settled = list(stored(outputs, shard.sinks, items, results, one_by_one=self.care is not None))
        shard.outcomes.extend(settled)
        reasons = tuple((o.ref.key, o.reason) for o in settled if o.stage)
        skipped = sum(o.skipped for o in settled)
        self.emit(shard.part, Progress(len(settled), len(reasons), skipped, shard.number, reasons))

    def _commit(self, shard: _Shard) -> None:
        if self.care:
            self.care.committing()
        with shard.clock.time("commit"):
            self._remove_strays(shard)
            for sink in shard.sinks.values():
                sink.commit()
                self.uncommitted.remove(sink)
        report = _report(shard)
        self.task.parts[shard.part].plan.commit(report, shard.outcomes)
        self.emit(shard.part, report)

    def _remove_strays(self, shard: _Shard) -> None:
        """Remove what a run that was cut off before its ledger entry published of images that are left out now."""
        part = self.task.parts[shard.part]
        left_out = [o.ref for o in shard.outcomes if (o.stage or o.skipped) and not (o.ref.fault or o.ref.skip)]
        for output in part.outputs:
            for ref in left_out:
                output.container.remove(output.layout.name(ref.index, ref.key), part.plan.publish)

    def close(self) -> None:
        """Stop, and remove what is not committed."""
        self.behind.close()
        for sink in self.uncommitted:
            sink.abort()


def _without_arrays(items: Sequence[Item]) -> list[Item]:
    """What was encoded, without its pixels where nobody stores them."""
    return [replace(item, array=_NO_ARRAY) if isinstance(item, Sample) else item for item in items]


def _set_threads(spec: EncoderSpec | None) -> None:
    """Give an encoder its own number of PyTorch's threads, which are the whole process's: results may depend on it."""
    torch, threads = sys.modules.get("torch"), getattr(spec, "threads", None)
    if torch is not None and threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _report(shard: _Shard) -> ShardReport:
    outcomes = shard.outcomes
    rejected = sum(bool(o.stage) for o in outcomes)
    skipped = sum(o.skipped for o in outcomes)
    seconds = {stage: round(value, 4) for stage, value in shard.clock.seconds.items()}
    return ShardReport(shard.number, len(outcomes), len(outcomes) - rejected - skipped, rejected, skipped, seconds)
