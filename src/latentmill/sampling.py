"""Batches that hold one bucket each, for a DataLoader: shuffled by seed and epoch, shared by ranks, resumed exactly.

Every rank works out the same batches of the whole epoch and takes each world_size-th of them, so nothing is sent
between ranks. A position in the epoch is counted in batches that the training loop got, not in those that a
DataLoader has fetched ahead for its workers. Where that cannot be known, the state is refused instead of guessed.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from latentmill.errors import ConfigError
from latentmill.files import digest
from latentmill.records import Array
from latentmill.sampling_settings import batch_sizes_of, codes_of, integer, rank_of, some

_VERSION = 1  # of how an epoch's order follows from its settings
_TOLD_BY_LOADER = ("_num_yielded", "_index_sampler", "_in_order")


class BucketSampler(Sampler[list[int]]):
    """Batches of sample positions, for `DataLoader(dataset, batch_sampler=BucketSampler(dataset, 8))`.

    buckets: (height, width) in pixels of every sample, as (N, 2) integers, or an object whose `buckets` is that.
    batch_size: samples in a batch, one for all buckets or by (height, width). pixels: instead of it, the pixels that
    a batch may hold; a bucket's batch size is pixels // (height * width), at least 1.
    shuffle: by seed and epoch, inside buckets and between batches; False: buckets by (height, width), samples in order.
    drop_last: leave out incomplete batches, then the last whole ones until the ranks have equally many. By default
    the last batches are split until they have, so that every sample comes once; where single samples do not suffice
    for that, the fewest needed come again, and a warning says so.
    rank, world_size: by default those of torch.distributed, where that is initialised by now, else 0 and 1.

    For exact resume, hand the sampler itself to a plain DataLoader, and take `state_dict()` in the training loop.
    Wrappers that fetch batches ahead or share them out between ranks anew would count them wrongly.
    Raises ConfigError.
    """

    def __init__(
        self,
        buckets: Any,
        batch_size: int | Mapping[tuple[int, int], int] | None = None,
        *,
        pixels: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._rank_is_default = rank is None
        self.rank, self.world_size = rank_of(rank, world_size)
        self.shuffle, self.seed, self.drop_last = bool(shuffle), integer("seed", seed, 0), bool(drop_last)
        codes = codes_of(getattr(buckets, "buckets", buckets))
        distinct, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
        names = [(code >> 32, code & 0xFFFFFFFF) for code in distinct.tolist()]
        self.batch_sizes = batch_sizes_of(names, batch_size, pixels)
        self._samples, self._digest = len(codes), digest(codes.astype("<i8").tobytes())
        self._bucket, self._counts = inverse.astype(np.min_scalar_type(len(names))), counts
        self._sizes: Array = np.array([min(size, len(codes) + 1) for size in self.batch_sizes.values()])
        self._steps = self._count_steps()
        self.epoch, self._start = 0, 0
        self._order: _Order | None = None
        self._pass: _Pass | None = None

    def _count_steps(self) -> int:
        """How many batches a rank gets; refuses none, and warns where samples must come again."""
        if self.drop_last:
            full = int((self._counts // self._sizes).sum())
            if full < self.world_size:
                raise ConfigError(
                    f"drop_last must leave a batch for every rank. Found: {full} full batches of {self._samples} "
                    f"samples for {self.world_size} ranks. Use smaller batches, or leave drop_last out"
                )
            return full // self.world_size
        steps = -(-int(self._batches_by_bucket().sum()) // self.world_size)
        lacking = steps * self.world_size - self._samples
        if lacking > 0:
            warnings.warn(
                f"{self._samples} samples cannot make {steps} batches for each of {self.world_size} ranks, even one by "
                f"one: {lacking} come once more in every epoch (BucketSampler.repeated names them)",
                stacklevel=3,
            )
        return steps

    def _batches_by_bucket(self) -> Array:
        batches: Array = -(-self._counts // self._sizes)
        return batches

    def __len__(self) -> int:
        """Batches that this rank gets in a whole epoch; also where an epoch is resumed and fewer are left."""
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        if self._rank_is_default and rank_of(None, None) not in ((0, 1), (self.rank, self.world_size)):
            raise ConfigError(
                f"the sampler must be made after torch.distributed is initialised. Found: made as rank {self.rank} of "
                f"{self.world_size}, used as rank {dist.get_rank()} of {dist.get_world_size()}. Make it later, or give "
                "rank and world_size"
            )
        self._pass = _Pass(self, self._epoch_order(), self._start, _loader_that_asks())
        return self._pass

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; until then, iterating again gives the same one. A resume point holds for its own epoch."""
        epoch = integer("epoch", epoch, 0)
        if epoch != self.epoch:
            self._go_to(epoch, 0)

    def _go_to(self, epoch: int, start: int) -> None:
        self.epoch, self._start = epoch, start
        self._order = self._pass = None

    @property
    def repeated(self) -> list[int]:
        """The samples that come once more in this epoch, over all ranks; empty but for very few samples."""
        return self._epoch_order().repeated

    @property
    def dropped(self) -> list[int]:
        """The samples that `drop_last` leaves out of this epoch, over all ranks."""
        return self._epoch_order().dropped

    def describe(self) -> str:
        """One line for a person: samples, buckets, batches, and what this epoch drops or repeats."""
        line = (
            f"epoch {self.epoch}: {self._samples:,} samples in {len(self._sizes):,} buckets, "
            f"{self._steps:,} batches on each of {self.world_size:,} ranks"
        )
        if self.drop_last:
            rest = self._counts % self._sizes
            tails = [f"{count} of {bucket}" for bucket, count in zip(self.batch_sizes, rest, strict=True) if count]
            line += f"; dropped: {rest.sum():,} samples of incomplete batches" + (f" ({some(tails)})" if tails else "")
            line += f", {len(self.dropped) - rest.sum():,} of whole batches that the ranks cannot share equally"
        return line + (f"; {len(self.repeated)} samples come once more" if self.repeated else "")

    @property
    def counts(self) -> dict[tuple[int, int], int]:
        """Samples of every bucket, (height, width), over all ranks."""
        return dict(zip(self.batch_sizes, self._counts.tolist(), strict=True))

    def _repr_html_(self) -> str:
        from latentmill.showing.plans import sampler_html

        return sampler_html(self)

    def __repr__(self) -> str:
        from latentmill.showing.plans import sampler_text

        return sampler_text(self)

    # resume

    def state_dict(self) -> dict[str, Any]:
        """Where this rank is: the epoch and its consumed batches, and what the order follows from. Fits all ranks.

        Numbers and texts alone: it can be kept as JSON. Inside the loop's body, the batch at hand counts.
        """
        consumed = self._start if self._pass is None else self._pass.consumed()
        return {"epoch": self.epoch, "consumed": consumed, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on this or another rank: the next iteration begins after what was consumed.

        The one after that begins at the epoch's start. Raises ConfigError if the state is of another order.
        """
        differences = [
            f"{name} is {value} here and {state.get(name)} in the state"
            for name, value in self._identity().items()
            if state.get(name) != value
        ]
        if differences:
            raise ConfigError(
                f"the state must be of a sampler with the same settings and samples. Found: {some(differences)}. "
                "Make the sampler as it was, or start the epoch anew"
            )
        consumed = integer("the state's consumed", state.get("consumed"), 0, self._steps)
        self._go_to(integer("the state's epoch", state.get("epoch"), 0), consumed)

    def _identity(self) -> dict[str, Any]:
        """Everything that an epoch's order follows from, but the epoch."""
        return {
            "version": _VERSION,
            "samples": self._samples,
            "buckets": self._digest,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "world_size": self.world_size,
            **{f"batch_size of {bucket}": size for bucket, size in self.batch_sizes.items()},
        }

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the same settings, epoch and unused resume point; it is not in the middle of anything."""
        return {**self.__dict__, "_order": None, "_pass": None}

    def _begin(self, begun: _Pass) -> None:
        """A DataLoader with workers makes two iterators and uses one: only its first batch uses the resume point up."""
        if begun is self._pass:
            self._start = 0

    # the order of an epoch

    def _epoch_order(self) -> _Order:
        if self._order is None:
            self._order = self._make_order()
        return self._order

    def _make_order(self) -> _Order:
        # NumPy promises PCG64's raw numbers for every version, and Generator.shuffle's results for none.
        random = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
        samples = self._grouped(random)
        starts, stops, full = self._cut()
        if self.shuffle:
            turns = np.argsort(random.random_raw(len(starts)), kind="stable")
            starts, stops, full = starts[turns], stops[turns], full[turns]
        total = self._steps * self.world_size
        if self.drop_last:
            kept = np.flatnonzero(full)[:total]
            others = np.delete(np.arange(len(starts)), kept)
            dropped = [sample for i in others for sample in samples[starts[i] : stops[i]].tolist()]
            return _Order(samples, starts[kept], stops[kept], [], dropped)
        starts, stops = _split_last(starts, stops, total - len(starts))
        again = starts[np.arange(total - len(starts)) % self._samples]  # if any, every batch is a single sample by now
        starts, stops = np.append(starts, again), np.append(stops, again + 1)
        return _Order(samples, starts, stops, samples[again].tolist(), [])

    def _grouped(self, random: np.random.PCG64) -> Array:
        """Every sample's position, bucket by bucket; shuffled inside a bucket, or in order."""
        keys = self._bucket
        if self.shuffle:
            bits = np.uint64(len(self._sizes).bit_length())
            keys = (random.random_raw(self._samples) >> bits) | (keys.astype(np.uint64) << (np.uint64(64) - bits))
        return np.argsort(keys, kind="stable").astype(np.min_scalar_type(self._samples))

    def _cut(self) -> tuple[Array, Array, Array]:
        """Of every batch, bucket by bucket: where it starts and stops in the grouped samples, and if it is full."""
        batches, ends = self._batches_by_bucket(), np.cumsum(self._counts)
        bucket = np.repeat(np.arange(len(batches)), batches)
        within = np.arange(len(bucket)) - np.repeat(np.cumsum(batches) - batches, batches)
        starts = (ends - self._counts)[bucket] + within * self._sizes[bucket]
        stops = starts + self._sizes[bucket]
        return starts, np.minimum(stops, ends[bucket]), stops <= ends[bucket]


@dataclass(frozen=True)
class _Order:
    """An epoch over all ranks: batch i holds samples[starts[i]:stops[i]] and belongs to rank i % world_size."""

    samples: Array
    starts: Array
    stops: Array
    repeated: list[int]
    dropped: list[int]


class _Pass(Iterator[list[int]]):
    """One iteration over a rank's batches, which knows how many of them the training loop got."""

    def __init__(self, sampler: BucketSampler, order: _Order, start: int, loader: _BaseDataLoaderIter | None) -> None:
        self._sampler, self._order = sampler, order
        self._start = self._next = start
        self._delivered = None if loader is None else _Delivered(loader)

    def __next__(self) -> list[int]:
        self._sampler._begin(self)
        if self._next >= len(self._sampler):
            raise StopIteration
        batch = self._next * self._sampler.world_size + self._sampler.rank
        self._next += 1
        samples: list[int] = self._order.samples[self._order.starts[batch] : self._order.stops[batch]].tolist()
        return samples

    def consumed(self) -> int:
        """Batches of the epoch that the loop got, those before a resume point included."""
        return self._next if self._delivered is None else self._start + self._delivered.count(self._sampler)


class _Delivered:
    """How many batches a DataLoader's iterator has handed out, also after its loop was left.

    Its attributes are kept and itself is not: it must die with its loop, for that is what stops its workers. When it
    has died its callback keeps the count alone, and lets go of the batches that were fetched ahead.
    """

    def __init__(self, loader: _BaseDataLoaderIter) -> None:
        self._attributes: dict[str, Any] = vars(loader)
        self._alive = weakref.ref(loader, self._remember)

    def _remember(self, _: object) -> None:
        self._attributes = {name: self._attributes[name] for name in _TOLD_BY_LOADER if name in self._attributes}

    def count(self, sampler: BucketSampler) -> int:
        """Raises ConfigError where the number says nothing about the sampler's batches."""
        told = self._attributes
        if told.get("_index_sampler") is not sampler:
            raise ConfigError(
                "the DataLoader must get the BucketSampler itself as batch_sampler. Found: it in another sampler"
            )
        if not told.get("_in_order", True):
            raise ConfigError("the DataLoader must give its batches in order to be resumed. Found: in_order=False")
        if "_num_yielded" not in told:
            raise ConfigError(
                "PyTorch's DataLoader must count the batches it gave (_num_yielded) to be resumed. "
                "Found: a version that does not. Use another, or iterate over the sampler itself"
            )
        return int(told["_num_yielded"])


def _loader_that_asks() -> _BaseDataLoaderIter | None:
    """The DataLoader's iterator for which a sampler's `__iter__` is being called, if there is one.

    A DataLoader asks the sampler for batches ahead of the loop, and tells it nothing of what the loop got. Its
    iterator knows, but passes itself to nobody: it is `self` in the calling frames. Only frames of PyTorch's module
    are looked into, since looking keeps a frame's variables alive until its function ends.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == _BaseDataLoaderIter.__module__:
            found = frame.f_locals.get("self")
            if isinstance(found, _BaseDataLoaderIter):
                return found
    return None


def _split_last(starts: Array, stops: Array, wanted: int) -> tuple[Array, Array]:
    """Halve the last batches of more than one sample until there are `wanted` more, or only single samples."""
    while wanted > 0:
        chosen = np.flatnonzero(stops - starts > 1)[-wanted:]
        if not len(chosen):
            break
        middles = (starts[chosen] + stops[chosen] + 1) // 2
        starts, stops = np.insert(starts, chosen + 1, middles), np.insert(stops, chosen, middles)
        wanted -= len(chosen)
    return starts, stops
