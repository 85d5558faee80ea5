"""A text encoder without a model, whose features depend on a caption's own tokens alone, for tests around it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentmill.encoders import device, text, text_models
from latentmill.encoders.text_models import ResolvedTextModel
from latentmill.errors import SampleError
from latentmill.formats.metadata import TextModelInfo
from latentmill.records import Array, Encoded, Sample

WIDTH = 4
_CLOSING, _FIRST = 1, 2
_INFO = TextModelInfo(
    name="fake", class_name="fake", weights_sha256="none", config_sha256="none", tokenizer_sha256="none", width=WIDTH
)


@dataclass(frozen=True)
class FakeTextSpec:
    """A token is a word; a feature vector is made of the token, its place and the caption's length."""

    model: ResolvedTextModel
    device: str
    dtype: str
    max_length: int
    threads: int
    pooled_width = None
    has_features = True
    overhead = 0

    @property
    def width(self) -> int:
        return WIDTH

    def described(self) -> dict[str, Any]:
        return {}

    def lengths(self, captions: Sequence[str]) -> list[int]:
        return [len(tokens.ids) for tokens in self.tokenize(captions)]

    def close(self) -> None:
        pass

    def tokenize(self, captions: Sequence[str]) -> list[text.Tokens]:
        return [self._tokens(caption.split()) for caption in captions]

    def _tokens(self, words: list[str]) -> text.Tokens:
        ids = [_FIRST + zlib.crc32(word.encode()) % 1000 for word in words[: self.max_length - 1]]
        return text.Tokens(np.array([*ids, _CLOSING], np.int64), len(words) + 1)

    def open(self) -> FakeTextSpec:
        opened.append(self)
        return self

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        return [Encoded(_features(sample.array)) for sample in samples]


opened: list[FakeTextSpec] = []  # every time that a job opened its encoder


def _features(ids: Array) -> Array:
    place = np.arange(len(ids))
    return np.stack([ids, place, np.full(len(ids), len(ids)), ids * place % 7], axis=1).astype(np.float16)


def _fake_spec(name: str, *, max_length: int | None = None, **settings: Any) -> FakeTextSpec:
    dtype, threads = settings.get("dtype", "float32"), settings.get("threads", 1)
    return FakeTextSpec(ResolvedTextModel(Path(), Path(), _INFO), "cpu", dtype, max_length or 300, threads)


def install(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Let every text job of this process use it, whatever its model is called."""
    replace(device, "choose_device", lambda name: "cpu")
    replace(text_models, "resolve_text", lambda *arguments, **named: ResolvedTextModel(Path(), Path(), _INFO))
    replace(text, "TextSpec", FakeTextSpec)
    replace(text, "text_spec", _fake_spec)
