"""Finding a text encoder and its tokenizer: a short name, a hub repository, a folder, or the embedded `mini`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from latentmill.encoders.hub import config_digest, config_of, download, model_files, repository_of, weights_digest
from latentmill.encoders.text_families import FAMILIES, Family, family_of, shape_of
from latentmill.errors import ModelError
from latentmill.formats.metadata import TextModelInfo
from latentmill.registry import MINI, TEXT_MODELS

_TEXT_WEIGHTS = "model"
_ENCODER, _TOKENIZER = "text_encoder", "tokenizer"  # in a pipeline's folder
_TOKENIZER_FILES = (
    *("added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"),
    *("spiece.model", "tokenizer.json", "tokenizer.model", "vocab.json"),
)


@dataclass(frozen=True)
class ResolvedTextModel:
    """A text encoder on this disk: the folders of its weights and of its tokenizer (which may be one and the same).

    pooled_width: of its pooled vector, None where it has none. longest: positions that it has, None where any number.
    """

    folder_encoder: Path
    folder_tokenizer: Path
    info: TextModelInfo
    model_type: str = "t5"
    pooled_width: int | None = None
    longest: int | None = None

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]


def resolve_text(
    name: str, revision: str | None = None, subfolder: str | None = None, tokenizer: str | None = None
) -> ResolvedTextModel:
    """Find a text encoder and its tokenizer by short name, hub repository, folder or `mini`, downloading where needed.

    subfolder, tokenizer: where they lie, as `text_encoder_2` and `tokenizer_2` (which need not be said); a short name
    knows its own. Else they lie in `text_encoder` and `tokenizer`, or side by side in one folder (then the encoder of
    a whole model is taken).
    Every byte of the weights is read, for their digest. Raises ModelError.
    """
    if name == MINI:
        with as_file(files("latentmill") / "assets" / "mini-t5") as folder:
            return _described_text(folder, MINI, None)
    entry = TEXT_MODELS.get(name)
    if entry is not None:
        subfolder, tokenizer = subfolder or entry.subfolder, tokenizer or entry.tokenizer
    if subfolder and not tokenizer:
        tokenizer = subfolder.replace(_ENCODER, _TOKENIZER)
    if Path(name).is_dir():
        return _described_text(Path(name), name, revision, subfolder, tokenizer, is_local=True)
    repository = repository_of(name, TEXT_MODELS, "a folder with text_encoder/ and tokenizer/")
    snapshot = download(repository, revision, _wanted(subfolder, tokenizer))
    return _described_text(snapshot, repository, snapshot.name, subfolder, tokenizer)


def tokenizer_of(info: TextModelInfo, snapshot: Path | None) -> ResolvedTextModel:
    """The tokenizer that a dataset's captions were brought to tokens with; weights are neither needed nor read.

    snapshot: the folder of a hub's model, None where it is not on this disk. Raises ModelError.
    """
    if info.name == MINI:
        with as_file(files("latentmill") / "assets" / "mini-t5") as folder:
            return _tokenizer_in(folder, info)
    found = Path(info.name) if info.is_local else snapshot
    if found is None or not found.is_dir():
        raise ModelError(f"the tokenizer of {info.name} is not on this disk")
    return _tokenizer_in(found, info)


def _tokenizer_in(folder: Path, info: TextModelInfo) -> ResolvedTextModel:
    own = info.subfolder.replace(_ENCODER, _TOKENIZER) if info.subfolder else None
    encoder, words = _part(folder, info.name, info.subfolder, _ENCODER), _part(folder, info.name, own, _TOKENIZER)
    family = family_of(config_of(encoder, f"{info.name} has no config.json", info.name), info.name)
    if _tokenizer_digest(words, family, info.name) != info.tokenizer_sha256:
        raise ModelError(f"the tokenizer of {info.name} is not the one that was used")
    return ResolvedTextModel(encoder, words, info, family.model_type)


def _wanted(subfolder: str | None, tokenizer: str | None) -> list[str]:
    """Patterns of the files to download."""
    encoder = [f"{subfolder or _ENCODER}/"] + ([] if subfolder else [""])
    beside = [f"{tokenizer or _TOKENIZER}/"] + ([] if tokenizer else [""])
    wanted = [pattern for prefix in encoder for pattern in model_files(prefix, _TEXT_WEIGHTS)]
    return wanted + [prefix + file for prefix in beside for file in _TOKENIZER_FILES]


def _described_text(
    folder: Path,
    name: str,
    revision: str | None,
    subfolder: str | None = None,
    tokenizer: str | None = None,
    is_local: bool = False,
) -> ResolvedTextModel:
    encoder = _part(folder, name, subfolder, _ENCODER)
    words = _part(folder, name, tokenizer, _TOKENIZER)
    config = config_of(encoder, f"{name} has no text encoder: no text_encoder/config.json and no config.json", name)
    family = family_of(config, name)
    shape = shape_of(family, config, name)
    tokenizer_sum = _tokenizer_digest(words, family, name)
    weights = weights_digest(encoder, _TEXT_WEIGHTS, name, is_local)
    return ResolvedTextModel(
        encoder,
        words,
        TextModelInfo(
            name=name,
            revision=revision,
            class_name=shape.class_name,
            weights_sha256=weights,
            config_sha256=config_digest(config),
            tokenizer_sha256=tokenizer_sum,
            is_local=is_local,
            width=shape.width,
            subfolder=None if subfolder == _ENCODER or encoder == folder else subfolder,
        ),
        family.model_type,
        shape.pooled_width,
        shape.longest,
    )


def _part(folder: Path, name: str, subfolder: str | None, usual: str) -> Path:
    """A part of a pipeline's folder; the folder itself where it is no pipeline's. Raises ModelError."""
    if subfolder is None:
        return folder / usual if (folder / _ENCODER).is_dir() else folder
    if (folder / subfolder).is_dir():
        return folder / subfolder
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name} has no {subfolder}/, where that part of its text encoders should be")
    return folder


def _tokenizer_digest(folder: Path, family: Family, name: str) -> str:
    """SHA-256 over the bytes of the files that make the tokenizer, in order of their names."""
    ways = (family.vocabulary, "tokenizer.json")
    if not any((folder / vocabulary).is_file() for vocabulary in ways):
        raise ModelError(
            f"{name} has no tokenizer: it needs {' or '.join(ways)} in tokenizer/, beside text_encoder/ "
            "(or beside config.json, where all lies in one folder)"
        )
    total = hashlib.sha256()
    for file in sorted(_TOKENIZER_FILES):
        if (folder / file).is_file():
            total.update((folder / file).read_bytes())
    return total.hexdigest()
