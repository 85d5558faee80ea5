"""Every family against its own class: what is told of it, what is encoded, what is decoded; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentmill.encoders.models import ResolvedModel, check_statistic, resolve
from latentmill.encoders.vae import DecoderSpec, VaeSpec
from latentmill.encoders.vae_families import FAMILIES
from latentmill.errors import ConfigError, ModelError, SampleError
from latentmill.records import RECOMPUTED_FLOAT32, SMALLER_BATCH, TILED, Encoded, Sample, SampleRef
from support import WHOLE
from tiny_vaes import TINY, saved_vae, tiny_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"
WITHOUT_POSTERIOR = {"dc-ae", "taesd"}
OF_FRAMES = {"qwen-image", "wan2.1", "wan2.2"}
FACTORS = {"dc-ae": 32, "wan2.2": 16}  # else 8
POSITIONS = (3, 5)
FIRST = {"taesd": "encoder.layers.0.weight"}  # of the convolutions, by their name in the weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResolvedModel]:
    root = tmp_path_factory.mktemp("models")
    return {name: resolve(str(saved_vae(name, root / name))) for name in TINY}


def spec(model: ResolvedModel, **changes: Any) -> VaeSpec:
    store = "moments" if model.info.posterior else "mean"
    settings = {"device": "cpu", "dtype": "float32", "pixel_range": (-1.0, 1.0), "store": store, "seed": 0}
    return VaeSpec(model, **{**settings, "save_dtype": "float32", "threads": 1, **changes})


def photos(name: str, count: int = 2, positions: tuple[int, int] = POSITIONS) -> np.ndarray:
    """uint8 NHWC; smooth, as photos are."""
    height, width = (side * FACTORS.get(name, 8) for side in positions)
    number, down, across, colour = np.meshgrid(
        np.arange(1, count + 1), np.linspace(0, 3, height), np.linspace(0, 5, width), (1, 2, 3), indexing="ij"
    )
    return np.round(127.5 + 127.5 * np.sin(number * down + colour * across)).astype(np.uint8)


def samples(arrays: np.ndarray) -> list[Sample]:
    return [Sample(SampleRef(number, f"{number}.png", ""), array, f"{number}") for number, array in enumerate(arrays)]


def stacked(results: list[Encoded | SampleError]) -> np.ndarray:
    assert all(isinstance(result, Encoded) for result in results), results
    return np.stack([result.array for result in results])


def own_encode(name: str, pixels: np.ndarray) -> np.ndarray:
    """What a trainer's script gets of the class itself: moments, or the latent."""
    x = torch.tensor(pixels.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
    with torch.no_grad():
        found = tiny_vae(name).encode(x[:, :, None] if name in OF_FRAMES else x)
    if name in WITHOUT_POSTERIOR:
        return (found.latent if name == "dc-ae" else found.latents).numpy()
    moments = torch.cat([found.latent_dist.mean, found.latent_dist.std], dim=1)
    return (moments[:, :, 0] if name in OF_FRAMES else moments).numpy()


def own_decode(name: str, latents: np.ndarray) -> np.ndarray:
    """float NHWC -1..1 of the class itself."""
    z = torch.tensor(latents)
    with torch.no_grad():
        decoded = tiny_vae(name).decode(z[:, :, None] if name in OF_FRAMES else z).sample
    return (decoded[:, :, 0] if name in OF_FRAMES else decoded).permute(0, 2, 3, 1).numpy()


def test_every_family_is_tested(models: dict[str, ResolvedModel]) -> None:
    assert {model.info.class_name for model in models.values()} == FAMILIES.keys()


@pytest.mark.parametrize("name", TINY)
def test_a_family_is_described_by_its_config(models: dict[str, ResolvedModel], name: str) -> None:
    info = models[name].info
    assert info.latent_channels == (16 if name in ("sd3", "flux.1") else 4)
    assert info.downscale_factor == FACTORS.get(name, 8)
    assert info.pixel_multiple == (16 if name in ("flux.2", "wan2.2") else FACTORS.get(name, 8))
    assert info.posterior is (name not in WITHOUT_POSTERIOR)
    assert info.class_name == type(tiny_vae(name)).__name__


@pytest.mark.parametrize("name", TINY)
def test_latents_at_odd_sizes_are_those_of_the_class(models: dict[str, ResolvedModel], name: str) -> None:
    """3x5 positions: equal to 1e-6 of their magnitude, in one batch and one by one."""
    pixels = photos(name)
    expected = own_encode(name, pixels)
    encoder = spec(models[name]).open()
    found = stacked(encoder.encode(samples(pixels)))
    assert found.shape == expected.shape == (2, len(expected[0]), *POSITIONS)
    assert np.abs(found - expected).max() <= 1e-6 * max(1, np.abs(expected).max())
    alone = np.concatenate([stacked(encoder.encode([one])) for one in samples(pixels)])
    assert np.abs(alone - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    assert not np.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("name", TINY)
def test_pixels_are_those_of_the_class(models: dict[str, ResolvedModel], name: str) -> None:
    """The mean that is stored, decoded: the nearest of 256 values to what the class gives, padding cut off."""
    means = stacked(spec(models[name], store="mean").open().encode(samples(photos(name))))
    expected = np.clip((own_decode(name, means) + 1) * 127.5, 0, 255)
    decoder = spec(models[name], store="mean")
    found = stacked(DecoderSpec(decoder).open().encode(samples(means)))
    assert found.shape == photos(name).shape
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.501
    cut = stacked(DecoderSpec(decoder, padded_from=(17, 33)).open().encode(samples(means)))
    assert np.array_equal(cut, found[:, :17, :33])


@pytest.mark.parametrize("name", sorted(WITHOUT_POSTERIOR))
@pytest.mark.parametrize("store", ["moments", "sample"])
def test_a_model_without_a_posterior_has_no_moments(models: dict[str, ResolvedModel], name: str, store: str) -> None:
    model = models[name]
    for refused in (lambda: check_statistic(model.info, store), lambda: spec(model, store=store).open()):
        with pytest.raises(ConfigError, match=f"{name} .*has no posterior: use store mean. Found: store {store}$"):
            refused()
    check_statistic(model.info, "mean")
    check_statistic(models["sd"].info, store)


@pytest.mark.parametrize("name", sorted(WITHOUT_POSTERIOR))
def test_without_a_posterior_the_variance_is_nothing(models: dict[str, ResolvedModel], name: str) -> None:
    (result,) = spec(models[name]).open().encode(samples(photos(name, 1)))
    wide = result.array.astype(np.float64)
    expected = [*wide.mean(axis=(1, 2)), *np.square(wide).mean(axis=(1, 2)), 0, 0, 0, 0]
    assert np.allclose(result.sums, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", TINY)
def test_half_precision_is_near(models: dict[str, ResolvedModel], name: str) -> None:
    expected = own_encode(name, photos(name))
    found = stacked(spec(models[name], dtype="bfloat16").open().encode(samples(photos(name))))
    assert 0 < np.abs(found - expected).max() <= 0.05 * max(1, np.abs(expected).max())


# what does not go well


class Crowded:
    """Makes a model's encoder run out of memory above so many pixels a forward."""

    def __init__(self, vae: Any, most: int) -> None:
        self.most, self.seen = most, []
        self._forward, vae.encode = vae.encode, self.forward

    def forward(self, x: torch.Tensor) -> Any:
        self.seen.append(x.shape[0] * x.shape[-2] * x.shape[-1])
        if self.seen[-1] > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return self._forward(x)


@pytest.mark.parametrize("name", ["flux.2", "dc-ae", "taesd", "wan2.1"])
def test_batches_are_halved_and_large_images_tiled(models: dict[str, ResolvedModel], name: str) -> None:
    """Norms and attention see a tile alone: the means differ by less than 0.2 of their deviation (random weights)."""
    pixels = photos(name)
    encoder = spec(models[name], threads=WHOLE).open()
    Crowded(encoder.vae, pixels[0].size // 3)
    halved = encoder.encode(samples(pixels))
    assert [result.notes for result in halved] == [(SMALLER_BATCH,)] * 2
    expected = own_encode(name, pixels)
    assert np.abs(stacked(halved) - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    strip = photos(name, 1, (2, 640 // FACTORS.get(name, 8)))
    whole = own_encode(name, strip)
    encoder = spec(models[name], threads=WHOLE).open()
    crowded = Crowded(encoder.vae, 512 * strip.shape[1])
    (tiled,) = encoder.encode(samples(strip))
    assert tiled.notes == (TILED,)
    assert max(crowded.seen[1:]) == crowded.most
    assert tiled.array.shape == whole[0].shape
    assert 0 < np.abs(tiled.array - whole[0]).mean() < 0.2 * whole[0].std()
    with pytest.raises(ModelError, match="use --tiling auto"):
        never = spec(models[name], tiling="never").open()
        Crowded(never.vae, 1)
        never.encode(samples(strip))


@pytest.mark.parametrize("name", ["flux.2", "dc-ae", "taesd", "qwen-image"])
def test_overflow_in_float16_is_mended(models: dict[str, ResolvedModel], tmp_path: Path, name: str) -> None:
    """The first convolution's weights raised until float16 overflows behind it, and float32 does not."""
    folder = saved_vae(name, tmp_path / name)
    weights = load_file(folder / WEIGHTS)
    first = FIRST.get(name, "encoder.conv_in.weight")
    weights[first] = weights[first] * 1e6
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    model = resolve(str(folder))
    (full,), (half,) = (
        spec(model, dtype=dtype).open().encode(samples(photos(name, 1))) for dtype in ("float32", "float16")
    )
    assert half.notes == (RECOMPUTED_FLOAT32,)
    assert np.allclose(half.array, full.array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_the_memory_of_a_cpu_bounds_a_batch(
    models: dict[str, ResolvedModel], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two images of four: the first level's width and the tensors of the family decide."""
    family, config = FAMILIES[models[name].info.class_name], dict(tiny_vae(name).config)
    pixels = photos(name, 4)
    width = 2 if name == "wan2.2" else 8
    assert family.bytes_per_pixel(config, 4) == family.tensors * width * 4
    room = int(2.5 * pixels[0].size / 3 * family.bytes_per_pixel(config, 4) / 0.8)
    monkeypatch.setattr("latentmill.encoders.vae.available_memory", lambda: room)
    found = spec(models[name], threads=WHOLE).open().encode(samples(pixels))
    assert [result.notes for result in found] == [(SMALLER_BATCH,)] * 4


def edited(folder: Path, **config: object) -> str:
    """The folder, its config changed; a value of None takes a key away."""
    old = json.loads((folder / "config.json").read_text())
    new = {key: value for key, value in {**old, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(new))
    return str(folder)


def test_configs_that_do_not_describe_their_model_are_refused(tmp_path: Path) -> None:
    def refusal(name: str, **config: object) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        with pytest.raises(ModelError) as refused:
            resolve(edited(saved_vae(name, folder), **config))
        assert str(folder) in str(refused.value)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    message = refusal("sd", _class_name="AutoencoderKLHunyuanVideo")
    assert "is a AutoencoderKLHunyuanVideo; latents are made with one of AutoencoderKL, " in message
    assert "lacks encoder_block_out_channels or latent_channels" in refusal("dc-ae", encoder_block_out_channels=None)
    assert "lacks dim_mult or z_dim or base_dim" in refusal("wan2.1", z_dim=None)
    assert "must have 4 numbers in latents_std" in refusal("qwen-image", latents_std=[1.0])
    assert "the scaling_factor of its config.json must be a number. Found: 'x'" in refusal("sd3", scaling_factor="x")
    assert "must have 20 channels. Found: 16 and 16" in refusal("flux.2", latent_channels=5)


def test_batch_norm_statistics_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    folder = saved_vae("flux.2", tmp_path / "vae")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=f"the {WEIGHTS} of .* cannot be read"):
        resolve(str(folder))
    weights = {
        key: value for key, value in load_file(saved_vae("flux.2", folder) / WEIGHTS).items() if "var" not in key
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack bn\.running_var$"):
        resolve(str(folder))


def test_a_class_that_this_diffusers_lacks_is_named(
    models: dict[str, ResolvedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "AutoencoderKLFlux2", None)
    with pytest.raises(ModelError, match=r"needs a diffusers that has AutoencoderKLFlux2.* pip install -U diffusers"):
        spec(models["flux.2"]).open()
