"""Text encoders of today's pipelines, tiny, with random weights and tokenizers of their own kind, as folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from support import DATA

TINY_T5 = DATA / "models" / "tiny-t5"
WIDTH = 32
# As the chat templates of Qwen3 are, in the parts that one message of a user meets.
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
_TEXTS = ["a photo of a cat on a table", "the quick brown fox jumps over the lazy dog", "describe the image: color"] * 3
_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
_DECODER = _SIZES | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 4096}


def _byte_pairs(suffix: str = "") -> dict[str, Any]:
    """A small byte-level vocabulary, and its merges."""
    learnt = Tokenizer(BPE(end_of_word_suffix=suffix))
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=bytes_, end_of_word_suffix=suffix, min_frequency=1
    )
    learnt.train_from_iterator(_TEXTS, trainer)
    model = json.loads(learnt.to_str())["model"]
    pieces = dict.fromkeys([*bytes_, *((byte + suffix) for byte in bytes_), *model["vocab"]])
    return {
        "vocab": {piece: number for number, piece in enumerate(pieces)},
        "merges": [tuple(m) for m in model["merges"]],
    }


def _with(pieces: dict[str, Any], *special: str) -> dict[str, Any]:
    vocab = dict(pieces["vocab"])
    for token in special:
        vocab.setdefault(token, len(vocab))
    return pieces | {"vocab": vocab}


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    pieces = _with(_byte_pairs("</w>"), "<|startoftext|>", "<|endoftext|>")
    return CLIPTokenizer(**pieces, pad_token=pad_token, model_max_length=77)


def qwen_tokenizer() -> Qwen2Tokenizer:
    pieces = _with(_byte_pairs(), "<|endoftext|>")
    tokenizer = Qwen2Tokenizer(**pieces, model_max_length=4096, chat_template=CHAT_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def gemma_tokenizer() -> GemmaTokenizer:
    """Blanks are `▁`; what is not in the vocabulary falls back to bytes."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = sorted({letter for text in _TEXTS for letter in text.replace(" ", "▁")})
    merges = [("▁", "a"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("c", "a"), ("ca", "t"), ("▁", "cat"), ("o", "n")]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in merges)]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return GemmaTokenizer(vocab=vocab, merges=merges, model_max_length=4096, add_bos_token=True)


def clip(tokenizer: CLIPTokenizer, *, projection: int | None, width: int = WIDTH, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        **_SIZES | {"hidden_size": width},
        vocab_size=len(tokenizer),
        projection_dim=projection or 512,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def gemma(tokenizer: GemmaTokenizer) -> Gemma2Model:
    torch.manual_seed(1)
    return Gemma2Model(Gemma2Config(**_DECODER, vocab_size=len(tokenizer), query_pre_attn_scalar=16)).eval()


def qwen3(tokenizer: Qwen2Tokenizer) -> Qwen3ForCausalLM:
    torch.manual_seed(2)
    return Qwen3ForCausalLM(Qwen3Config(**_DECODER, vocab_size=len(tokenizer))).eval()


def qwen2_5_vl(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(3)
    text = _DECODER | {"vocab_size": len(tokenizer), "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def umt5(vocab_size: int) -> UMT5EncoderModel:
    torch.manual_seed(4)
    config = UMT5Config(vocab_size=vocab_size, d_model=WIDTH, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    return UMT5EncoderModel(config).eval()


def saved(folder: Path, parts: Iterable[tuple[Any, Any]]) -> Path:
    """Encoders and their tokenizers in a pipeline's form: `text_encoder`, `text_encoder_2`, `tokenizer`, …"""
    for number, (model, tokenizer) in enumerate(parts, 1):
        end = "" if number == 1 else f"_{number}"
        model.save_pretrained(folder / f"text_encoder{end}")
        if isinstance(tokenizer, Path):
            shutil.copytree(tokenizer, folder / f"tokenizer{end}")
        else:
            tokenizer.save_pretrained(folder / f"tokenizer{end}")
    return folder


def tiny_t5() -> T5EncoderModel:
    return T5EncoderModel.from_pretrained(TINY_T5 / "text_encoder").eval()
