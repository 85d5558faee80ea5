"""One image while it is loaded, for every job of a pass that wants it: read once, decoded once, cropped once."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeGuard

import numpy as np

from latentmill.encoders import heap
from latentmill.errors import SampleError
from latentmill.files import digest
from latentmill.loading import DecodeImage
from latentmill.records import Array, Outcome, Sample, SampleRef
from latentmill.room import Share
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
    """One image while it is loaded, for every part that wants it: its bytes, and what was decoded of them.

    ways: of decoding it; after the last, its bytes are let go. memory: gives room for pixels. share: of the memory that
    loading may take; told before it is taken.
    """

    def __init__(self, ways: int, memory: Reused | None, share: Share | None) -> None:
        self._ways, self._memory, self._share = ways, memory, share
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
            self._read(part.source, ref)
            found = self.digest
            sample = self._load(part.load, ref)
        except SampleError as error:
            return Outcome(ref, found, stage=error.stage, reason=error.reason)
        except MemoryError:
            return Outcome(ref, found, stage="memory", reason="there is too little memory to decode and transform it")
        except Exception as fault:  # of latentmill itself: a person must learn which image it came with
            fault.add_note(f"with {ref.key}")
            raise
        if sample is None:
            return Outcome(ref, found, skipped=True)
        return replace(sample, ref=ref, digest=found)

    def _load(self, load: Load, ref: SampleRef) -> Sample | None:
        """As the load gives it; made once for equal ones, and for what several alter."""
        if _alters(load):
            sample = self._load(load.images, ref)
            return None if sample is None else replace(sample, array=load.alter(sample.array))
        found = [result for known, result in self._loaded if known == load]
        if not found:
            try:
                found = [self._transformed(load, ref, self._decode(load.decode))]
            except SampleError as error:
                found = [error]
            self._loaded.append((load, found[0]))
        if isinstance(found[0], SampleError):
            raise found[0]
        return found[0]

    def _transformed(self, load: Load, ref: SampleRef, decoded: object) -> Sample | None:
        if self._share is not None and (needs := getattr(load, "needs", None)):
            self._share.add(needs(decoded))
        return load(ref, decoded)

    def _read(self, source: Source, ref: SampleRef) -> None:
        """Have the bytes. Raises SampleError."""
        if ref.fault:  # which one part's listing found, and another's need not mind
            source.read(ref)
        if self._data is None:
            try:
                self._data = source.read(ref)
                self.digest = digest(self._data)
                heap.map_large(len(self._data))
            except SampleError as error:
                self._data = error
        if isinstance(self._data, SampleError):
            raise self._data

    def _decode(self, decode: Decode) -> object:
        found = next((result for known, result in self._decoded if known == decode), None)
        if found is None:
            try:
                found = self._pixels(decode) if type(decode) is DecodeImage else decode(self._bytes)
            except SampleError as error:
                found = error
            self._decoded.append((decode, found))
            if len(self._decoded) == self._ways:
                self._data = b""
        if isinstance(found, SampleError):
            raise found
        return found

    @property
    def _bytes(self) -> bytes:
        assert isinstance(self._data, bytes)
        return self._data

    def _pixels(self, decode: DecodeImage) -> object:
        if self._share is None:
            return decode(self._bytes, self._memory)
        size, before = len(self._bytes), self._share.held
        self._share.add(size + decode.needs(self._bytes))
        found = decode(self._bytes, self._memory)
        self._share.set(max(before, self._share.held - size))  # what did not fit was never counted
        return found


def _alters(load: Load) -> TypeGuard[Altering]:
    """Whether a load alters what another gives; isinstance of a protocol takes longer than all the rest here."""
    return hasattr(load, "images") and hasattr(load, "alter")


class Loading:
    """Reads, decodes and transforms one image after the other, for all the parts that want it.

    reuse: photos are decoded into the memory of the one before; only where one thread loads.
    """

    def __init__(self, parts: Sequence[Wants], reuse: bool) -> None:
        self.parts = parts
        self._memory = Reused() if reuse else None
        ways: list[Decode] = []
        for part in parts:
            ways += [part.load.decode] if part.load.decode not in ways else []
        self._ways = len(ways)

    def __call__(self, wanted: Sequence[Wanted], share: Share | None = None) -> list[tuple[Place, Sample | Outcome]]:
        """share: of the memory that loading may take."""
        image = SharedImage(self._ways, self._memory, share)
        found = [(place, image.result(self.parts[place.part], ref)) for place, ref in wanted]
        del image
        if self._memory is not None:
            self._memory.take_back()
        if share is not None:
            share.set(sum(each.array.nbytes for _, each in found if isinstance(each, Sample)))
        return found


class Reused:
    """Memory for pixels, taken again once no array lies in it: fresh pages cost up to a sixth of the decoding."""

    def __init__(self) -> None:
        self._free: Array | None = None
        self._lent: list[tuple[Array, weakref.ref[Array]]] = []

    def __call__(self, size: int) -> Array:
        """Contiguous uint8, of at least so many bytes."""
        block, self._free = self._free, None
        if block is None or block.nbytes < size:
            del block  # before the larger one is taken
            block = np.empty(size, np.uint8)
        lent = np.frombuffer(block.data, np.uint8)  # every view of it keeps it alive, since its base is no array
        self._lent.append((block, weakref.ref(lent)))
        return lent

    def take_back(self) -> None:
        """Keep the largest that was lent, of those that no array lies in any more."""
        while self._lent:
            block, lent = self._lent.pop()
            if lent() is None and (self._free is None or block.nbytes > self._free.nbytes):
                self._free = block
