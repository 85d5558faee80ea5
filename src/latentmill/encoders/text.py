"""Captions to text features: the encoders of transformers, in families that differ in tokenizer, model and output.

A caption becomes token ids once, without the model; the encoder takes batches of ids. A batch that does not fit in
the device's memory is halved; ids that come twice are computed once; what is not finite in half precision is computed
again in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from latentmill.encoders import heap
from latentmill.encoders.device import choose_device, own_threads, prepare_device
from latentmill.encoders.memory import Halving, no_room_for_float32, unless_full
from latentmill.encoders.text_families import features_of, load_model, pooled_of
from latentmill.encoders.text_models import ResolvedTextModel, resolve_text
from latentmill.encoders.text_settings import PLAIN, TextSettings
from latentmill.encoders.text_tokens import CaptionTokenizer
from latentmill.encoders.text_tokens import Tokens as Tokens
from latentmill.encoders.text_tokens import load_tokenizer as load_tokenizer
from latentmill.encoders.transfer import Wait, transfer_for
from latentmill.errors import ConfigError, ModelError, SampleError
from latentmill.formats.metadata import Value
from latentmill.records import RECOMPUTED_FLOAT32, Array, Encoded, Sample
from latentmill.registry import TEXT_MODELS
from latentmill.stages import Encoder, Results

if TYPE_CHECKING:
    import torch

POOLED = "pooled"  # its name beside the features
Precision = Literal["float32", "bfloat16", "float16"]


class TextEncoderSpec(Protocol):
    """Describes a text encoder; picklable and cheap. Families differ in tokenizer, model and width.

    The encoder that `open` loads takes samples whose `array` is the `ids` of a Tokens, and gives float16 (L, width): a
    vector for each position that is stored, `lengths` of them; and beside it `pooled`, float16 (pooled_width,), where
    both are asked for. Where the pooled vector is all (`has_features` is False), the array is that, (1, width), and its
    length is 1.
    overhead: tokens that a caption takes to compute beside those that are stored. described: settings of the encoder,
    for metadata and fingerprint.
    """

    @property
    def max_length(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def pooled_width(self) -> int | None: ...
    @property
    def has_features(self) -> bool: ...
    @property
    def overhead(self) -> int: ...
    def described(self) -> dict[str, Value]: ...
    def tokenize(self, captions: Sequence[str]) -> list[Tokens]: ...
    def lengths(self, captions: Sequence[str]) -> list[int]: ...
    def open(self) -> Encoder: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class TextSpec:
    """How features are computed. Everything here but `device` may change their bytes.

    max_length: positions that are stored of a caption at most, its closing token included.
    Raises ModelError where the model cannot do what the settings ask for.
    """

    model: ResolvedTextModel
    device: str
    dtype: Precision
    max_length: int
    threads: int
    settings: TextSettings = PLAIN

    def __post_init__(self) -> None:
        info, longest = self.model.info, self.model.longest
        if self.settings.output != "features" and self.model.pooled_width is None:
            raise ModelError(f"{info.name} ({info.class_name}) has no pooled output: text setting output = features")
        if self.max_length < 1 or (longest is not None and self.max_length > longest):
            most = "" if longest is None else f" and at most {longest}, the positions of {info.name}"
            raise ConfigError(f"max-length must be at least 1{most}. Found: {self.max_length}")

    @property
    def width(self) -> int:
        """D of a vector that is stored as the array."""
        if not self.has_features:
            return self.model.pooled_width or 0
        return self.model.info.width * max(1, len(self.settings.layers))

    @property
    def pooled_width(self) -> int | None:
        """P of the pooled vector; None where it is not stored."""
        return None if self.settings.output == "features" else self.model.pooled_width

    @property
    def has_features(self) -> bool:
        return self.settings.output != "pooled"

    @property
    def overhead(self) -> int:
        dropped = self._tokenizer.drop if self.settings.drop else 0
        return dropped if self.has_features else dropped + self.max_length - 1

    def described(self) -> dict[str, Value]:
        return self.settings.described()

    def tokenize(self, captions: Sequence[str]) -> list[Tokens]:
        """Token ids of each caption (of valid Unicode). Opens the tokenizer alone; raises ModelError."""
        return self._tokenizer(captions)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """How many vectors are stored of each caption."""
        if not self.has_features:
            return [1] * len(captions)
        return [len(tokens.ids) - self._dropped(tokens.ids) for tokens in self.tokenize(captions)]

    def _dropped(self, ids: Array) -> int:
        if not self.settings.drop or (self.settings.empty == "bare" and np.array_equal(ids, self._tokenizer.bare)):
            return 0
        return min(self._tokenizer.drop, len(ids) - self._tokenizer.kept_first)

    def trimmed(self, ids: Array, vectors: Array) -> Array:
        """(L, D) of all ids -> of those that are stored."""
        dropped = self._dropped(ids)
        if not dropped:
            return vectors.copy()
        first = self._tokenizer.kept_first
        return np.concatenate([vectors[:first], vectors[first + dropped :]])

    def open(self) -> TextEncoder:
        """Load the model. Raises ModelError."""
        return self._opened

    def close(self) -> None:
        """Let go of the model that `open` loaded."""
        opened = self.__dict__.pop("_opened", None)
        if opened is not None:
            opened.forget()

    @cached_property
    def _opened(self) -> TextEncoder:
        return TextEncoder(self)

    @cached_property
    def _tokenizer(self) -> CaptionTokenizer:
        return CaptionTokenizer(self.model, self.settings, self.max_length)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_opened", "_tokenizer")}


def text_spec(
    name: str,
    *,
    source: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    tokenizer: str | None = None,
    max_length: int | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: Precision = "float32",
    threads: int = 1,
) -> TextSpec:
    """A text encoder, ready to be opened.

    name: a short name (`registry.TEXT_MODELS`, `mini`), a hub repository or a folder. source: a repository or folder
    to take in place of the one that a short name stands for, with that name's subfolders and settings. subfolder,
    tokenizer: of the encoder and of its tokenizer there. max_length, settings (those of TextSettings, by name): in
    place of the model's usual ones. Raises ModelError or ConfigError.
    """
    entry = TEXT_MODELS.get(name)
    if entry is not None:
        subfolder, tokenizer = subfolder or entry.subfolder, tokenizer or entry.tokenizer
    model = resolve_text(source or name, revision, subfolder, tokenizer)
    usual = entry.settings if entry else model.family.settings
    if max_length is None:
        max_length = entry.max_length if entry else min(model.family.max_length, model.longest or 1 << 30)
    return TextSpec(model, choose_device(device), dtype, max_length, threads, usual.changed(settings or {}))


class _Vectors(NamedTuple):
    """Of one caption, float16: at the positions that are stored (L, D); the pooled one (P,), where it is asked for."""

    features: Array
    pooled: Array | None


_Result = Callable[[], Encoded | SampleError]


class _Once:
    """The results of a batch, which is ended when the first of them is asked for."""

    def __init__(self, end: Results) -> None:
        self._end, self._lock = end, threading.Lock()

    @cached_property
    def _results(self) -> list[Encoded | SampleError]:
        return self._end()

    def result(self, number: int) -> Encoded | SampleError:
        with self._lock:
            return self._results[number]


class TextEncoder:
    """int64 token ids (L,) -> float16 features (L, D) of the chosen layers, without the template's; and pooled ones.

    told: is called with the tokens, padding included, that a batch may have from now on, each time that memory runs
    out. rows_computed: rows of ids that were computed; fewer than the captions where some are alike.
    """

    def __init__(self, spec: TextSpec) -> None:
        import torch

        self.spec = spec
        self.told: Callable[[int], None] = _nobody
        self.rows_computed = 0
        self.halving = Halving[Array]("caption", _padded_tokens)
        self.device = prepare_device(spec.device, spec.threads)
        self.model = load_model(spec.model, self.device, getattr(torch, spec.dtype))
        self._check_layers()
        self._transfer = transfer_for(self.device)
        self._forwards = threading.Lock()
        self._last: dict[bytes, _Result] = {}
        if self.device.type == "cpu":
            heap.keep_buffers()

    def _check_layers(self) -> None:
        states = self.model.config.num_hidden_layers + 1  # the embeddings are one
        if wrong := [layer for layer in self.spec.settings.layers if not -states <= layer < states]:
            raise ConfigError(
                f"text setting layers must be between {-states} and {states - 1}, as {self.spec.model.info.name} has "
                f"them. Found: {wrong[0]}"
            )

    @cached_property
    def _float32_model(self) -> Any | None:
        """None where there is no room for it."""
        import torch

        return unless_full(lambda: load_model(self.spec.model, self.device, torch.float32))

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Features of one batch, padded to its longest row. Ids of this batch or the one before are computed once.

        Raises ModelError where not even one row fits in memory, or ids are beyond the model's vocabulary.
        """
        return self.submit(samples)()

    def submit(self, samples: Sequence[Sample]) -> Results:
        """As `encode`, in two steps; see `stages.Submitting`."""
        keys = [sample.array.tobytes() for sample in samples]
        new = {key: sample.array for key, sample in zip(keys, samples, strict=True) if key not in self._last}
        known = self._last | dict(zip(new, self._begun(list(new.values())), strict=True))
        self._last = {key: known[key] for key in keys}
        wanted = [known[key] for key in keys]
        return lambda: [result() for result in wanted]

    def forget(self) -> None:
        """Let go of the batch before, whose results hold this encoder, and so its model."""
        self._last = {}

    def _begun(self, rows: Sequence[Array]) -> list[_Result]:
        with self._forwards:
            computed = self._computed(self.model, rows)
        heap.bound_kept()
        self.rows_computed += len(rows)
        batch = _Once(lambda: self._ended(rows, computed))
        return [partial(batch.result, number) for number in range(len(rows))]

    def _ended(self, rows: Sequence[Array], computed: Sequence[Callable[[], _Vectors]]) -> list[Encoded | SampleError]:
        results = [_checked(vectors()) for vectors in computed]
        again = [place for place, result in enumerate(results) if isinstance(result, SampleError)]
        if again and self.spec.dtype != "float32":
            for place, result in zip(again, self._in_float32([rows[place] for place in again]), strict=True):
                results[place] = result
        return results

    def _in_float32(self, rows: Sequence[Array]) -> list[Encoded | SampleError]:
        with self._forwards:
            if self._float32_model is None:
                return [no_room_for_float32() for _ in rows]
            own_threads(self.spec.threads)
            computed = unless_full(lambda: self._computed(self._float32_model, rows))
        if computed is None:
            return [no_room_for_float32() for _ in rows]
        return [_checked(vectors(), (RECOMPUTED_FLOAT32,)) for vectors in computed]

    def _computed(self, model: Any, rows: Sequence[Array]) -> list[Callable[[], _Vectors]]:
        """Vectors of each row, in as many batches as the memory asks for."""
        largest = max((int(_tokens(ids).max()) for ids in rows), default=0)
        if largest >= model.config.vocab_size:
            raise ModelError(
                f"the tokenizer of {self.spec.model.info.name} gives token {largest}, but its text encoder knows "
                f"{model.config.vocab_size} tokens: they are not of one model"
            )
        return self.halving.in_halves(lambda batch: self._forward(model, batch), rows, self.told)

    def _forward(self, model: Any, rows: Sequence[Array]) -> list[Callable[[], _Vectors]]:
        import torch

        settings = self.spec.settings
        ids, mask = _padded(rows, getattr(model.config, "pad_token_id", None) or 0)
        more: dict[str, Any] = dict(self.spec.model.family.forward)
        if settings.mask:
            more["attention_mask"] = self._on_device(mask)
        if settings.layers:
            more["output_hidden_states"] = True
        with torch.inference_mode():
            output = model(input_ids=self._on_device(ids), **more)
            pooled = None if settings.output == "features" else self._stored(pooled_of(output))
            stored = None if settings.output == "pooled" else self._stored(features_of(output, settings.layers))
        return [partial(self._vectors, row, number, stored, pooled) for number, row in enumerate(rows)]

    def _on_device(self, array: Array) -> torch.Tensor:
        """As images go there: a plain copy to a GPU would wait for all that is queued in it."""
        return self._transfer.upload([array])[0]

    def _stored(self, vectors: Any) -> Wait:
        import torch

        return self._transfer.download(vectors.to(torch.float16))

    def _vectors(self, ids: Array, number: int, stored: Wait | None, pooled: Wait | None) -> _Vectors:
        """Of one row of a batch, once it is computed."""
        if stored is None:
            assert pooled is not None
            return _Vectors(pooled()[number][None], None)
        features = self.spec.trimmed(ids, stored()[number, : len(ids)])
        return _Vectors(features, None if pooled is None else pooled()[number])


def _padded(rows: Sequence[Array], padding: int) -> tuple[Array, Array]:
    """Rows as the model takes them, int64 (N, L) each: tokens, and a mask that is 0 at padding of any kind."""
    ids = np.full((len(rows), max(map(len, rows))), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = _tokens(row)
        mask[number, : len(row)] = row >= 0
    return ids, mask


def _tokens(ids: Array) -> Array:
    """The tokens that ids stand for; see `Tokens`."""
    return np.where(ids < 0, ~ids, ids)


def _checked(vectors: _Vectors, notes: tuple[str, ...] = ()) -> Encoded | SampleError:
    features, pooled = vectors
    if not len(features):
        return SampleError("encode", "no token of the caption is left where those of the template are dropped")
    if np.isfinite(features).all() and (pooled is None or np.isfinite(pooled).all()):
        return Encoded(features, notes) if pooled is None else Encoded(features, notes, beside={POOLED: pooled})
    return SampleError("encode", "the text features are not finite, or too large for float16, in float32 too")


def _padded_tokens(rows: Sequence[Array]) -> int:
    return len(rows) * max(map(len, rows), default=0)


def _nobody(limit: int) -> None:
    """Who is told where no one asked to be."""
