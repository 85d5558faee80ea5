"""What is known of an output whose model cannot be had: how many samples, and bytes by the registry's figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentmill.config import BucketSettings, CaptionSettings, LatentSettings, VisionSettings
from latentmill.encoders.models import check_statistic
from latentmill.estimate import Estimate
from latentmill.formats.metadata import ModelInfo, Normalization
from latentmill.formats.vision import REPA_PIXELS
from latentmill.outcome import Tell
from latentmill.outputs.buckets import bucket_table, divided_table, latents_bytes
from latentmill.outputs.captions import tell_missing
from latentmill.outputs.common import divided, wanted_refs
from latentmill.outputs.kinds import Chosen
from latentmill.outputs.latents import latent_info
from latentmill.outputs.pixels import result_size
from latentmill.outputs.shared import Shared
from latentmill.records import Listing
from latentmill.registry import MODELS, TEXT_MODELS, VISION_MODELS
from latentmill.sources.features import Captions

_FILE_BYTES = 500  # header and index row of a file, about


@dataclass(frozen=True)
class Known:
    """Of each variant of an output. bytes: on the disk, about; None where the model would have to tell."""

    listing: Listing
    samples: int
    bytes: int | None


def known_without_model(chosen: Chosen, shared: Shared, tell: Tell) -> Known:
    """What can be told, and refused, without the model. Raises LatentmillError."""
    settings = chosen.settings
    if isinstance(settings, CaptionSettings):
        return _text(settings, shared, tell)
    if isinstance(settings, BucketSettings):
        return _buckets(settings, shared)
    if isinstance(settings, VisionSettings):
        return _vision(settings, shared)
    assert isinstance(settings, LatentSettings)
    return _latents(settings, shared)


def vae_of(name: str) -> ModelInfo | None:
    """A VAE as far as the registry knows it; None of one without a short name."""
    entry = MODELS.get(name)
    if entry is None:
        return None
    return ModelInfo(
        name=entry.name,
        class_name=entry.repository,
        weights_sha256="",
        config_sha256="",
        latent_channels=entry.latent_channels,
        downscale_factor=entry.downscale_factor,
        normalization=Normalization(kind="scale-shift", patch=entry.patch),
        posterior=entry.posterior,
    )


def _latents(settings: LatentSettings, shared: Shared) -> Known:
    images, listing = shared.numbered_images(settings, numbering=True)
    size = result_size(settings, images, listing)
    info = vae_of(settings.model)
    if info is None:
        return Known(listing, len(wanted_refs(listing)), None)
    check_statistic(info, settings.store)
    latent = latent_info(settings, size, divided(size, info, settings.indivisible), info)
    found = Estimate.for_encode(listing.count, latent, size, settings.dest, settings.pixels is not None)
    return Known(listing, len(wanted_refs(listing)), found.output_bytes)


def _buckets(settings: BucketSettings, shared: Shared) -> Known:
    _, listing = shared.keyed_images(settings)
    table = bucket_table(settings, listing, {})
    info = vae_of(settings.model)
    if info is None:
        return Known(listing, len(wanted_refs(listing)), None)
    check_statistic(info, settings.store)
    return Known(listing, *latents_bytes(settings, listing, divided_table(table, info, settings.indivisible), info))


def _vision(settings: VisionSettings, shared: Shared) -> Known:
    by_number = settings.naming == "repa"
    _, listing = shared.numbered_images(settings, numbering=True) if by_number else shared.keyed_images(settings)
    count, tokens = len(wanted_refs(listing)), _tokens(settings)
    entry = VISION_MODELS.get(settings.model)
    if entry is None or tokens is None:
        return Known(listing, count, None)
    return Known(listing, count, count * (tokens * entry.width * np.dtype(settings.save_dtype).itemsize + _FILE_BYTES))


def _tokens(settings: VisionSettings) -> int | None:
    """Of an image. What the model's own processor makes of its size, and how wide it pools, is known with it alone."""
    if settings.tokens != "patch" or settings.input != "repa" or settings.result_size is None:
        return None
    width, height = settings.result_size
    return (width // REPA_PIXELS) * (height // REPA_PIXELS)


def _text(settings: CaptionSettings, shared: Shared, tell: Tell) -> Known:
    found = shared.captioned(settings, of_images=False)
    limits = (settings.start_index, settings.rows_end)
    captions = Captions(found, settings.label, settings.missing_caption, lambda texts: [0] * len(texts), *limits)
    listing = captions.listing()
    tell_missing(listing, settings, tell)
    count, numbers = len(wanted_refs(listing)), _numbers(settings)
    return Known(listing, count, None if numbers is None else count * (2 * numbers + _FILE_BYTES))


def _numbers(settings: CaptionSettings) -> int | None:
    """Of a caption: of an encoder that stores all positions, or the pooled vector alone; else its tokens tell it."""
    entry = TEXT_MODELS.get(settings.member or settings.model)
    if entry is None:
        return None
    usual = entry.settings.changed(settings.encoding)
    if usual.output != "pooled" and usual.positions != "all":
        return None
    pooled = entry.width if usual.output != "features" else 0
    positions = (settings.max_length or entry.max_length) if usual.output != "pooled" else 0
    return positions * entry.width * max(1, len(usual.layers)) + pooled
