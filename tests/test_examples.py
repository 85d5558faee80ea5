"""The programs in `examples`, run as a user runs them: they learn, draw and repeat themselves on a small dataset."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import latentmill
from support import make_photos

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ("--steps", 150, "--width", 64, "--depth", 1, "--patch", 2, "--lr", 4e-3)  # three lines of losses
SIZES = [(64, 64), (48, 80), (80, 48)]  # height, width


def twice(program: str, data: Path, out: Path, *options: object) -> tuple[str, str]:
    """What a program prints, and the first two thirds of an equal run beside it, which is not let draw."""
    first, second = (started(program, "--data", data, "--out", out / name, *options) for name in ("first", "second"))
    with first, second:
        assert second.stdout is not None
        lines = list(takewhile(lambda line: "step    150" not in line, second.stdout))
        second.kill()
        output, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    return output, "".join(lines)


def started(program: str, *options: object) -> subprocess.Popen[str]:
    """A run on one core."""
    line = [sys.executable, str(EXAMPLES / program), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


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
    assert losses(second) == values[:2]
    assert "c0, c1" in first  # a line for each class
    with Image.open(tmp_path / "first" / "samples.png") as picture:
        assert picture.size == (5 * 64, 2 * 64)  # a training image and four samples of each class
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000
    assert (tmp_path / "first" / "ema.safetensors").stat().st_size > 10_000


def test_the_text_to_image_program_learns_draws_and_repeats_itself(captioned: Path, tmp_path: Path) -> None:
    first, second = twice("train_t2i.py", captioned, tmp_path, *SMALL, "--batch", 4)
    values = losses(first)
    assert len(values) == 3 and values[2] < 0.8 * values[0], first
    assert losses(second) == values[:2]
    buckets = np.unique(latentmill.load(captioned).buckets, axis=0)
    assert len(buckets) == 3
    with Image.open(tmp_path / "first" / "samples.png") as picture:  # each: images, samples, captions
        assert picture.size == (4 * buckets[:, 1].max(), 2 * buckets[:, 0].sum() + 3 * 48)
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000


@pytest.mark.parametrize("program", ["train_class.py", "train_t2i.py"])
def test_a_program_is_short_enough_to_be_read(program: str) -> None:
    assert len((EXAMPLES / program).read_text().splitlines()) <= 200
