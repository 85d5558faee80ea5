"""Finding a VAE: a short name, a hub repository, a folder, or the embedded `mini`; safetensors only, never pickle."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from latentmill.errors import ModelError
from latentmill.files import digest_file
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
    entry = MODELS.get(name)
    repository = entry.repository if entry else name
    if repository.count("/") != 1 or repository.startswith((".", "/")) or Path(name).exists():
        close = difflib.get_close_matches(name, [*MODELS, MINI], n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ModelError(
            f"no model is called {name!r}, and no folder is there.{hint} Give a short name "
            f"({', '.join(MODELS)}, {MINI}), a hub repository as owner/name, or a folder with config.json and "
            "safetensors weights"
        )
    snapshot = _download(repository, revision, subfolder)
    return _described(_inside(snapshot, subfolder), repository, snapshot.name, subfolder)


def _inside(folder: Path, subfolder: str | None) -> Path:
    inner = folder / subfolder if subfolder else folder
    if not inner.is_dir():
        raise ModelError(f"{folder} has no subfolder {subfolder}")
    if not (inner / "config.json").is_file() and (inner / "vae" / "config.json").is_file():
        raise ModelError(f"{inner} is a whole pipeline: name its VAE with --subfolder vae")
    return inner


def _download(repository: str, revision: str | None, subfolder: str | None) -> Path:
    """The hub's snapshot folder with the config and the safetensors weights; its name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of the HTTP library it uses
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [f"{prefix}config.json", f"{prefix}{_WEIGHTS}.safetensors", f"{prefix}{_WEIGHTS}-*.safetensors",
              f"{prefix}{_WEIGHTS}.safetensors.index.json"]  # fmt: skip
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except GatedRepoError as error:
        raise ModelError(
            f"{repository} is gated: accept its terms on its hub page, then set HF_TOKEN to a token of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repository} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no repository {repository} that this account can see. Check the name; if it is private, "
            "set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repository} is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE is set). Go "
            "online once, or download it elsewhere and give the folder; `mini` needs no download"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{repository!r} can be no hub repository: {' '.join(str(error).split())}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(f"could not download {repository}: {' '.join(str(error).split())[:300]}") from error


def _described(
    folder: Path, name: str, revision: str | None, subfolder: str | None, is_local: bool = False
) -> ResolvedModel:
    config = _config(folder, name)
    class_name = config.get("_class_name", _CLASS)
    if class_name != _CLASS:
        raise ModelError(f"{name} is a {class_name}; this command encodes with an {_CLASS}")
    shards = sorted(folder.glob(f"{_WEIGHTS}*.safetensors"))
    shards = [path for path in shards if path.stem == _WEIGHTS or path.stem.startswith(f"{_WEIGHTS}-")]
    if not shards:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.ckpt")) or any(folder.glob("*.pt"))
        why = "only pickled weights, which latentmill never loads" if pickled else "no weights"
        raise ModelError(f"{name} has {why}: it needs {_WEIGHTS}.safetensors beside its config.json")
    sums = [digest_file(path) for path in shards]
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
            weights_sha256="+".join(sums),
            config_sha256=_config_digest(config),
            is_local=is_local,
            latent_channels=channels,
            downscale_factor=2 ** (len(levels) - 1),
            scaling_factor=float(config.get("scaling_factor", 0.18215)),  # type: ignore[arg-type]
            shift_factor=None if shift is None else float(shift),  # type: ignore[arg-type]
        ),
    )


def _config_digest(config: dict[str, object]) -> str:
    told = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _config(folder: Path, name: str) -> dict[str, object]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{name} is no model folder: it has no config.json (see --subfolder)") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"the config.json of {name} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"the config.json of {name} is not a table")
    return config
