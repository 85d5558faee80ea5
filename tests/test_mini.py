"""The embedded model: small, in diffusers' own form, and good enough to look at."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from latentmill.decoding import decode
from latentmill.encoders.models import resolve
from latentmill.encoders.vae import load_vae, to_input
from latentmill.transforms.crop import center_crop_dhariwal
from support import PHOTOS

MINI = Path(str(files("latentmill"))) / "assets" / "mini"
MAX_BYTES = 4_000_000
CHECK_PHOTOS = (
    "animal/chelsea.JPEG",
    "object/camera.png",
    "object/coffee.JPEG",
    "object/coins.png",
    "person/astronaut.jpg",
    "person/grace_hopper.jpg",
    "place/china.jpg",
    "place/hubble_deep_field.jpg",
    "place/moon.png",
    "place/rocket.jpg",
    "plant/flower.jpg",
)


def test_mini_is_small_and_says_where_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in MINI.iterdir() if path.suffix == ".safetensors") <= MAX_BYTES
    record = json.loads((MINI / "training_record.json").read_text())
    assert record["trained_on"] and record["check_psnr_db_mean"] > 23
    assert not set(record["trained_on"]) & set(record["check_psnr_db"])
    assert "not for training" in (MINI / "README.md").read_text()


def test_mini_is_an_f8c4_autoencoder() -> None:
    info = resolve("mini").info
    assert (info.latent_channels, info.downscale_factor, info.class_name) == (4, 8, "AutoencoderKL")


@pytest.mark.parametrize("sampled", [False, True], ids=["mean", "sample"])
def test_mini_reconstructs_photos_that_it_was_not_trained_on(sampled: bool) -> None:
    vae = load_vae(resolve("mini"), torch.device("cpu"), torch.float32)
    scores = []
    torch.manual_seed(0)
    for name in CHECK_PHOTOS:
        pixels = center_crop_dhariwal(decode((PHOTOS / name).read_bytes())[0], 256, 256)
        with torch.inference_mode():
            posterior = vae.encode(to_input(pixels[None], (-1.0, 1.0))).latent_dist
            decoded = vae.decode(posterior.sample() if sampled else posterior.mean).sample
        back = ((decoded.clamp(-1, 1) + 1) * 127.5).round().numpy()[0].transpose(1, 2, 0)
        scores.append(10 * np.log10(255**2 / np.square(back - pixels).mean()))
    assert np.mean(scores) > 25.0  # 25.9 when it was trained; the best linear code reaches 22.9


def test_minis_scaling_factor_gives_latents_of_unit_deviation() -> None:
    model = resolve("mini")
    vae = load_vae(model, torch.device("cpu"), torch.float32)
    means = []
    for name in CHECK_PHOTOS:
        pixels = center_crop_dhariwal(decode((PHOTOS / name).read_bytes())[0], 128, 128)
        with torch.inference_mode():
            means.append(vae.encode(to_input(pixels[None], (-1.0, 1.0))).latent_dist.mean)
    assert 0.7 < torch.cat(means).std().item() * model.info.scaling_factor < 1.4
