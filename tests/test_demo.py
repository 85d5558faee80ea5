"""The demo runs on what is packaged, again as well, and shows what it made."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from support import cli, cli_here


def test_the_demo_makes_verifies_and_draws_everything_and_can_be_run_again(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = cli("demo", "--out", out, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "sound" in done.stdout and "mean PSNR" in done.stdout
    assert len(list((out / "images" / "00000").iterdir())) == 12
    assert len(list((out / "vae-mini" / "00000").iterdir())) == 12
    with Image.open(out / "demo.png") as picture:
        assert picture.width > 1000
        assert len(set(picture.convert("RGB").resize((64, 64)).get_flattened_data())) > 500
    data = out / "pixart" / "InternData"
    assert len(json.loads((data / "data_info.json").read_text())) == 12
    assert len(list((data / "img_sdxl_vae_features_256resolution_ms_new").glob("*.npy"))) == 12
    assert len(list((data / "caption_features_new").glob("*_*.npz"))) == 12
    assert "random weights" in done.stdout and "BucketSampler" in done.stdout
    with Image.open(out / "batch.png") as picture:
        assert picture.width > 800
        assert len(set(picture.convert("RGB").resize((64, 64)).get_flattened_data())) > 500
    again = cli_here("demo", "--out", out)
    assert again.returncode == 0, again.stderr


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.txt").write_text("mine")
    done = cli_here("demo", "--out", tmp_path)
    assert done.returncode == 2 and "latentmill did not make" in done.stderr
    assert (tmp_path / "images" / "mine.txt").read_text() == "mine"
