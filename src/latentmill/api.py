"""The commands as Python calls: settings in, a Result out. Each chooses the stages of one Job and runs it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentmill.batching import ByBucket, ByCount
from latentmill.common import (
    announced,
    check_divisible,
    model_line,
    seconds_an_image,
    series,
    stored_int,
    torch_given_back,
    vae_spec,
)
from latentmill.config import ConvertSettings, DecodeSettings, EncodeSettings, ImageSettings, validated
from latentmill.decoding import image_size
from latentmill.destination import stored_fingerprint
from latentmill.errors import ConfigError, DestinationError, ModelError, SampleError, SourceError
from latentmill.estimate import Estimate, fitted, probe_sizes
from latentmill.files import counted
from latentmill.finish import Description
from latentmill.formats.containers import Container, container
from latentmill.formats.metadata import LatentInfo, Metadata, ModelInfo, Value
from latentmill.formats.repa import ImageLayout, LatentLayout
from latentmill.job import Job
from latentmill.loading import ImageLoad, LatentLoad
from latentmill.outcome import Event, Result, Tell, quiet
from latentmill.records import Listing, SampleRef
from latentmill.registry import FAKE, MINI
from latentmill.sources.images import ImageSource, LatentSource
from latentmill.stages import EncoderSpec, Layout
from latentmill.system import usable_cores
from latentmill.worker import Output

if TYPE_CHECKING:
    from latentmill.encoders.models import ResolvedModel

_DEFAULT_ENCODE_BATCH = 8
_PROBE_IMAGES = 8


def convert(source: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Result:
    """Crop and resize a folder or zip of photos into a dataset of equal square 8-bit RGB PNGs.

    settings: the fields of `config.ConvertSettings` (transform, resolution, max_images, num_workers, batch_size, exif,
    alpha, max_pixels, max_failures, check, overwrite). Raises LatentmillError.
    """
    chosen = validated(ConvertSettings, {"source": source, "dest": dest, **settings})
    place = _destination(chosen.source, chosen.dest)
    images = ImageSource(chosen.source)
    listing = images.listing(chosen.max_images)
    load = _image_load(chosen, images, listing)
    _check_square(load.result_size)
    output = Output("images", ImageLayout(), place, encoded=False)
    sizes = probe_sizes(images, listing)
    estimate = Estimate.for_convert(listing.count, sizes, load.result_size, place.path)
    workers, batch_size = fitted(estimate, chosen.num_workers or usable_cores(), chosen.batch_size, tell)
    return Job(
        source=images,
        load=load,
        encoder=None,
        outputs=(output,),
        describe={"images": Description(_pixel_fingerprint(chosen), image_size=load.result_size)},
        batching=ByCount(batch_size),
        batch_size=batch_size,
        load_threads=0,
        workers=workers,
        max_failures=chosen.max_failures,
        measure=lambda refs: _measure(images, load, output.layout, refs),
        check=chosen.check,
        overwrite=chosen.overwrite,
        tell=tell,
    ).run(announced(listing, tell))


def encode(source: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Result:
    """Encode images to VAE latents; with `transform` and `resolution`, raw photos are cropped in the same pass.

    settings: the fields of `config.EncodeSettings`. Latents are stored unscaled; the factors are in `latentmill.json`.
    Raises LatentmillError.
    """
    chosen = validated(EncodeSettings, {"source": source, "dest": dest, **settings})
    place = _destination(chosen.source, chosen.dest)
    images = ImageSource(chosen.source, numbering=True)
    listing = images.listing(chosen.max_images)
    load = _image_load(chosen, images, listing)
    made_with: dict[str, Value] = {} if chosen.overwrite else stored_fingerprint(place)
    batch_size = chosen.batch_size or stored_int(made_with, "batch_size") or _DEFAULT_ENCODE_BATCH
    threads = chosen.threads or stored_int(made_with, "threads") or usable_cores()
    spec, info = _encoder(chosen, threads)
    check_divisible(load.result_size, info)
    latent = _latent_info(chosen, load.result_size, info)
    fingerprint = _latent_fingerprint(chosen, spec, info, batch_size, threads)
    outputs = [Output("latents", LatentLayout(chosen.store), place, encoded=True)]
    describe = {"latents": Description(fingerprint, latent=latent, model=info, image_size=load.result_size)}
    if chosen.images is not None:
        outputs.append(Output("images", ImageLayout(), _images_beside(chosen, place, load.result_size), encoded=False))
        describe["images"] = Description(_pixel_fingerprint(chosen), image_size=load.result_size)
    device = f"{counted(threads, 'threads')} on {fingerprint['device']}, {chosen.dtype}"
    tell(Event("plan", f"{info.name}: {model_line(info)}; {device}"))
    estimate = Estimate.for_encode(listing.count, latent, load.result_size, place.path, chosen.images is not None)
    estimate.announce(tell)
    job = Job(
        source=images,
        load=load,
        encoder=spec,
        outputs=tuple(outputs),
        describe=describe,
        batching=ByCount(batch_size),
        batch_size=batch_size,
        load_threads=chosen.num_workers or usable_cores(),
        workers=1,
        max_failures=chosen.max_failures,
        measure=lambda refs: seconds_an_image(images, load, spec, refs),
        check=chosen.check,
        overwrite=chosen.overwrite,
        tell=tell,
    )
    with torch_given_back():
        return job.run(announced(listing, tell))


def _latent_info(chosen: EncodeSettings, size: tuple[int, int], info: ModelInfo) -> LatentInfo:
    width, height = size
    channels = info.latent_channels * (2 if chosen.store == "moments" else 1)
    return LatentInfo(
        shape=[channels, height // info.downscale_factor, width // info.downscale_factor],
        dtype=chosen.save_dtype,
        statistic=chosen.store,
        pixel_range=chosen.pixel_range,
        compute_dtype=chosen.dtype,
    )


def _latent_fingerprint(
    chosen: EncodeSettings, spec: EncoderSpec, info: ModelInfo, batch_size: int, threads: int
) -> dict[str, Value]:
    """Everything that may change a latent's bytes."""
    return {
        **_pixel_fingerprint(chosen),
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
        "images": chosen.images is not None,
        **{name: series(name) for name in ("torch", "diffusers") if info.class_name != FAKE},
    }


def _images_beside(chosen: EncodeSettings, latents: Container, size: tuple[int, int]) -> Container:
    """Where `--images` go: another place than the latents, which are no images' place either."""
    assert chosen.images is not None
    _check_square(size)
    beside = _destination(chosen.source, chosen.images)
    inner, outer = beside.path.resolve(), latents.path.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise ConfigError(f"--images and --dest must not be the same place or inside each other: {beside.path}")
    return beside


def decode(source: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Result:
    """Decode a dataset of latents back to PNGs, with the model and pixel range that its metadata names.

    settings: the fields of `config.DecodeSettings`. Raises LatentmillError.
    """
    from latentmill.encoders.vae import DecoderSpec, VaeSpec, choose_device

    chosen = validated(DecodeSettings, {"source": source, "dest": dest, **settings})
    place = _destination(chosen.source, chosen.dest)
    metadata = Metadata.read_beside(chosen.source)
    if metadata is None or metadata.latent is None or metadata.model is None:
        raise SourceError(f"{chosen.source} holds no latents that latentmill made (no latentmill.json of that kind)")
    info = metadata.model
    model = _decoding_model(info, chosen.model_url)
    if model.info.weights_sha256 != info.weights_sha256:
        tell(Event("warning", f"{model.info.name} is not the model that made these latents (its weights differ)"))
    latents = LatentSource(chosen.source)
    listing = latents.listing(chosen.max_images)
    threads = chosen.threads or usable_cores()
    device = choose_device(chosen.device)
    spec = DecoderSpec(VaeSpec(model, device, "float32", metadata.latent.pixel_range, "mean", 0, "float32", threads))
    bucketed = metadata.buckets is not None
    size = None if bucketed else _decoded_size(metadata.latent, info)
    fingerprint: dict[str, Value] = {"decoded_by": model.info.weights_sha256, "batch_size": chosen.batch_size}
    job = Job(
        source=latents,
        load=LatentLoad(info.latent_channels),
        encoder=spec,
        outputs=(Output("images", ImageLayout(), place, encoded=True),),
        describe={"images": Description(fingerprint, image_size=size, model=model.info)},
        batching=ByBucket(chosen.batch_size, lambda size: size) if bucketed else ByCount(chosen.batch_size),
        batch_size=chosen.batch_size,
        load_threads=usable_cores(),
        workers=1,
        max_failures=chosen.max_failures,
        measure=lambda refs: 1.0,
        check=chosen.check,
        overwrite=chosen.overwrite,
        tell=tell,
    )
    with torch_given_back():
        return job.run(announced(listing, tell))


def _decoded_size(latent: LatentInfo, info: ModelInfo) -> tuple[int, int]:
    """(width, height) of what latents of one shape decode to."""
    _, height, width = latent.fixed_shape
    return width * info.downscale_factor, height * info.downscale_factor


def _decoding_model(info: ModelInfo, given: str | None) -> ResolvedModel:
    """The model that is given, or the very one that made the latents."""
    from latentmill.encoders.models import resolve

    if given is not None:
        return resolve(given)
    if info.is_local and not Path(info.name).is_dir():
        raise ModelError(
            f"these latents were made with a model in the folder {info.name}, which is not here: --model-url"
        )
    model = resolve(info.name, None if info.is_local or info.name == MINI else info.revision, info.subfolder)
    if model.info.weights_sha256 != info.weights_sha256:
        raise ModelError(
            f"{info.name} has other weights than when it made these latents. Name the model with --model-url"
        )
    return model


def is_dataset(path: Path) -> bool:
    """Whether latentmill made what lies there."""
    return Metadata.read_beside(path) is not None


def _destination(source: Path, dest: Path) -> Container:
    place = container(dest)
    inner, outer = dest.resolve(), source.resolve()
    if inner == outer:
        raise DestinationError(f"the destination is the source: {dest}")
    if outer in inner.parents and outer.is_dir():
        raise DestinationError(f"the destination {dest} lies inside the source, where it would be taken for images")
    return place


def _image_load(chosen: ImageSettings, source: ImageSource, listing: Listing) -> ImageLoad:
    size = chosen.result_size or _first_size(source, listing, chosen)
    return ImageLoad(chosen.transform, chosen.resolution, chosen.exif, chosen.alpha, size, chosen.max_pixels)


def _first_size(source: ImageSource, listing: Listing, chosen: ImageSettings) -> tuple[int, int]:
    """(width, height) of the first image that can be read, where no resolution was asked for."""
    for ref in listing.refs():
        try:
            width, height = image_size(source.read(ref), chosen.max_pixels, exif=chosen.exif)
        except SampleError:
            continue
        return width, height
    raise SourceError(f"none of the {listing.count:,} images of {source.path} can be read")


def _check_square(size: tuple[int, int]) -> None:
    width, height = size
    if width != height:
        raise ConfigError(
            f"the layout that trainers read holds square images; these would be {width}x{height}. "
            "Use a square --resolution, or --transform center-crop-wide"
        )
    if width & (width - 1):
        raise ConfigError(f"the side must be a power of two in the layout that trainers read. Found: {width}x{height}")


def _encoder(chosen: EncodeSettings, threads: int) -> tuple[EncoderSpec, ModelInfo]:
    if chosen.model_url == FAKE and chosen.store != "moments":
        raise ConfigError(f"the fake encoder stores moments only. Found: store {chosen.store}")
    return vae_spec(
        chosen.model_url,
        chosen.revision,
        chosen.subfolder,
        device=chosen.device,
        dtype=chosen.dtype,
        pixel_range=chosen.pixel_range,
        store=chosen.store,
        seed=chosen.seed,
        save_dtype=chosen.save_dtype,
        threads=threads,
    )


def _pixel_fingerprint(chosen: ImageSettings) -> dict[str, Value]:
    size = chosen.resolution
    return {
        "transform": chosen.transform,
        "resolution": f"{size[0]}x{size[1]}" if size else None,
        "exif": chosen.exif,
        "alpha": chosen.alpha,
        "max_pixels": chosen.max_pixels,
        "pillow": series("pillow"),
    }


def _measure(source: ImageSource, load: ImageLoad, layout: Layout, refs: Sequence[SampleRef]) -> float:
    """Seconds that one image takes from bytes to bytes, from a few that work; the first one warms up."""
    times = []
    for ref in refs[:_PROBE_IMAGES]:
        start = time.perf_counter()
        try:
            sample = load(ref, source.read(ref))
        except SampleError:
            continue
        if sample is not None:
            layout.to_bytes(sample.array)
        times.append(time.perf_counter() - start)
    steady = times[1:] or times
    return sum(steady) / len(steady) if steady else 0.01


__all__ = ["Event", "Result", "convert", "decode", "encode"]
