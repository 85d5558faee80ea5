"""Finding a VAE: a short name, a hub repository, a folder, or the embedded `mini`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from latentmill.encoders.hub import config_digest, config_of, download, model_files, repository_of, weights_digest
from latentmill.errors import ModelError
from latentmill.formats.metadata import ModelInfo
from latentmill.registry import MINI, MODELS

_CLASS = "AutoencoderKL"
_WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class ResolvedModel:
    """A VAE on this disk: the folder with config.json and weights, and what the metadata says of it."""

    folder: Path
    info: ModelInfo


def resolve(name: str, revision: str | None = None, subfolder: str | None = None) -> ResolvedModel:
    """Find a VAE by short name, hub repository, folder or `mini`, downloading it where needed. Raises ModelError."""
    if name == MINI:
        with as_file(files("latentmill") / "assets" / "mini") as folder:
            return _described(folder, MINI, None, None)
    if Path(name).is_dir():
        return _described(_inside(Path(name), subfolder), name, revision, subfolder, is_local=True)
    repository = repository_of(name, MODELS, "a folder with config.json and safetensors weights")
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
    class_name = config.get("_class_name", _CLASS)
    if class_name != _CLASS:
        raise ModelError(f"{name} is a {class_name}; this command encodes with an {_CLASS}")
    weights = weights_digest(folder, _WEIGHTS, name, is_local)
    levels = config.get("block_out_channels")
    channels = config.get("latent_channels")
    if not isinstance(levels, list) or not isinstance(channels, int):
        raise ModelError(f"the config.json of {name} lacks block_out_channels or latent_channels")
    shift = config.get("shift_factor")
    return ResolvedModel(
        folder,
        ModelInfo(
            name=name,
            revision=revision,
            subfolder=subfolder,
            class_name=_CLASS,
            weights_sha256=weights,
            config_sha256=config_digest(config),
            is_local=is_local,
            latent_channels=channels,
            downscale_factor=2 ** (len(levels) - 1),
            scaling_factor=float(config.get("scaling_factor", 0.18215)),  # type: ignore[arg-type]
            shift_factor=None if shift is None else float(shift),  # type: ignore[arg-type]
        ),
    )
