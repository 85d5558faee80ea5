"""Both of PixArt's jobs as one Python call: VAE features of images, and text features of captions.

Each is an output of a recipe, with a feature folder of its own under `dest`, its own metadata, ledger and fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentmill.config import (
    BucketSettings,
    CaptionSettings,
    FolderSettings,
    OutputSettings,
    RunSettings,
    SourceSettings,
    validated,
)
from latentmill.errors import ConfigError
from latentmill.formats.pixart import latents_folder, text_folder
from latentmill.outcome import Event, Result, Tell, quiet
from latentmill.recipe import Recipe

IMAGES = "images"  # the output of VAE features
_OF_THE_WHOLE = {"multi_scale", "resolution", "images_reader"}  # settings that describe both jobs' result
_SHARED = SourceSettings.model_fields.keys() | RunSettings.model_fields.keys()
_OTHERWISE_TOLD = {"source", "dest", "model", "member", "encoder", "label"}
_IMAGE_FIELDS = BucketSettings.model_fields.keys() - _OTHERWISE_TOLD
_TEXT_FIELDS = CaptionSettings.model_fields.keys() - _OTHERWISE_TOLD
_VAE_ALONE = {"revision"}  # the text encoder's is `text_revision`
_RESOLUTION = BucketSettings.model_fields["resolution"].default


@dataclass(frozen=True)
class Features:
    """What `pixart` made. images: VAE features; text: by caption label."""

    images: Result | None = None
    text: dict[str, Result] = field(default_factory=dict)


def pixart(data_info: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Features:
    """VAE features with `vae`, text features of each `caption_label` with `text_encoder`; both where neither is named.

    settings: the fields of `config.BucketSettings` and `config.CaptionSettings` (there, `label` is one of
    `caption_label`, a name or several); each job takes its own. No job begins before all have been checked.
    Raises LatentmillError.
    """
    recipe, warnings = feature_recipe(data_info, dest, **settings)
    for warning in warnings:
        tell(Event("warning", warning))
    results = recipe.run(lambda name: tell)
    return Features(results.pop(IMAGES, None), {name.removeprefix("captions "): r for name, r in results.items()})


def image_features(data_info: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Result:
    """VAE features of every image of a captioned source, in the bucket nearest to its shape.

    settings: `vae` and the fields of `config.BucketSettings`. Raises LatentmillError.
    """
    settings.setdefault("vae", BucketSettings.model_fields["model"].default)
    result = pixart(data_info, dest, tell=tell, **settings).images
    assert result is not None
    return result


def text_features(data_info: str | Path, dest: str | Path, *, tell: Tell = quiet, **settings: Any) -> Result:
    """Text features of one caption of every row of a captioned source, and of the empty caption.

    settings: `text_encoder`, `label` and the fields of `config.CaptionSettings`. Raises LatentmillError.
    """
    settings.setdefault("text_encoder", CaptionSettings.model_fields["model"].default)
    return next(iter(pixart(data_info, dest, tell=tell, **settings).text.values()))


def feature_recipe(
    data_info: str | Path,
    dest: str | Path,
    *,
    vae: str | None = None,
    text_encoder: str | None = None,
    caption_label: str | Sequence[str] = "prompt",
    suffix: str = "",
    **settings: Any,
) -> tuple[Recipe, list[str]]:
    """The recipe of `pixart`, and warnings of settings that nothing is made with.

    Text features made together with VAE features are named for the reader of those.
    """
    if vae is None and text_encoder is None:
        vae = BucketSettings.model_fields["model"].default
        text_encoder = CaptionSettings.model_fields["model"].default
    known = _IMAGE_FIELDS | _TEXT_FIELDS | {"label", "text_revision"}
    if unknown := sorted(settings.keys() - known):
        raise ConfigError(f"there is no setting {unknown[0]}. There are: {', '.join(sorted(known))}")
    validated(FolderSettings, {"suffix": suffix})
    labels = _labels(settings.pop("label", caption_label))
    revision = settings.pop("text_revision", None)
    outputs: dict[str, dict[str, Any]] = {}
    if vae is not None:
        own = {name: value for name, value in settings.items() if name in _IMAGE_FIELDS - _SHARED}
        folder = latents_folder(own.get("resolution", _RESOLUTION), bool(own.get("multi_scale")), suffix)
        outputs[IMAGES] = {"kind": "latents", "layout": "pixart", "model": vae, "path": folder, **own}
        settings["images_reader"] = settings.get("reader") or ("multi" if own.get("multi_scale") else "single")
    if text_encoder is not None:
        own = {name: value for name, value in settings.items() if name in _TEXT_FIELDS - _SHARED - _VAE_ALONE}
        own |= {"kind": "text", "model": text_encoder, "revision": revision}
        outputs |= {
            f"captions {label}": {**own, "label": label, "path": text_folder(label, suffix)} for label in labels
        }
    shared = {name: value for name, value in settings.items() if name in _SHARED}
    source = {"path": data_info, **{k: v for k, v in shared.items() if k in SourceSettings.model_fields}}
    run = {name: value for name, value in shared.items() if name in RunSettings.model_fields}
    unused = []
    if vae is None:
        alone = _IMAGE_FIELDS - _TEXT_FIELDS | _VAE_ALONE
        unused.append((_given({"source": data_info, "dest": dest}, settings, alone, BucketSettings), "--vae"))
    if text_encoder is None:
        alone = _TEXT_FIELDS - _IMAGE_FIELDS
        names = _given({"source": data_info, "dest": dest}, settings, alone, CaptionSettings)
        unused.append(([*names, *(["caption-label"] if labels != ["prompt"] else [])], "--text-encoder"))
    warnings = [f"nothing is made that needs {', '.join(names)}: see {option}" for names, option in unused if names]
    return Recipe(source, outputs, dest, run, of_options=True), warnings


def _labels(caption_label: str | Sequence[str]) -> list[str]:
    labels = [caption_label] if isinstance(caption_label, str) else list(dict.fromkeys(caption_label))
    if not labels:
        raise ConfigError("caption_label must name a caption. Found: none")
    return labels


def _given(places: dict[str, Any], settings: dict[str, Any], names: set[str], kind: type[OutputSettings]) -> list[str]:
    """Of the settings of one job alone, those that are not as they are by default."""
    own = {name: value for name, value in settings.items() if name in names - _OF_THE_WHOLE}
    chosen = validated(kind, {**places, **own})
    return [name.replace("_", "-") for name in own if getattr(chosen, name) != kind.model_fields[name].default]
