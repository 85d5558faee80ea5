"""Finding a text encoder and its tokenizer: a short name, a hub repository, a folder, or the embedded `mini`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from latentmill.encoders.hub import config_digest, config_of, download, model_files, repository_of, weights_digest
from latentmill.errors import ModelError
from latentmill.formats.metadata import TextModelInfo
from latentmill.registry import MINI, TEXT_MODELS

_TEXT_CLASS = "T5EncoderModel"
_TEXT_KIND = "t5"  # `model_type` in transformers' config.json
_TEXT_WEIGHTS = "model"
_VOCABULARIES = ("spiece.model", "tokenizer.json")  # one of them makes a tokenizer
_TOKENIZER_FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", *_VOCABULARIES)


@dataclass(frozen=True)
class ResolvedTextModel:
    """A text encoder on this disk: the folders of its weights and of its tokenizer (which may be one and the same)."""

    folder_encoder: Path
    folder_tokenizer: Path
    info: TextModelInfo


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
    repository = repository_of(name, TEXT_MODELS, "a folder with text_encoder/ and tokenizer/")
    wanted = [*model_files("text_encoder/", _TEXT_WEIGHTS), *(f"tokenizer/{name}" for name in _TOKENIZER_FILES)]
    wanted += [*model_files("", _TEXT_WEIGHTS), *_TOKENIZER_FILES]
    snapshot = download(repository, revision, wanted)
    return _described_text(snapshot, repository, snapshot.name)


def _described_text(folder: Path, name: str, revision: str | None, is_local: bool = False) -> ResolvedTextModel:
    apart = (folder / "text_encoder").is_dir()
    encoder, tokenizer = (folder / "text_encoder", folder / "tokenizer") if apart else (folder, folder)
    config = config_of(encoder, f"{name} has no text encoder: no text_encoder/config.json and no config.json", name)
    kind = config.get("model_type", config.get("_class_name", "model of no known kind"))
    if kind != _TEXT_KIND:
        raise ModelError(f"{name} is a {kind}; captions are encoded with a {_TEXT_CLASS} (model_type {_TEXT_KIND})")
    width = config.get("d_model")
    if not isinstance(width, int):
        raise ModelError(f"the config.json of {name} lacks d_model, the width of a feature vector")
    tokenizer_sum = _tokenizer_digest(tokenizer, name)
    weights = weights_digest(encoder, _TEXT_WEIGHTS, name, is_local)
    return ResolvedTextModel(
        encoder,
        tokenizer,
        TextModelInfo(
            name=name,
            revision=revision,
            class_name=_TEXT_CLASS,
            weights_sha256=weights,
            config_sha256=config_digest(config),
            tokenizer_sha256=tokenizer_sum,
            is_local=is_local,
            width=width,
        ),
    )


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
