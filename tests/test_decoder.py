"""Pictures of latents in a training script: those that `latentmill decode` writes, and PyTorch left as it was."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import latentmill
from latentmill.errors import ModelError
from latentmill.formats.payload import png_pixels
from latentmill.formats.reader import Reader
from pixart_reader import TINY_VAE
from support import make_photos


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decoder")
    make_photos(root / "photos", 3, side=48)
    settings = {"resolution": "36x28", "transform": "center-crop", "indivisible": "pad", "threads": 1}
    latentmill.encode(root / "photos", root / "latents", model_url=str(TINY_VAE), **settings)
    return root / "latents"


def test_a_dataset_gives_the_pictures_that_decode_writes(latents: Path, tmp_path: Path) -> None:
    latentmill.decode(latents, tmp_path / "pictures", threads=1, batch_size=1)
    reader = Reader(tmp_path / "pictures")
    written = [png_pixels(reader.read(f"00000/img{number:08d}.png")) for number in range(3)]
    dataset = latentmill.load(latents, posterior="mean")
    batch = torch.stack([dataset[number]["latent"] for number in range(3)])
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    made = dataset.decode(batch, "cpu")
    assert [picture.shape for picture in made] == [(28, 36, 3)] * 3
    for ours, theirs in zip(made, written, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1  # threads may differ
    assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == before
    again = pickle.loads(pickle.dumps(dataset)).decode(batch[:1], "cpu")
    assert np.array_equal(again[0], made[0])


def test_a_latent_that_cannot_be_decoded_is_told(latents: Path) -> None:
    dataset = latentmill.load(latents, posterior="mean")
    with pytest.raises(ModelError, match="a latent cannot be decoded"):
        dataset.decode(torch.full((1, *dataset[0]["latent"].shape), torch.nan), "cpu")
