"""What a model is trained on, against the code of the pipelines that it belongs to; and the way back."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import latentmill
from latentmill import api
from latentmill.encoders.models import resolve
from latentmill.encoders.normalization import denormalise, normalise
from latentmill.errors import ModelError
from latentmill.formats.metadata import METADATA_JSON, ModelInfo
from support import TINY_VAE, make_photos
from tiny_vaes import TINY, saved_vae, tiny_vae

EVEN = (4, 6)  # positions, of which FLUX.2 makes 2x3


@pytest.fixture(scope="module")
def infos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelInfo]:
    root = tmp_path_factory.mktemp("models")
    return {name: resolve(str(saved_vae(name, root / name))).info for name in TINY}


def pixels_for(info: ModelInfo) -> torch.Tensor:
    height, width = (side * info.downscale_factor for side in EVEN)
    return torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(0)) * 2 - 1


class Still:
    """A scheduler that adds no noise, so that a pipeline's `prepare_latents` gives the latents of the image."""

    config = SimpleNamespace(sigma_data=1.0)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timestep: Any) -> torch.Tensor:
        return latents

    def scale_noise(self, latents: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
        return latents


class AtItsMean:
    """A VAE whose posterior is drawn at its mean: these pipelines only ever draw."""

    def __init__(self, vae: Any) -> None:
        self._vae, self.dtype = vae, vae.dtype
        self.config = SimpleNamespace(**{**vae.config, "force_upcast": False})

    def encode(self, x: torch.Tensor) -> Any:
        found = self._vae.encode(x)
        if not hasattr(found, "latent_dist"):
            return found
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda generator: found.latent_dist.mean))


def bare(pipeline: str, vae: Any, **parts: Any) -> Any:
    """A pipeline without its other models, for the methods that need the VAE alone."""
    made = object.__new__(getattr(diffusers, pipeline))
    made.__dict__.update({"vae": vae, "scheduler": Still(), "vae_scale_factor": 8, **parts})
    return made


PLAIN = {"dtype": torch.float32, "device": torch.device("cpu"), "generator": torch.Generator()}
Make = Callable[[Any, torch.Tensor], torch.Tensor]


def _prepared(pipeline: str) -> Make:
    return lambda vae, x: bare(pipeline, AtItsMean(vae)).prepare_latents(x, None, 2, 1, **PLAIN)


def _encoded(pipeline: str) -> Make:
    return lambda vae, x: bare(pipeline, AtItsMean(vae))._encode_vae_image(x, torch.Generator())


def _of_flux2(vae: Any, x: torch.Tensor) -> torch.Tensor:
    return bare("Flux2Pipeline", vae)._encode_vae_image(x, torch.Generator())


def _of_sana(vae: Any, x: torch.Tensor) -> torch.Tensor:
    """At time 0 the image is kept: cos(0) * latents + sin(0) * noise."""
    made = bare("SanaSprintImg2ImgPipeline", AtItsMean(vae), vae_scale_factor=32)
    return made.prepare_latents(x, torch.zeros(()), 2, 4, *x.shape[2:], **PLAIN)


def _of_wan(vae: Any, x: torch.Tensor) -> torch.Tensor:
    """The condition on the first frame, which is the image."""
    config = {"_internal_dict": SimpleNamespace(expand_timesteps=True)}
    made = bare("WanImageToVideoPipeline", vae, **config, vae_scale_factor_temporal=4, vae_scale_factor_spatial=8)
    return made.prepare_latents(x, 1, 4, *x.shape[2:], 1, **PLAIN)[1][:, :, 0]


PIPELINES: dict[str, Make] = {
    "sd": _prepared("StableDiffusionImg2ImgPipeline"),
    "taesd": _prepared("StableDiffusionImg2ImgPipeline"),
    "sdxl": _prepared("StableDiffusionXLImg2ImgPipeline"),
    "playground": _prepared("StableDiffusionXLImg2ImgPipeline"),
    "sd3": _prepared("StableDiffusion3Img2ImgPipeline"),
    "flux.1": _encoded("FluxImg2ImgPipeline"),
    "flux.2": _of_flux2,
    "dc-ae": _of_sana,
    "qwen-image": lambda vae, x: _encoded("QwenImageImg2ImgPipeline")(vae, x[:, :, None])[:, :, 0],
    "wan2.1": _of_wan,
    "wan2.2": _of_wan,
}


def latents_of(vae: Any, x: torch.Tensor) -> torch.Tensor:
    """The mean, or the latent, as the class gives it."""
    in_time = type(vae).__name__ in ("AutoencoderKLQwenImage", "AutoencoderKLWan")
    found = vae.encode(x[:, :, None] if in_time else x)
    if hasattr(found, "latent_dist"):
        return found.latent_dist.mean[:, :, 0] if in_time else found.latent_dist.mean
    return found.latent if hasattr(found, "latent") else found.latents


@pytest.mark.parametrize("name", TINY)
def test_a_model_is_trained_on_what_its_pipeline_makes(infos: dict[str, ModelInfo], name: str) -> None:
    """Bit for bit; where the SDXL pipelines scale, too, and divide by a deviation, to the last bits of float32."""
    vae, x = tiny_vae(name), pixels_for(infos[name])
    with torch.no_grad():
        z, expected = latents_of(vae, x), PIPELINES[name](vae, x)
    found = normalise(z, infos[name])
    if name == "playground":
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(found, expected)
    assert found.shape == ((2, 16, 2, 3) if name == "flux.2" else z.shape)
    assert name == "taesd" or not torch.allclose(found, z.reshape(found.shape), atol=1e-2)
    assert torch.allclose(denormalise(found, infos[name]), z, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("name", TINY)
def test_the_way_back_is_exact_to_rounding(infos: dict[str, ModelInfo], name: str) -> None:
    """Any leading dimensions, and half precision within its own rounding."""
    z = torch.randn((2, 3, infos[name].latent_channels, *EVEN), generator=torch.Generator().manual_seed(1))
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 0.05)):
        back = denormalise(normalise(z.to(dtype), infos[name]), infos[name])
        assert back.dtype == dtype
        assert back.shape == z.shape
        assert (back.float() - z).abs().max() <= tolerance
    assert torch.equal(normalise(z, infos[name])[1, 2], normalise(z[1, 2], infos[name]))


def test_patches_are_those_of_the_pipeline(infos: dict[str, ModelInfo]) -> None:
    z = torch.arange(4 * 24).view(1, 4, *EVEN).float()
    plain = infos["flux.2"].normalization.model_copy(update={"mean": [0.0] * 16, "std": [1.0] * 16})
    info = infos["flux.2"].model_copy(update={"normalization": plain})
    assert torch.equal(normalise(z, info), diffusers.Flux2Pipeline._patchify_latents(z))
    assert torch.equal(denormalise(normalise(z, info), info), z)
    with pytest.raises(ModelError, match=r"multiples of 2 \(height x width\). Found: 4x5$"):
        normalise(z[..., :5], info)


def test_a_dataset_of_the_first_version_has_its_factors(infos: dict[str, ModelInfo]) -> None:
    z = torch.randn(4, *EVEN)
    for shift in (None, 0.5):
        old = infos["sd"].model_copy(update={"normalization": None, "scaling_factor": 2.0, "shift_factor": shift})
        assert torch.equal(normalise(z, old), (z - (shift or 0)) * 2)


# the loader

SIDE = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of four photos: moments (8, 4, 4)."""
    root = tmp_path_factory.mktemp("made")
    make_photos(root / "photos", 4)
    settings = {"transform": "center-crop", "resolution": f"{SIDE}x{SIDE}", "threads": 1}
    api.encode(root / "photos", root / "latents", model_url=str(TINY_VAE), **settings)
    return root / "latents"


def described(made: Path, dest: Path, info: ModelInfo) -> Path:
    """The same latents as if another model of 4 channels had made them."""
    shutil.copytree(made, dest)
    metadata = json.loads((dest / METADATA_JSON).read_text())
    metadata["model"] |= json.loads(info.model_dump_json(include={"normalization", "scaling_factor", "shift_factor"}))
    (dest / METADATA_JSON).write_text(json.dumps(metadata))
    return dest


@pytest.mark.parametrize("name", ["sd", "playground", "flux.2", "dc-ae", "wan2.1"])
def test_the_loader_gives_what_a_model_is_trained_on(
    infos: dict[str, ModelInfo], made: Path, tmp_path: Path, name: str
) -> None:
    dataset = latentmill.load(described(made, tmp_path / name, infos[name]), posterior="mean")
    stored = torch.stack([torch.from_numpy(np.load(path)) for path in sorted(made.rglob("*.npy"))])[:, :4]
    found = torch.stack([dataset[position]["latent"] for position in range(4)])
    assert torch.equal(found, normalise(stored, infos[name]))
    assert found.shape == ((4, 16, 2, 2) if name == "flux.2" else (4, 4, 4, 4))
    assert torch.allclose(dataset.denormalize(found), stored, rtol=1e-6, atol=2e-6)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[2]["latent"], found[2])
    assert dataset.buckets.tolist() == [[SIDE, SIDE]] * 4


def test_statistics_of_the_set_are_those_of_unpatched_channels(
    infos: dict[str, ModelInfo], made: Path, tmp_path: Path
) -> None:
    dataset = latentmill.load(
        described(made, tmp_path / "flux.2", infos["flux.2"]), posterior="mean", normalize="channel"
    )
    found = torch.stack([dataset[position]["latent"] for position in range(4)])
    assert found.shape == (4, 4, 4, 4)
    assert torch.allclose(found.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(found.std(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-3)


def test_a_dataset_without_a_recorded_form_loads_as_before(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "old")
    metadata = json.loads((made / METADATA_JSON).read_text())
    assert metadata["model"].pop("normalization")["scaling_factor"] == metadata["model"]["scaling_factor"]
    del metadata["model"]["posterior"], metadata["latent"]["padded_from"]
    (tmp_path / "old" / METADATA_JSON).write_text(json.dumps(metadata))
    new, old = (latentmill.load(path, posterior="mean") for path in (made, tmp_path / "old"))
    for position in range(4):
        assert torch.equal(new[position]["latent"], old[position]["latent"])


@pytest.mark.parametrize("name", ["sd", "flux.2", "dc-ae", "taesd", "qwen-image", "wan2.1"])
def test_pictures_come_back_from_what_a_model_is_trained_on(tmp_path: Path, name: str) -> None:
    """Encoded, loaded and undone, the class decodes to what `decode` writes; 64 x 64 pixels."""
    make_photos(tmp_path / "photos", 2, side=64)
    vae = str(saved_vae(name, tmp_path / "vae"))
    settings = {"transform": "center-crop", "resolution": "64x64", "threads": 1, "store": "mean"}
    api.encode(tmp_path / "photos", tmp_path / "latents", model_url=vae, **settings)
    api.decode(tmp_path / "latents", tmp_path / "decoded", threads=1)
    dataset = latentmill.load(tmp_path / "latents")
    stored = torch.stack([torch.from_numpy(np.load(path)) for path in sorted((tmp_path / "latents").rglob("*.npy"))])
    z = dataset.denormalize(torch.stack([dataset[position]["latent"] for position in range(2)]))
    assert torch.allclose(z, stored, rtol=1e-6, atol=2e-6)
    in_time = name in ("qwen-image", "wan2.1")
    with torch.no_grad():
        decoded = tiny_vae(name).decode(z[:, :, None] if in_time else z).sample
    expected = ((decoded[:, :, 0] if in_time else decoded).clamp(-1, 1) + 1) * 127.5
    for path, picture in zip(sorted((tmp_path / "decoded").rglob("*.png")), expected, strict=True):
        found = np.asarray(Image.open(path)).transpose(2, 0, 1).astype(float)
        assert found.shape == (3, 64, 64)
        assert np.abs(found - picture.numpy()).max() <= 0.51
