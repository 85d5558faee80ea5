"""Whether the model that made a result can still be had, with the very weights: on this disk, or by asking the hub."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from latentmill.doctor.findings import Finding, one_line
from latentmill.doctor.hub import SECONDS
from latentmill.encoders.hub import config_digest, config_of, weights_digest
from latentmill.errors import ModelError
from latentmill.estimate import human
from latentmill.formats.metadata import Metadata, ModelInfo, TextModelInfo, VisionModelInfo
from latentmill.plugins import ENCODERS, installed
from latentmill.registry import FAKE, MINI

Info = ModelInfo | TextModelInfo | VisionModelInfo
_CONFIG = "config.json"
_CANNOT = "a rerun cannot do without it"


def model_finding(group: str, metadata: Metadata, ask_hub: bool) -> Finding | None:
    """None of what was made without a model."""
    info = metadata.model or metadata.text_model or metadata.vision_model
    if info is None:
        return None
    name = f"model {info.name}" if not info.is_local else "model"
    if info.name == FAKE:
        return Finding(group, name, "needs no weights")
    if info.name != MINI and not info.is_local and "/" not in info.name:
        return _of_package(group, name, info)
    folder = _folder(info)
    if folder is not None:
        return _compared(group, name, info, folder)
    if info.is_local:
        advice = f"{_CANNOT}: put it back, or make the dataset anew with --overwrite"
        return Finding(group, name, f"{info.name} is not there", "broken", advice)
    return _asked(group, name, info) if ask_hub else Finding(
        group, name, "not in the cache", "warning", "it must be downloaded again, where the hub is reached"
    )  # fmt: skip


def _of_package(group: str, name: str, info: Info) -> Finding:
    if info.name in installed(ENCODERS):
        return Finding(group, name, "of a package that is installed")
    advice = f"{_CANNOT}: install the package again"
    return Finding(group, name, "of a package that is not installed", "broken", advice)


def _stem(info: Info) -> str:
    return "diffusion_pytorch_model" if isinstance(info, ModelInfo) else "model"


def _inner(info: Info) -> list[str]:
    """Where in a repository the model may lie."""
    if info.subfolder:
        return [f"{info.subfolder}/"]
    return ["text_encoder/", ""] if isinstance(info, TextModelInfo) else [""]


def _folder(info: Info) -> Path | None:
    """With the config, on this disk; None where it is not."""
    if info.name == MINI:
        with as_file(files("latentmill") / "assets" / ("mini-t5" if isinstance(info, TextModelInfo) else MINI)) as own:
            return _with_config(own, info)
    if info.is_local:
        return _with_config(Path(info.name), info)
    from huggingface_hub import try_to_load_from_cache

    for inner in _inner(info):
        found = try_to_load_from_cache(info.name, f"{inner}{_CONFIG}", revision=info.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _with_config(folder: Path, info: Info) -> Path | None:
    return next((folder / inner for inner in _inner(info) if (folder / inner / _CONFIG).is_file()), None)


def _compared(group: str, name: str, info: Info, folder: Path) -> Finding:
    """Every byte of the weights is read, for their digest."""
    try:
        weights = weights_digest(folder, _stem(info), info.name, info.is_local)
        config = config_digest(config_of(folder, f"{folder} has no {_CONFIG}", info.name))
    except (ModelError, OSError) as error:
        again = f"put whole weights into {folder}" if info.is_local else "download it again"
        return Finding(group, name, one_line(error), "broken", f"{_CANNOT}: {again}")
    if weights != info.weights_sha256:
        advice = "a rerun refuses it: put the weights back that made it, or make the dataset anew with --overwrite"
        return Finding(group, name, f"{folder} has other weights than made it", "broken", advice)
    if config != info.config_sha256.partition(" ")[0]:
        advice = f"a rerun refuses it: put back the {_CONFIG} that made it, or --overwrite"
        return Finding(group, name, f"{folder} has another {_CONFIG} than made it", "broken", advice)
    return Finding(group, name, f"on this disk, with the very weights{f' ({info.name})' if info.is_local else ''}")


def _asked(group: str, name: str, info: Info) -> Finding:
    """What the hub holds, by the digests that it tells."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of the HTTP library it uses
        GatedRepoError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = HfApi().model_info(info.name, revision=info.revision, files_metadata=True, timeout=SECONDS)
    except GatedRepoError:
        advice = "accept its terms on its hub page, then set HF_TOKEN to a token of that account"
        return Finding(group, name, "not in the cache, and gated on the hub", "broken", f"{_CANNOT}: {advice}")
    except (RepositoryNotFoundError, RevisionNotFoundError):
        what = f"revision {info.revision}" if info.revision else "repository"
        advice = f"{_CANNOT}: find a copy of its weights, and give the folder; if it is private, set HF_TOKEN"
        return Finding(group, name, f"not in the cache, and the hub has no such {what} any more", "broken", advice)
    except (HTTPError, OSError, ValueError) as error:
        advice = "go online, or copy the cache of the machine that made it; `latentmill doctor` tells of the hub"
        return Finding(
            group, name, f"not in the cache, and the hub does not tell: {one_line(error)}", "warning", advice
        )
    return _told(group, name, info, found)


def _told(group: str, name: str, info: Info, found: Any) -> Finding:
    sizes = {each.lfs.sha256: each.size or 0 for each in found.siblings or () if getattr(each, "lfs", None)}
    wanted = info.weights_sha256.split("+")
    if set(wanted) <= sizes.keys():
        size = human(sum(sizes[digest] for digest in wanted))
        return Finding(group, name, f"not in the cache; the hub has the very weights, {size} to download")
    advice = f"{_CANNOT}: find a copy of its weights, and give the folder, or make the dataset anew with --overwrite"
    return Finding(group, name, "not in the cache, and the hub has other weights", "broken", advice)
