"""VAE features of a captioned source's images, each in the aspect bucket nearest to its shape, as PixArt reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from latentmill.batching import ByBucket
from latentmill.common import (
    Prepared,
    captioned_source,
    check_divisible,
    check_feature_folder,
    model_line,
    seconds_an_image,
    series,
    stored_int,
    stored_reader,
    vae_spec,
)
from latentmill.config import ImageFeatureSettings, validated
from latentmill.destination import stored_fingerprint
from latentmill.errors import SampleError
from latentmill.estimate import DECODE_COPIES, announce_output
from latentmill.files import counted
from latentmill.finish import Description
from latentmill.formats.containers import FolderContainer
from latentmill.formats.metadata import BucketInfo, LatentInfo, ModelInfo, Value
from latentmill.formats.pixart import PixArtLatents, ReaderKind, check_names, latents_folder
from latentmill.job import Job
from latentmill.loading import BucketLoad
from latentmill.outcome import Event, Result, Tell, quiet
from latentmill.records import Array, Listing
from latentmill.registry import FAKE
from latentmill.sources.features import FeatureImages
from latentmill.stages import EncoderSpec
from latentmill.system import available_memory, usable_cores
from latentmill.transforms.bucket import BucketTable, square_table, table_for
from latentmill.transforms.bucket_report import BucketReport
from latentmill.transforms.fit import default_filter, geometry
from latentmill.worker import Output

_BATCH_PIXELS = 8 * 512 * 512  # of a batch where none is asked for
_MAX_BATCH = 8
_LOADING_SHARE = 0.25  # of the available memory
_MAX_THREADS = 256
_NPY_HEADER, _ROW_BYTES = 128, 600


def image_features(data_info: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Result:
    """VAE features (moments) of every image of a captioned source, in the bucket nearest to its shape.

    settings: the fields of `config.ImageFeatureSettings`. Raises LatentmillError.
    """
    return prepare_images(tell, data_info=data_info, dest=dest, **settings).run()


def prepare_images(tell: Tell, **settings: Any) -> Prepared:
    """Everything that can be refused, and what will be done told, before the work. Raises LatentmillError."""
    chosen = validated(ImageFeatureSettings, settings)
    place = FolderContainer(chosen.dest / latents_folder(chosen.resolution, chosen.multi_scale, chosen.suffix))
    made_with = {} if chosen.overwrite else stored_fingerprint(place)
    reader: ReaderKind = chosen.reader or stored_reader(made_with) or ("multi" if chosen.multi_scale else "single")
    found = captioned_source(chosen, of_images=True)
    images = FeatureImages(found, chosen.start_index, chosen.end_index, chosen.exif, chosen.max_pixels)
    check_feature_folder(place, found)
    check_names((row.key for row in found.rows), reader, ".npy")
    listing = images.listing()
    load = _bucket_load(chosen, _table(chosen, listing, made_with))
    threads = chosen.threads or stored_int(made_with, "threads") or usable_cores()
    spec, info = _vae(chosen, threads)
    for bucket in load.table.buckets:
        check_divisible(bucket.size[::-1], info)
    _tell_buckets(load.table, load.fit, listing, tell)
    batch_size = _batch_size(chosen, made_with, spec, load.table, tell)
    device = getattr(spec, "device", "cpu")
    tell(Event("plan", f"{info.name}: {model_line(info)}; {counted(threads, 'threads')} on {device}, {chosen.dtype}"))
    _announce_latents(listing, load.table, info, chosen.save_dtype, place.path, tell)
    fingerprint = _image_fingerprint(chosen, load, reader, info, device, batch_size, threads)
    job = Job(
        source=images,
        load=load,
        encoder=spec,
        outputs=(Output("latents", PixArtLatents(reader), place, encoded=True),),
        describe={"latents": _description(chosen, fingerprint, load, info)},
        batching=ByBucket(batch_size, lambda size: load.table.nearest(*size).size),
        batch_size=batch_size,
        load_threads=_load_threads(chosen, listing),
        workers=1,
        max_failures=chosen.max_failures,
        measure=lambda refs: seconds_an_image(images, load, spec, refs),
        check=chosen.check,
        overwrite=chosen.overwrite,
        patient=chosen.wait,
        tell=tell,
    )
    return Prepared(job, listing)


def _bucket_load(chosen: ImageFeatureSettings, table: BucketTable) -> BucketLoad:
    return BucketLoad(
        table,
        chosen.fit or ("stretch" if chosen.multi_scale else "cover"),
        default_filter(chosen.resolution, chosen.multi_scale),
        chosen.exif,
        chosen.alpha,
        chosen.max_pixels,
    )


def _load_threads(chosen: ImageFeatureSettings, listing: Listing) -> int:
    """As asked; else one a core, as far as that many of the largest images can be decoded at once."""
    if chosen.num_workers is not None:
        return chosen.num_workers
    largest = max((ref.size[0] * ref.size[1] for ref in listing.refs() if ref.size), default=1)
    room = (available_memory() or math.inf) * _LOADING_SHARE / (largest * DECODE_COPIES)
    return max(1, min(usable_cores(), int(min(room, _MAX_THREADS))))


def _vae(chosen: ImageFeatureSettings, threads: int) -> tuple[EncoderSpec, ModelInfo]:
    return vae_spec(
        chosen.vae,
        chosen.revision,
        chosen.subfolder,
        device=chosen.device,
        dtype=chosen.dtype,
        pixel_range=chosen.pixel_range,
        save_dtype=chosen.save_dtype,
        threads=threads,
        tiling=chosen.tiling,
    )


def _description(
    chosen: ImageFeatureSettings, fingerprint: dict[str, Value], load: BucketLoad, info: ModelInfo
) -> Description:
    return Description(
        fingerprint,
        buckets=BucketInfo(table=load.table.to_text(), fit=load.fit, resample=load.resample),
        latent=LatentInfo(
            shape=[2 * info.latent_channels, None, None],
            dtype=chosen.save_dtype,
            statistic="moments",
            pixel_range=chosen.pixel_range,
            compute_dtype=chosen.dtype,
        ),
        model=info,
    )


def _table(chosen: ImageFeatureSettings, listing: Listing, made_with: dict[str, Value]) -> BucketTable:
    """The buckets; those that were fitted to the images when the destination was begun stay as they are."""
    if not chosen.multi_scale:
        return square_table(chosen.resolution)
    made = made_with.get("bucket_table")
    if made_with.get("buckets") == chosen.buckets and isinstance(made, str):
        return BucketTable.from_text(made)

    def sizes() -> Array:
        usable = [ref.size for ref in listing.refs() if ref.size and not (ref.fault or ref.skip)]
        return np.array(usable, np.int64).reshape(-1, 2)

    return table_for(chosen.buckets, chosen.resolution, sizes)


def preview_buckets(
    source: str | Path, resolution: int, buckets: str = "reference", fit: str = "stretch", **settings: Any
) -> BucketReport:
    """What a bucket table does to a captioned source's images, by their sizes alone, without encoding anything.

    settings: of the source (images, path_column, exif). Raises LatentmillError.
    """
    chosen = validated(
        ImageFeatureSettings,
        {"data_info": source, "dest": source, "resolution": resolution, "buckets": buckets, "fit": fit,
         "multi_scale": True, **settings},
    )  # fmt: skip
    listing = FeatureImages(captioned_source(chosen, of_images=True), exif=chosen.exif).listing()
    return bucket_report(_table(chosen, listing, {}), fit, listing)


def bucket_report(table: BucketTable, fit: str, listing: Listing) -> BucketReport:
    """What a table does to the images of a listing, by their sizes alone."""
    report = BucketReport(table)
    for ref in filter(listing.wanted, listing.refs()):
        if ref.skip or ref.fault or ref.size is None:
            report.leave_out(ref.key, ref.skip or ref.fault or "its size is not known")
            continue
        try:
            report.add(geometry(fit, ref.size, table.nearest(*ref.size).size))
        except SampleError as error:
            report.leave_out(ref.key, error.reason)
    return report


def _tell_buckets(table: BucketTable, fit: str, listing: Listing, tell: Tell) -> None:
    report = bucket_report(table, fit, listing)
    total, used = report.totals(), sum(row.images > 0 for row in report.rows())
    lost = total.distortion if fit == "stretch" else total.cropped_away
    what = "mean distortion" if fit == "stretch" else "cropped away"
    left = f", {total.left_out:,} left out" if total.left_out else ""
    tell(Event("plan", f"{used} of {len(table.buckets)} buckets ({table.name}, {fit}): {lost:.1%} {what}{left}"))


def _batch_size(
    chosen: ImageFeatureSettings, made_with: dict[str, Value], spec: EncoderSpec, table: BucketTable, tell: Tell
) -> int:
    """Images a batch: as asked, as measured, as the destination was begun with, or what suits the resolution."""
    if isinstance(chosen.batch_size, int):
        return chosen.batch_size
    stored = stored_int(made_with, "batch_size")
    if stored is not None:
        return stored
    if chosen.batch_size == "auto":
        from latentmill.encoders.autobatch import best_batch_size

        largest = max((bucket.size for bucket in table.buckets), key=lambda size: size[0] * size[1])
        best, rates = best_batch_size(spec.open(), largest)
        shown = ", ".join(f"{size}: {rate:.2f}/s" for size, rate in rates.items())
        tell(Event("plan", f"batch size {best} is best for {largest[1]}x{largest[0]} ({shown})"))
        return best
    return max(1, min(_MAX_BATCH, _BATCH_PIXELS // chosen.resolution**2))


def _image_fingerprint(
    chosen: ImageFeatureSettings,
    load: BucketLoad,
    reader: ReaderKind,
    info: ModelInfo,
    device: str,
    batch_size: int,
    threads: int,
) -> dict[str, Value]:
    """Everything that may change a latent's bytes."""
    return {
        "reader": reader,
        "device": device.partition(":")[0],
        "dtype": chosen.dtype,
        "threads": threads,
        "resolution": chosen.resolution,
        "multi_scale": chosen.multi_scale,
        "buckets": chosen.buckets,
        "bucket_table": load.table.to_text(),
        "fit": load.fit,
        "resample": load.resample,
        "exif": chosen.exif,
        "alpha": chosen.alpha,
        "max_pixels": chosen.max_pixels,
        "vae_weights": info.weights_sha256,
        "vae_config": info.config_sha256,
        "pixel_range": list(chosen.pixel_range),
        "save_dtype": chosen.save_dtype,
        "batch_size": batch_size,
        "tiling": chosen.tiling,
        "pillow": series("pillow"),
        **{name: series(name) for name in ("torch", "diffusers") if info.class_name != FAKE},
    }


def _announce_latents(
    listing: Listing, table: BucketTable, info: ModelInfo, save_dtype: str, dest: Path, tell: Tell
) -> None:
    item = np.dtype(save_dtype).itemsize
    total, images = 0, 0
    for ref in filter(listing.wanted, listing.refs()):
        if ref.size and not (ref.fault or ref.skip):
            height, width = table.nearest(*ref.size).size
            total += 2 * info.latent_channels * height * width // info.downscale_factor**2 * item
            total += _NPY_HEADER + _ROW_BYTES
            images += 1
    announce_output(counted(images, "images"), total, dest, tell)
