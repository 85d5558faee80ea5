"""What the parts of a conversion take, one after the other and as the whole job: CPU seconds an image."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentmill.bench.figures import Figure, cpu_seconds, in_turn_together, wall_seconds
from latentmill.bench.samples import Samples
from latentmill.config import PixelSettings, validated
from latentmill.errors import ConfigError
from latentmill.files import digests, remove_tree
from latentmill.formats.containers import ShardSink, container
from latentmill.formats.payload import npy_bytes
from latentmill.formats.repa import ImageLayout
from latentmill.outcome import Event
from latentmill.outputs.pixels import image_load
from latentmill.records import Array
from latentmill.stages import Load
from latentmill.storing import together
from latentmill.transforms.variant import PLAIN

READ, DECODE, CROP, PNG, WRITE, LATENT, REST = "read", "decode", "crop", "PNG", "write", "latent", "rest"
_SERIAL, _FIXED = "serial", "fixed"
_FEW, _MANY = 32, 384  # images of the two whole jobs, which tell what an image takes from what a job takes
_JOB_SHARE = 0.1  # of the time, for the longer one
_DISK_BYTES, _DISK_FILES = 50_000_000, 512  # that are written at most to measure the disk
_LATENT_SHAPE = (8, 8)  # moments of 4 channels; a factor of 8


@dataclass(frozen=True)
class PixelFigures:
    """parts: CPU seconds an image of each; `latent` is what packing and writing one takes in the place of a PNG.

    write_rate: bytes a second to the disk, with the sync of a commit. written, latent_bytes: of one file.
    serial, fixed: CPU seconds an image, and a job, before and after it runs.
    """

    parts: dict[str, Figure]
    write_rate: float
    written: float
    latent_bytes: float
    serial: float
    fixed: float

    def cpu(self, *parts: str) -> dict[str, float]:
        return {name: self.parts[name].median for name in parts}


def settings_of(transform: str, size: tuple[int, int] | str, **more: Any) -> PixelSettings:
    """Settings of a conversion to (width, height), or `WxH`. Raises ConfigError."""
    return validated(PixelSettings, {"source": ".", "dest": ".", "transform": transform, "resolution": size, **more})


def load_of(chosen: PixelSettings) -> Load:
    """How its photos are decoded and cropped, as a worker does it."""
    return image_load(chosen, chosen.result_size, PLAIN)


def cropped(samples: Samples, load: Load) -> list[Array]:
    """The photos as the transform gives them. Raises ConfigError where it leaves out all of them."""
    found = [load(ref, load.decode(data)) for ref, data in zip(samples.refs, samples.data, strict=True)]
    kept = [sample.array for sample in found if sample is not None]
    if not kept:
        raise ConfigError("the transform leaves out every photo at this resolution: choose a smaller one")
    return kept


def write_shard(folder: Path, packed: Sequence[bytes]) -> None:
    """Write files and commit them, as a worker does with a shard."""
    commit_seconds(folder, packed)


def commit_seconds(folder: Path, packed: Sequence[bytes]) -> float:
    """Write a shard, and give the seconds of wall that its commit takes: the sync, and the renames."""
    sink = container(folder).sink(0)
    layout = ImageLayout()
    named = ((layout.name(number, ""), data) for number, data in enumerate(packed))
    for group in together(named, lambda file: len(file[1])):
        _write(sink, group)
    return wall_seconds(sink.commit)


def _write(sink: ShardSink, files: Sequence[tuple[str, bytes]]) -> None:
    """Files by name, as a worker writes a group of them."""
    for (name, data), told in zip(files, digests(data for _, data in files), strict=True):
        sink.write(name, data, told)


@dataclass(frozen=True)
class WholeJob:
    """CPU seconds of one conversion in one process: while it runs, and before and after. seconds: of wall, in all."""

    images: int
    running: float
    outside: float
    seconds: float


def whole_job(source: Path, dest: Path, settings: dict[str, Any], images: int) -> WholeJob:
    """Convert a source of `images` photos; the first and the last event of progress tell when it ran."""
    from latentmill.api import convert

    ran: list[float] = []

    def tell(event: Event) -> None:
        if event.kind == "progress":
            ran.append(time.process_time())

    start = time.process_time()
    result = convert(source, dest, num_workers=1, tell=tell, **settings)
    running = ran[-1] - ran[0]
    whole = time.process_time() - start
    remove_tree(dest)
    return WholeJob(images, running, whole - running, result.seconds)


class _Laps:
    """CPU seconds of this thread by part, taken one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.thread_time()

    def lap(self, part: str) -> None:
        now = time.thread_time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


class _Parts:
    """The parts of a conversion, image by image as a worker goes through them; and whole jobs of the same photos."""

    def __init__(self, samples: Samples, chosen: PixelSettings, folder: Path, seconds: float) -> None:
        self.samples, self.chosen, self.folder, self.seconds = samples, chosen, folder, seconds
        self.load, self.layout = load_of(chosen), ImageLayout()
        images = cropped(samples, self.load)
        self.packed = [self.layout.to_bytes(image) for image in images]
        self.latent = _latent(images[0])
        self.sources: dict[int, Path] = {}

    def _chain(self) -> dict[str, float]:
        """CPU seconds of each part, over all samples."""
        sink, laps = container(self.folder / "parts").sink(0), _Laps()
        for group in together(self._cropped(laps), lambda item: item[1].nbytes):
            files = [(self.layout.name(number, ""), self.layout.to_bytes(pixels)) for number, pixels in group]
            laps.lap(PNG)
            _write(sink, files)
            laps.lap(WRITE)
        sink.commit()
        laps.lap(WRITE)
        return laps.seconds

    def _cropped(self, laps: _Laps) -> Iterator[tuple[int, Array]]:
        for number, ref in enumerate(self.samples.refs):
            data = self.samples.images.read(ref)
            laps.lap(READ)
            decoded = self.load.decode(data)
            laps.lap(DECODE)
            sample = self.load(ref, decoded)
            laps.lap(CROP)
            if sample is not None:
                yield number, sample.array

    def _latents(self) -> None:
        write_shard(self.folder / "latents", [npy_bytes(self.latent) for _ in self.samples.refs])

    def _sources(self, known: float) -> dict[int, Path]:
        """Of two jobs. known: seconds an image, by which the longer one is cut to a share of the time."""
        if not self.sources:
            many = min(_MANY, max(2 * _FEW, int(_JOB_SHARE * self.seconds / known)))
            counts = (_FEW, many)
            self.sources = {
                count: photo_links(self.samples.data, self.folder / f"photos{count}", count) for count in counts
            }
        return self.sources

    def _job(self, count: int) -> WholeJob:
        settings = self.chosen.model_dump(include=self.chosen.model_fields_set - {"source", "dest"})
        return whole_job(self.sources[count], self.folder / "converted", settings, count)

    def turn(self) -> dict[str, float]:
        """CPU seconds an image of every part, and of the whole job beyond; and of what a job does around its work."""
        count = len(self.samples.refs)
        found = {name: seconds / count for name, seconds in self._chain().items()}
        known = sum(found.values())
        found[LATENT] = cpu_seconds(self._latents) / count
        few, many = (self._job(count) for count in self._sources(known))
        found[REST] = many.running / many.images - known  # in one turn, noise may take it below 0
        found[_SERIAL] = max(0.0, (many.outside - few.outside) / (many.images - few.images))
        found[_FIXED] = max(0.0, few.outside - few.images * found[_SERIAL])
        return found

    def write_rate(self) -> float:
        """Bytes a second that the disk takes in a commit of a shard as large as real ones: the best of three.

        What others write meanwhile is flushed by the same sync, so the best is the nearest to the disk's own.
        """
        copies = min(round(_DISK_BYTES / sum(map(len, self.packed))), _DISK_FILES // len(self.packed))
        shard = self.packed * max(1, copies)
        return max(sum(map(len, shard)) / commit_seconds(self.folder / "disk", shard) for _ in range(3))


def _latent(pixels: Array) -> Array:
    channels, factor = _LATENT_SHAPE
    shape = channels, pixels.shape[0] // factor, pixels.shape[1] // factor
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def photo_links(data: Sequence[bytes], folder: Path, count: int) -> Path:
    """A source of `count` photos: the samples again and again, each written once."""
    folder.mkdir(parents=True)
    for number in range(count):
        which = number % len(data)
        path = folder / f"{number:06d}.jpg"
        if number == which:
            path.write_bytes(data[which])
        else:
            os.link(folder / f"{which:06d}.jpg", path)
    return folder


def measure_pixels(samples: Samples, chosen: PixelSettings, folder: Path, seconds: float) -> PixelFigures:
    """All of a conversion's figures; `rest` is what a whole job takes beyond its parts: the ledger, queues, loops."""
    parts = _Parts(samples, chosen, folder, seconds)
    turns = in_turn_together(parts.turn, seconds)
    found = {name: Figure.of(values) for name, values in turns.items()}
    found[REST] = found[REST].at_least(0.0)
    serial, fixed = found.pop(_SERIAL).median, found.pop(_FIXED).median
    written = sum(map(len, parts.packed)) / len(parts.packed)
    return PixelFigures(found, parts.write_rate(), written, len(npy_bytes(parts.latent)), serial, fixed)
