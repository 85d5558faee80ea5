"""Both of PixArt's jobs as one Python call: VAE features of images, and text features of captions.

Each job has a feature folder of its own under `dest`, with its own metadata, ledger and fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentmill.caption_features import text_features
from latentmill.config import ImageFeatureSettings, TextFeatureSettings
from latentmill.errors import ConfigError
from latentmill.outcome import Result, Tell, quiet
from latentmill.vae_features import image_features


@dataclass(frozen=True)
class Features:
    """What `pixart` made. images: VAE features; text: by caption label."""

    images: Result | None = None
    text: dict[str, Result] = field(default_factory=dict)


def pixart(
    data_info: str | Path,
    dest: str | Path,
    *,
    vae: str | None = None,
    text_encoder: str | None = None,
    caption_label: str | Sequence[str] = "prompt",
    tell: Tell = quiet,
    **settings: Any,
) -> Features:
    """VAE features with `vae`, text features of each label with `text_encoder`, both where neither is named.

    settings: the fields of `config.ImageFeatureSettings` and `config.TextFeatureSettings`; each job takes its own.
    Raises LatentmillError.
    """
    if vae is None and text_encoder is None:
        vae, text_encoder = (
            ImageFeatureSettings.model_fields["vae"].default,
            TextFeatureSettings.model_fields["text_encoder"].default,
        )
    known = ImageFeatureSettings.model_fields.keys() | TextFeatureSettings.model_fields.keys()
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigError(f"there is no setting {unknown[0]}. There are: {', '.join(sorted(known))}")
    labels = [caption_label] if isinstance(caption_label, str) else list(dict.fromkeys(caption_label))
    of_images = {name: value for name, value in settings.items() if name in ImageFeatureSettings.model_fields}
    of_text = {name: value for name, value in settings.items() if name in TextFeatureSettings.model_fields}
    images = None if vae is None else image_features(data_info, dest, vae=vae, tell=tell, **of_images)
    text = {}
    if text_encoder is not None:
        for label in labels:
            text[label] = text_features(data_info, dest, text_encoder=text_encoder, label=label, tell=tell, **of_text)
    return Features(images, text)
