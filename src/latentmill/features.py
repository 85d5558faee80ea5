"""Both of PixArt's jobs as one Python call: VAE features of images, and text features of captions.

Each job has a feature folder of its own under `dest`, with its own metadata, ledger and fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from latentmill.caption_features import prepare_captions
from latentmill.common import Prepared
from latentmill.config import ImageFeatureSettings, TextFeatureSettings
from latentmill.errors import ConfigError
from latentmill.outcome import Result, Tell, quiet
from latentmill.vae_features import prepare_images

IMAGES = None  # in the place of a caption label


@dataclass(frozen=True)
class Features:
    """What `pixart` made. images: VAE features; text: by caption label."""

    images: Result | None = None
    text: dict[str, Result] = field(default_factory=dict)


def pixart(data_info: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Features:
    """VAE features with `vae`, text features of each `caption_label` with `text_encoder`; both where neither is named.

    settings: the fields of `config.ImageFeatureSettings` and `config.TextFeatureSettings` (there, `label` is one of
    `caption_label`, a name or several); each job takes its own. No job begins before all have been checked.
    Raises LatentmillError.
    """
    jobs = [(name, prepare(tell)) for name, prepare in feature_jobs(data_info, dest, **settings)]
    results = {name: job.run() for name, job in jobs}
    return Features(results.pop(IMAGES, None), {str(name): result for name, result in results.items()})


def feature_jobs(
    data_info: str | Path,
    dest: str | Path,
    *,
    vae: str | None = None,
    text_encoder: str | None = None,
    caption_label: str | Sequence[str] = "prompt",
    **settings: Any,
) -> list[tuple[str | None, Callable[[Tell], Prepared]]]:
    """The jobs of `pixart`, to be prepared and then run one after the other: IMAGES first, then each caption label.

    Text features made together with single-scale VAE features are named for the reader of those.
    """
    if vae is None and text_encoder is None:
        vae = ImageFeatureSettings.model_fields["vae"].default
        text_encoder = TextFeatureSettings.model_fields["text_encoder"].default
    known = ImageFeatureSettings.model_fields.keys() | TextFeatureSettings.model_fields.keys()
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigError(f"there is no setting {unknown[0]}. There are: {', '.join(sorted(known))}")
    common = {"data_info": data_info, "dest": dest}
    jobs: list[tuple[str | None, Callable[[Tell], Prepared]]] = []
    if vae is not None:
        own = {name: value for name, value in settings.items() if name in ImageFeatureSettings.model_fields}
        jobs.append((IMAGES, partial(_images, {**common, **own, "vae": vae})))
        settings["with_single_scale"] = not settings.get("multi_scale")
    if text_encoder is not None:
        own = {name: value for name, value in settings.items() if name in TextFeatureSettings.model_fields}
        labels = [caption_label] if isinstance(caption_label, str) else list(dict.fromkeys(caption_label))
        for label in labels:
            chosen = {**common, **own, "text_encoder": text_encoder, "label": label}
            jobs.append((label, partial(_captions, chosen)))
    return jobs


def _images(settings: dict[str, Any], tell: Tell) -> Prepared:
    return prepare_images(tell, **settings)


def _captions(settings: dict[str, Any], tell: Tell) -> Prepared:
    return prepare_captions(tell, **settings)
