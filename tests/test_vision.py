"""Vision encoders against transformers' own models and processors; sizes, precisions, memory; finding a model."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from latentmill.encoders.vision import VisionSpec, vision_info, vision_spec
from latentmill.encoders.vision_models import resolve_vision
from latentmill.errors import ConfigError, ModelError, SampleError
from latentmill.records import RECOMPUTED_FLOAT32, SMALLER_BATCH, Encoded, Sample
from latentmill.registry import DEFAULT_VISION_MODEL, VISION_MODELS
from tiny_vision import PATCH, PROJECTED, SIDE, WIDTH, build, photo, processor, sample, saved

FAMILIES = ["dinov2", "dinov2_with_registers", "dinov3_vit", "clip", "clip_vision_model", "clip-projection", "siglip",
            "siglip_vision_model"]  # fmt: skip
PROJECTING = ("clip", "clip-projection")
BEFORE = {"dinov2": 1, "dinov2_with_registers": 4, "dinov3_vit": 5, "siglip": 0, "siglip_vision_model": 0}
GRID = SIDE // PATCH


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    return {family: saved(root / family, family) for family in FAMILIES}


def spec(folder: Path, **settings: Any) -> VisionSpec:
    return vision_spec(str(folder), **settings)[0]


def encoded(of: VisionSpec, pixels: list[np.ndarray]) -> list[Encoded]:
    results = of.open().encode([sample(of.resize(each), number) for number, each in enumerate(pixels)])
    assert all(isinstance(result, Encoded) for result in results), results
    return results


def arrays(of: VisionSpec, pixels: list[np.ndarray]) -> np.ndarray:
    return np.stack([result.array for result in encoded(of, pixels)])


def expected_of(folder: Path, family: str, values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Patch tokens and pooled vectors, as a user of transformers would take them."""
    classes = {
        "clip": transformers.CLIPModel,
        "clip-projection": transformers.CLIPVisionModelWithProjection,
        "siglip": transformers.SiglipVisionModel,
        "siglip_vision_model": transformers.SiglipVisionModel,
    }
    model = classes.get(family, transformers.AutoModel).from_pretrained(folder).eval()
    how = {} if family.startswith("dino") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        if family == "clip":
            pooled = model.get_image_features(values, **how)
            pooled = getattr(pooled, "pooler_output", pooled)
            output = model.vision_model(values, **how)
        else:
            output = model(values, **how)
            pooled = output.image_embeds if family == "clip-projection" else output.pooler_output
    return output.last_hidden_state[:, BEFORE.get(family, 1) :].numpy(), pooled[:, None].numpy()


# against transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_transformers_with_its_own_processor(folders: dict[str, Path], family: str) -> None:
    """DINOv3's processor wants torchvision: its input is compared in test_vision_input, and is taken from here."""
    pixels = [photo(70, 90), photo(70, 90, "person/astronaut.jpg"), photo(70, 90, "plant/flower.jpg")]
    own = spec(folders[family])
    theirs = processor(family)
    if theirs is None:
        values = own.rule.tensor(np.stack(pixels), torch.device("cpu"))
    else:
        values = theirs(pixels, return_tensors="pt")["pixel_values"]
    patch, pooled = expected_of(folders[family], family, values)
    found = arrays(own, pixels)
    assert found.dtype == np.float32
    assert found.shape == (3, GRID * GRID, WIDTH)
    assert np.allclose(found, patch, atol=2e-5)
    assert np.abs(patch[0] - patch[1]).mean() > 0.05
    found = arrays(replace(own, tokens="pooled"), pixels)
    assert found.shape == (3, 1, PROJECTED if family in PROJECTING else WIDTH)
    assert np.allclose(found, pooled, atol=2e-5)
    if family not in PROJECTING:
        found = arrays(replace(own, tokens="both"), pixels)
        assert np.allclose(found, np.concatenate([pooled, patch], axis=1), atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES[1:])
@pytest.mark.parametrize("size", [(2 * SIDE, 2 * SIDE), (128, 128), (64, 112)])
def test_repa_input_gives_the_tokens_of_the_latents_at_any_size(
    folders: dict[str, Path], family: str, size: tuple[int, int]
) -> None:
    """The model's own size first. DINOv2's position embeddings are REPA's: see below."""
    pixels = [photo(*size), photo(*size, "person/astronaut.jpg")]
    own = spec(folders[family], input="repa")
    patch, _ = expected_of(folders[family], family, own.rule.tensor(np.stack(pixels), torch.device("cpu")))
    found = arrays(own, pixels)
    assert found.shape == (2, (size[0] // 16) * (size[1] // 16), WIDTH)
    assert np.allclose(found, patch, atol=2e-5)


@pytest.mark.parametrize("size", [(256, 256), (128, 192)])
def test_dinov2_with_repa_input_is_what_repa_aligns_with(tmp_path: Path, size: tuple[int, int]) -> None:
    """REPA's `load_encoders`: position embeddings resampled by timm (bicubic, antialiased), then kept by the model."""
    folder = saved(tmp_path / "dinov2", "dinov2", patch_size=14, image_size=14 * 20)
    model = transformers.Dinov2Model.from_pretrained(folder).eval()
    grid = size[0] // 16, size[1] // 16
    table = model.embeddings.position_embeddings.data
    square = table[:, 1:].reshape(1, 20, 20, WIDTH).permute(0, 3, 1, 2)
    resampled = interpolate(square, size=grid, mode="bicubic", antialias=True)
    whole = torch.cat([table[:, :1], resampled.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)], dim=1)
    model.embeddings.interpolate_pos_encoding = lambda *arguments: whole
    pixels = photo(*size)
    raw = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None] / 255.0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = interpolate((raw - mean) / std, (grid[0] * 14, grid[1] * 14), mode="bicubic")
    with torch.no_grad():
        expected = model(x).last_hidden_state[:, 1:].numpy()
    own = spec(folder, input="repa")
    assert np.allclose(arrays(own, [pixels]), expected, atol=2e-5)
    info = vision_info(own, size)
    assert (info.input_size, info.grid) == ((grid[0] * 14, grid[1] * 14), grid)
    plain = transformers.Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        assert np.abs(plain(x).last_hidden_state[:, 1:].numpy() - expected).max() > 1e-2


def test_rows_of_the_grid_come_one_after_the_other(tmp_path: Path) -> None:
    """Of a model that only projects its patches, a picture that is dark but for one patch lights up one token."""
    folder = saved(tmp_path / "siglip", "siglip_vision_model", num_hidden_layers=0)
    own = spec(folder, input="repa")
    dark = np.zeros((64, 96, 3), np.uint8)
    lit = dark.copy()
    lit[34:46, 66:78] = 255  # in the third row of patches, and the fifth of its six columns
    plain, found = arrays(own, [dark, lit])
    changed = np.flatnonzero(np.abs(plain - found).max(axis=1) > 1e-3)
    assert changed.tolist() == [2 * 6 + 4]


# settings


def test_what_is_told_before_any_work(folders: dict[str, Path]) -> None:
    own, info = vision_spec(str(folders["dinov2"]))
    assert (info.class_name, info.width, info.patch_size, info.is_local) == ("Dinov2Model", WIDTH, PATCH, True)
    told = vision_info(own, None)
    assert (told.input_size, told.grid, told.width, told.dtype) == ((SIDE, SIDE), (GRID, GRID), WIDTH, "float32")
    buckets = vision_info(replace(own, input="repa"), None)
    assert (buckets.input_size, buckets.grid) == (None, None)
    clip = spec(folders["clip"], tokens="pooled", save_dtype="float16")
    assert vision_info(clip, (64, 64)).width == PROJECTED
    assert arrays(clip, [photo(64, 64)]).dtype == np.float16


def test_specs_are_equal_and_travel_without_their_model(folders: dict[str, Path]) -> None:
    one, two = spec(folders["dinov2"]), spec(folders["dinov2"])
    assert one == two
    assert hash(one) == hash(two)
    encoder = one.open()
    assert one.open() is encoder
    assert one == two == pickle.loads(pickle.dumps(one))
    assert len(pickle.dumps(one)) < 5000
    one.close()
    assert one.open() is not encoder


def test_wrong_settings_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokens must be one of patch, pooled, both\. Found: 'cls'"):
        spec(folders["dinov2"], tokens="cls")
    with pytest.raises(ConfigError, match=r"input must be one of processor, repa\. Found: 'own'"):
        spec(folders["dinov2"], input="own")
    with pytest.raises(ConfigError, match="save_dtype must be one of float32, float16"):
        spec(folders["dinov2"], save_dtype="bfloat16")
    with pytest.raises(ConfigError, match=f"patch tokens of {WIDTH} and a pooled vector of {PROJECTED}"):
        spec(folders["clip"], tokens="both")
    headless = saved(tmp_path / "headless", "siglip_vision_model", vision_use_head=False)
    with pytest.raises(ConfigError, match="has no pooled vector: use tokens patch"):
        spec(headless, tokens="pooled")
    assert arrays(spec(headless), [photo(SIDE, SIDE)]).shape == (1, GRID * GRID, WIDTH)
    with pytest.raises(ConfigError, match="at least 16x16 pixels"):
        vision_info(spec(folders["dinov2"], input="repa"), (8, 64))


# batches, precision, memory


def test_features_do_not_depend_on_the_company_and_repeat_to_the_byte(folders: dict[str, Path]) -> None:
    pixels = [photo(64, 64), photo(64, 64, "person/astronaut.jpg"), photo(64, 64, "plant/flower.jpg")]
    own = spec(folders["dinov2"], tokens="both")
    whole = arrays(own, pixels)
    assert np.array_equal(arrays(own, pixels), whole)
    alone = np.concatenate([arrays(own, [each]) for each in pixels])
    assert np.allclose(alone, whole, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision_is_close(folders: dict[str, Path], dtype: str, tolerance: float) -> None:
    pixels = [photo(64, 64)]
    full = arrays(spec(folders["dinov3_vit"]), pixels)
    half = arrays(spec(folders["dinov3_vit"], dtype=dtype), pixels)
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).mean() < tolerance * full.std()


def changed_weights(folder: Path, name: str, factor: float) -> Path:
    file = folder / "model.safetensors"
    weights = load_file(file)
    (found,) = [key for key in weights if key.endswith(name)]
    save_file({**weights, found: weights[found] * factor}, file, metadata={"format": "pt"})
    return folder


def test_overflow_in_float16_is_computed_again_in_float32(tmp_path: Path) -> None:
    """Of a photo; not of a picture in the mean's grey, whose input is next to zero."""
    folder = changed_weights(saved(tmp_path / "m", "siglip_vision_model"), "patch_embedding.weight", 5e4)
    own, full = spec(folder, dtype="float16"), spec(folder)
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    bright, dull = encoded(own, [photo(SIDE, SIDE), grey])
    assert bright.notes == (RECOMPUTED_FLOAT32,)
    assert dull.notes == ()
    assert np.array_equal(bright.array, arrays(full, [photo(SIDE, SIDE)])[0])


def test_where_the_model_has_no_room_in_float32_what_overflowed_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed_weights(saved(tmp_path / "m", "siglip_vision_model"), "patch_embedding.weight", 5e4)
    encoder, tries = spec(folder, dtype="float16").open(), []

    def full(*arguments: object) -> None:
        tries.append(arguments)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    monkeypatch.setattr(transformers.SiglipVisionModel, "to", full)
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    for _ in range(2):
        bright, dull = encoder.encode([sample(photo(SIDE, SIDE)), sample(grey)])
        assert isinstance(dull, Encoded)
        assert isinstance(bright, SampleError)
        assert str(bright).startswith("memory: the result is not finite in half precision")
    assert len(tries) == 1


def test_what_is_not_finite_or_too_large_is_a_reject_of_its_own(tmp_path: Path) -> None:
    folder = changed_weights(saved(tmp_path / "nan", "dinov2"), "layernorm.bias", float("nan"))
    (result,) = spec(folder, dtype="bfloat16").open().encode([sample(photo(SIDE, SIDE))])
    assert isinstance(result, SampleError)
    assert str(result) == "encode: the vision features are not finite (NaN or infinity), in float32 too"
    folder = changed_weights(saved(tmp_path / "large", "dinov2"), "layernorm.bias", 1e7)
    (result,) = spec(folder, save_dtype="float16").open().encode([sample(photo(SIDE, SIDE))])
    assert str(result) == "encode: the vision features do not fit in float16"
    assert np.isfinite(arrays(spec(folder), [photo(SIDE, SIDE)])).all()


def test_a_batch_that_does_not_fit_is_halved(folders: dict[str, Path]) -> None:
    own = spec(folders["dinov2"])
    pixels = [photo(SIDE, SIDE)] * 5
    expected = arrays(own, pixels)
    encoder, seen = own.open(), []
    forward = encoder.model.forward

    def crowded(pixel_values: torch.Tensor, **how: Any) -> Any:
        seen.append(len(pixel_values))
        if len(pixel_values) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return forward(pixel_values, **how)

    encoder.model.forward, most = crowded, 2
    results = encoded(own, pixels)
    assert seen == [5, 2, 2, 1]
    assert [result.notes for result in results] == [(SMALLER_BATCH,)] * 5
    assert np.allclose(np.stack([result.array for result in results]), expected, atol=1e-5)
    most = 0
    with pytest.raises(ModelError, match="not even one image fits"):
        encoder.encode([sample(pixels[0])])


def test_the_threads_send_what_the_encoder_takes(folders: dict[str, Path]) -> None:
    """Images of several sizes become one batch after the processor's resize."""
    own = spec(folders["siglip"])
    several = [photo(90, 50), photo(31, 64), photo(SIDE, SIDE)]
    resize = pickle.loads(pickle.dumps(own.resize))
    batch: list[Sample] = [sample(resize(each)) for each in several]
    assert {each.array.shape for each in batch} == {(SIDE, SIDE, 3)}
    found = np.stack([result.array for result in own.open().encode(batch)])
    assert np.allclose(found[1], arrays(own, [several[1]])[0], atol=1e-5)


# finding a model


def refusal(name: object, **options: Any) -> str:
    with pytest.raises(ModelError) as refused:
        resolve_vision(str(name), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_short_names() -> None:
    assert VISION_MODELS[DEFAULT_VISION_MODEL].repository == "facebook/dinov2-base"
    for name, entry in VISION_MODELS.items():
        assert name == entry.name
        assert entry.repository.count("/") == 1
        assert str(entry.patch_size) in name or "so400m" in name
    assert "Did you mean dinov2-vitb14?" in refusal("dinov2-vitb")
    assert "there is no mini vision encoder" in refusal("mini")


def test_folders_that_are_no_vision_model_say_what_is_missing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "dinov2")
    config = json.loads((folder / "config.json").read_text())

    def written(**changes: object) -> Path:
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    assert "is a t5; vision features are computed with a model of type dinov2" in refusal(written(model_type="t5"))
    assert "a fixed resolution are of type siglip" in refusal(written(model_type="siglip2"))
    assert "patch_size in the config.json" in refusal(written(patch_size=[14, 14]))
    assert "no config.json" in refusal(tmp_path)
    assert "has no subfolder vision" in refusal(folder, subfolder="vision")
    assert resolve_vision(str(written().parent), subfolder="m").folder == folder
    (folder / "preprocessor_config.json").rename(folder / "elsewhere.json")
    assert "has no preprocessor_config.json: it says how" in refusal(folder)
    joint = {"image_processor": json.loads((folder / "elsewhere.json").read_text())}
    (folder / "processor_config.json").write_text(json.dumps(joint))
    assert resolve_vision(str(folder)).processor.edge == SIDE + 8
    (folder / "model.safetensors").rename(folder / "model.bin")
    assert "only pickled weights" in refusal(folder)


def test_weights_that_are_not_whole_are_refused_but_what_only_training_needs(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "dinov2")
    file = folder / "model.safetensors"
    weights = load_file(file)
    expected = arrays(spec(folder), [photo(SIDE, SIDE)])
    weights.pop("embeddings.mask_token")
    save_file(weights, file, metadata={"format": "pt"})
    assert np.array_equal(arrays(spec(folder), [photo(SIDE, SIDE)]), expected)
    weights.pop("layernorm.bias")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not whole: 1 tensors are missing, layernorm\.bias first"):
        spec(folder).open()
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(ModelError, match="cannot be loaded"):
        spec(folder).open()


def test_a_classifier_of_dinov2_is_taken_without_its_head(tmp_path: Path) -> None:
    inner = build("dinov2")
    whole = transformers.Dinov2ForImageClassification(inner.config).eval()
    whole.dinov2.load_state_dict(inner.state_dict())
    whole.save_pretrained(tmp_path)
    processor("dinov2").save_pretrained(tmp_path)
    pixels = [photo(64, 64)]
    plain = saved(tmp_path / "plain", "dinov2")
    assert np.array_equal(arrays(spec(tmp_path), pixels), arrays(spec(plain), pixels))
