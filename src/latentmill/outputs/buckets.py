"""Latents as an output, each image in the aspect bucket nearest to its shape, in the layout that PixArt reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from latentmill.batching import ByBucket
from latentmill.config import BucketSettings, validated
from latentmill.errors import SampleError, SettingsChangedError
from latentmill.estimate import announce_output, largest_of, loading_threads
from latentmill.files import counted
from latentmill.finish import Description
from latentmill.formats.containers import FolderContainer
from latentmill.formats.metadata import BucketInfo, LatentInfo, ModelInfo, Value
from latentmill.formats.pixart import PixArtLatents, ReaderKind, check_names
from latentmill.job import Job
from latentmill.loading import BucketLoad
from latentmill.outcome import Event, Tell
from latentmill.outputs.common import (
    batch_size_of,
    begun_with,
    divided,
    feature_folder,
    forward_fingerprint,
    model_line,
    seconds_an_image,
    series,
    shared_vae,
    stored_reader,
    wanted_refs,
)
from latentmill.outputs.processes import encoder_devices, encoder_threads, told
from latentmill.outputs.shared import Shared
from latentmill.passes import Prepared
from latentmill.records import Array, Listing
from latentmill.registry import FAKE
from latentmill.transforms.bucket import Bucket, BucketTable, square_table, table_for
from latentmill.transforms.bucket_report import BucketReport
from latentmill.transforms.fit import Fit, default_filter, geometry
from latentmill.transforms.variant import Variant, variants
from latentmill.worker import Output

_BATCH_PIXELS = 8 * 512 * 512  # of a batch where none is asked for
_MAX_BATCH = 8
_NPY_HEADER, _ROW_BYTES = 128, 680


def prepare_buckets(chosen: BucketSettings, shared: Shared, tell: Tell) -> list[Prepared]:
    """A job for each variant; what can be refused is, and what will be done is told. Raises LatentmillError."""
    found = variants(chosen.flip, chosen.crops, chosen.crop_seed)
    return [_prepared(chosen, variant, shared, tell) for variant in found]


def _prepared(chosen: BucketSettings, variant: Variant, shared: Shared, tell: Tell) -> Prepared:
    dest = variant.beside(chosen.dest)
    made_with = begun_with(chosen, FolderContainer(dest), FolderContainer(chosen.dest))
    reader: ReaderKind = chosen.reader or stored_reader(made_with) or ("multi" if chosen.multi_scale else "single")
    found = shared.captioned(chosen, of_images=True)
    place = feature_folder(dest, found)
    check_names((row.key for row in found.rows), reader, ".npy")
    images, listing = shared.keyed_images(chosen)
    table = bucket_table(chosen, listing, made_with)
    threads = encoder_threads(chosen, made_with)
    spec, info = shared_vae(chosen, shared, threads)
    devices = encoder_devices(chosen, spec, threads)
    load = _bucket_load(chosen, divided_table(table, info, chosen.indivisible), variant)
    if not listing.trusted:
        _tell_buckets(load.table, load.fit, listing, tell)
    largest = max((bucket.size for bucket in load.table.buckets), key=lambda size: size[0] * size[1])
    suiting = max(1, min(_MAX_BATCH, _BATCH_PIXELS // chosen.resolution**2))
    batch_size = batch_size_of(chosen.batch_size, made_with, suiting, spec, largest, shared, tell)
    device = getattr(spec, "device", "cpu")
    tell(Event("plan", f"{info.name}: {model_line(info)}; {told(threads, device, devices)}, {chosen.dtype}"))
    count, total = latents_bytes(chosen, listing, load.table, info)
    if not listing.trusted:
        announce_output(counted(count, "images"), total, place.path, tell)
    fingerprint = _fingerprint(chosen, load, reader, info, device, batch_size, threads)
    job = Job(
        source=images,
        load=load,
        encoder=spec,
        outputs=(Output("latents", PixArtLatents(reader, chosen.store), place, encoded=True),),
        describe={"latents": _description(chosen, fingerprint, load, info)},
        batching=ByBucket(batch_size, lambda size: load.table.nearest(*size).size),
        batch_size=batch_size,
        load_threads=_load_threads(chosen, listing),
        workers=len(devices),
        devices=devices,
        max_failures=chosen.max_failures,
        measure=lambda encoder, refs: seconds_an_image(spec, largest, info.pixel_multiple * 4),
        check=chosen.check,
        overwrite=chosen.overwrite,
        trust=chosen.trust_source,
        patient=chosen.wait,
        tell=tell,
    )
    return Prepared(job, listing, total)


def fit_of(chosen: BucketSettings) -> Fit:
    """How images come to their buckets: as asked for, or as the reference does."""
    return chosen.fit or ("stretch" if chosen.multi_scale else "cover")


def _bucket_load(chosen: BucketSettings, table: BucketTable, variant: Variant) -> BucketLoad:
    return BucketLoad(
        table,
        fit_of(chosen),
        default_filter(chosen.resolution, chosen.multi_scale),
        chosen.exif,
        chosen.alpha,
        chosen.max_pixels,
        variant,
        chosen.resize == "fast",
    )


def divided_table(table: BucketTable, info: ModelInfo, rule: str) -> BucketTable:
    """The table with sizes that the VAE can bring down, by the rule for those that do not divide; each size once."""
    sizes = {bucket: divided(bucket.size[::-1], info, rule)[::-1] for bucket in table.buckets}
    if all(bucket.size == size for bucket, size in sizes.items()):
        return table
    first = {size: bucket for bucket, size in reversed(sizes.items())}
    kept = [bucket for bucket, size in sizes.items() if first[size] is bucket]
    return BucketTable(table.name, tuple(Bucket(bucket.ratio, *sizes[bucket]) for bucket in kept))


def _load_threads(chosen: BucketSettings, listing: Listing) -> int:
    sizes = () if chosen.num_workers is not None else (ref.size for ref in listing.refs() if ref.size)
    return loading_threads(chosen.num_workers, largest_of(sizes))


def _description(
    chosen: BucketSettings, fingerprint: dict[str, Value], load: BucketLoad, info: ModelInfo
) -> Description:
    return Description(
        fingerprint,
        buckets=BucketInfo(table=load.table.to_text(), fit=load.fit, resample=load.resample),
        latent=LatentInfo(
            shape=[info.latent_channels * (2 if chosen.store == "moments" else 1), None, None],
            dtype=chosen.save_dtype,
            statistic=chosen.store,
            pixel_range=chosen.pixel_range,
            compute_dtype=chosen.dtype,
        ),
        model=info,
    )


def bucket_table(chosen: BucketSettings, listing: Listing, made_with: dict[str, Value]) -> BucketTable:
    """The buckets; those that were fitted to the images when the destination was begun stay as they are."""
    if not chosen.multi_scale:
        return square_table(chosen.resolution)
    made = made_with.get("bucket_table")
    if made_with.get("buckets") == chosen.buckets and isinstance(made, str):
        return BucketTable.from_text(made)

    def sizes() -> Array:
        if listing.trusted:
            raise SettingsChangedError(
                f"buckets {chosen.buckets} are fitted to the images, and {chosen.dest} was made with buckets "
                f"{made_with.get('buckets')}. Use the same to go on, or leave out --trust-source"
            )
        usable = [ref.size for ref in listing.refs() if ref.size and not (ref.fault or ref.skip)]
        return np.array(usable, np.int64).reshape(-1, 2)

    return table_for(chosen.buckets, chosen.resolution, sizes)


def preview_buckets(
    source: str | Path, resolution: int, buckets: str = "reference", fit: str = "stretch", **settings: Any
) -> BucketReport:
    """What a bucket table does to a captioned source's images, by their sizes alone, without encoding anything.

    settings: of the source (images, path_column, exif, exclude). Raises LatentmillError.
    """
    chosen = validated(
        BucketSettings,
        {"source": source, "dest": source, "resolution": resolution, "buckets": buckets, "fit": fit,
         "multi_scale": True, **settings},
    )  # fmt: skip
    _, listing = Shared().keyed_images(chosen)
    return bucket_report(bucket_table(chosen, listing, {}), fit, listing)


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


def _fingerprint(
    chosen: BucketSettings,
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
        **load.variant.fingerprint(),
        **({"resize": chosen.resize} if chosen.resize != "exact" else {}),
        **({"indivisible": chosen.indivisible} if chosen.indivisible != "refuse" else {}),
        **({"store": chosen.store} if chosen.store != "moments" else {}),
        **({"seed": chosen.seed} if chosen.store == "sample" else {}),
        **forward_fingerprint(chosen),
        **{name: series(name) for name in ("torch", "diffusers") if info.class_name != FAKE},
    }


def latents_bytes(chosen: BucketSettings, listing: Listing, table: BucketTable, info: ModelInfo) -> tuple[int, int]:
    """How many images will be stored, and in how many bytes."""
    item = np.dtype(chosen.save_dtype).itemsize
    channels = info.latent_channels * (2 if chosen.store == "moments" else 1)
    total = images = 0
    for ref in wanted_refs(listing):
        if ref.size:
            height, width = table.nearest(*ref.size).size
            total += channels * height * width // info.downscale_factor**2 * item + _NPY_HEADER + _ROW_BYTES
            images += 1
    return images, total
