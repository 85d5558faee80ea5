"""Model files, on the hub or in a folder: configs, digests, safetensors weights (never pickle)."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from latentmill.errors import ModelError
from latentmill.files import digest_file
from latentmill.registry import MINI, MODELS, TEXT_MODELS, VISION_MODELS, Entry
from latentmill.system import usable_cores
from latentmill.wording import did_you_mean, hinted


def repository_of(name: str, known: Mapping[str, Entry], or_a_folder: str) -> str:
    """The hub repository that is meant by a short or a full name."""
    entry = known.get(name)
    repository = entry.repository if entry else name
    if repository.count("/") != 1 or repository.startswith((".", "/")) or Path(name).exists():
        close = difflib.get_close_matches(name, [*known, MINI], n=1)
        close = close or [each for each in known if name and name.lower() in each][:3]
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ModelError(
            f"no model is called {name!r}, and no folder is there.{hint} Give a short name "
            f"({', '.join(known)}, {MINI}), a hub repository as owner/name, or {or_a_folder}"
        )
    return repository


def model_files(prefix: str, weights: str) -> list[str]:
    """Patterns of the config, and of safetensors weights in one file or in parts with their index."""
    names = ("config.json", f"{weights}.safetensors", f"{weights}-*.safetensors", f"{weights}.safetensors.index.json")
    return [prefix + name for name in names]


def download(repository: str, revision: str | None, wanted: Iterable[str]) -> Path:
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
            f"set HF_TOKEN{_near(repository)}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repository} is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE is set). Go "
            f"online once, or download it elsewhere and give the folder; `mini` needs no download{_near(repository)}"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{repository!r} can be no hub repository: {' '.join(str(error).split())}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(f"could not download {repository}: {' '.join(str(error).split())[:300]}") from error


def _near(repository: str) -> str:
    """A repository that the registry knows by nearly this name."""
    known = {entry.repository for entry in MODELS.values()}
    known |= {entry.repository for entry in TEXT_MODELS.values()}
    known |= {entry.repository for entry in VISION_MODELS.values()}
    return "" if repository in known else hinted("", did_you_mean(repository, known))


def weights_of(folder: Path, stem: str, name: str, is_local: bool) -> list[Path]:
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
    parts = json_table(index, name).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise ModelError(f"the {index.name} of {name} lacks weight_map")
    missing = sorted(set(parts.values()) - {path.name for path in found})
    if missing:
        raise ModelError(f"{name} lacks {len(missing)} parts of its weights, {missing[0]} first: download it again")


def weights_digest(folder: Path, stem: str, name: str, is_local: bool) -> str:
    """SHA-256 of every byte of the weights, one after the other's where they are in parts. Raises ModelError."""
    files = weights_of(folder, stem, name, is_local)
    with ThreadPoolExecutor(max(1, min(len(files), usable_cores()))) as pool:
        return "+".join(pool.map(_digest, files))


def _digest(path: Path) -> str:
    """Of a file that was read before in this process, as long as its size and times are what they were."""
    found = path.stat()
    return _known_digest(path.resolve(), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache(maxsize=256)
def _known_digest(path: Path, *told: int) -> str:
    return digest_file(path)


def config_digest(config: dict[str, object]) -> str:
    told = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def config_of(folder: Path, if_missing: str, name: str) -> dict[str, object]:
    if not (folder / "config.json").is_file():
        raise ModelError(if_missing)
    return json_table(folder / "config.json", name)


def json_table(file: Path, name: str) -> dict[str, object]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"the {file.name} of {name} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise ModelError(f"the {file.name} of {name} is not a table")
    return table
