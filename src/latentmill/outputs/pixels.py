"""Cropped pixels as an output: equal square PNGs in the layout of EDM2 and REPA."""

from __future__ import annotations

from itertools import chain

from latentmill.batching import ByCount
from latentmill.config import CropSettings, PixelSettings
from latentmill.config_types import BUILT_IN_TRANSFORMS, RAY
from latentmill.decoding import image_size
from latentmill.errors import ConfigError, SampleError, SourceError
from latentmill.estimate import Estimate, fitted, probe_sizes
from latentmill.finish import Description
from latentmill.formats.containers import Container
from latentmill.formats.metadata import Value
from latentmill.formats.repa import ImageLayout
from latentmill.job import Job
from latentmill.loading import ImageLoad, differing_sizes
from latentmill.outcome import Tell
from latentmill.outputs.common import destination, seconds_to_convert, series
from latentmill.outputs.processes import pixel_workers
from latentmill.outputs.shared import Shared
from latentmill.passes import Prepared
from latentmill.plugins import TRANSFORMS, load, origin
from latentmill.records import Listing
from latentmill.stages import Source
from latentmill.system import usable_cores
from latentmill.transforms.variant import Variant, variants
from latentmill.worker import Output

_PROBE_IMAGES = 8


def prepare_pixels(chosen: PixelSettings, shared: Shared, tell: Tell) -> list[Prepared]:
    """A job for each variant; what can be refused is, and what will be done is told. Raises LatentmillError."""
    destination(chosen.source, chosen.dest)
    images, listing = shared.numbered_images(chosen, numbering=False)
    size = result_size(chosen, images, listing)
    check_square(size)
    sizes = probe_sizes(images, listing)
    jobs = []
    for variant in variants(chosen.flip, chosen.crops, chosen.crop_seed):
        place = destination(chosen.source, variant.beside(chosen.dest))
        estimate = Estimate.for_convert(listing.count, sizes, size, place.path)
        if shared.encoders:
            estimate.announce(tell)
            workers, batch_size, load_threads = 1, chosen.batch_size, chosen.num_workers or usable_cores()
        else:
            workers, batch_size = _workers(chosen, estimate, tell)
            load_threads = 0
        job = Job(
            source=images,
            load=image_load(chosen, size, variant),
            encoder=None,
            outputs=(images_output(place, size),),
            describe={"images": Description(pixel_fingerprint(chosen, variant), image_size=size)},
            batching=ByCount(batch_size),
            batch_size=batch_size,
            load_threads=load_threads,
            workers=workers,
            max_failures=chosen.max_failures,
            measure=lambda encoder, refs: seconds_to_convert(images, refs, sizes),
            check=chosen.check,
            overwrite=chosen.overwrite,
            trust=chosen.trust_source,
            patient=chosen.wait,
            tell=tell,
        )
        jobs.append(Prepared(job, listing, estimate.output_bytes))
    return jobs


def images_output(place: Container, size: tuple[int, int]) -> Output:
    """Pixels of (width, height) that are stored as they are."""
    return Output("images", ImageLayout(), place, encoded=False, like=((size[1], size[0], 3), "uint8"))


def _workers(chosen: PixelSettings, estimate: Estimate, tell: Tell) -> tuple[int, int]:
    """(workers, batch size): what this machine's memory has room for, where they all run here."""
    workers = pixel_workers(chosen)
    if chosen.runner == RAY:
        estimate.announce(tell)
        return workers, chosen.batch_size
    return fitted(estimate, workers, chosen.batch_size, tell)


def image_load(chosen: CropSettings, size: tuple[int, int] | None, variant: Variant) -> ImageLoad:
    """How photos become pixels of (width, height); None: each may have a size of its own. Raises ConfigError."""
    if chosen.transform not in BUILT_IN_TRANSFORMS:
        load(TRANSFORMS, chosen.transform)  # is refused here, and not by a worker
    return ImageLoad(
        chosen.transform,
        chosen.resolution,
        chosen.exif,
        chosen.alpha,
        size,
        chosen.max_pixels,
        variant,
        chosen.resize == "fast",
    )


def result_size(chosen: CropSettings, source: Source, listing: Listing) -> tuple[int, int]:
    """(width, height) of every result: as asked for, or the images' own.

    Raises ConfigError where those of a few, spread over the source, differ; SourceError where none can be read.
    """
    if (known := chosen.result_size or listing.result_size) is not None:
        return known
    first: tuple[int, int] | None = None
    some = listing.spread(_PROBE_IMAGES)
    for number, ref in enumerate(chain(some, listing.refs())):
        if first is not None and number >= len(some):
            return first
        try:
            size = image_size(source.read(ref), chosen.max_pixels, exif=chosen.exif)
        except SampleError:
            continue
        first = first or size
        if size != first:
            raise differing_sizes(ref.key, size, first)
    if first is None:
        raise SourceError(f"none of the {listing.count:,} images of {chosen.source} can be read")
    return first


def check_square(size: tuple[int, int]) -> None:
    """Refuse a (width, height) that trainers of this layout do not read. Raises ConfigError."""
    width, height = size
    if width != height:
        raise ConfigError(
            f"the layout that trainers read holds square images; these would be {width}x{height}. "
            "Use a square --resolution, or --transform center-crop-wide"
        )
    if width & (width - 1):
        raise ConfigError(f"the side must be a power of two in the layout that trainers read. Found: {width}x{height}")


def pixel_fingerprint(chosen: CropSettings, variant: Variant) -> dict[str, Value]:
    """Everything that may change a pixel."""
    size, own = chosen.resolution, chosen.transform in BUILT_IN_TRANSFORMS
    return {
        "transform": chosen.transform,
        **({} if own else {"transform_package": origin(TRANSFORMS, chosen.transform)}),
        "resolution": f"{size[0]}x{size[1]}" if size else None,
        "exif": chosen.exif,
        "alpha": chosen.alpha,
        "max_pixels": chosen.max_pixels,
        "pillow": series("pillow"),
        **variant.fingerprint(),
        **({"resize": chosen.resize} if chosen.resize != "exact" else {}),
    }
