"""Finding a VAE or a text encoder: a short name, a hub repository, a folder, or the embedded `mini`.

Weights are safetensors only, never pickle.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from latentmill.errors import ModelError
from latentmill.files import digest_file
from latentmill.formats.metadata import ModelInfo, TextModelInfo
from latentmill.registry import MINI, MODELS, TEXT_MODELS, ModelEntry, TextModelEntry

_CLASS = "AutoencoderKL"
_WEIGHTS = "diffusion_pytorch_model"
_TEXT_CLASS = "T5EncoderModel"
_TEXT_KIND = "t5"  # `model_type` in transformers' config.json
_TEXT_WEIGHTS = "model"
_VOCABULARIES = ("spiece.model", "tokenizer.json")  # one of them makes a tokenizer
_TOKENIZER_FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", *_VOCABULARIES)


@dataclass(frozen=True)
class ResolvedModel:
    """A VAE on this disk: the folder with config.json and weights, and what the metadata says of it."""

    folder: Path
    info: ModelInfo


@dataclass(frozen=True)
class ResolvedTextModel:
    """A text encoder on this disk: the folders of its weights and of its tokenizer (which may be one and the same)."""

    folder_encoder: Path
    folder_tokenizer: Path
    info: TextModelInfo


def resolve(name: str, revision: str | None = None, subfolder: str | None = None) -> ResolvedModel:
    """Find a VAE by short name, hub repository, folder or `mini`, downloading it where needed. Raises ModelError."""
    if name == MINI:
        with as_file(files("latentmill") / "assets" / "mini") as folder:
            return _described(folder, MINI, None, None)
    if Path(name).is_dir():
        return _described(_inside(Path(name), subfolder), name, revision, subfolder, is_local=True)
    repository = _repository(name, MODELS, "a folder with config.json and safetensors weights")
    prefix = f"{subfolder}/" if subfolder else ""
    snapshot = _download(repository, revision, _model_files(prefix, _WEIGHTS))
    return _described(_inside(snapshot, subfolder), repository, snapshot.name, subfolder)


def resolve_text(name: str, revision: str | None = None) -> ResolvedTextModel:
    """Find a T5 encoder and its tokenizer by short name, hub repository, folder or `mini`, downloading where needed.

    They lie in the subfolders `text_encoder` and `tokenizer`, or side by side in one folder (then the encoder of a
    whole T5 is taken). Every byte of the weights is read, for their digest. Raises ModelError.
    """
    if name == MINI:
        with as_file(files("latentmill") / "assets" / "mini-t5") as folder:
            return _described_text(folder, MINI, None)
    if Path(name).is_dir():
        return _described_text(Path(name), name, revision, is_local=True)
    repository = _repository(name, TEXT_MODELS, "a folder with text_encoder/ and tokenizer/")
    wanted = [*_model_files("text_encoder/", _TEXT_WEIGHTS), *(f"tokenizer/{name}" for name in _TOKENIZER_FILES)]
    wanted += [*_model_files("", _TEXT_WEIGHTS), *_TOKENIZER_FILES]
    snapshot = _download(repository, revision, wanted)
    return _described_text(snapshot, repository, snapshot.name)


def _repository(name: str, known: dict[str, ModelEntry] | dict[str, TextModelEntry], or_a_folder: str) -> str:
    """The hub repository that is meant by a short or a full name."""
    entry = known.get(name)
    repository = entry.repository if entry else name
    if repository.count("/") != 1 or repository.startswith((".", "/")) or Path(name).exists():
        close = difflib.get_close_matches(name, [*known, MINI], n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ModelError(
            f"no model is called {name!r}, and no folder is there.{hint} Give a short name "
            f"({', '.join(known)}, {MINI}), a hub repository as owner/name, or {or_a_folder}"
        )
    return repository


def _inside(folder: Path, subfolder: str | None) -> Path:
    inner = folder / subfolder if subfolder else folder
    if not inner.is_dir():
        raise ModelError(f"{folder} has no subfolder {subfolder}")
    if not (inner / "config.json").is_file() and (inner / "vae" / "config.json").is_file():
        raise ModelError(f"{inner} is a whole pipeline: name its VAE with --subfolder vae")
    return inner


def _model_files(prefix: str, weights: str) -> list[str]:
    """Patterns of the config, and of safetensors weights in one file or in parts with their index."""
    names = ("config.json", f"{weights}.safetensors", f"{weights}-*.safetensors", f"{weights}.safetensors.index.json")
    return [prefix + name for name in names]


def _download(repository: str, revision: str | None, wanted: Iterable[str]) -> Path:
    """The hub's snapshot folder with the wanted files; its name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of the HTTP library it uses
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(wanted)))
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
    config = _config(folder, f"{name} is no model folder: it has no config.json (see --subfolder)", name)
    class_name = config.get("_class_name", _CLASS)
    if class_name != _CLASS:
        raise ModelError(f"{name} is a {class_name}; this command encodes with an {_CLASS}")
    sums = [digest_file(path) for path in _weights(folder, _WEIGHTS, name, is_local)]
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


def _described_text(folder: Path, name: str, revision: str | None, is_local: bool = False) -> ResolvedTextModel:
    apart = (folder / "text_encoder").is_dir()
    encoder, tokenizer = (folder / "text_encoder", folder / "tokenizer") if apart else (folder, folder)
    config = _config(encoder, f"{name} has no text encoder: no text_encoder/config.json and no config.json", name)
    kind = config.get("model_type", config.get("_class_name", "model of no known kind"))
    if kind != _TEXT_KIND:
        raise ModelError(f"{name} is a {kind}; captions are encoded with a {_TEXT_CLASS} (model_type {_TEXT_KIND})")
    width = config.get("d_model")
    if not isinstance(width, int):
        raise ModelError(f"the config.json of {name} lacks d_model, the width of a feature vector")
    tokenizer_sum = _tokenizer_digest(tokenizer, name)
    sums = [digest_file(path) for path in _weights(encoder, _TEXT_WEIGHTS, name, is_local)]
    return ResolvedTextModel(
        encoder,
        tokenizer,
        TextModelInfo(
            name=name,
            revision=revision,
            class_name=_TEXT_CLASS,
            weights_sha256="+".join(sums),
            config_sha256=_config_digest(config),
            tokenizer_sha256=tokenizer_sum,
            is_local=is_local,
            width=width,
        ),
    )


def _weights(folder: Path, stem: str, name: str, is_local: bool) -> list[Path]:
    """The safetensors files of a model: one, or every part that its index names."""
    whole = folder / f"{stem}.safetensors"
    found = sorted(folder.glob(f"{stem}-*.safetensors")) + ([whole] if whole.is_file() else [])
    if not found:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.ckpt")) or any(folder.glob("*.pt"))
        why = "only pickled weights, which latentmill never loads" if pickled else "no weights"
        if not is_local:
            why = "no safetensors weights, and latentmill never loads pickled ones"
        raise ModelError(f"{name} has {why}: it needs {whole.name} beside its config.json")
    if whole not in found:
        _check_parts(folder / f"{whole.name}.index.json", found, name)
    return found


def _check_parts(index: Path, found: list[Path], name: str) -> None:
    """Raises ModelError where parts of the weights are missing: they would be replaced by random numbers."""
    if not index.is_file():
        raise ModelError(f"{name} has weights in parts, but not their index {index.name}: download it again")
    parts = _table(index, name).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise ModelError(f"the {index.name} of {name} lacks weight_map")
    missing = sorted(set(parts.values()) - {path.name for path in found})
    if missing:
        raise ModelError(f"{name} lacks {len(missing)} parts of its weights, {missing[0]} first: download it again")


def _tokenizer_digest(folder: Path, name: str) -> str:
    """SHA-256 over the bytes of the files that make the tokenizer, in order of their names."""
    if not any((folder / vocabulary).is_file() for vocabulary in _VOCABULARIES):
        raise ModelError(
            f"{name} has no tokenizer: it needs {' or '.join(_VOCABULARIES)} in tokenizer/, beside text_encoder/ "
            "(or beside config.json, where all lies in one folder)"
        )
    total = hashlib.sha256()
    for file in sorted(_TOKENIZER_FILES):
        if (folder / file).is_file():
            total.update((folder / file).read_bytes())
    return total.hexdigest()


def _config_digest(config: dict[str, object]) -> str:
    told = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _config(folder: Path, if_missing: str, name: str) -> dict[str, object]:
    if not (folder / "config.json").is_file():
        raise ModelError(if_missing)
    return _table(folder / "config.json", name)


def _table(file: Path, name: str) -> dict[str, object]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"the {file.name} of {name} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise ModelError(f"the {file.name} of {name} is not a table")
    return table
