"""One image while it is loaded, for every job of a pass that wants it: read once, decoded once, cropped once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeGuard

from latentmill.errors import SampleError
from latentmill.files import digest
from latentmill.records import Outcome, Sample, SampleRef
from latentmill.stages import Altering, Decode, Load, Source


class Place(NamedTuple):
    """Where a sample belongs: the part of the pass, its shard, and the batch in that."""

    part: int
    shard: int
    batch: int


class Wanted(NamedTuple):
    """A sample that is to be loaded, and where it belongs."""

    place: Place
    ref: SampleRef

    @property
    def key(self) -> str:
        return self.ref.key


class Wants(Protocol):
    """The part of a job that loading needs."""

    @property
    def source(self) -> Source: ...
    @property
    def load(self) -> Load: ...


class SharedImage:
    """One image while it is loaded, for every part that wants it: its bytes, and what was decoded of them."""

    def __init__(self) -> None:
        self._data: bytes | SampleError | None = None
        self._decoded: list[tuple[Decode, object]] = []  # a SampleError where decoding failed
        self._loaded: list[tuple[Load, Sample | SampleError | None]] = []
        self.digest = ""

    def result(self, part: Wants, ref: SampleRef) -> Sample | Outcome:
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
        except MemoryError:
            return Outcome(ref, found, stage="memory", reason="there is too little memory to decode and transform it")
        if sample is None:
            return Outcome(ref, found, skipped=True)
        return replace(sample, ref=ref, digest=found)

    def _load(self, load: Load, ref: SampleRef, data: bytes) -> Sample | None:
        """As the load gives it; made once for equal ones, and for what several alter."""
        if _alters(load):
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


def _alters(load: Load) -> TypeGuard[Altering]:
    """Whether a load alters what another gives; isinstance of a protocol takes longer than all the rest here."""
    return hasattr(load, "images") and hasattr(load, "alter")


def attempt(parts: Sequence[Wants], wanted: Sequence[Wanted]) -> list[tuple[Place, Sample | Outcome]]:
    """Read, decode and transform one image, for all the parts that want it."""
    image = SharedImage()
    return [(place, image.result(parts[place.part], ref)) for place, ref in wanted]
