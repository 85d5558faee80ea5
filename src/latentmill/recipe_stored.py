"""The recipe as it lies with its result: what was left to be found is told, and it reads the same from where it lies.

A dataset may be moved: its own paths are from where the recipe lies. The source's is absolute, unless it lies in the
recipe's `dest` too, and so moves with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentmill.config import OutputSettings, SourceSettings
from latentmill.devices import encoder_device
from latentmill.job import Job
from latentmill.outputs.kinds import Chosen
from latentmill.plugins import ENCODERS, installed
from latentmill.recipe_file import to_toml

SOURCE_NAMES = {"source": "path", "source_kind": "kind", "source_options": "options"}  # in `[source]`
_RESOLVED = ("batch_size", "threads")  # of the fingerprint
_ALWAYS = frozenset({"model"})  # told as by default too
_MODELS = frozenset({"model", "repository"})
_IN_SOURCE = frozenset({"source", "images", "exclude"})
_SLICES = frozenset({"start_index", "end_index"})  # whose results add up to the whole
_NOT_STORED = frozenset(
    {"num_workers", "max_failures", "check", "overwrite", "trust_source", "wait", "runner", "ray_address"}
)  # nothing of the result depends on them
_NOT_UTF8 = """\
# Some path is not UTF-8 text, which TOML cannot hold; what it lacks is shown as \ufffd. Give the path anew:
# latentmill run latentmill-recipe.toml --set source.path=...
"""


def resolved_settings(job: Job) -> dict[str, Any]:
    """Settings that were left to be found: as they are in the fingerprint, and the model's commit on the hub."""
    found = {name: job.fingerprint[name] for name in _RESOLVED if job.fingerprint.get(name) is not None}
    described = job.describe[job.outputs[0].name]
    model = described.model or described.text_model or described.vision_model
    if model is not None and model.revision and not model.is_local and "/" in model.name:
        found["revision"] = model.revision
    return found


def recipe_of(chosen: Chosen, job: Job, root: Path | None) -> str:
    """The recipe of one output alone, of all its variants, as it is stored with each, from where that lies.

    root: of the whole recipe.
    """
    place = job.primary
    folder = place.path.parent if place.is_zip else place.path
    alone = replace(chosen, name=chosen.kind.name)
    return stored_toml([alone], folder, root, {alone.name: resolved_settings(job)})


def stored_toml(
    outputs: Sequence[Chosen], folder: Path, root: Path | None, resolved: Mapping[str, Mapping[str, Any]]
) -> str:
    """A recipe that lies in `folder`, its `dest`, with the settings that are not as by default.

    root: what is moved together with the source, where that lies in it. resolved: by output.
    """
    unused = frozenset.intersection(*(each.kind.not_stored for each in outputs))
    source = _told(outputs[0].settings, SourceSettings.model_fields, _SLICES | unused, {})
    for name in _IN_SOURCE & source.keys():
        source[name] = _source_path(Path(source[name]), folder, root)
    tables = {each.name: _table(each, folder, resolved.get(each.name, {})) for each in outputs}
    source = {SOURCE_NAMES.get(name, name): value for name, value in source.items()}
    text = to_toml({"dest": ".", "source": source, "outputs": tables})
    as_bytes = text.encode("utf-8", "surrogateescape")
    as_utf8 = as_bytes.decode("utf-8", "replace")
    return text if as_utf8 == text else _NOT_UTF8 + as_utf8


def _table(chosen: Chosen, folder: Path, resolved: Mapping[str, Any]) -> dict[str, Any]:
    kind, settings = chosen.kind, chosen.settings
    left_out = SourceSettings.model_fields.keys() | _NOT_STORED | kind.not_stored | {"dest"}
    told = _told(settings, kind.settings.model_fields, left_out, resolved)
    layout = {"layout": kind.layout} if kind.layout else {}
    path = os.path.relpath(settings.dest, folder)
    return {"kind": kind.name, **layout, "path": path} | {
        name: os.path.relpath(value, folder) if isinstance(value, Path) else value for name, value in told.items()
    }


def _source_path(path: Path, folder: Path, root: Path | None) -> str:
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - links are kept as they are
    inside = root is not None and whole.is_relative_to(os.path.abspath(root))  # noqa: PTH100
    return os.path.relpath(path, folder) if inside else str(whole)


def _told(
    settings: OutputSettings, fields: Mapping[str, Any], left_out: AbstractSet[str], resolved: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings that are not as by default, in the fields' order, as TOML has them; paths as they are."""
    values = {name: resolved.get(name, getattr(settings, name)) for name in fields if name not in left_out}
    return {
        name: _plain(name, value) for name, value in values.items() if name in _ALWAYS or value != fields[name].default
    }


def _is_folder(model: Any) -> bool:
    """Whether a model is given by its folder."""
    from latentmill.registry import FAKE, MINI, TEXT_SETS

    return model not in (MINI, FAKE, *TEXT_SETS) and Path(model).is_dir() and model not in installed(ENCODERS)


def _plain(name: str, value: Any) -> Any:
    if name == "device":
        return encoder_device(value)  # nothing of the result depends on how many there are
    if name in _MODELS and _is_folder(value):
        return os.path.abspath(value)  # noqa: PTH100 - links are kept as they are
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if all(isinstance(side, int) for side in value) else list(value)
    return value if isinstance(value, str | int | float | bool | list | dict | Path) else str(value)
