"""Families of text encoders against transformers' own models: layers, pooled vectors, padding, and what is refused."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizerFast

import tiny_text as tiny
from latentmill.encoders.text import TextEncoder, TextSpec, text_spec
from latentmill.encoders.text_models import resolve_text
from latentmill.encoders.text_settings import PLAIN, TextSettings
from latentmill.errors import ConfigError, ModelError, SampleError
from latentmill.formats.metadata import TextInfo
from latentmill.records import RECOMPUTED_FLOAT32, Encoded, Sample, SampleRef
from latentmill.registry import TEXT_MODELS, TEXT_SETS

CAPTIONS = ["a photo of a cat", "", "The quick brown fox jumps over the lazy dog", "a " * 200, "the É日 table"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each family."""
    root = tmp_path_factory.mktemp("models")
    clip, qwen, gemma = tiny.clip_tokenizer(), tiny.qwen_tokenizer(), tiny.gemma_tokenizer()
    t5 = tiny.TINY_T5 / "tokenizer"
    made = {
        "clip": (tiny.clip(clip, projection=None), clip),
        "projected": (tiny.clip(clip, projection=20), clip),
        "gemma": (tiny.gemma(gemma), gemma),
        "qwen3": (tiny.qwen3(qwen), qwen),
        "qwen2.5-vl": (tiny.qwen2_5_vl(qwen), qwen),
        "umt5": (tiny.umt5(tiny.tiny_t5().config.vocab_size), t5),
    }
    return {name: tiny.saved(root / name, [parts]) for name, parts in made.items()}


def spec(folder: Path, max_length: int | None = None, dtype: Any = "float32", **settings: Any) -> TextSpec:
    return text_spec(str(folder), max_length=max_length, device="cpu", dtype=dtype, settings=settings)


def encoded(one: TextSpec, captions: Sequence[str] = CAPTIONS) -> list[Encoded]:
    results = one.open().encode([Sample(SampleRef(0, "", ""), tokens.ids, "") for tokens in one.tokenize(captions)])
    assert all(isinstance(result, Encoded) for result in results), results
    return [result for result in results if isinstance(result, Encoded)]


def near(found: np.ndarray, expected: Any, tolerance: float = 1e-3) -> None:
    wanted = np.asarray(expected, np.float32)
    assert found.dtype == np.float16
    assert found.shape == wanted.shape
    assert np.abs(found.astype(np.float32) - wanted).max() <= tolerance * np.abs(wanted).max()


FAMILIES = {
    "clip": ("CLIPTextModel", 77),
    "projected": ("CLIPTextModelWithProjection", 77),
    "gemma": ("Gemma2Model", 300),
    "qwen3": ("Qwen3Model", 512),
    "qwen2.5-vl": ("Qwen2_5_VLModel", 512),
    "umt5": ("UMT5EncoderModel", 512),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_is_told_by_the_config_and_batches_do_not_matter(models: dict[str, Path], name: str) -> None:
    """Rows of mixed lengths equal those alone; equal rows are computed once; a spec travels without its model."""
    one = spec(models[name])
    assert (one.model.info.class_name, one.max_length) == FAMILIES[name]
    assert one.width == tiny.WIDTH
    together = encoded(one, [*CAPTIONS, CAPTIONS[0]])
    assert one.open().rows_computed == len(CAPTIONS)
    for result, caption, count in zip(together, CAPTIONS, one.lengths(CAPTIONS), strict=False):
        assert result.array.shape == (count, tiny.WIDTH)
        (alone,) = encoded(pickle.loads(pickle.dumps(one)), [caption])
        near(alone.array, result.array)


# CLIP


@pytest.mark.parametrize("name", ["clip", "projected"])
@pytest.mark.parametrize("layers", [(), (-2,), (0, 2)])
def test_clip_gives_layers_and_pooled_of_transformers(
    models: dict[str, Path], name: str, layers: tuple[int, ...]
) -> None:
    one = spec(models[name], layers=list(layers))
    words = CLIPTokenizerFast.from_pretrained(models[name] / "tokenizer")
    model = (tiny.CLIPTextModelWithProjection if name == "projected" else CLIPTextModel).from_pretrained(
        models[name] / "text_encoder"
    )
    inputs = words(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        output = model(inputs.input_ids, output_hidden_states=True)
    pooled = output.text_embeds if name == "projected" else output.pooler_output
    states = [output.hidden_states[layer] for layer in layers] or [output.last_hidden_state]
    assert (one.width, one.pooled_width) == (len(states) * tiny.WIDTH, pooled.shape[1])
    for number, result in enumerate(encoded(one)):
        near(result.array, torch.cat([state[number] for state in states], dim=-1))
        near(result.beside["pooled"], pooled[number])


def test_clips_real_tokens_alone_are_those_of_the_padded_ones(models: dict[str, Path]) -> None:
    """It attends to what is before a token only. The closing token is kept where a caption is cut."""
    padded, real = spec(models["projected"]), spec(models["projected"], positions="real", mask=True)
    lengths = real.lengths(CAPTIONS)
    assert min(lengths) == 2
    assert max(lengths) == 77
    assert padded.lengths(CAPTIONS) == [77] * len(CAPTIONS)
    for full, trimmed, length in zip(encoded(padded), encoded(real), lengths, strict=True):
        near(trimmed.array, full.array[:length])
        near(trimmed.beside["pooled"], full.beside["pooled"])
    short = spec(models["projected"], 9, positions="real", mask=True).tokenize(CAPTIONS)
    assert [tokens.ids[-1] for tokens in short] == [tokens.ids[-1] for tokens in real.tokenize(CAPTIONS)]
    assert [tokens.full_length > len(tokens.ids) for tokens in short] == [True, False, True, True, True]


def test_the_pooled_vector_alone_is_the_array(models: dict[str, Path]) -> None:
    one = spec(models["projected"], output="pooled", positions="real", mask=True)
    assert (one.width, one.pooled_width, one.has_features, one.overhead) == (20, 20, False, 76)
    assert one.lengths(CAPTIONS) == [1] * len(CAPTIONS)
    for alone, beside in zip(encoded(one), encoded(spec(models["projected"])), strict=True):
        near(alone.array, beside.beside["pooled"][None])
        assert not alone.beside


def test_a_whole_clip_gives_its_text_model(tmp_path: Path) -> None:
    """As OpenAI's repositories are, with all in one folder, and a vocabulary without tokenizer.json."""
    words = tiny.clip_tokenizer()
    text = tiny.clip(words, projection=None).config.to_dict()
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    model.save_pretrained(tmp_path)
    words.backend_tokenizer.model.save(str(tmp_path))
    one = spec(tmp_path)
    assert one.model.info.class_name == "CLIPTextModel"
    inputs = words(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.text_model(inputs.input_ids)
    for number, result in enumerate(encoded(one)):
        near(result.array, expected.last_hidden_state[number])
        near(result.beside["pooled"], expected.pooler_output[number])


# decoders


def test_a_template_is_computed_and_not_stored(models: dict[str, Path]) -> None:
    """Text after the caption is stored; with a bare empty caption nothing is dropped of it."""
    given = {"template": "the quick brown fox: {} over", "drop": 6}
    plain, one = spec(models["gemma"]), spec(models["gemma"], **given)
    tokens = plain.tokenize([given["template"].format(caption) for caption in CAPTIONS])
    assert one.overhead == 6
    assert one.lengths(CAPTIONS) == [len(each.ids) - 6 for each in tokens]
    whole = plain.open().encode([Sample(SampleRef(0, "", ""), each.ids, "") for each in tokens])
    for result, full in zip(encoded(one), whole, strict=True):
        near(result.array, full.array[6:])
    bare = spec(models["gemma"], **given, empty="bare")
    assert bare.lengths(["", CAPTIONS[0]]) == [1, one.lengths(CAPTIONS)[0]]
    near(encoded(bare, [""])[0].array, encoded(plain, [""])[0].array)


def test_max_length_counts_what_is_stored(models: dict[str, Path]) -> None:
    long = CAPTIONS[3]
    one = spec(models["qwen3"], 10, template="describe: {}", drop=4)
    (tokens,) = one.tokenize([long])
    assert (len(tokens.ids), one.lengths([long])) == (14, [10])
    assert tokens.full_length > 14
    padded = spec(models["qwen3"], 10, positions="all")
    assert [len(each.ids) for each in padded.tokenize(CAPTIONS)] == [10] * len(CAPTIONS)
    assert (padded.tokenize([""])[0].ids[1:] < 0).all()


def test_the_empty_caption_is_never_nothing(models: dict[str, Path]) -> None:
    """Qwen's tokenizer neither opens nor closes a text: one token of padding stands for it."""
    one = spec(models["qwen3"])
    (tokens,) = one.tokenize([""])
    assert one.lengths([""]) == [len(tokens.ids)] == [1]
    assert np.isfinite(encoded(one, [""])[0].array).all()
    assert np.isfinite(encoded(spec(models["qwen3"], 10, positions="all"), [""])[0].array).all()


def test_a_caption_of_no_token_is_a_reject(models: dict[str, Path]) -> None:
    """Others of the batch are as they are."""
    one = spec(models["qwen3"], template="{} fox", drop=2)
    samples = [Sample(SampleRef(0, "", ""), tokens.ids, "") for tokens in one.tokenize(["", "the lazy dog"])]
    bad, good = one.open().encode(samples)
    assert isinstance(bad, SampleError)
    assert "no token of the caption is left" in bad.reason
    assert isinstance(good, Encoded)


@pytest.mark.parametrize("name", ["gemma", "clip", "qwen3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 5e-2), ("float16", 1e-2)])
def test_half_precision_is_near(models: dict[str, Path], name: str, dtype: str, tolerance: float) -> None:
    for half, full in zip(encoded(spec(models[name], dtype=dtype)), encoded(spec(models[name])), strict=True):
        assert half.notes == ()
        near(half.array, full.array, tolerance)


@pytest.mark.parametrize("kind", ["gemma", "clip"])
def test_what_overflows_in_float16_is_computed_again_in_float32(tmp_path: Path, kind: str) -> None:
    words: Any = tiny.gemma_tokenizer() if kind == "gemma" else tiny.clip_tokenizer()
    model: Any = tiny.gemma(words) if kind == "gemma" else tiny.clip(words, projection=20)
    with torch.no_grad():
        if kind == "gemma":
            model.layers[1].post_feedforward_layernorm.weight.fill_(1e5)
        else:
            model.text_model.encoder.layers[1].mlp.fc2.weight.mul_(1e8)
    folder = tiny.saved(tmp_path, [(model, words)])
    half = encoded(spec(folder, dtype="float16"))
    assert {result.notes for result in half} == {(RECOMPUTED_FLOAT32,)}
    for found, expected in zip(half, encoded(spec(folder)), strict=True):
        assert np.array_equal(found.array, expected.array)
        if kind == "clip":
            assert np.array_equal(found.beside["pooled"], expected.beside["pooled"])


def test_a_batch_that_does_not_fit_is_halved(models: dict[str, Path]) -> None:
    one = spec(models["projected"])
    expected = encoded(one)
    again = pickle.loads(pickle.dumps(one))
    tries: list[int] = []

    def hook(module: object, arguments: object, named: dict[str, torch.Tensor]) -> None:
        tries.append(len(named["input_ids"]))
        if tries[-1] > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    again.open().model.register_forward_pre_hook(hook, with_kwargs=True)
    for found, result in zip(encoded(again), expected, strict=True):
        near(found.array, result.array)
        near(found.beside["pooled"], result.beside["pooled"])
    assert tries == [5, 2, 2, 1]


def test_closing_lets_go_of_the_model(models: dict[str, Path]) -> None:
    one = spec(models["qwen2.5-vl"])
    first = one.open()
    assert isinstance(first, TextEncoder)
    assert not [name for name, _ in first.model.named_parameters() if "visual" in name]
    one.close()
    assert one.open() is not first


# settings


def test_settings_describe_what_differs_and_are_made_again_of_that() -> None:
    assert PLAIN.described() == {}
    for entry in TEXT_MODELS.values():
        told = entry.settings.described()
        assert PLAIN.changed(told) == entry.settings
        info = TextInfo(label="prompt", max_length=1, padded=False, dtype="float16", width=1, compute_dtype="float32",
                        empty="", settings=told)  # fmt: skip
        assert TextInfo.model_validate_json(info.model_dump_json()).settings == told


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "output": st.sampled_from(["features", "both"]),
            "layers": st.lists(st.integers(-40, 40), max_size=4) | st.integers(-3, 3),
            "positions": st.sampled_from(["real", "all"]),
            "template": st.sampled_from(["{}", "chat", "a {} b"]),
            "drop": st.integers(0, 40),
            "clean": st.sampled_from(["none", "strip", "lower", "web"]),
        },
    )
)
def test_any_settings_come_back_from_their_description(values: dict[str, Any]) -> None:
    assert PLAIN.changed(PLAIN.changed(values).described()) == PLAIN.changed(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer": -2}, "there is no text setting layer. There are: output, layers"),
        ({"output": "hidden"}, "output must be one of features, pooled, both. Found: 'hidden'"),
        ({"layers": "last"}, "layers must be a whole number or a list of them. Found: 'last'"),
        ({"layers": [1.5]}, "layers must be a whole number"),
        ({"mask": "no"}, "mask must be true or false. Found: 'no'"),
        ({"mask": False}, "it needs positions = all"),
        ({"template": "no place"}, r"template must have one {}, or be chat or chat-thinking. Found: 'no place'"),
        ({"drop": -1}, "drop must be a number of tokens, or instruction. Found: -1"),
        ({"drop": "instruction"}, "needs a template with text before its {}"),
        ({"output": "pooled", "layers": -2}, "layers is of features"),
        ({"positions": "all", "empty": "bare", "template": "a {}", "drop": 2}, "needs positions = real"),
    ],
)
def test_settings_that_make_no_sense_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PLAIN.changed(values)
    assert message in str(refused.value)


def test_what_a_model_cannot_do_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"umt5 \(UMT5EncoderModel\) has no pooled output"):
        spec(models["umt5"], output="both")
    with pytest.raises(ConfigError, match=r"max-length must be at least 1 and at most 77.*Found: 78"):
        spec(models["clip"], 78)
    with pytest.raises(ConfigError, match=r"layers must be between -4 and 3.*Found: 9"):
        spec(models["clip"], layers=9).open()
    with pytest.raises(ModelError, match="has no chat template"):
        spec(models["gemma"], template="chat").tokenize([""])
    with pytest.raises(ModelError, match="does not pad on the right"):
        spec(models["gemma"], positions="all").tokenize([""])
    shutil.copytree(models["clip"] / "text_encoder", tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_text("of T5")
    with pytest.raises(ModelError, match=r"no tokenizer: it needs vocab.json or tokenizer.json in tokenizer/"):
        spec(tmp_path)


# where models lie


def test_parts_of_a_pipelines_folder(tmp_path: Path) -> None:
    first, second = tiny.clip_tokenizer(), tiny.clip_tokenizer("!")
    folder = tiny.saved(
        tmp_path / "sd3",
        [(tiny.clip(first, projection=20), first), (tiny.clip(second, projection=28, width=48), second)],
    )
    one = text_spec("sd3-clip-g", source=str(folder), device="cpu")
    assert one.settings == TEXT_MODELS["sd3-clip-g"].settings
    assert (one.model.info.subfolder, one.width, one.pooled_width) == ("text_encoder_2", 48, 28)
    assert one.model.folder_tokenizer.name == "tokenizer_2"
    assert resolve_text(str(folder), None, "text_encoder_2") == one.model
    assert resolve_text(str(folder)).info.subfolder is None
    alone = text_spec("sd3-clip-g", source=str(folder / "text_encoder"), device="cpu", tokenizer="../tokenizer")
    assert alone.width == tiny.WIDTH
    with pytest.raises(ModelError, match=r"sd3 has no text_encoder_3/, where that part of its text encoders"):
        text_spec("sd3-t5", source=str(folder))


def test_sets_name_every_encoder_and_where_it_is() -> None:
    asked = {"pixart-sigma": 1, "sd3": 3, "flux.1": 2, "sana": 1, "qwen-image": 1}
    assert {name: len(TEXT_SETS[name]) for name in asked} == asked
    for members in TEXT_SETS.values():
        assert len({member.name for member in members}) == len({member.entry.subfolder for member in members})
        for member in members:
            assert TEXT_MODELS[member.entry.name] is member.entry
            assert isinstance(member.entry.settings, TextSettings)
