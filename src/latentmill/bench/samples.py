"""The photos to measure with: the user's own, or those that come with the package."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from latentmill.decoding import decode
from latentmill.errors import SampleError, SourceError
from latentmill.records import Array, SampleRef
from latentmill.sources.images import ImageSource

_MOST_PIXELS = 200_000_000  # of all decoded photos together, 600 MB


@dataclass(frozen=True)
class Samples:
    """Photos, as bytes and as uint8 HWC RGB pixels, in equal number. name: of the source, for a person.

    images, refs: where they are read. left_out: key and reason of each that could not be used. listed: images there.
    """

    name: str
    listed: int
    images: ImageSource
    refs: list[SampleRef] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    pixels: list[Array] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Median (height, width)."""
        height, width = np.median([pixels.shape[:2] for pixels in self.pixels], axis=0)
        return int(height), int(width)

    @property
    def mean_bytes(self) -> float:
        return sum(map(len, self.data)) / len(self.data)


def gather(source: Path | None, count: int) -> Samples:
    """At most `count` photos, spread over the source; the packaged ones without a source. Raises SourceError."""
    if source is None:
        with as_file(files("latentmill") / "assets" / "photos") as folder:
            return _gathered(folder, "the package", count)
    return _gathered(source, str(source), count)


def _gathered(path: Path, name: str, count: int) -> Samples:
    images = ImageSource(path)
    listing = images.listing()
    stride = max(1, listing.count // count)
    found = Samples(name, listing.count, images)
    pixels = 0
    for position, ref in enumerate(listing.refs()):
        if position % stride or len(found.refs) + len(found.left_out) >= count:
            continue
        try:
            data = images.read(ref)
            photo, _ = decode(data)
        except SampleError as error:
            found.left_out.append((ref.key, str(error)))
            continue
        pixels += photo.shape[0] * photo.shape[1]
        if pixels > _MOST_PIXELS and found.refs:
            break
        found.refs.append(ref)
        found.data.append(data)
        found.pixels.append(photo)
    if not found.refs:
        key, reason = found.left_out[0]
        raise SourceError(f"none of {len(found.left_out)} images of {path} can be decoded; the first, {key}: {reason}")
    return found
