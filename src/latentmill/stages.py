"""The protocols between the stages. A plug-in implements the primitive; loops and batches live in worker and job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from latentmill.errors import SampleError
from latentmill.records import Array, Encoded, Sample, SampleRef


class Source(Protocol):
    """Reads the bytes of what it listed. Picklable; `read` may be called from many threads. Raises SampleError.

    root: keys of sources of the same root tell the same samples; None where no other source has them.
    """

    @property
    def root(self) -> Path | None: ...
    def read(self, ref: SampleRef) -> bytes: ...


class Decode(Protocol):
    """Bytes of one sample to what a Load takes. Equal ones give the same, which is then made once. Picklable."""

    def __call__(self, data: bytes) -> Any: ...


class Load(Protocol):
    """What was decoded of one sample to what an encoder takes; None where the transform's rule leaves it out.

    Picklable. What was decoded may be shared: it is not changed. Raises SampleError. One with a method `needs` tells
    the bytes of its result beforehand, of what was decoded; so the memory of threads that load is bounded.
    """

    @property
    def decode(self) -> Decode: ...
    def __call__(self, ref: SampleRef, decoded: Any) -> Sample | None: ...


@runtime_checkable
class Altering(Protocol):
    """A Load that alters what another gives, so that several can share that. alter: raises SampleError."""

    @property
    def images(self) -> Load: ...
    def alter(self, pixels: Array) -> Array: ...


class Encoder(Protocol):
    """A batch of samples of one shape to one result each. A sample that fails gets a SampleError in its place."""

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]: ...


Results = Callable[[], list[Encoded | SampleError]]


@runtime_checkable
class Submitting(Protocol):
    """An Encoder that computes the next batch while the results of the last one are made ready.

    submit: begins a batch as `encode` would compute it, and gives the call that ends it: called once, in any thread and
    in the order of the batches, it gives what `encode` gives. Either may raise what `encode` raises.
    """

    def submit(self, samples: Sequence[Sample]) -> Results: ...


@runtime_checkable
class Resting(Protocol):
    """An Encoder that computes on the processor after `submit` has returned. rest: waits until it does not any more."""

    def rest(self) -> None: ...


@runtime_checkable
class WarmingUp(Protocol):
    """An Encoder that prepares for each new shape of batch, apart from the work. warm_up: before such a batch."""

    def warm_up(self, samples: Sequence[Sample]) -> None: ...


class EncoderSpec(Protocol):
    """Describes an encoder; picklable and cheap. `open` loads it."""

    def open(self) -> Encoder: ...


class Layout(Protocol):
    """What a trainer reads: the name and the bytes of each sample's file. Picklable.

    kind: images, latents, vision or text. code: describes the layout; `formats.layouts.layout_of` makes it again from
    that. labelled: whether a `dataset.json` lies beside the data. to_bytes: takes an Encoded's `array` and `beside`.
    """

    @property
    def kind(self) -> str: ...
    @property
    def code(self) -> str: ...
    @property
    def labelled(self) -> bool: ...
    def name(self, number: int, key: str = "") -> str: ...
    def to_bytes(self, array: Array, beside: Mapping[str, Array] = ...) -> bytes: ...
    def from_bytes(self, data: bytes) -> Array: ...


class Batching(Protocol):
    """How samples become batches, decided once, in the plan, so that a sample's company never depends on timing.

    cut: the samples in order of their batches, telling of each whether it begins one. sorts: whether that is another
    order than the listing's. cost: work that a sample takes, in any unit.
    """

    @property
    def sorts(self) -> bool: ...
    def cut(self, refs: Iterable[SampleRef]) -> Iterator[tuple[SampleRef, bool]]: ...
    def cost(self, ref: SampleRef) -> float: ...
