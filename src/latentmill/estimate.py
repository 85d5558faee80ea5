"""What a job will need, said before it starts: memory, disk, and how many images may be in flight."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from latentmill.decoding import image_size
from latentmill.errors import SampleError
from latentmill.files import counted
from latentmill.formats.metadata import LatentInfo
from latentmill.outcome import Event, Tell
from latentmill.records import Listing
from latentmill.stages import Source
from latentmill.system import available_memory, usable_cores

_PROBE_IMAGES = 16
_WORKER_BYTES = 70 << 20  # a worker process before its first image, measured
# Bytes that a source pixel takes at most while it is decoded, measured: the RGB array, and beside it the file and
# Pillow's 4-byte image; of a JPEG, the file and, where it is turned upright, a second array.
_DECODING_BYTES = 10
_LOADING_SHARE = 0.25  # of the available memory
_MAX_THREADS = 256
_BATCHES_IN_FLIGHT = 4  # one loading, one being encoded, and those that wait to be written
_SAFE_SHARE = 0.8  # of the available memory
_PNG_OVERHEAD = 400
_NPY_HEADER = 128
_ROW_BYTES, _MEMBER_BYTES = 480, 150  # of index, columns and labels; in a zip, of headers and directory besides
_COLUMNS_HEADER = 1000


@dataclass(frozen=True)
class Estimate:
    """images: how many. largest: pixels of the largest probed source image. result_bytes: of one result in memory.
    output_bytes: on disk. dest: where it will lie."""

    images: int
    largest: int
    result_bytes: int
    output_bytes: int
    dest: Path

    @classmethod
    def for_convert(cls, images: int, sizes: list[tuple[int, int]], size: tuple[int, int], dest: Path) -> Estimate:
        result = 3 * size[0] * size[1]
        largest = max((width * height for width, height in sizes), default=0)
        made = images * (result + _PNG_OVERHEAD + _row_bytes(dest)) + _COLUMNS_HEADER
        return cls(images, largest, result, made, dest)

    @classmethod
    def for_encode(
        cls, images: int, latent: LatentInfo, size: tuple[int, int], dest: Path, with_images: bool
    ) -> Estimate:
        channels, height, width = latent.fixed_shape
        stored = channels * height * width * (4 if latent.dtype == "float32" else 2) + _NPY_HEADER
        result = 3 * size[0] * size[1]
        each = stored + _row_bytes(dest) + (result + _PNG_OVERHEAD if with_images else 0)
        return cls(images, 0, result, images * each + _COLUMNS_HEADER, dest)

    def memory(self, workers: int, batch_size: int) -> int:
        """Bytes of memory at most: every worker decodes one image and holds a few batches of results."""
        a_worker = _WORKER_BYTES + self.largest * _DECODING_BYTES + batch_size * _BATCHES_IN_FLIGHT * self.result_bytes
        return workers * a_worker + _WORKER_BYTES

    def announce(self, tell: Tell) -> None:
        announce_output(counted(self.images, "images"), self.output_bytes, self.dest, tell)


def announce_output(what: str, output_bytes: int, dest: Path, tell: Tell) -> None:
    """Say what will be written, and warn where it may not fit on the disk."""
    free = free_disk(dest)
    text = f"{what}, output about {human(output_bytes)}"
    tell(Event("plan", text + (f" ({human(free)} free)" if free is not None else "")))
    if free is not None and output_bytes > free:
        tell(Event("warning", f"the output of {human(output_bytes)} may not fit: {human(free)} are free"))


def fitted(estimate: Estimate, workers: int, batch_size: int, tell: Tell) -> tuple[int, int]:
    """(workers, batch size), lowered until the estimate fits the available memory; says so when it lowers them."""
    estimate.announce(tell)
    available = available_memory()
    wanted = (workers, batch_size)
    if available is not None:
        while estimate.memory(workers, batch_size) > _SAFE_SHARE * available and (workers, batch_size) != (1, 1):
            if batch_size > 1:
                batch_size //= 2
            else:
                workers -= 1
    text = f"{workers} workers, batches of {batch_size}, memory about {human(estimate.memory(workers, batch_size))}"
    tell(Event("plan", text + (f" of {human(available)} available" if available is not None else "")))
    if (workers, batch_size) != wanted:
        tell(
            Event(
                "warning",
                f"fewer images in flight than asked for, to fit the available memory: {wanted[0]} workers, batches of "
                f"{wanted[1]} became {workers} and {batch_size}",
            )
        )
    return workers, batch_size


def loading_threads(asked: int | None, largest: int) -> int:
    """As asked; else one a core, as far as that many images of `largest` pixels can be decoded at once."""
    if asked is not None:
        return asked
    room = (available_memory() or math.inf) * _LOADING_SHARE / (max(1, largest) * _DECODING_BYTES)
    return max(1, min(usable_cores(), int(min(room, _MAX_THREADS))))


def largest_of(sizes: Iterable[tuple[int, int]]) -> int:
    """Pixels of the largest."""
    return max((width * height for width, height in sizes), default=1)


def probe_sizes(source: Source, listing: Listing) -> list[tuple[int, int]]:
    """(width, height) of a few images, spread over the source."""
    sizes: list[tuple[int, int]] = []
    for ref in listing.spread(_PROBE_IMAGES):
        try:
            sizes.append(image_size(source.read(ref)))
        except SampleError:
            continue
    return sizes


def free_disk(dest: Path) -> int | None:
    """Free bytes where `dest` will lie; None if unknown."""
    folder = dest.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def human(count: float) -> str:
    """Bytes as a person reads them: 1.5 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _row_bytes(dest: Path) -> int:
    return _ROW_BYTES + (_MEMBER_BYTES if dest.suffix.lower() == ".zip" else 0)
