"""What several test modules share: the command line as a process, synthetic photos, and comparing datasets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(__file__).parent / "data"
PHOTOS = DATA / "photos"
TINY_VAE = DATA / "models" / "tiny-vae"


def command(*arguments: object) -> list[str]:
    """The command line of `latentmill` with these arguments."""
    return [sys.executable, "-m", "latentmill.cli", *map(str, arguments)]


def cli(*arguments: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `latentmill` as a process of its own."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}
    )


def make_photos(folder: Path, count: int, *, side: int = 48, classes: int = 2, seed: int = 0) -> list[Path]:
    """`count` different small JPEGs in class folders `c0`, `c1`, …"""
    random = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        path = folder / f"c{number * classes // count}" / f"photo{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


def contents(path: Path, *, data_only: bool = False) -> dict[str, bytes]:
    """Every file of a dataset folder by name; without the report, which holds times. data_only: arrays and labels."""
    found = {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "latentmill-report.json"
    }
    if data_only:
        return {name: data for name, data in found.items() if not name.startswith("latentmill")}
    return found
