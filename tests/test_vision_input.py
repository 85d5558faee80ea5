"""Pixels to a vision model's input: to the bit what transformers' own processors give, and what REPA's trainer does."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from latentmill.encoders.vision_input import Processor, RepaInput, _constants
from latentmill.encoders.vision_processor import processor_of
from latentmill.errors import ConfigError, ModelError
from tiny_vision import DINOV3_PROCESSOR, photo

CPU = torch.device("cpu")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BIT, CLIP, SIGLIP = (
    transformers.BitImageProcessorPil,
    transformers.CLIPImageProcessorPil,
    transformers.SiglipImageProcessorPil,
)
SMALL_CROP = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 28}}


def through(rule: Processor | RepaInput, pixels: np.ndarray) -> np.ndarray:
    """float32 CHW, by the two halves that threads and encoder do."""
    resized = pickle.loads(pickle.dumps(rule)).resize(pixels)
    assert resized.dtype == np.uint8
    found = rule.tensor(resized[None], CPU)
    assert found.is_contiguous()
    assert found.shape[2:] == rule.size_of(pixels.shape[:2])
    return found[0].numpy()


def of(theirs: Any) -> Processor:
    return processor_of(theirs.to_dict(), "", "it")


def theirs_of(processor: Any, pixels: np.ndarray) -> np.ndarray:
    """Channels last are told: a picture of three rows could be taken for three channels."""
    (found,) = processor(pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"]
    return found


@pytest.mark.parametrize(
    "processor",
    [
        BIT(**SMALL_CROP),
        CLIP(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        SIGLIP(size={"height": 24, "width": 36}),
        SIGLIP(size={"height": 24, "width": 24}, resample=2),  # as SigLIP 2
        BIT(**SMALL_CROP, resample=1),
        BIT(**SMALL_CROP, do_resize=False),  # small pictures are padded
        CLIP(**SMALL_CROP, do_center_crop=False),
        CLIP(**SMALL_CROP, do_normalize=False),
        CLIP(**SMALL_CROP, do_rescale=False, image_mean=[120, 110, 100], image_std=[60, 61, 62]),
        SIGLIP(size={"height": 24, "width": 24}, rescale_factor=1 / 127.5, image_mean=[1, 1, 1], image_std=[1, 1, 1]),
    ],
)
@given(height=st.integers(1, 80), width=st.integers(1, 80))
@settings(max_examples=15)
def test_the_input_is_to_the_bit_that_of_transformers(processor: Any, height: int, width: int) -> None:
    pixels = photo(height, width)
    found = through(of(processor), pixels)
    expected = theirs_of(processor, pixels)
    assert found.dtype == expected.dtype == np.float32
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [(256, 256), (300, 451), (33, 64)])
def test_full_sizes_as_the_hub_has_them(size: tuple[int, int]) -> None:
    """DINOv2's preprocessor_config.json, and CLIP's in the form of 2021."""
    dinov2 = {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": IMAGENET[0],
        "image_processor_type": "BitImageProcessor",
        "image_std": IMAGENET[1],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 256},
    }
    clip = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    pixels = photo(*size)
    for table, theirs in ((dinov2, BIT), (clip, CLIP)):
        expected = theirs_of(theirs.from_dict(table), pixels)
        assert np.array_equal(through(processor_of(table, "", "it"), pixels), expected)


def test_what_a_file_leaves_out_or_holds_as_null_is_as_in_transformers() -> None:
    pixels = photo(60, 90)
    for kind, theirs in (("Bit", BIT), ("CLIP", CLIP), ("Siglip", SIGLIP)):
        table = {"image_processor_type": f"{kind}ImageProcessorFast", "do_center_crop": None, "crop_size": None}
        expected = theirs_of(theirs(), pixels)
        assert np.array_equal(through(processor_of(table, "", "it"), pixels), expected)
        assert processor_of({}, f"{kind}ImageProcessor", "it") == processor_of(table, "", "it")


@pytest.mark.parametrize("size", [(48, 48), (64, 96), (31, 47), (200, 120)])
def test_dinov3_resizes_floats_as_torchvision_does(size: tuple[int, int]) -> None:
    """Its processor wants torchvision: this is the arithmetic of its `_preprocess`, on PyTorch's own functions."""
    pixels = photo(*size)
    rule = processor_of(DINOV3_PROCESSOR, "", "it")
    assert rule.resize(pixels) is pixels
    scaled = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None] * DINOV3_PROCESSOR["rescale_factor"]
    resized = interpolate(scaled, (48, 48), mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    assert np.allclose(through(rule, pixels), ((resized - mean) / std)[0].numpy(), atol=2e-6)


@pytest.mark.parametrize(
    ("pixels", "patch", "side"),
    [((256, 256), 14, (224, 224)), ((512, 512), 14, (448, 448)), ((256, 256), 16, (256, 256)),
     ((128, 512), 14, (112, 448)), ((264, 250), 14, (224, 210))],
)  # fmt: skip
def test_repa_input_is_what_repa_computes_at_every_step(
    pixels: tuple[int, int], patch: int, side: tuple[int, int]
) -> None:
    rule = RepaInput(*IMAGENET, patch)
    assert rule.size_of(pixels) == side
    assert rule.size_of(None) is None
    image = photo(*pixels)
    raw = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    expected = interpolate(((raw / 255.0) - mean) / std, side, mode="bicubic")
    assert np.array_equal(through(rule, image), expected[0].numpy())


RULES = [
    RepaInput(*IMAGENET, 14),
    of(SIGLIP(size={"height": 32, "width": 48})),
    processor_of(DINOV3_PROCESSOR, "", "it"),
]


@pytest.mark.parametrize("rule", RULES)
def test_pixels_on_the_device_give_the_same_bits_and_constants_are_copied_there_once(
    rule: Processor | RepaInput,
) -> None:
    """A table of bytes, means and deviations: a copy of one from here would wait for all that is queued there."""
    _constants.cache_clear()
    for _ in range(3):
        pixels = np.stack([photo(32, 48), photo(32, 48, "plant/flower.jpg")])
        assert torch.equal(rule.tensor(torch.from_numpy(pixels), CPU), rule.tensor(pixels, CPU))
    found = _constants.cache_info()
    different = 2 if rule.mean == rule.std else 3
    assert (found.misses, found.misses + found.hits) == (different, 3 * (3 + 2))


@pytest.mark.parametrize("rule", RULES)
def test_another_default_device_changes_nothing(rule: Processor | RepaInput) -> None:
    """As in a script that called `torch.set_default_device("cuda")`."""
    pixels = photo(32, 48)[None]
    expected = rule.tensor(pixels, CPU)
    _constants.cache_clear()
    with torch.device("meta"):
        found = rule.tensor(pixels, CPU)
    assert torch.equal(found, expected)


def test_pictures_below_one_patch_of_latents_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 16x16 pixels\. Found: 40x8 \(width x height\)"):
        RepaInput(*IMAGENET, 14).size_of((8, 40))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"image_processor_type": "Idefics2ImageProcessor"}, "must be one of BitImageProcessor.* Found: Idefics2"),
        ({"size": {"longest_edge": 980}}, "must have height and width, or shortest_edge"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "must have height and width, or shortest_edge"),
        ({"size": "large"}, "not valid at size"),
        ({"image_mean": [0.5]}, "not valid at image_mean"),
        ({"crop_size": {"shortest_edge": 3}}, "does not do: .* crop_size"),
        ({"resample": 77}, "does not do: resample 77"),
        (DINOV3_PROCESSOR | {"resample": 1}, "does not do: resample 1"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        processor_of(table, "BitImageProcessor", "some/model")
    assert "some/model" in str(refused.value)
    assert "\n" not in str(refused.value)
