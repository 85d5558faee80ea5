"""Latents of one size as an output, in the layout of REPA and SiT; the cropped pixels with them, where asked for."""

from __future__ import annotations

from latentmill.batching import ByCount
from latentmill.config import LatentSettings
from latentmill.errors import ConfigError
from latentmill.estimate import Estimate, largest_of, loading_threads, probe_sizes
from latentmill.finish import Description
from latentmill.formats.containers import Container, container
from latentmill.formats.layouts import REPA, latent_layout
from latentmill.formats.metadata import LatentInfo, ModelInfo, Value
from latentmill.job import Job
from latentmill.loading import AlteredLoad
from latentmill.outcome import Event, Tell
from latentmill.outputs.common import (
    batch_size_of,
    begun_with,
    destination,
    divided,
    forward_fingerprint,
    model_line,
    seconds_an_image,
    series,
    shared_vae,
)
from latentmill.outputs.pixels import check_square, image_load, images_output, pixel_fingerprint, result_size
from latentmill.outputs.processes import encoder_devices, encoder_threads, told
from latentmill.outputs.shared import Shared
from latentmill.passes import Prepared
from latentmill.plugins import FORMATS, origin
from latentmill.registry import FAKE
from latentmill.stages import EncoderSpec
from latentmill.transforms.divide import Divide
from latentmill.transforms.variant import Variant, variants
from latentmill.worker import Output

DEFAULT_BATCH = 8


def prepare_latents(chosen: LatentSettings, shared: Shared, tell: Tell, layout: str = REPA) -> list[Prepared]:
    """A job for each variant; what can be refused is, and what will be done is told. Raises LatentmillError.

    layout: `repa`, or one that another package brings.
    """
    found = variants(chosen.flip, chosen.crops, chosen.crop_seed)
    return [_prepared(chosen, variant, shared, tell, layout) for variant in found]


def _prepared(chosen: LatentSettings, variant: Variant, shared: Shared, tell: Tell, layout: str) -> Prepared:
    place = destination(chosen.source, variant.beside(chosen.dest))
    images, listing = shared.numbered_images(chosen, numbering=True)
    size = result_size(chosen, images, listing)
    made_with = begun_with(chosen, place, container(chosen.dest))
    threads = encoder_threads(chosen, made_with)
    spec, info = shared_vae(chosen, shared, threads)
    devices = encoder_devices(chosen, spec, threads)
    encoded_size = divided(size, info, chosen.indivisible)
    if chosen.pixels is not None and encoded_size != size:
        raise ConfigError(
            f"pixels that go with latents must be of their size: {encoded_size[0]}x{encoded_size[1]}. Found: "
            f"{size[0]}x{size[1]}"
        )
    latent = latent_info(chosen, size, encoded_size, info)
    batch_size = batch_size_of(chosen.batch_size, made_with, DEFAULT_BATCH, spec, encoded_size[::-1], shared, tell)
    fingerprint = _fingerprint(chosen, variant, spec, info, batch_size, threads)
    if layout != REPA:
        fingerprint |= {"layout": layout, "layout_package": origin(FORMATS, layout)}
    like = (latent.fixed_shape, latent.dtype) if layout == REPA else None  # another may not take zeros
    outputs = [Output("latents", latent_layout(layout, chosen.store), place, encoded=True, like=like)]
    describe = {"latents": Description(fingerprint, latent=latent, model=info, image_size=size)}
    if chosen.pixels is not None:
        outputs.append(images_output(_pixels_beside(chosen, variant, place, size), size))
        describe["images"] = Description(pixel_fingerprint(chosen, variant), image_size=size)
    device = f"{told(threads, str(fingerprint['device']), devices)}, {chosen.dtype}"
    tell(Event("plan", f"{info.name}: {model_line(info)}; {device}"))
    estimate = Estimate.for_encode(listing.count, latent, size, place.path, chosen.pixels is not None)
    estimate.announce(tell)
    load = image_load(chosen, size, variant)
    job = Job(
        source=images,
        load=load if encoded_size == size else AlteredLoad(load, Divide(chosen.indivisible, info.pixel_multiple)),
        encoder=spec,
        outputs=tuple(outputs),
        describe=describe,
        batching=ByCount(batch_size),
        batch_size=batch_size,
        load_threads=loading_threads(chosen.num_workers, largest_of(probe_sizes(images, listing))),
        workers=len(devices),
        devices=devices,
        max_failures=chosen.max_failures,
        measure=lambda encoder, refs: seconds_an_image(spec, encoded_size[::-1], info.pixel_multiple * 4),
        check=chosen.check,
        overwrite=chosen.overwrite,
        trust=chosen.trust_source,
        patient=chosen.wait,
        tell=tell,
    )
    return Prepared(job, listing, estimate.output_bytes)


def latent_info(
    chosen: LatentSettings, size: tuple[int, int], encoded_size: tuple[int, int], info: ModelInfo
) -> LatentInfo:
    """Sizes are (width, height): of the images, and of what is encoded."""
    width, height = encoded_size
    channels = info.latent_channels * (2 if chosen.store == "moments" else 1)
    return LatentInfo(
        shape=[channels, height // info.downscale_factor, width // info.downscale_factor],
        dtype=chosen.save_dtype,
        statistic=chosen.store,
        pixel_range=chosen.pixel_range,
        compute_dtype=chosen.dtype,
        padded_from=size[::-1] if encoded_size != size and chosen.indivisible == "pad" else None,
    )


def _fingerprint(
    chosen: LatentSettings, variant: Variant, spec: EncoderSpec, info: ModelInfo, batch_size: int, threads: int
) -> dict[str, Value]:
    """Everything that may change a latent's bytes."""
    return {
        **pixel_fingerprint(chosen, variant),
        "vae_weights": info.weights_sha256,
        "vae_config": info.config_sha256,
        "device": getattr(spec, "device", "cpu").partition(":")[0],
        "dtype": chosen.dtype,
        "pixel_range": list(chosen.pixel_range),
        "store": chosen.store,
        "save_dtype": chosen.save_dtype,
        "batch_size": batch_size,
        "threads": threads,
        "seed": chosen.seed if chosen.store == "sample" else None,
        "images": chosen.pixels is not None,
        **({"indivisible": chosen.indivisible} if chosen.indivisible != "refuse" else {}),
        **forward_fingerprint(chosen),
        **{name: series(name) for name in ("torch", "diffusers") if info.class_name != FAKE},
    }


def _pixels_beside(chosen: LatentSettings, variant: Variant, latents: Container, size: tuple[int, int]) -> Container:
    """Where the pixels go: another place than the latents, which are no images' place either."""
    assert chosen.pixels is not None
    check_square(size)
    beside = destination(chosen.source, variant.beside(chosen.pixels))
    inner, outer = beside.path.resolve(), latents.path.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise ConfigError(f"--images and --dest must not be the same place or inside each other: {beside.path}")
    return beside
