"""Stored text features give back what each pipeline's own `encode_prompt` gives, through file, batch and `assemble`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    Flux2KleinPipeline,
    FluxPipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
    WanPipeline,
)
from transformers import T5TokenizerFast

import tiny_text as tiny
from latentmill.assembling import assemble
from latentmill.encoders.text import text_spec
from latentmill.formats.pixart import PixArtText
from latentmill.loaders_text import collate
from latentmill.records import Encoded, Sample, SampleRef
from latentmill.registry import TEXT_SETS

CAPTIONS = [
    "a photo of a cat on a table",
    "",
    "  The QUICK brown fox &amp; {a}\n jumps …  ",
    "describe the lazy dog over the table, " * 12,
]
FLOAT16 = 5e-4  # of the largest value: half of float16's last digit


@pytest.fixture(scope="module")
def t5() -> tuple[Any, Any]:
    return tiny.tiny_t5(), T5TokenizerFast.from_pretrained(tiny.TINY_T5 / "tokenizer")


def assembled(
    name: str, folder: Path, captions: Sequence[str] = CAPTIONS, lengths: dict[str, int] | None = None, **settings: Any
) -> dict[str, Any]:
    """What a trainer gets, of captions that were encoded in one batch and stored."""
    samples: list[dict[str, Any]] = [{"text_features": {}, "text_mask": {}, "text_pooled": {}} for _ in captions]
    for member in TEXT_SETS[name]:
        length = (lengths or {}).get(member.name)
        one = text_spec(member.entry.name, source=str(folder), device="cpu", max_length=length, settings=settings)
        layout = PixArtText("multi", None, one.pooled_width, one.has_features)
        tokens = one.tokenize(captions)
        results = one.open().encode([Sample(SampleRef(0, "", ""), each.ids, "") for each in tokens])
        for sample, result, count in zip(samples, results, one.lengths(captions), strict=True):
            assert isinstance(result, Encoded)
            assert result.array.shape == (count, one.width)
            array, pooled = layout.both_of(layout.to_bytes(result.array, result.beside))
            if one.has_features:
                sample["text_features"][f"prompt/{member.name}"] = torch.from_numpy(array)
            if pooled is not None:
                sample["text_pooled"][f"prompt/{member.name}"] = torch.from_numpy(pooled)
    return assemble(name, collate(samples), "prompt", (lengths or {}).get(TEXT_SETS[name][0].name))


def same(found: torch.Tensor | None, expected: torch.Tensor | None, mask: torch.Tensor | None = None) -> None:
    assert found is not None
    assert expected is not None
    assert found.shape == expected.shape
    if mask is not None:
        found, expected = found[mask.bool()], expected[mask.bool()]
    assert (found.float() - expected.float()).abs().max() <= FLOAT16 * expected.abs().max()


@torch.no_grad()
def test_sd3(tmp_path: Path, t5: tuple[Any, Any]) -> None:
    """Three encoders; T5 is told nothing of its padding, and CLIP's second tokenizer pads with another token."""
    first, second = tiny.clip_tokenizer(), tiny.clip_tokenizer("!")
    clips = tiny.clip(first, projection=20, width=24), tiny.clip(second, projection=28, seed=7)
    folder = tiny.saved(tmp_path, [(clips[0], first), (clips[1], second), (t5[0], tiny.TINY_T5 / "tokenizer")])
    parts = {"text_encoder": clips[0], "text_encoder_2": clips[1], "text_encoder_3": t5[0]}
    words = {"tokenizer": first, "tokenizer_2": second, "tokenizer_3": t5[1]}
    pipeline = StableDiffusion3Pipeline(transformer=None, scheduler=None, vae=None, **parts, **words)
    embeds, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, None, None, do_classifier_free_guidance=False)
    found = assembled("sd3", folder)
    assert embeds.shape == (4, 77 + 256, 64)
    same(found["prompt_embeds"], embeds)
    same(found["pooled_prompt_embeds"], pooled)


@torch.no_grad()
def test_flux(tmp_path: Path, t5: tuple[Any, Any]) -> None:
    """CLIP's pooled vector alone."""
    words = tiny.clip_tokenizer()
    clip = tiny.clip(words, projection=None)
    folder = tiny.saved(tmp_path, [(clip, words), (t5[0], tiny.TINY_T5 / "tokenizer")])
    parts = {"text_encoder": clip, "text_encoder_2": t5[0], "tokenizer": words, "tokenizer_2": t5[1]}
    pipeline = FluxPipeline(transformer=None, scheduler=None, vae=None, **parts)
    embeds, pooled, ids = pipeline.encode_prompt(CAPTIONS)
    found = assembled("flux.1", folder)
    assert embeds.shape == (4, 512, 64)
    same(found["prompt_embeds"], embeds)
    same(found["pooled_prompt_embeds"], pooled)
    assert torch.equal(found["text_ids"], ids)


@torch.no_grad()
def test_sana(tmp_path: Path) -> None:
    """With the instruction, whose tokens but two are dropped; the empty caption is the pipeline's negative prompt."""
    words = tiny.gemma_tokenizer()
    model = tiny.gemma(words)
    folder = tiny.saved(tmp_path, [(model, words)])
    pipeline = SanaPipeline(words, model, None, None, None)
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    captions = [caption for caption in CAPTIONS if caption]
    embeds, mask, empty, empty_mask = pipeline.encode_prompt(captions, complex_human_instruction=instruction)
    found = assembled("sana", folder, captions)
    assert embeds.shape == (3, 300, tiny.WIDTH)
    assert mask.sum(1).tolist() == found["prompt_attention_mask"].sum(1).tolist()
    assert mask.sum(1).max() == 300
    same(found["prompt_embeds"], embeds, mask)
    assert torch.equal(found["prompt_attention_mask"], mask)
    found = assembled("sana", folder, [""])
    assert torch.equal(found["prompt_attention_mask"], empty_mask[:1])
    same(found["prompt_embeds"], empty[:1], empty_mask[:1])


@torch.no_grad()
@pytest.mark.parametrize("length", [1024, 40])
def test_qwen_image(tmp_path: Path, length: int) -> None:
    words = tiny.qwen_tokenizer()
    model = tiny.qwen2_5_vl(words)
    folder = tiny.saved(tmp_path, [(model, words)])
    pipeline = QwenImagePipeline(None, None, model, words, None)
    embeds, mask = pipeline.encode_prompt(CAPTIONS, max_sequence_length=length)
    found = assembled("qwen-image", folder, lengths={"qwen": length})
    assert (embeds.shape[1] == length) == (length == 40)
    same(found["prompt_embeds"], embeds)
    if mask is None:
        assert found["prompt_embeds_mask"] is None
    else:
        assert torch.equal(found["prompt_embeds_mask"], mask)


@torch.no_grad()
def test_flux2_klein(tmp_path: Path) -> None:
    """Three layers side by side, of the tokenizer's chat template, at the padding too."""
    words = tiny.qwen_tokenizer()
    model = tiny.qwen3(words)
    folder = tiny.saved(tmp_path, [(model, words)])
    pipeline = Flux2KleinPipeline(None, None, model, words, None)
    embeds, ids = pipeline.encode_prompt(CAPTIONS, text_encoder_out_layers=(1, 2, 3))
    found = assembled("flux.2-klein", folder, layers=[1, 2, 3])
    assert embeds.shape == (4, 512, 3 * tiny.WIDTH)
    same(found["prompt_embeds"], embeds)
    assert torch.equal(found["text_ids"], ids)


@torch.no_grad()
def test_wan(tmp_path: Path, t5: tuple[Any, Any]) -> None:
    """UMT5; entities and white space as the pipeline cleans them (its ftfy is not installed here)."""
    model = tiny.umt5(t5[0].config.vocab_size)
    folder = tiny.saved(tmp_path, [(model, tiny.TINY_T5 / "tokenizer")])
    pipeline = WanPipeline(t5[1], model, None, None)
    embeds, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False, max_sequence_length=512)
    same(assembled("wan", folder)["prompt_embeds"], embeds)


@torch.no_grad()
def test_pixart_sigma(tmp_path: Path, t5: tuple[Any, Any]) -> None:
    """Captions in small letters: the pipeline makes them so, PixArt's own tools do not."""
    folder = tiny.saved(tmp_path, [(t5[0], tiny.TINY_T5 / "tokenizer")])
    pipeline = PixArtSigmaPipeline(t5[1], t5[0], None, None, None)
    captions = [caption.lower() for caption in CAPTIONS]
    embeds, mask, _, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    found = assembled("pixart-sigma", folder, captions)
    assert torch.equal(found["prompt_attention_mask"], mask)
    same(found["prompt_embeds"], embeds, mask)
