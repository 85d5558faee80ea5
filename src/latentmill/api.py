"""The class-conditional commands as Python calls: settings in, a Result out. Each is a recipe of one output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentmill.batching import ByBucket, ByCount
from latentmill.config import (
    DecodeSettings,
    LatentSettings,
    OutputSettings,
    PixelSettings,
    RunSettings,
    SourceSettings,
    validated,
)
from latentmill.devices import cpu_processes, each_device
from latentmill.errors import SourceError
from latentmill.finish import Description
from latentmill.formats.metadata import LatentInfo, Metadata, ModelInfo, Value
from latentmill.formats.repa import ImageLayout
from latentmill.job import Job
from latentmill.loading import LatentLoad
from latentmill.nearby import instead_of, result_near
from latentmill.outcome import Event, Result, Tell, quiet
from latentmill.outputs.common import destination
from latentmill.passes import Prepared
from latentmill.recipe import Recipe
from latentmill.sources.images import LatentSource
from latentmill.system import usable_cores
from latentmill.wording import hinted
from latentmill.worker import Output

_SHARED = SourceSettings.model_fields.keys() | RunSettings.model_fields.keys()


def convert(source: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Result:
    """Crop and resize a folder or zip of photos into a dataset of equal square 8-bit RGB PNGs.

    settings: the fields of `config.PixelSettings` (transform, resolution, max_images, num_workers, batch_size, exif,
    alpha, max_pixels, resize, flip, crops, crop_seed, max_failures, check, trust_source, overwrite).
    Raises LatentmillError.
    """
    return _made("images", convert_recipe(source, dest, **settings), tell)


def encode(source: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Result:
    """Encode images to VAE latents; with `transform` and `resolution`, raw photos are cropped in the same pass.

    settings: the fields of `config.LatentSettings`; `model_url` is its `model`, `images` its `pixels`. Latents are
    stored unscaled; the normalisation is in `latentmill.json`. Raises LatentmillError.
    """
    return _made("latents", encode_recipe(source, dest, **settings), tell)


def convert_recipe(source: str | Path, dest: str | Path, **settings: Any) -> Recipe:
    """The recipe of `convert`. Raises ConfigError."""
    return _recipe("images", "pixels", PixelSettings, source, dest, settings)


def encode_recipe(source: str | Path, dest: str | Path, **settings: Any) -> Recipe:
    """The recipe of `encode`. Raises ConfigError."""
    for name, own in (("model_url", "model"), ("images", "pixels")):
        if name in settings:
            settings[own] = settings.pop(name)
    return _recipe("latents", "latents", LatentSettings, source, dest, settings)


def _recipe(
    name: str, kind: str, fields: type[OutputSettings], source: str | Path, dest: str | Path, settings: dict[str, Any]
) -> Recipe:
    """A recipe of one output, which lies at `dest` itself."""
    validated(fields, {"source": source, "dest": dest, **settings})
    own = {key: value for key, value in settings.items() if key not in _SHARED}
    of_source = {key: value for key, value in settings.items() if key in SourceSettings.model_fields}
    run = {key: value for key, value in settings.items() if key in RunSettings.model_fields}
    return Recipe({"path": source, **of_source}, {name: {"kind": kind, "path": dest, **own}}, "", run, of_options=True)


def _made(name: str, recipe: Recipe, tell: Tell) -> Result:
    return recipe.run(lambda output: tell)[name]


def decode(source: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Result:
    """Decode a dataset of latents back to PNGs, with the model and pixel range that its metadata names.

    settings: the fields of `config.DecodeSettings`. Raises LatentmillError.
    """
    from latentmill.encoders.decoder import decoder_spec, model_of
    from latentmill.encoders.device import choose_device

    chosen = validated(DecodeSettings, {"source": source, "dest": dest, **settings})
    place = destination(chosen.source, chosen.dest)
    metadata = Metadata.read_beside(chosen.source)
    if metadata is None or metadata.latent is None or metadata.model is None:
        text = f"{chosen.source} holds no latents that latentmill made (no latentmill.json of that kind)"
        raise SourceError(hinted(text, instead_of(chosen.source) or result_near(chosen.source)))
    info = metadata.model
    model = model_of(info, chosen.model_url)
    if model.info.weights_sha256 != info.weights_sha256:
        tell(Event("warning", f"{model.info.name} is not the model that made these latents (its weights differ)"))
    latents = LatentSource(chosen.source)
    listing = latents.listing(chosen.max_images)
    threads = chosen.threads or max(1, usable_cores() // cpu_processes(chosen.device))
    device = choose_device(chosen.device)
    spec = decoder_spec(model, metadata.latent, device, threads)
    devices = each_device(chosen.device, device)
    bucketed = metadata.buckets is not None
    size = None if bucketed else _decoded_size(metadata.latent, info)
    fingerprint: dict[str, Value] = {"decoded_by": model.info.weights_sha256, "batch_size": chosen.batch_size}
    job = Job(
        source=latents,
        load=LatentLoad(info.latent_channels),
        encoder=spec,
        outputs=(Output("images", ImageLayout(), place, encoded=True, like=size and ((*size[::-1], 3), "uint8")),),
        describe={"images": Description(fingerprint, image_size=size, model=model.info)},
        batching=ByBucket(chosen.batch_size, lambda size: size) if bucketed else ByCount(chosen.batch_size),
        batch_size=chosen.batch_size,
        load_threads=usable_cores(),
        workers=len(devices),
        devices=devices,
        max_failures=chosen.max_failures,
        measure=lambda encoder, refs: 1.0,
        check=chosen.check,
        overwrite=chosen.overwrite,
        tell=tell,
    )
    return Prepared(job, listing).run()


def _decoded_size(latent: LatentInfo, info: ModelInfo) -> tuple[int, int]:
    """(width, height) of what latents of one shape decode to."""
    if latent.padded_from is not None:
        height, width = latent.padded_from
        return width, height
    _, height, width = latent.fixed_shape
    return width * info.downscale_factor, height * info.downscale_factor


def is_dataset(path: Path) -> bool:
    """Whether latentmill made what lies there."""
    return Metadata.read_beside(path) is not None


__all__ = ["Event", "Result", "convert", "decode", "encode"]
