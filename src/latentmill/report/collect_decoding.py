"""Stored latents back to pixels for a report: by the model that made them, where that needs no download."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentmill.devices import encoder_device
from latentmill.errors import ConfigError, ModelError
from latentmill.formats.metadata import LatentInfo, ModelInfo
from latentmill.records import Array
from latentmill.registry import FAKE, MINI
from latentmill.report.collect_index import Opened

if TYPE_CHECKING:
    from latentmill.encoders.models import ResolvedModel
    from latentmill.encoders.vae import DecoderSpec

_FIRST = 4  # decodes that are made however long they take


@dataclass
class Decoding:
    """Decodes one dataset's latents, for as long as `seconds` allow (None: without a limit). done: how many were.

    The first, which also loads the model, does not count.
    """

    spec: DecoderSpec
    channels: int
    seconds: float | None
    done: int = 0
    spent: float = 0.0

    @property
    def is_spent(self) -> bool:
        """Whether another one would go beyond the time."""
        return (
            self.seconds is not None and self.done >= _FIRST and self.spent * self.done / (self.done - 1) > self.seconds
        )

    def __call__(self, stored: Array) -> Array:
        """A stored array (its mean, of moments) -> uint8 HWC. Raises ModelError."""
        from latentmill.encoders.decoder import decoded

        started = time.perf_counter()
        (pixels,) = decoded(self.spec, [np.asarray(stored[: self.channels], np.float32)])
        if self.done:
            self.spent += time.perf_counter() - started
        self.done += 1
        return pixels

    def close(self) -> None:
        """Let go of the model, and leave PyTorch as it was."""
        from latentmill.encoders.device import restore_torch

        self.spec.close()
        restore_torch()


def decoding_of(dataset: Opened, vae: str | None, device: str, seconds: float | None) -> Decoding:
    """What decodes a dataset's latents. vae: a model to take instead, which may be downloaded.

    Raises ModelError, ConfigError: one that tells a person what to do.
    """
    import torch

    from latentmill.encoders.decoder import decoder_spec
    from latentmill.encoders.device import choose_device
    from latentmill.encoders.models import resolve

    latent, info = dataset.metadata.latent, dataset.metadata.model
    assert latent is not None and info is not None
    model = _here(info) if vae is None else resolve(vae)
    _check_fits(model.info, info)
    spec = decoder_spec(model, _as_floats(latent), choose_device(encoder_device(device)), torch.get_num_threads())
    return Decoding(spec, info.latent_channels, seconds)


def _as_floats(latent: LatentInfo) -> LatentInfo:
    return latent.model_copy(update={"dtype": "float32"})


def _check_fits(model: ModelInfo, made_with: ModelInfo) -> None:
    ours, theirs = ((each.latent_channels, each.downscale_factor) for each in (made_with, model))
    if ours != theirs:
        raise ConfigError(
            f"--vae must have {ours[0]} channels at 1/{ours[1]} of the size, as these latents. Found: {model.name} "
            f"with {theirs[0]} at 1/{theirs[1]}"
        )


def _here(info: ModelInfo) -> ResolvedModel:
    """The model that made the latents, without a download. Raises ModelError."""
    from latentmill.encoders.decoder import model_of
    from latentmill.encoders.models import resolve

    if info.class_name == FAKE:
        raise ModelError("the latents are of `fake`, which only measures and tests: there is nothing to decode")
    if info.is_local or info.name == MINI:
        return model_of(info, None)
    folder = cached_snapshot(info.name, info.revision)
    if folder is None:
        raise ModelError(
            f"{info.name} is not on this disk, and a report downloads nothing by itself: --vae {info.name} fetches it"
        )
    found = resolve(str(folder), None, info.subfolder)
    if found.info.weights_sha256 != info.weights_sha256:
        raise ModelError(
            f"the cached {info.name} has other weights than those of these latents: name the model (--vae)"
        )
    return found


def cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """The folder of a hub repository in the local cache, without asking the hub; None where it is not there."""
    from huggingface_hub import snapshot_download

    try:
        found: Any = snapshot_download(repository, revision=revision, local_files_only=True)
    except (OSError, ValueError):  # not in the cache (LocalEntryNotFoundError); no repository's name
        return None
    return Path(found)
