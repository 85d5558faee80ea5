"""The data flow of a pass: load -> encode in batches -> write -> commit, of one job or of several over the same images.

Loading runs ahead in threads, writing and committing behind in one thread, so that the three overlap and memory is
bounded. An image that several jobs want is read once, and decoded once for each way of decoding. On success every
image is stored, skipped or rejected, and its shard's ledger says which. On any other failure, or when the run is
cancelled, the shards that are not committed leave nothing behind.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import merge
from itertools import groupby
from typing import NamedTuple

from latentmill.batching import Background, prefetched
from latentmill.errors import SampleError
from latentmill.files import digest
from latentmill.formats.containers import Container, ShardSink
from latentmill.manifest import Plan
from latentmill.records import Encoded, Outcome, Progress, Sample, SampleRef, ShardReport
from latentmill.stages import Altering, Decode, Encoder, EncoderSpec, Layout, Load, Source

_WRITE_AHEAD = 2  # batches, and shards waiting for their sync, that may be queued behind the encoder
Emit = Callable[[int, Progress | ShardReport], None]  # with the number of the part that it is of
Unit = tuple[tuple[int, ...], ...]  # of each part, the shards to run; what belongs together because images are shared


@dataclass(frozen=True)
class Output:
    """One dataset that is made: its layout, where it lies, and whether it stores pixels or what the encoder gives."""

    name: str
    layout: Layout
    container: Container
    encoded: bool


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

    Parts are of one source's images, told apart by key. Loading runs two of the largest batches ahead.
    """

    parts: tuple[Part, ...]
    load_threads: int


class _Place(NamedTuple):
    """Where a sample belongs: the part, its shard, and the batch in that."""

    part: int
    shard: int
    batch: int


class _Wanted(NamedTuple):
    place: _Place
    ref: SampleRef


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


def run_units(task: Task, units: Iterable[Unit], emit: Emit) -> None:
    """Run units one after the other; loading runs on into the next one."""
    run = _Run(task, emit)
    ahead = 2 * max(task.load_threads, *(part.batch_size for part in task.parts))
    loaded = prefetched(partial(_attempt, task), run.wanted(units), task.load_threads, ahead)
    try:
        run.all(loaded)
    finally:
        loaded.close()  # type: ignore[attr-defined]
        run.close()


class _Run:
    """One worker's run: batches are filled as images come, encoded when full, written and committed behind."""

    def __init__(self, task: Task, emit: Emit) -> None:
        self.task, self.emit = task, emit
        self.encoders: list[Encoder | None] = [part.encoder.open() if part.encoder else None for part in task.parts]
        self.shards: dict[tuple[int, int], _Shard] = {}
        self.behind = Background(_WRITE_AHEAD)
        self.uncommitted: list[ShardSink] = []

    def wanted(self, units: Iterable[Unit]) -> Iterator[list[_Wanted]]:
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
                sorted(stream, key=_key) if part.plan.sorted else stream
                for part, stream in zip(self.task.parts, streams, strict=True)
            ]
            for _, group in groupby(merge(*in_order, key=_key), key=_key):
                yield list(group)

    def _stream(self, part: int, shards: Iterable[int]) -> Iterator[_Wanted]:
        for shard in shards:
            batches = self.task.parts[part].plan.batches(shard)
            self.shards[part, shard] = _Shard(part, shard, [len(batch) for batch in batches])
            for number, batch in enumerate(batches):
                for ref in batch:
                    yield _Wanted(_Place(part, shard, number), ref)

    def all(self, loaded: Iterator[list[tuple[_Place, Sample | Outcome]]]) -> None:
        """Take every image that was loaded, in turn. Returns when all is committed."""
        while True:
            start = time.perf_counter()
            items = next(loaded, None)
            if items is None:
                break
            first = items[0][0]
            self.shards[first.part, first.shard].clock.add("load", time.perf_counter() - start)
            for place, item in items:
                self._take(place, item)
        self.behind.drain()

    def _take(self, place: _Place, item: Sample | Outcome) -> None:
        shard = self.shards[place.part, place.shard]
        batch = shard.add(place.batch, item)
        if batch is None:
            return
        if not shard.sinks:
            self._open_sinks(shard)
        self.behind.submit(partial(self._write, shard, batch, self._encoded(shard, batch)))
        if shard.complete:
            del self.shards[place.part, place.shard]
            self.behind.submit(partial(self._commit, shard))

    def _open_sinks(self, shard: _Shard) -> None:
        part = self.task.parts[shard.part]
        for output in part.outputs:
            shard.sinks[output.name] = output.container.sink(shard.number, part.plan.publish)
            self.uncommitted.append(shard.sinks[output.name])

    def _encoded(self, shard: _Shard, batch: list[Sample | Outcome]) -> dict[int, Encoded | SampleError]:
        """Results by the sample's index; none where nothing is encoded."""
        samples = [item for item in batch if isinstance(item, Sample)]
        encoder = self.encoders[shard.part]
        if encoder is None or not samples:
            return {}
        with shard.clock.time("encode"):
            _set_threads(self.task.parts[shard.part].encoder)
            results = encoder.encode(samples)
        return {sample.ref.index: result for sample, result in zip(samples, results, strict=True)}

    def _write(self, shard: _Shard, batch: list[Sample | Outcome], results: dict[int, Encoded | SampleError]) -> None:
        outputs = self.task.parts[shard.part].outputs
        with shard.clock.time("write"):
            settled = [_store(outputs, shard.sinks, item, results) for item in batch]
        shard.outcomes.extend(settled)
        progress = Progress(len(settled), sum(bool(o.stage) for o in settled), sum(o.skipped for o in settled))
        self.emit(shard.part, progress)

    def _commit(self, shard: _Shard) -> None:
        with shard.clock.time("commit"):
            for sink in shard.sinks.values():
                sink.commit()
                self.uncommitted.remove(sink)
        report = _report(shard)
        self.task.parts[shard.part].plan.commit(report, shard.outcomes)
        self.emit(shard.part, report)

    def close(self) -> None:
        """Stop, and remove what is not committed."""
        self.behind.close()
        for sink in self.uncommitted:
            sink.abort()


class _Image:
    """One image while it is loaded, for every part that wants it: its bytes, and what was decoded of them."""

    def __init__(self) -> None:
        self._data: bytes | SampleError | None = None
        self._decoded: list[tuple[Decode, object]] = []  # a SampleError where decoding failed
        self._loaded: list[tuple[Load, Sample | SampleError | None]] = []
        self.digest = ""

    def result(self, part: Part, ref: SampleRef) -> Sample | Outcome:
        """The image as the part's encoder takes it; its failure, or the transform's leaving it out, as an outcome."""
        if ref.skip:
            return Outcome(ref, skipped=True, reason=ref.skip)
        found = ""
        try:
            data = self._read(part.source, ref)
            found = self.digest
            sample = self._load(part.load, ref, data)
        except SampleError as error:
            return Outcome(ref, found, stage=error.stage, reason=error.reason)
        if sample is None:
            return Outcome(ref, found, skipped=True)
        return replace(sample, ref=ref, digest=found)

    def _load(self, load: Load, ref: SampleRef, data: bytes) -> Sample | None:
        """As the load gives it; made once for equal ones, and for what several alter."""
        if isinstance(load, Altering):
            sample = self._load(load.images, ref, data)
            return None if sample is None else replace(sample, array=load.alter(sample.array))
        found = [result for known, result in self._loaded if known == load]
        if not found:
            try:
                found = [load(ref, self._decode(load.decode, data))]
            except SampleError as error:
                found = [error]
            self._loaded.append((load, found[0]))
        if isinstance(found[0], SampleError):
            raise found[0]
        return found[0]

    def _read(self, source: Source, ref: SampleRef) -> bytes:
        if ref.fault:  # which one part's listing found, and another's need not mind
            return source.read(ref)
        if self._data is None:
            try:
                self._data = source.read(ref)
                self.digest = digest(self._data)
            except SampleError as error:
                self._data = error
        if isinstance(self._data, SampleError):
            raise self._data
        return self._data

    def _decode(self, decode: Decode, data: bytes) -> object:
        found = next((result for known, result in self._decoded if known == decode), None)
        if found is None:
            try:
                found = decode(data)
            except SampleError as error:
                found = error
            self._decoded.append((decode, found))
        if isinstance(found, SampleError):
            raise found
        return found


def _key(wanted: _Wanted) -> str:
    return wanted.ref.key


def _attempt(task: Task, wanted: list[_Wanted]) -> list[tuple[_Place, Sample | Outcome]]:
    """Read, decode and transform one image, for all the parts that want it."""
    image = _Image()
    return [(place, image.result(task.parts[place.part], ref)) for place, ref in wanted]


def _set_threads(spec: EncoderSpec | None) -> None:
    """Give an encoder its own number of PyTorch's threads, which are the whole process's: results may depend on it."""
    torch, threads = sys.modules.get("torch"), getattr(spec, "threads", None)
    if torch is not None and threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


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


def _report(shard: _Shard) -> ShardReport:
    outcomes = shard.outcomes
    rejected = sum(bool(o.stage) for o in outcomes)
    skipped = sum(o.skipped for o in outcomes)
    seconds = {stage: round(value, 4) for stage, value in shard.clock.seconds.items()}
    return ShardReport(shard.number, len(outcomes), len(outcomes) - rejected - skipped, rejected, skipped, seconds)
