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
from latentmill.config import FeatureSettings, ImageFeatureSettings, TextFeatureSettings, validated
from latentmill.errors import ConfigError
from latentmill.outcome import Event, Result, Tell, quiet
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

    Text features made together with VAE features are named for the reader of those.
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
        jobs.append((IMAGES, partial(prepare_images, **{**common, **own, "vae": vae})))
        settings["images_reader"] = settings.get("reader") or ("multi" if settings.get("multi_scale") else "single")
    if text_encoder is not None:
        own = {name: value for name, value in settings.items() if name in TextFeatureSettings.model_fields}
        labels = [caption_label] if isinstance(caption_label, str) else list(dict.fromkeys(caption_label))
        if not labels:
            raise ConfigError("caption_label must name a caption. Found: none")
        for label in labels:
            chosen = {**common, **own, "text_encoder": text_encoder, "label": label}
            jobs.append((label, partial(prepare_captions, **chosen)))
    of_images = _given(settings, ImageFeatureSettings, TextFeatureSettings, common) if vae is None else []
    of_text = _given(settings, TextFeatureSettings, ImageFeatureSettings, common) if text_encoder is None else []
    if text_encoder is None and caption_label not in ("prompt", ["prompt"]):
        of_text.append("caption_label")
    for names, option in ((of_images, "--vae"), (of_text, "--text-encoder")):
        if names:
            told = ", ".join(name.replace("_", "-") for name in names)
            jobs[0] = (jobs[0][0], partial(_warned, jobs[0][1], f"nothing is made that needs {told}: see {option}"))
    return jobs


def _given(
    settings: dict[str, Any], kind: type[FeatureSettings], other: type[FeatureSettings], common: dict[str, Any]
) -> list[str]:
    """The settings of one job alone that are not as they are by default; but for those that describe the whole."""
    names = kind.model_fields.keys() - other.model_fields - {"images_reader", "multi_scale", "resolution"}
    own = {name: value for name, value in settings.items() if name in kind.model_fields}
    chosen = validated(kind, {**common, **own})
    return [name for name in own if name in names and getattr(chosen, name) != kind.model_fields[name].default]


def _warned(prepare: Callable[[Tell], Prepared], text: str, tell: Tell) -> Prepared:
    tell(Event("warning", text))
    return prepare(tell)
