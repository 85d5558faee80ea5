"""Captions to the token ids that a text encoder takes: cleaned, put into a template, bounded, padded where asked."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentmill.encoders.pretrained import quietly
from latentmill.encoders.text_settings import CHAT_THINKING, INSTRUCTION, TextSettings
from latentmill.errors import ModelError
from latentmill.records import Array

if TYPE_CHECKING:
    from latentmill.encoders.text_models import ResolvedTextModel

_CAPTIONS_AT_ONCE = 4096  # bounds the memory of the tokenizer's own records, which are large
_CLEANED: dict[str, Callable[[str], str]] = {
    "none": str,
    "strip": str.strip,
    "lower": lambda caption: caption.lower().strip(),
    "web": lambda caption: re.sub(r"\s+", " ", html.unescape(html.unescape(caption))).strip(),
}


@dataclass(frozen=True, slots=True)
class Tokens:
    """One caption for a text encoder.

    ids: int64 (L,), the tokens that are computed, closing token and template included; of padding (where all positions
    are stored) the complement ~p of the token p, which is negative. full_length: how many tokens there would be
    without any bound and padding; the caption was truncated where it is more than L.
    """

    ids: Array
    full_length: int


class CaptionTokenizer:
    """A model's own tokenizer, used as `settings` say. Raises ModelError where it cannot be loaded or used so.

    max_length: of what is stored. drop: how many tokens of the template are computed beside it. kept_first: how many
    tokens before these are stored.
    """

    def __init__(self, model: ResolvedTextModel, settings: TextSettings, max_length: int) -> None:
        self.settings = settings
        self._own = load_tokenizer(model)
        self._backend = self._own.backend_tokenizer
        self._closing = _closing(self._backend)
        self._pad = self._padding_token(model)
        self.kept_first = int(settings.drop == INSTRUCTION)
        self.drop = self._dropped()
        self.bare = self._bounded(self._backend.encode("").ids, max_length)
        self._limit = max_length + self.drop
        if settings.is_chat and not self._own.chat_template:
            raise ModelError(f"the tokenizer of {model.info.name} has no chat template: give one with a {{}} in it")

    def _padding_token(self, model: ResolvedTextModel) -> int:
        if self.settings.positions == "all" and (self._own.pad_token_id is None or self._own.padding_side != "right"):
            raise ModelError(
                f"the tokenizer of {model.info.name} does not pad on the right: features of all positions cannot be "
                "made (text setting positions = real stores those of real tokens)"
            )
        return int(self._own.pad_token_id or 0)

    def _dropped(self) -> int:
        """Sana counts the tokens of its instruction alone, the first included, and keeps the first and the last."""
        drop = self.settings.drop
        return drop if isinstance(drop, int) else len(self._backend.encode(self.settings.before).ids) - 2

    def __call__(self, captions: Sequence[str]) -> list[Tokens]:
        """Tokens of each caption (of valid Unicode)."""
        cleaned = _CLEANED[self.settings.clean]
        tokens: list[Tokens] = []
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
            texts = [self._placed(cleaned(caption)) for caption in captions[start : start + _CAPTIONS_AT_ONCE]]
            encodings = self._backend.encode_batch(texts)
            tokens += [Tokens(self._bounded(encoding.ids, self._limit), len(encoding.ids)) for encoding in encodings]
        return tokens

    def divided(self, caption: str) -> tuple[str, str, int]:
        """The text that is stored of a caption, the text that truncation cuts off, and the tokens of the whole.

        The text as it is cleaned, without the template; tokens with those that the tokenizer adds.
        """
        text = _CLEANED[self.settings.clean](caption)
        placed = self._placed(text)
        encoding = self._backend.encode(placed)
        length = len(encoding.ids) - (self.drop - self.kept_first if self.drop and placed else 0)
        if len(encoding.ids) <= self._limit:
            return text, "", length
        start, last = max(0, placed.find(text)), encoding.offsets[self._limit - self._closing - 1]
        end = min(len(text), max(0, last[1] - start))
        return text[:end], text[end:], length

    def _placed(self, caption: str) -> str:
        settings = self.settings
        if not caption and settings.empty == "bare":
            return ""
        if not settings.is_chat:
            return settings.before + caption + settings.after
        text: str = self._own.apply_chat_template(
            [{"role": "user", "content": caption}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=settings.template == CHAT_THINKING,
        )
        return text

    def _bounded(self, tokens: Sequence[int], limit: int) -> Array:
        """As the tokenizer itself truncates: the first tokens, and the closing one.

        A text of no token (empty, where the tokenizer neither opens nor closes a text) becomes one token of padding.
        """
        ids = np.array(tokens or [self._pad], dtype=np.int64)
        if len(ids) > limit:
            ids = np.concatenate([ids[: limit - self._closing], ids[len(ids) - self._closing :]])
        if self.settings.positions == "all":
            ids = np.pad(ids, (0, limit - len(ids)), constant_values=~self._pad)
        return ids


def load_tokenizer(model: ResolvedTextModel) -> Any:
    """The tokenizer, set to neither truncate nor pad. Raises ModelError."""
    import transformers

    family = model.family
    try:
        with quietly():
            tokenizer = getattr(transformers, family.tokenizer).from_pretrained(
                model.folder_tokenizer, local_files_only=True
            )
    except Exception as error:  # of a damaged file, the tokenizers library raises no narrower one
        raise ModelError(
            f"the tokenizer of {model.info.name} cannot be loaded (is a file of it damaged?): "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if family.closes and tokenizer.backend_tokenizer.encode("").ids[-1:] != [tokenizer.eos_token_id]:
        raise ModelError(
            f"the tokenizer of {model.info.name} does not close a text with {tokenizer.eos_token}, as tokenizers of "
            f"{family.class_name} do"
        )
    return tokenizer


def _closing(backend: Any) -> int:
    """How many tokens the tokenizer sets after a text."""
    mask = backend.encode("a").special_tokens_mask
    return next((place for place, special in enumerate(reversed(mask)) if not special), 0)
