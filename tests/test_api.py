"""The calls of the Python API: what they leave of the caller's process, and what they keep apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import latentmill
from latentmill.errors import ModelError, SettingsChangedError, SourceError
from support import TINY_VAE, cli

CROP = {"resolution": "32x32", "transform": "center-crop", "num_workers": 1}


def test_a_script_without_a_main_guard_can_use_workers_after_importing_torch(photos: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, latentmill\n"
        f"r = latentmill.convert({str(photos)!r}, {str(tmp_path / 'out')!r}, resolution='32x32', "
        "transform='center-crop', num_workers=2, batch_size=2)\n"
        "print('stored', r.stored)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stored 12\n"


def test_encoding_leaves_the_callers_torch_as_it_was(photos: Path, tmp_path: Path) -> None:
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    other = 1 if threads > 1 else 2
    latentmill.encode(photos, tmp_path / "out", model_url=str(TINY_VAE), threads=other, max_images=2, **CROP)
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == (threads, tf32)


def test_a_changed_model_config_is_a_changed_setting_and_a_lost_folder_is_told(photos: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_VAE, model)
    settings = {"model_url": str(model), "max_images": 2, **CROP}
    latentmill.encode(photos, tmp_path / "out", **settings)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    with pytest.raises(SettingsChangedError, match="vae-config"):
        latentmill.encode(photos, tmp_path / "out", **settings)
    shutil.rmtree(model)
    with pytest.raises(ModelError, match="not here"):
        latentmill.decode(tmp_path / "out", tmp_path / "decoded")


def test_latents_keep_their_images_numbers_and_strays_are_refused(photos: Path, tmp_path: Path) -> None:
    sorted(photos.rglob("*.jpg"))[3].write_bytes(b"not an image")
    images = tmp_path / "images"
    assert latentmill.convert(photos, images, **CROP).rejected == 1
    latentmill.encode(images, tmp_path / "latents", model_url="fake", resolution="32x32")
    assert not latentmill.verify(tmp_path / "latents", images).problems
    assert not (tmp_path / "latents" / "00000" / "img-mean-std-00000003.npy").exists()
    Image.new("RGB", (32, 32)).save(images / "preview.png")
    with pytest.raises(SourceError, match=r"preview\.png.*stray"):
        latentmill.encode(images, tmp_path / "others", model_url="fake")


def test_one_image_without_a_label_is_told(photos: Path, tmp_path: Path) -> None:
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.jpg"))]
    (photos / "dataset.json").write_text(json.dumps({"labels": [[name, 1] for name in names[1:]]}))
    done = cli("convert", "--source", photos, "--dest", tmp_path / "out", "--resolution", "32x32")
    assert done.returncode == 0
    assert f"gives no label to {names[0]}" in done.stderr
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == {"labels": None}


def test_sixteen_bit_colour_is_counted(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = 32
    rows = np.zeros((side, 1 + side * 6), np.uint8)
    header = side.to_bytes(4, "big") * 2 + bytes((16, 2, 0, 0, 0))
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "deep.png").write_bytes(png)
    assert latentmill.convert(tmp_path / "in", tmp_path / "out").notes == {"16-bit": 1}


def test_images_left_without_a_latent_are_told(photos: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    latentmill.convert(photos, images, **CROP)
    file = images / "00000" / "img00000002.png"
    file.write_bytes(file.read_bytes()[:500])
    done = cli("encode", "--source", images, "--dest", tmp_path / "out", "--vae", "fake")
    assert done.returncode == 3
    assert "images without a latent" in done.stdout
