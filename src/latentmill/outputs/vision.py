"""Features of a vision encoder as an output: the targets that REPA's alignment loss is computed with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latentmill.batching import ByCount
from latentmill.config import VisionSettings
from latentmill.estimate import announce_output, largest_of, loading_threads, probe_sizes
from latentmill.files import counted
from latentmill.finish import Description
from latentmill.formats.containers import Container, container
from latentmill.formats.metadata import Value
from latentmill.formats.pixart import ReaderKind, check_names
from latentmill.formats.vision import VisionLayout
from latentmill.job import Job
from latentmill.loading import AlteredLoad
from latentmill.outcome import Event, Tell
from latentmill.outputs.common import (
    batch_size_of,
    begun_with,
    destination,
    feature_folder,
    seconds_an_image,
    series,
)
from latentmill.outputs.latents import DEFAULT_BATCH
from latentmill.outputs.pixels import image_load, pixel_fingerprint, result_size
from latentmill.outputs.processes import encoder_devices, encoder_threads, told
from latentmill.outputs.shared import Shared
from latentmill.passes import Prepared
from latentmill.records import Listing
from latentmill.stages import Source
from latentmill.transforms.variant import Variant, variants
from latentmill.worker import Output

if TYPE_CHECKING:
    from latentmill.encoders.vision import VisionSpec
    from latentmill.formats.metadata import VisionInfo, VisionModelInfo

_NPY_HEADER, _ROW_BYTES = 128, 480


def prepare_vision(chosen: VisionSettings, shared: Shared, tell: Tell) -> list[Prepared]:
    """A job for each variant; what can be refused is, and what will be done is told. Raises LatentmillError."""
    found = variants(chosen.flip, chosen.crops, chosen.crop_seed)
    return [_prepared(chosen, variant, shared, tell) for variant in found]


def _prepared(chosen: VisionSettings, variant: Variant, shared: Shared, tell: Tell) -> Prepared:
    from latentmill.encoders.vision import vision_info

    place = _place(chosen, variant, shared)
    images, listing = _images(chosen, shared)
    made_with = begun_with(chosen, place, container(chosen.dest))
    threads = encoder_threads(chosen, made_with)
    asked = (chosen.model, chosen.revision, chosen.subfolder, chosen.device, chosen.dtype)
    key = ("vision", *asked, chosen.tokens, chosen.input, chosen.save_dtype, threads)
    spec, model = shared.once(key, lambda: _encoder(chosen, threads))
    spec = shared.one(spec)
    devices = encoder_devices(chosen, spec, threads)
    size = _size(chosen, spec, images, listing)
    info = vision_info(spec, None if size is None else size[::-1])
    assert info.input_size is not None
    device = f"{told(threads, spec.device, devices)}, {chosen.dtype}"
    height, width = info.input_size
    batch_size = batch_size_of(chosen.batch_size, made_with, DEFAULT_BATCH, spec, info.input_size, shared, tell)
    tell(Event("plan", f"{model.name}: {info.tokens} tokens of {width}x{height} pixels, {info.width} wide; {device}"))
    total = listing.count * _bytes(chosen, info)
    announce_output(counted(listing.count, "images"), total, place.path, tell)
    job = Job(
        source=images,
        load=AlteredLoad(image_load(chosen, size, variant), spec.resize),
        encoder=spec,
        outputs=(Output("vision", _layout(chosen), place, encoded=True),),
        describe={
            "vision": Description(
                _fingerprint(chosen, variant, spec, model, batch_size, threads),
                image_size=size,
                vision=info,
                vision_model=model,
            )
        },
        batching=ByCount(batch_size),
        batch_size=batch_size,
        load_threads=loading_threads(chosen.num_workers, largest_of(probe_sizes(images, listing))),
        workers=len(devices),
        devices=devices,
        max_failures=chosen.max_failures,
        measure=lambda encoder, refs: seconds_an_image(spec, (height, width)),
        check=chosen.check,
        overwrite=chosen.overwrite,
        trust=chosen.trust_source,
        patient=chosen.wait,
        tell=tell,
    )
    return Prepared(job, listing, total)


def _place(chosen: VisionSettings, variant: Variant, shared: Shared) -> Container:
    dest = variant.beside(chosen.dest)
    if chosen.naming == "repa":
        return destination(chosen.source, dest)
    found = shared.captioned(chosen, of_images=True)
    reader: ReaderKind = "single" if chosen.naming == "pixart/single" else "multi"
    check_names((row.key for row in found.rows), reader, ".npy")
    return feature_folder(dest, found)


def _images(chosen: VisionSettings, shared: Shared) -> tuple[Source, Listing]:
    return shared.numbered_images(chosen, numbering=True) if chosen.naming == "repa" else shared.keyed_images(chosen)


def _layout(chosen: VisionSettings) -> VisionLayout:
    return VisionLayout(chosen.naming)


def _encoder(chosen: VisionSettings, threads: int) -> tuple[VisionSpec, VisionModelInfo]:
    from latentmill.encoders.device import choose_device
    from latentmill.encoders.vision import vision_spec

    return vision_spec(
        chosen.model,
        chosen.revision,
        chosen.subfolder,
        device=choose_device(chosen.device),
        dtype=chosen.dtype,
        tokens=chosen.tokens,
        input=chosen.input,
        save_dtype=chosen.save_dtype,
        threads=threads,
    )


def _size(chosen: VisionSettings, spec: VisionSpec, images: Source, listing: Listing) -> tuple[int, int] | None:
    """(width, height) of the pixels before the model's own resize; None where that makes all of them one size."""
    own_size = spec.rule.size_of(None) is not None and not getattr(spec.rule, "on_floats", False)
    return None if chosen.resolution is None and own_size else result_size(chosen, images, listing)


def _bytes(chosen: VisionSettings, info: VisionInfo) -> int:
    """Of one image's features on the disk, about."""
    assert info.grid is not None
    patches = info.grid[0] * info.grid[1]
    tokens = {"patch": patches, "pooled": 1, "both": patches + 1}[chosen.tokens]
    return tokens * info.width * np.dtype(chosen.save_dtype).itemsize + _NPY_HEADER + _ROW_BYTES


def _fingerprint(
    chosen: VisionSettings, variant: Variant, spec: VisionSpec, model: VisionModelInfo, batch_size: int, threads: int
) -> dict[str, Value]:
    """Everything that may change a feature's bytes."""
    return {
        **pixel_fingerprint(chosen, variant),
        "vision_weights": model.weights_sha256,
        "vision_config": model.config_sha256,
        "vision_processor": model.processor_sha256,
        "tokens": chosen.tokens,
        "input": chosen.input,
        "naming": chosen.naming,
        "device": spec.device.partition(":")[0],
        "dtype": chosen.dtype,
        "save_dtype": chosen.save_dtype,
        "batch_size": batch_size,
        "threads": threads,
        "torch": series("torch"),
        "transformers": series("transformers"),
    }
