"""What passes between the stages: SampleRef -> Sample -> Encoded -> Outcome, one per image, all frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NOTHING: Mapping[str, Array] = {}  # beside an array

# Things about a source image that a person may not expect; counted in the summary, listed in the report.
EXIF_ROTATED = "exif-rotated"
TRANSPARENT = "transparent"
CMYK = "cmyk"
SIXTEEN_BIT = "16-bit"
NOTES = (EXIF_ROTATED, TRANSPARENT, CMYK, SIXTEEN_BIT)
RECOMPUTED_FLOAT32 = "recomputed-float32"
TILED = "tiled"
SMALLER_BATCH = "smaller-batch"  # than planned, for want of memory
TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a source image became pixels of a bucket; what size conditioning needs. Pairs are (height, width).

    size: of the source image, as decoded. scaled: what it was resized to. bucket: of the result. crop: the part of
    the scaled image that the result shows, (top, left, bottom, right); negative or beyond it where it was padded.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    crop: tuple[int, int, int, int]
    bucket: tuple[int, int]


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where one image is and what is known of it before its bytes are read.

    index: the number in its output name. key: path relative to the source, `/` between parts.
    stat: changes when the bytes do (size and modification time, or size and CRC-32 in a zip; a caption's digest).
    where: how the source finds the bytes; () for a file in a folder. digest: of the bytes, where the
    source already knows it, else "". fault: why it cannot be used, seen while listing, else "". skip: by which rule
    it is left out, else "". size: (height, width) as the source tells it. caption, tokens: of a text, and how many
    real tokens it is encoded to.
    """

    index: int
    key: str
    stat: str
    label: int | None = None
    where: tuple[int, ...] = ()
    digest: str = ""
    fault: str = ""
    skip: str = ""
    size: tuple[int, int] | None = None
    caption: str | None = None
    tokens: int = 0


def everything(ref: SampleRef) -> bool:
    """Where all that is listed is wanted."""
    return True


@dataclass(frozen=True)
class Listing:
    """What a source holds: how many images, the class table (None without one), and warnings for the person.

    wanted: of what is listed, what this job is to make; the rest is kept where it was made before, and else not made.
    trusted: not of the source itself, but as the ledger of what stands at a destination has it. result_size: (width,
    height) of what was made, where that is told too.
    """

    count: int
    classes: list[str] | None
    warnings: list[str]
    knows_digests: bool
    _refs: Callable[[], Iterator[SampleRef]]
    wanted: Callable[[SampleRef], bool] = everything
    trusted: bool = False
    result_size: tuple[int, int] | None = None
    _at: Callable[[int], SampleRef] | None = None

    def refs(self) -> Iterator[SampleRef]:
        """Every image in order, made one at a time: a million of them need not be held."""
        return self._refs()

    def spread(self, count: int) -> list[SampleRef]:
        """At least `count` images, or all: evenly from the first on. Quick where a source finds them by position."""
        positions = range(0, self.count, max(1, self.count // count))
        if self._at is not None:
            return [self._at(position) for position in positions]
        return list(islice(self.refs(), 0, self.count, positions.step))


@dataclass(frozen=True, slots=True)
class Sample:
    """One loaded image: uint8 HWC RGB pixels (a float latent, when decoding; token ids, of a caption), and notes."""

    ref: SampleRef
    array: Array
    digest: str
    notes: tuple[str, ...] = ()
    geometry: Geometry | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder made of one sample: the array that a layout stores, and per-channel sums for statistics.

    beside: further arrays of the same file by name, as the pooled vector of a text.
    """

    array: Array
    notes: tuple[str, ...] = ()
    sums: tuple[float, ...] = ()
    beside: Mapping[str, Array] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One committed output file: its name in the dataset, size in bytes, digest and CRC-32 of its bytes."""

    name: str
    size: int
    digest: str
    crc: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image: stored (`files`, by output name), skipped by a rule (`reason`), or rejected."""

    ref: SampleRef
    digest: str = ""
    notes: tuple[str, ...] = ()
    files: dict[str, StoredFile] = field(default_factory=dict)
    sums: tuple[float, ...] = ()
    skipped: bool = False
    stage: str = ""
    reason: str = ""
    geometry: Geometry | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Emitted after every batch of a shard; counts are negative where the work of a process that died is taken back.

    reasons: key and reason of each reject.
    """

    done: int
    rejected: int = 0
    skipped: int = 0
    shard: int = -1
    reasons: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A committed shard: counts, and seconds by stage (for the report; never part of the data)."""

    shard: int
    images: int
    stored: int
    rejected: int
    skipped: int
    seconds: dict[str, float]
