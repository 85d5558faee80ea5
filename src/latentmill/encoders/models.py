"""Finding a VAE: a short name, a hub repository, a folder, or the embedded `mini`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from latentmill.encoders.hub import (
    config_digest,
    config_of,
    download,
    model_files,
    repository_of,
    weights_digest,
    weights_of,
)
from latentmill.encoders.vae_families import KL, factor, family_of
from latentmill.errors import ConfigError, ModelError
from latentmill.formats.metadata import ModelInfo
from latentmill.registry import MINI, MODELS

_WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class ResolvedModel:
    """A VAE on this disk: the folder with config.json and weights, and what the metadata says of it."""

    folder: Path
    info: ModelInfo


def resolve(name: str, revision: str | None = None, subfolder: str | None = None) -> ResolvedModel:
    """Find a VAE by short name, hub repository, folder or `mini`, downloading it where needed. Raises ModelError.

    subfolder: of the model in a pipeline's folder; a short name brings its own.
    """
    if name == MINI:
        with as_file(files("latentmill") / "assets" / "mini") as folder:
            return _described(folder, MINI, None, None)
    if Path(name).is_dir():
        return _described(_inside(Path(name), subfolder), name, revision, subfolder, is_local=True)
    repository = repository_of(name, MODELS, "a folder with config.json and safetensors weights")
    if name in MODELS:
        subfolder = subfolder or MODELS[name].subfolder
    prefix = f"{subfolder}/" if subfolder else ""
    snapshot = download(repository, revision, model_files(prefix, _WEIGHTS))
    return _described(_inside(snapshot, subfolder), repository, snapshot.name, subfolder)


def _inside(folder: Path, subfolder: str | None) -> Path:
    inner = folder / subfolder if subfolder else folder
    if not inner.is_dir():
        raise ModelError(f"{folder} has no subfolder {subfolder}")
    if not (inner / "config.json").is_file() and (inner / "vae" / "config.json").is_file():
        raise ModelError(f"{inner} is a whole pipeline: name its VAE with --subfolder vae")
    return inner


def _described(
    folder: Path, name: str, revision: str | None, subfolder: str | None, is_local: bool = False
) -> ResolvedModel:
    config = config_of(folder, f"{name} is no model folder: it has no config.json (see --subfolder)", name)
    family = family_of(config.get("_class_name", KL), name)
    weights = weights_digest(folder, _WEIGHTS, name, is_local)
    family.check(config, name)
    buffers = _buffers(weights_of(folder, _WEIGHTS, name, is_local), family.buffers, name)
    try:
        return ResolvedModel(
            folder,
            ModelInfo(
                name=name,
                revision=revision,
                subfolder=subfolder,
                class_name=family.class_name,
                weights_sha256=weights,
                config_sha256=config_digest(config),
                is_local=is_local,
                latent_channels=family.latent_channels(config),
                downscale_factor=family.downscale_factor(config),
                scaling_factor=factor(config, "scaling_factor", family.scaling_factor),
                shift_factor=factor(config, "shift_factor"),
                normalization=family.normalization(family, config, buffers),
                posterior=family.posterior,
            ),
        )
    except ModelError as error:
        raise ModelError(f"{name} cannot be used: {error}") from error


def _buffers(files: list[Path], names: tuple[str, ...], name: str) -> dict[str, list[float]]:
    """Float32 vectors of the weights by name. Raises ModelError."""
    if not names:
        return {}
    from safetensors import SafetensorError, safe_open

    found: dict[str, list[float]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for wanted in set(names) & set(weights.keys()):
                    found[wanted] = weights.get_tensor(wanted).float().flatten().tolist()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"the {file.name} of {name} cannot be read: {' '.join(str(error).split())}") from error
    missing = [wanted for wanted in names if wanted not in found]
    if missing:
        raise ModelError(f"the weights of {name} lack {' and '.join(missing)}")
    return found


def check_statistic(info: ModelInfo, store: str) -> None:
    """Refuse to store `moments` or `sample` of a model that gives the latent alone. Raises ConfigError."""
    if store != "mean" and not info.posterior:
        raise ConfigError(f"{info.name} ({info.class_name}) has no posterior: use store mean. Found: store {store}")
