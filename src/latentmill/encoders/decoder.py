"""The decoder of a dataset of latents: the very VAE that made it, as its metadata names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latentmill.encoders.models import ResolvedModel, resolve
from latentmill.encoders.vae import DecoderSpec, VaeSpec
from latentmill.errors import ModelError
from latentmill.formats.metadata import LatentInfo, ModelInfo
from latentmill.records import Array, Encoded, Sample, SampleRef
from latentmill.registry import MINI


def model_of(info: ModelInfo, given: str | None) -> ResolvedModel:
    """The model that is given, or the very one that made the latents."""
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


def decoder_spec(model: ResolvedModel, latent: LatentInfo, device: str, threads: int) -> DecoderSpec:
    """What decodes stored latents (their mean, unscaled) to pixels of the size before padding."""
    vae = VaeSpec(model, device, "float32", latent.pixel_range, "mean", 0, "float32", threads)
    return DecoderSpec(vae, latent.padded_from)


def decoded(spec: DecoderSpec, latents: Sequence[Array]) -> list[Array]:
    """float32 (C, h, w) each, as stored -> uint8 HWC each, one at a time. Raises ModelError where one cannot be."""
    pixels = []
    for latent in latents:
        (result,) = spec.open().encode([Sample(SampleRef(0, "", ""), np.asarray(latent), "")])
        if not isinstance(result, Encoded):
            raise ModelError(f"a latent cannot be decoded: {result.reason}")
        pixels.append(result.array)
    return pixels
