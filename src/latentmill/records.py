"""What passes between the stages: SampleRef -> Sample -> Encoded -> Outcome, one per image, all frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Things about a source image that a person may not expect; counted in the summary, listed in the report.
EXIF_ROTATED = "exif-rotated"
TRANSPARENT = "transparent"
CMYK = "cmyk"
SIXTEEN_BIT = "16-bit"
NOTES = (EXIF_ROTATED, TRANSPARENT, CMYK, SIXTEEN_BIT)
RECOMPUTED_FLOAT32 = "recomputed-float32"


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where one image is and what is known of it before its bytes are read.

    index: the number in its output name. key: path relative to the source, `/` between parts.
    stat: changes when the bytes do (size and modification time, or size and CRC-32 in a zip).
    where: how the source finds the bytes; () for a file in a folder. digest: of the bytes, where the
    source already knows it, else "". fault: why it cannot be used, seen while listing, else "".
    """

    index: int
    key: str
    stat: str
    label: int | None = None
    where: tuple[int, ...] = ()
    digest: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Listing:
    """What a source holds: how many images, the class table (None without one), and warnings for the person."""

    count: int
    classes: list[str] | None
    warnings: list[str]
    knows_digests: bool
    _refs: Callable[[], Iterator[SampleRef]]

    def refs(self) -> Iterator[SampleRef]:
        """Every image in order, made one at a time: a million of them need not be held."""
        return self._refs()


@dataclass(frozen=True, slots=True)
class Sample:
    """One loaded image: uint8 HWC RGB pixels (or a float latent, when decoding), and what was noted."""

    ref: SampleRef
    array: Array
    digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder made of one sample: the array that a layout stores, and per-channel sums for statistics."""

    array: Array
    notes: tuple[str, ...] = ()
    sums: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One committed output file: its name in the dataset, size in bytes, digest and CRC-32 of its bytes."""

    name: str
    size: int
    digest: str
    crc: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image: stored (`files`, by output name), skipped by the transform, or rejected."""

    ref: SampleRef
    digest: str = ""
    notes: tuple[str, ...] = ()
    files: dict[str, StoredFile] = field(default_factory=dict)
    sums: tuple[float, ...] = ()
    skipped: bool = False
    stage: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Emitted after every batch."""

    done: int
    rejected: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A committed shard: counts, and seconds by stage (for the report; never part of the data)."""

    shard: int
    images: int
    stored: int
    rejected: int
    skipped: int
    seconds: dict[str, float]
