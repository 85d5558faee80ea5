"""Text features of several encoders, read by name, collated, and put together; what is missing is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentmill.assembling import assemble
from latentmill.errors import ConfigError
from latentmill.formats.metadata import INDEX_JSONL, METADATA_JSON, Counts, Metadata, TextInfo, row_json
from latentmill.formats.pixart import EMPTY_CAPTION, PixArtText
from latentmill.loaders_text import TextFeatures, check_weights, collate, encodings
from latentmill.records import Outcome, SampleRef, StoredFile

KEYS = ["a.png", "b.png"]
WIDTHS = {"clip-l": (24, 20), "clip-g": (32, 28), "t5": (64, None)}


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def folder(root: Path, label: str, encoder: str, lengths: Sequence[int], *, features: bool = True) -> TextFeatures:
    """A finished folder of one caption's features by one encoder; the empty caption has one token."""
    width, pooled = WIDTHS.get(encoder, (64, None))
    layout = PixArtText("multi", None, pooled, features)
    path = root / f"{label}-{encoder}"
    path.mkdir()
    rows = []
    for number, (key, length) in enumerate(zip([*KEYS, EMPTY_CAPTION], [*lengths, 1], strict=True)):
        beside = {"pooled": numbers(pooled, seed=number)} if pooled else {}
        array = numbers(length, width, seed=number) if features else beside["pooled"][None]
        name = key if key == EMPTY_CAPTION else layout.name(number, key)
        (path / name).write_bytes(layout.to_bytes(array, beside))
        ref = SampleRef(number, key, "", caption=f"{label} of {key}", tokens=length)
        rows.append(row_json(Outcome(ref, files={"text": StoredFile(name, 1, "", 0)}), "text"))
    info = TextInfo(
        label=label, encoder=encoder, max_length=77, padded=False, dtype="float16", width=width,
        compute_dtype="float32", empty=EMPTY_CAPTION, pooled_width=pooled,
    )  # fmt: skip
    counts = Counts(listed=2, stored=2, rejected=0, skipped=0)
    table = Metadata(kind="text", layout=layout.code, counts=counts, text=info, source_digest="", index_digest="",
                     fingerprint={}, software={})  # fmt: skip
    (path / METADATA_JSON).write_text(table.to_json())
    (path / INDEX_JSONL).write_text("".join(f"{row}\n" for row in rows[:-1]))
    return TextFeatures(path)


def opened(root: Path, features: dict[str, bool], lengths: Sequence[int], label: str) -> dict[str, TextFeatures]:
    found = [folder(root, label, name, lengths, features=kept) for name, kept in features.items()]
    for each in found:
        assert each.align(KEYS).all()
    return {each.name: each for each in found}


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, TextFeatures]:
    every = dict.fromkeys(WIDTHS, True)
    return opened(tmp_path, every, [5, 5], "long") | opened(tmp_path, every, [3, 3], "short")


def batch(texts: dict[str, TextFeatures], chosen: str | None = None) -> dict[str, Any]:
    return collate([encodings(texts, chosen, number, key, empty=False) for number, key in enumerate(KEYS)])


def test_every_encoder_of_a_caption_has_its_name(texts: dict[str, TextFeatures]) -> None:
    found = batch(texts)
    assert list(found["text_features"]) == [f"{label}/{name}" for label in ("long", "short") for name in WIDTHS]
    assert found["text_pooled"].keys() == {f"{label}/clip-{size}" for label in ("long", "short") for size in "lg"}
    assert found["text_pooled"]["long/clip-g"].shape == (2, 28)
    assert found["captions"]["short/t5"] == ["short of a.png", "short of b.png"]
    np.testing.assert_array_equal(found["text_features"]["long/t5"][1].numpy(), numbers(5, 64, seed=1))
    np.testing.assert_array_equal(found["text_pooled"]["long/clip-l"][1].numpy(), numbers(20, seed=1))


def test_a_caption_that_is_chosen_by_weights_brings_all_its_encoders(texts: dict[str, TextFeatures]) -> None:
    labels, weights = check_weights({"long": 1, "short": 3}, texts)
    assert (labels, weights.tolist()) == (["long", "short"], [1, 3])
    found = batch(texts, "short")
    assert list(found["text_features"]) == ["caption/clip-l", "caption/clip-g", "caption/t5"]
    assert assemble("sd3", found)["prompt_embeds"].shape == (2, 3 + 3, 64)
    dropped = encodings(texts, "short", 0, KEYS[0], empty=True)
    assert set(dropped["captions"].values()) == {""}
    np.testing.assert_array_equal(dropped["text_pooled"]["caption/clip-l"].numpy(), numbers(20, seed=2))
    with pytest.raises(ConfigError, match=r"captions must be of long, short\. Found: long/t5"):
        check_weights({"long/t5": 1}, texts)
    texts.pop("short/t5")
    with pytest.raises(ConfigError, match=r"one width\. Found: .*clip-l 24, t5 64', 'short': 'clip-g 32, clip-l 24'"):
        check_weights({"long": 1, "short": 3}, texts)


def test_sd3_puts_clip_side_by_side_and_t5_behind(texts: dict[str, TextFeatures]) -> None:
    found = assemble("sd3", batch(texts), "long")
    clip, t5 = found["prompt_embeds"][:, :5], found["prompt_embeds"][:, 5:]
    parts = batch(texts)["text_features"]
    assert torch.equal(clip[..., :24], parts["long/clip-l"])
    assert torch.equal(clip[..., 24:56], parts["long/clip-g"])
    assert not clip[..., 56:].any()
    assert torch.equal(t5, parts["long/t5"])
    assert found["pooled_prompt_embeds"].shape == (2, 48)


def test_where_the_pooled_vector_is_all_there_are_no_features(tmp_path: Path) -> None:
    texts = opened(tmp_path, {"clip-l": False, "t5": True}, [4, 4], "prompt")
    found = batch(texts)
    assert list(found["text_features"]) == list(found["text_mask"]) == ["prompt/t5"]
    made = assemble("flux.1", found, "prompt")
    assert {name: tuple(part.shape) for name, part in made.items()} == {
        "prompt_embeds": (2, 4, 64),
        "pooled_prompt_embeds": (2, 20),
        "text_ids": (4, 3),
    }


def test_one_encoder_needs_no_name_and_masked_positions_are_zero(tmp_path: Path) -> None:
    texts = opened(tmp_path, {"": True}, [4, 9], "prompt")
    found = assemble("pixart-sigma", batch(texts), "prompt")
    assert found["prompt_embeds"].shape == (2, 300, 64)
    assert found["prompt_attention_mask"].sum(1).tolist() == [4, 9]
    assert not found["prompt_embeds"][0, 4:].any()
    cut = assemble("sana", batch(texts), "prompt", max_length=6)
    assert cut["prompt_attention_mask"].sum(1).tolist() == [4, 6]


def test_ids_are_where_the_features_are_whatever_the_default_device(tmp_path: Path) -> None:
    texts = opened(tmp_path, {"": True}, [5, 5], "prompt")
    found = batch(texts)
    with torch.device("meta"):
        ids = assemble("flux.2-klein", found, "prompt")["text_ids"]
    assert ids is not None
    assert ids[1].tolist() == [[0, 0, 0, number] for number in range(5)]


def test_what_is_missing_is_named(texts: dict[str, TextFeatures]) -> None:
    with pytest.raises(ConfigError, match=r"no set of text encoders 'sd4'. There are: pixart-sigma, sd3"):
        assemble("sd4", batch(texts))
    texts.pop("long/clip-g")
    with pytest.raises(ConfigError, match=r"lacks the text features of clip-g: .* Found: clip-l, t5"):
        assemble("sd3", batch(texts), "long")
    for name in ("pixart-sigma", "sana", "wan", "qwen-image", "flux.1"):
        with pytest.raises(ConfigError, match=r"lacks the text features of .* Found: none"):
            assemble(name, batch(texts), "other")
