"""The photos that VAEs are compared on: an evenly spread sample of a source, cropped once, the same for every VAE."""

from __future__ import annotations

from dataclasses import dataclass

from latentmill.config import LatentSettings
from latentmill.errors import SampleError, SourceError
from latentmill.outcome import Event, Tell
from latentmill.outputs.pixels import image_load, result_size
from latentmill.outputs.shared import Shared
from latentmill.records import Array, SampleRef
from latentmill.transforms.variant import PLAIN


@dataclass(frozen=True)
class Photos:
    """keys, crops (uint8 HWC, of one size), in the order of the source. left_out: key and reason of unusable ones."""

    listed: int
    keys: tuple[str, ...]
    crops: tuple[Array, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.crops[0].shape[:2]
        return height, width


def gather(chosen: LatentSettings, count: int, shared: Shared, tell: Tell) -> Photos:
    """At most `count` photos: the first, and evenly on from there, so that the same source gives the same ones.

    Raises SourceError, also where none can be used; ConfigError where photos differ in size and no crop is asked for.
    """
    images, listing = shared.numbered_images(chosen, numbering=False)
    for text in listing.warnings:
        tell(Event("warning", text))
    load = image_load(chosen, result_size(chosen, images, listing), PLAIN)
    kept: list[tuple[str, Array]] = []
    left_out: list[tuple[str, str]] = []
    for ref in spread(listing.spread(count), count):
        try:
            sample = None if ref.skip else load(ref, load.decode(images.read(ref)))
        except SampleError as error:
            left_out.append((ref.key, str(error)))
            continue
        if sample is None:
            left_out.append((ref.key, ref.skip or "left out by the transform's rule"))
        else:
            kept.append((ref.key, sample.array))
    if not kept:
        key, reason = left_out[0] if left_out else ("", "it lists none")
        raise SourceError(f"none of {len(left_out)} photos of {chosen.source} can be used; the first, {key}: {reason}")
    keys, crops = zip(*kept, strict=True)
    return Photos(listing.count, keys, crops, tuple(left_out))


def spread(refs: list[SampleRef], count: int) -> list[SampleRef]:
    """So many of them, evenly, the first among them; all where they are fewer."""
    if len(refs) <= count:
        return refs
    return [refs[number * len(refs) // count] for number in range(count)]
