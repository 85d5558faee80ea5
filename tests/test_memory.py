"""The memory of a whole process over large photos: a decoded photo, its file and a batch, on top of a small job's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentmill.encoders import heap
from support import command

pytestmark = pytest.mark.skipif(heap._glibc() is None, reason="only glibc gives back what is freed")

PEAK = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(status, usage.ru_maxrss * 1024)
"""
PHOTOS = 4
SLACK = 3_000_000  # libjpeg's own rows, tables of weights, threads


def peak(*arguments: object) -> int:
    """Bytes of the largest process of a command, which a small process starts: a child begins with its starter's."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command(*arguments)], capture_output=True, text=True, check=True
    )
    status, found = map(int, done.stdout.split())
    assert status == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of 7 megapixels with captions, each a file of over 2 MB."""
    folder, random = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for number in range(PHOTOS):
        noise = random.integers(0, 70, (2304, 3072, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.jpg", quality=97)
        (folder / f"{number}.txt").write_text("a photo")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    Image.new("RGB", (512, 512)).save(folder / "0.jpg")
    (folder / "0.txt").write_text("a photo")
    return folder


def held(folder: Path) -> int:
    """Bytes of the largest photo, decoded and as a file."""
    return 3 * 2304 * 3072 + max(path.stat().st_size for path in folder.glob("*.jpg"))


def test_pixels_of_large_photos(large: Path, small: Path, tmp_path: Path) -> None:
    def convert(source: Path) -> int:
        settings = ("--resolution=256x256", "--transform=center-crop-dhariwal", "--num-workers=1", "--quiet")
        return peak("convert", "--source", source, "--dest", tmp_path / source.name, *settings)

    assert convert(large) <= convert(small) + held(large) + PHOTOS * 3 * 256**2 + SLACK


def test_buckets_of_large_photos(large: Path, small: Path, tmp_path: Path) -> None:
    """The small job has a batch of one bucket of 12.6 MB, too."""

    def pixart(source: Path) -> int:
        settings = ("--vae=fake", "--multi-scale", "--resolution=2048", "--batch-size=1", "--num-workers=2", "--quiet")
        return peak("pixart", "--data-info", source, "--dest", tmp_path / source.name, *settings)

    assert pixart(large) <= pixart(small) + 2 * held(large) + SLACK
