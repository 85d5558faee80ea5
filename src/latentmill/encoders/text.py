"""Captions to text features: a T5 encoder of transformers, and the protocol that other families join.

A caption becomes token ids once, without the model; the encoder takes batches of ids. A batch that does not fit in
the device's memory is halved; ids that come twice are computed once; what is not finite in half precision is computed
again in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from latentmill.encoders.device import prepare_device
from latentmill.encoders.memory import Halving
from latentmill.encoders.text_models import ResolvedTextModel
from latentmill.errors import ModelError, SampleError
from latentmill.records import RECOMPUTED_FLOAT32, Array, Encoded, Sample
from latentmill.stages import Encoder

if TYPE_CHECKING:
    import torch
    from transformers import T5EncoderModel, T5TokenizerFast

_CAPTIONS_AT_ONCE = 4096  # bounds the memory of the tokenizer's own records, which are large


@dataclass(frozen=True, slots=True)
class Tokens:
    """One caption for a text encoder.

    ids: int64 (L,), the real tokens up to `max_length`, closing token included. full_length: how many there would be
    without that bound; the caption was truncated where it is more than L.
    """

    ids: Array
    full_length: int


class TextEncoderSpec(Protocol):
    """Describes a text encoder; picklable and cheap. Families differ in tokenizer, model and width.

    The encoder that `open` loads takes samples whose `array` is the `ids` of a Tokens, and gives float16 (L, width):
    a vector for each real token.
    """

    @property
    def max_length(self) -> int: ...
    @property
    def width(self) -> int: ...
    def tokenize(self, captions: Sequence[str]) -> list[Tokens]: ...
    def open(self) -> Encoder: ...


@dataclass(frozen=True)
class TextSpec:
    """How features are computed with T5. Everything here but `device` may change their bytes.

    max_length: tokens that a caption may have, closing token included.
    """

    model: ResolvedTextModel
    device: str
    dtype: Literal["float32", "bfloat16", "float16"]
    max_length: int
    threads: int

    @property
    def width(self) -> int:
        """D of a feature vector."""
        return self.model.info.width

    def tokenize(self, captions: Sequence[str]) -> list[Tokens]:
        """Token ids of each caption (of valid Unicode), stripped as PixArt's tools strip it. Opens the tokenizer alone.

        Raises ModelError where that cannot be loaded.
        """
        tokens: list[Tokens] = []
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
            stripped = [caption.strip() for caption in captions[start : start + _CAPTIONS_AT_ONCE]]
            encodings = self._tokenizer.backend_tokenizer.encode_batch(stripped)
            tokens += [self._bounded(np.array(encoding.ids, dtype=np.int64)) for encoding in encodings]
        return tokens

    def _bounded(self, ids: Array) -> Tokens:
        """As the tokenizer itself truncates: the first tokens, and the closing one."""
        if len(ids) <= self.max_length:
            return Tokens(ids, len(ids))
        return Tokens(np.append(ids[: self.max_length - 1], ids[-1]), len(ids))

    def open(self) -> TextEncoder:
        """Load the model. Raises ModelError."""
        return self._opened

    def close(self) -> None:
        """Let go of the model that `open` loaded."""
        self.__dict__.pop("_opened", None)

    @cached_property
    def _opened(self) -> TextEncoder:
        return TextEncoder(self)

    @cached_property
    def _tokenizer(self) -> T5TokenizerFast:
        return load_tokenizer(self.model)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_opened", "_tokenizer")}


class TextEncoder:
    """int64 token ids (L,) -> float16 features (L, D): T5's last hidden state at the real tokens.

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
        self.model = load_t5(spec.model, self.device, getattr(torch, spec.dtype))
        self._last: dict[bytes, Encoded | SampleError] = {}

    @cached_property
    def _float32_model(self) -> T5EncoderModel:
        import torch

        return load_t5(self.spec.model, self.device, torch.float32)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Features of one batch, padded to its longest row. Ids of this batch or the one before are computed once.

        Raises ModelError where not even one row fits in memory, or ids are beyond the model's vocabulary.
        """
        keys = [sample.array.tobytes() for sample in samples]
        new = {key: sample.array for key, sample in zip(keys, samples, strict=True) if key not in self._last}
        known = self._last | dict(zip(new, self._encoded(list(new.values())), strict=True))
        self._last = {key: known[key] for key in keys}
        return [known[key] for key in keys]

    def _encoded(self, rows: Sequence[Array]) -> list[Encoded | SampleError]:
        found = self._computed(self.model, rows)
        self.rows_computed += len(rows)
        results = [_checked(array) for array in found]
        again = [place for place, result in enumerate(results) if isinstance(result, SampleError)]
        if again and self.spec.dtype != "float32":
            better = self._computed(self._float32_model, [rows[place] for place in again])
            for place, array in zip(again, better, strict=True):
                results[place] = _checked(array, (RECOMPUTED_FLOAT32,))
        return results

    def _computed(self, model: T5EncoderModel, rows: Sequence[Array]) -> list[Array]:
        """float16 (L, D) of each row, in as many batches as the memory asks for."""
        largest = max((int(ids.max()) for ids in rows), default=0)
        if largest >= model.config.vocab_size:
            raise ModelError(
                f"the tokenizer of {self.spec.model.info.name} gives token {largest}, but its text encoder knows "
                f"{model.config.vocab_size} tokens: they are not of one model"
            )
        return self.halving.in_halves(lambda batch: self._forward(model, batch), rows, self.told)

    def _forward(self, model: T5EncoderModel, rows: Sequence[Array]) -> list[Array]:
        import torch

        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), model.config.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        with torch.inference_mode():
            hidden = model(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=torch.from_numpy(mask).to(self.device),
            ).last_hidden_state
            stored: Array = hidden.to(torch.float16).cpu().numpy()
        return [stored[number, : len(row)].copy() for number, row in enumerate(rows)]


def load_tokenizer(model: ResolvedTextModel) -> T5TokenizerFast:
    """The tokenizer, set to neither truncate nor pad. Raises ModelError."""
    from transformers import T5TokenizerFast

    try:
        with _quietly():
            tokenizer = T5TokenizerFast.from_pretrained(model.folder_tokenizer, local_files_only=True)
    except Exception as error:  # of a damaged file, the tokenizers library raises no narrower one
        raise ModelError(
            f"the tokenizer of {model.info.name} cannot be loaded (is a file of it damaged?): {_in_short(error)}"
        ) from error
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if tokenizer.backend_tokenizer.encode("").ids != [tokenizer.eos_token_id]:
        raise ModelError(f"the tokenizer of {model.info.name} does not close a text with </s>, as T5's tokenizers do")
    return tokenizer


def load_t5(model: ResolvedTextModel, device: torch.device, dtype: torch.dtype) -> T5EncoderModel:
    """The encoder in evaluation mode, from safetensors. Raises ModelError, also where weights are missing.

    In float16, transformers keeps the layers that overflow most (`wo`) in float32.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import T5EncoderModel

    try:
        with _quietly():
            t5, loading = T5EncoderModel.from_pretrained(
                model.folder_encoder,
                use_safetensors=True,
                local_files_only=True,
                torch_dtype=dtype,
                output_loading_info=True,
            )
        t5 = t5.eval().requires_grad_(False).to(device)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(f"{model.info.name} cannot be loaded: {_in_short(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"the weights of {model.info.name} are not whole: {len(missing)} tensors are missing, {missing[0]} first"
        )
    if dtype == torch.float16:
        for block in t5.encoder.block:
            block.layer[0].register_forward_hook(_infinity_to_nan)
    return t5


def _infinity_to_nan(module: object, inputs: object, output: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep an overflow of the attention visible: transformers would clamp infinity to a large, wrong number."""
    import torch

    return (output[0].masked_fill(output[0].isinf(), torch.nan), *output[1:])


def _checked(array: Array, notes: tuple[str, ...] = ()) -> Encoded | SampleError:
    if np.isfinite(array).all():
        return Encoded(array, notes)
    return SampleError("encode", "the text features are not finite, or too large for float16, in float32 too")


def _padded_tokens(rows: Sequence[Array]) -> int:
    return len(rows) * max(map(len, rows), default=0)


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _nobody(limit: int) -> None:
    """Who is told where no one asked to be."""


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars and load reports; what matters of them is an error here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
