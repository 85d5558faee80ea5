"""The programs in `examples`, run as a user runs them: they learn, draw and repeat themselves on what latentmill makes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import latentmill
from support import make_photos

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ("--steps", 150, "--width", 64, "--depth", 1, "--patch", 2, "--lr", 4e-3)  # three lines of losses
SIZES = [(64, 64), (48, 80), (80, 48)]  # height, width


def twice(program: str, data: Path, out: Path, *options: object) -> list[str]:
    """What two equal runs of a program print, side by side on a core each."""
    runs = []
    for number in range(2):
        line = [EXAMPLES / program, "--data", data, "--out", out / str(number), *options]
        runs.append(
            subprocess.Popen(
                [sys.executable, *map(str, line)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
        )  # fmt: skip
    printed = []
    for run in runs:
        output, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        printed.append(output)
    return printed


def losses(printed: str) -> list[float]:
    return [float(value) for value in re.findall(r"loss (\S+)", printed)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def latents(folder: Path) -> Path:
    """Moments (8, 8, 8) of eight photos in two classes."""
    make_photos(folder / "photos", 8, side=64)
    latentmill.encode(
        folder / "photos", folder / "vae", model_url="mini", resolution="64x64", transform="center-crop-dhariwal"
    )
    return folder / "vae"


@pytest.fixture(scope="module")
def captioned(folder: Path) -> Path:
    """Eight captioned pictures in three buckets: one root with latents and text features."""
    source, random = folder / "captioned", np.random.default_rng(0)
    source.mkdir()
    for number in range(8):
        height, width = SIZES[number % 3]
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"picture {number}" + " of many" * number)
    latentmill.import_captioned(source, folder / "root")
    data = folder / "root" / "InternData"
    latentmill.pixart(
        data / "data_info.json", data, vae="mini", text_encoder="mini", resolution=64, multi_scale=True,
        buckets="grid:16", fit="cover",
    )  # fmt: skip
    return folder / "root"


def test_the_class_conditional_program_learns_draws_and_repeats_itself(latents: Path, tmp_path: Path) -> None:
    first, second = twice("train_class.py", latents, tmp_path, *SMALL, "--batch", 8, "--sampling-steps", 4)
    values = losses(first)
    assert len(values) == 3 and values[2] < 0.8 * values[0], first
    assert losses(second) == values
    assert "c0, c1" in first  # a line for each class
    drawn = [(tmp_path / run / "samples.png").read_bytes() for run in ("0", "1")]
    assert drawn[0] == drawn[1]
    with Image.open(tmp_path / "0" / "samples.png") as picture:
        assert picture.size == (5 * 64, 2 * 64)  # a training image and four samples of each class
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000
    assert (tmp_path / "0" / "ema.safetensors").stat().st_size > 10_000


def test_the_text_to_image_program_learns_draws_and_repeats_itself(captioned: Path, tmp_path: Path) -> None:
    first, second = twice("train_t2i.py", captioned, tmp_path, *SMALL, "--batch", 4)
    values = losses(first)
    assert len(values) == 3 and values[2] < 0.8 * values[0], first
    assert losses(second) == values
    drawn = [(tmp_path / run / "samples.png").read_bytes() for run in ("0", "1")]
    assert drawn[0] == drawn[1]
    buckets = np.unique(latentmill.load(captioned).buckets, axis=0)
    assert len(buckets) == 3
    with Image.open(tmp_path / "0" / "samples.png") as picture:  # each: images, samples, captions
        assert picture.size == (4 * buckets[:, 1].max(), 2 * buckets[:, 0].sum() + 3 * 48)
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000


@pytest.mark.parametrize("program", ["train_class.py", "train_t2i.py"])
def test_a_program_is_short_enough_to_be_read(program: str) -> None:
    assert len((EXAMPLES / program).read_text().splitlines()) <= 200
