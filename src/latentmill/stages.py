"""The protocols between the stages. A plug-in implements the primitive; loops and batches live in worker and job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from latentmill.errors import SampleError
from latentmill.records import Encoded, Listing, Sample, SampleRef


class Source(Protocol):
    """Lists images without reading them, and reads one image's bytes. Picklable."""

    def listing(self, max_images: int | None = None) -> Listing: ...
    def read(self, ref: SampleRef) -> bytes: ...


class Load(Protocol):
    """Bytes of one image to what an encoder takes; None where the transform's rule leaves it out. Picklable."""

    def __call__(self, ref: SampleRef, data: bytes) -> Sample | None: ...


class Encoder(Protocol):
    """A batch of samples of one shape to one result each. A sample that fails gets a SampleError in its place."""

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]: ...


class EncoderSpec(Protocol):
    """Describes an encoder; picklable and cheap. `open` loads it."""

    def open(self) -> Encoder: ...
