"""Text features against the reference's and transformers' own T5: tokens, batches, precisions, and what fails."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, T5ForConditionalGeneration, T5TokenizerFast

from latentmill.encoders.memory import Halving
from latentmill.encoders.text import TextEncoder, TextSpec, Tokens, load_tokenizer
from latentmill.encoders.text_models import resolve_text
from latentmill.errors import ModelError, SampleError
from latentmill.records import RECOMPUTED_FLOAT32, Encoded, Sample, SampleRef
from support import DATA

TINY_T5 = DATA / "models" / "tiny-t5"
GOLDEN = DATA / "pixart" / "InternData"
CAPTIONS = [
    "a pink dahlia in bloom",
    "",
    "A wide view of a traditional temple with ornate eaves, yellow glazed tiles and red columns.",
    "a cat",
    "Two\nlines,  a tab\tand Ｆｕｌｌ width …",
]


def spec(**changes: Any) -> TextSpec:
    return replace(TextSpec(resolve_text(str(TINY_T5)), "cpu", "float32", 300, 1), **changes)


def samples(tokens: Sequence[Tokens]) -> list[Sample]:
    return [Sample(SampleRef(number, f"{number}.png", ""), one.ids, "") for number, one in enumerate(tokens)]


def features(results: list[Encoded | SampleError]) -> list[np.ndarray]:
    assert all(isinstance(result, Encoded) for result in results), results
    return [result.array.astype(np.float32) for result in results]


def encoded(one: TextSpec, captions: Sequence[str] = CAPTIONS) -> list[np.ndarray]:
    return features(one.open().encode(samples(one.tokenize(captions))))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def changed_t5(folder: Path, change: Callable[[Any], object]) -> TextSpec:
    """The small model with other weights, and its own tokenizer."""
    t5 = T5EncoderModel.from_pretrained(TINY_T5 / "text_encoder")
    with torch.no_grad():
        change(t5)
    t5.save_pretrained(folder / "text_encoder")
    shutil.copytree(TINY_T5 / "tokenizer", folder / "tokenizer")
    return spec(model=resolve_text(str(folder)))


# what the reference made


@pytest.mark.parametrize(
    ("label", "folder"), [("prompt", "caption_features_new"), ("sharegpt4v", "sharegpt4v_caption_features_new")]
)
def test_features_are_the_references(label: str, folder: str) -> None:
    rows = json.loads((GOLDEN / "data_info.json").read_text())
    found = spec().open().encode(samples(spec().tokenize([row[label] for row in rows])))
    for row, result in zip(rows, found, strict=True):
        golden = np.load(GOLDEN / folder / Path(row["path"]).with_suffix(".npz"))
        real = int(golden["attention_mask"].sum())
        assert result.array.shape == (real, 64)
        assert result.array.dtype == np.float16
        assert distance(features([result])[0], golden["caption_feature"][0, :real].astype(np.float32)) <= 2e-3


# tokens


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(1, 30))
def test_tokens_are_those_of_transformers(caption: str, max_length: int) -> None:
    own = T5TokenizerFast.from_pretrained(TINY_T5 / "tokenizer")
    (found,) = spec(max_length=max_length).tokenize([caption])
    assert found.ids.dtype == np.int64
    assert found.ids.tolist() == own(caption.strip(), truncation=True, max_length=max_length)["input_ids"]
    assert found.full_length == len(own(caption.strip())["input_ids"])


def test_what_truncation_cuts_is_told() -> None:
    long = "a cat and a dog " * 30
    whole, cut, short = (*spec(max_length=1000).tokenize([long]), *spec(max_length=20).tokenize([long, "a cat"]))
    assert len(whole.ids) == whole.full_length == cut.full_length > 100
    assert cut.ids.tolist() == [*whole.ids[:19], whole.ids[-1]]
    assert len(short.ids) == short.full_length < 20


def test_many_captions_keep_their_order() -> None:
    many = [f"caption number {number}" for number in range(5000)]
    found = spec().tokenize(many)
    assert [found[n].ids.tolist() for n in (0, 4095, 4096, 4999)] == [
        spec().tokenize([many[n]])[0].ids.tolist() for n in (0, 4095, 4096, 4999)
    ]


def test_tokens_need_no_weights_and_an_import_no_torch(tmp_path: Path) -> None:
    shutil.copytree(TINY_T5, tmp_path / "t5")
    one = spec(model=resolve_text(str(tmp_path / "t5")))
    (tmp_path / "t5" / "text_encoder" / "model.safetensors").unlink()
    assert one.tokenize([""])[0].ids.tolist() == [1]
    code = "import sys, latentmill.encoders.text; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("beside", [(), ("tokenizer_config.json",)], ids=["alone", "with its config"])
def test_a_sentencepiece_model_makes_the_same_tokens(tmp_path: Path, beside: tuple[str, ...]) -> None:
    """PixArt's repositories and Google's have no tokenizer.json."""
    shutil.copytree(TINY_T5 / "text_encoder", tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    for name in ("spiece.model", *beside):
        shutil.copy(TINY_T5 / "tokenizer" / name, tmp_path / "tokenizer")
    found = spec(model=resolve_text(str(tmp_path))).tokenize(CAPTIONS)
    assert [one.ids.tolist() for one in found] == [one.ids.tolist() for one in spec().tokenize(CAPTIONS)]


def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    shutil.copytree(TINY_T5, tmp_path / "t5")
    file = tmp_path / "t5" / "tokenizer" / "tokenizer.json"
    table = json.loads(file.read_text())
    table["post_processor"] = None
    file.write_text(json.dumps(table | {"model": {"type": "Unigram", "vocab": "no"}}))
    with pytest.raises(ModelError, match=r"the tokenizer of .*t5 cannot be loaded"):
        load_tokenizer(resolve_text(str(tmp_path / "t5")))
    file.write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer of .*t5 cannot be loaded"):
        load_tokenizer(resolve_text(str(tmp_path / "t5")))


# batches


def test_a_batch_of_mixed_lengths_equals_one_at_a_time() -> None:
    together = encoded(spec())
    for caption, found in zip(CAPTIONS, together, strict=True):
        (alone,) = encoded(spec(), [caption])
        assert distance(found, alone) <= 1e-3  # a last digit of float16


def test_identical_captions_are_computed_once() -> None:
    one = spec()
    encoder = one.open()
    batch = samples(one.tokenize(["a cat", "a dog", " a cat ", "a  cat", "a dog"]))
    first = features(encoder.encode(batch))
    assert encoder.rows_computed == 2
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0][:2], first[1][:2])
    later = features(encoder.encode([*samples(one.tokenize(["a horse"])), batch[0]]))
    assert encoder.rows_computed == 3
    assert np.array_equal(later[1], first[0])
    encoder.encode([batch[1]])  # of the batch before last: forgotten
    assert encoder.rows_computed == 4
    assert encoder.encode([]) == []


def test_a_spec_travels_without_what_it_opened() -> None:
    one = spec()
    closed = pickle.dumps(one)
    expected = encoded(one)
    opened = pickle.dumps(one)
    assert len(opened) < 2_000
    for data in (closed, opened):
        assert all(map(np.array_equal, encoded(pickle.loads(data)), expected))
    assert one.open() is one.open()


def test_a_tokenizer_of_another_model_is_named(tmp_path: Path) -> None:
    one = changed_t5(tmp_path, lambda t5: t5.resize_token_embeddings(50))
    with pytest.raises(ModelError, match="but its text encoder knows 50 tokens"):
        encoded(one)


# precision


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 5e-2), ("float16", 5e-3)])
def test_half_precision_is_near(dtype: Any, tolerance: float) -> None:
    one = spec(dtype=dtype)
    results = one.open().encode(samples(one.tokenize(CAPTIONS)))
    assert {result.notes for result in results} == {()}
    for found, expected in zip(features(results), encoded(spec()), strict=True):
        assert 0 < distance(found, expected) <= tolerance


def overflowing_feed_forward(t5: Any) -> None:
    layer = t5.encoder.block[1].layer[1]
    layer.layer_norm.weight *= 1e6


def overflowing_attention(t5: Any) -> None:
    """Beyond float16 where transformers clamps, so that the result would be finite, and wrong."""
    t5.encoder.block[0].layer[0].SelfAttention.o.weight *= 1e6


@pytest.mark.parametrize("change", [overflowing_feed_forward, overflowing_attention])
def test_what_overflows_in_float16_is_computed_again_in_float32(tmp_path: Path, change: Callable[[Any], None]) -> None:
    full = changed_t5(tmp_path, change)
    half = replace(full, dtype="float16")
    results = half.open().encode(samples(half.tokenize(CAPTIONS)))
    assert {result.notes for result in results} == {(RECOMPUTED_FLOAT32,)}
    assert all(map(np.array_equal, features(results), encoded(full)))
    assert half.open().rows_computed == len(CAPTIONS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_finite_in_float32_is_a_reject(tmp_path: Path, dtype: Any) -> None:
    """One caption's failure leaves the others of its batch as they are."""
    cat, dog = spec().tokenize(["a cat", "a dog"])
    of_cats = np.setdiff1d(cat.ids, dog.ids)
    one = changed_t5(tmp_path, lambda t5: t5.shared.weight[of_cats[0]].fill_(torch.nan))
    bad, good = replace(one, dtype=dtype).open().encode(samples([cat, dog]))
    assert isinstance(bad, SampleError)
    assert bad.stage == "encode"
    assert "not finite, or too large for float16" in bad.reason
    assert isinstance(good, Encoded)
    assert good.notes == ()


def test_what_does_not_fit_in_float16_is_a_reject(tmp_path: Path) -> None:
    one = changed_t5(tmp_path, lambda t5: t5.encoder.final_layer_norm.weight.mul_(1e6))
    (result,) = one.open().encode(samples(one.tokenize(["a cat"])))
    assert isinstance(result, SampleError)


# memory


def test_where_the_model_has_no_room_in_float32_what_overflowed_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = replace(changed_t5(tmp_path, overflowing_feed_forward), dtype="float16")
    encoder, tries = half.open(), []

    def full(*arguments: object) -> None:
        tries.append(arguments)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    monkeypatch.setattr(T5EncoderModel, "to", full)
    for captions in (["a cat", "a dog"], ["a house"]):
        for result in encoder.encode(samples(half.tokenize(captions))):
            assert isinstance(result, SampleError)
            assert str(result).startswith("memory: the result is not finite in half precision")
    assert len(tries) == 1


def test_one_caption_that_has_no_room_in_float32_leaves_the_others_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cat, dog = spec().tokenize(["a cat", "a dog"])
    of_cats = np.setdiff1d(cat.ids, dog.ids)
    full = changed_t5(tmp_path, lambda t5: t5.shared.weight[of_cats[0]].fill_(1e5))  # infinite in float16
    half = replace(full, dtype="float16")
    encoder, whole = half.open(), encoded(full, ["a dog"])[0]
    monkeypatch.setattr(T5EncoderModel, "to", without_room)
    for bad, good in (encoder.encode(samples([cat, dog])), encoder.encode(samples([dog, cat]))[::-1]):
        assert isinstance(bad, SampleError)
        assert bad.stage == "memory"
        assert isinstance(good, Encoded)
        assert distance(features([good])[0], whole) <= 5e-3


def without_room(*arguments: object) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")


def test_where_one_caption_has_no_room_in_float32_it_is_a_reject_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = replace(changed_t5(tmp_path, overflowing_feed_forward), dtype="float16")
    encoder = half.open()

    def full(module: object, arguments: object, named: dict[str, torch.Tensor]) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    encoder._float32_model.register_forward_pre_hook(full, with_kwargs=True)
    for result in encoder.encode(samples(half.tokenize(["a cat", "a dog"]))):
        assert isinstance(result, SampleError)
        assert str(result).startswith("memory: ")


def with_memory_for(encoder: TextEncoder, tokens: int) -> list[int]:
    """Let the model run out of memory beyond so many padded tokens; the list takes the size of every try."""
    tries: list[int] = []

    def hook(module: object, arguments: object, named: dict[str, torch.Tensor]) -> None:
        tries.append(named["input_ids"].numel())
        if tries[-1] > tokens:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    encoder.model.register_forward_pre_hook(hook, with_kwargs=True)
    return tries


def test_a_batch_that_does_not_fit_is_halved_and_later_ones_begin_there() -> None:
    one, told = spec(), []
    captions = [f"a photo of cat number {number}" for number in range(16)]
    expected = encoded(spec(), captions)
    encoder = one.open()
    encoder.told = told.append
    tries = with_memory_for(encoder, 70)
    for found, unbound in zip(encoded(one, captions), expected, strict=True):
        assert distance(found, unbound) <= 1e-3
    assert encoder.rows_computed == 16
    assert told == [(tried + 1) // 2 for tried in tries[:2]]
    assert encoder.halving.limit == told[-1] <= 70
    tries.clear()
    encoded(one, [f"a drawing of dog number {number}" for number in range(16)])
    assert tries
    assert max(tries) <= told[-1]
    assert len(told) == 2


def test_a_caption_that_fits_not_even_alone_is_an_error() -> None:
    one = spec()
    with_memory_for(one.open(), 1)
    with pytest.raises(ModelError, match=r"not even one caption fits .* --dtype bfloat16, or --device cpu"):
        encoded(one)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 30))
def test_halving_computes_each_item_once_and_in_order(items: list[int], memory: int) -> None:
    """An item costs its number; one that does not fit alone is left to the last resort."""
    done: list[int] = []

    def run(batch: Sequence[int]) -> list[str]:
        if sum(batch) > memory:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        done.extend(batch)
        return [str(item) for item in batch]

    told: list[int] = []
    halving = Halving[int]("item", sum)
    assert halving.in_halves(run, items, told.append, last_resort=lambda item: f"{item}") == [str(n) for n in items]
    assert done == [item for item in items if item <= memory]
    assert told == sorted(told, reverse=True)
    assert halving.limit == (told[-1] if told else None)


def test_halving_passes_other_failures_on() -> None:
    def run(batch: Sequence[int]) -> list[int]:
        raise RuntimeError("device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        Halving[int]("image").in_halves(run, [1, 2], print)


def test_halving_frees_what_the_failed_run_held() -> None:
    held: list[Any] = []

    class Big:
        def __del__(self) -> None:
            held.append("freed")

    def run(batch: Sequence[int]) -> list[int]:
        if len(batch) == 2:
            big = Big()
            raise torch.cuda.OutOfMemoryError(f"with {big}")
        assert held == ["freed"]
        return list(batch)

    assert Halving[int]("image").in_halves(run, [1, 2], lambda limit: None) == [1, 2]


# the forms that weights lie in


def test_weights_in_parts_are_one_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    t5 = T5EncoderModel.from_pretrained(TINY_T5 / "text_encoder")
    t5.save_pretrained(tmp_path / "text_encoder", max_shard_size="200KB")
    shutil.copytree(TINY_T5 / "tokenizer", tmp_path / "tokenizer")
    parts = sorted((tmp_path / "text_encoder").glob("model-*.safetensors"))
    capfd.readouterr()
    model = resolve_text(str(tmp_path))
    assert model.info.weights_sha256.count("+") == len(parts) - 1 > 0
    assert all(map(np.array_equal, encoded(spec(model=model)), encoded(spec())))
    assert capfd.readouterr() == ("", "")  # no bars of transformers' between ours
    parts[-1].rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"lacks 1 parts of its weights, {parts[-1].name} first"):
        resolve_text(str(tmp_path))
    (tmp_path / "text_encoder" / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"weights in parts, but not their index model.safetensors.index.json"):
        resolve_text(str(tmp_path))


def test_the_encoder_of_a_whole_t5_in_one_folder(tmp_path: Path) -> None:
    own = T5EncoderModel.from_pretrained(TINY_T5 / "text_encoder")
    whole = T5ForConditionalGeneration(own.config)
    whole.encoder.load_state_dict(own.encoder.state_dict())
    whole.shared.load_state_dict(own.shared.state_dict())
    whole.save_pretrained(tmp_path)
    for file in (TINY_T5 / "tokenizer").iterdir():
        shutil.copy(file, tmp_path)
    model = resolve_text(str(tmp_path))
    assert model.folder_encoder == model.folder_tokenizer == tmp_path
    assert all(map(np.array_equal, encoded(spec(model=model)), encoded(spec())))


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    shutil.copytree(TINY_T5, tmp_path / "t5")
    file = tmp_path / "t5" / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing, encoder.block.1.layer.0.SelfAttention.q.weight"):
        spec(model=resolve_text(str(tmp_path / "t5"))).open()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="t5 cannot be loaded"):
        spec(model=resolve_text(str(tmp_path / "t5"))).open()


def test_mini_runs_as_any_other_and_says_what_it_is() -> None:
    model = resolve_text("mini")
    assert (model.info.name, model.info.class_name, model.info.is_local) == ("mini", "T5EncoderModel", False)
    folder = model.folder_encoder.parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 500_000
    assert "random weights" in (folder / "README.md").read_text()
    one = spec(model=model, max_length=20)
    assert one.width == 64
    empty, photo, *_ = encoded(one, ["", "a photo of a cat on a table", "zebra crossing 42"])
    assert empty.shape == (1, 64)
    assert 5 <= len(photo) <= 12  # words, mostly, not letters
    assert len(one.tokenize(["a cat " * 30])[0].ids) == 20
