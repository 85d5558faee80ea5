"""PixArt's two jobs over a small dataset that changes, without a model, for tests of what happens around a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentmill.features import image_features, text_features
from latentmill.outcome import Result
from support import contents, identity

SIZES = [(64, 64), (48, 80), (64, 60)]  # (height, width): two buckets of the grid


class Data:
    """A PixArt dataset whose rows and images change."""

    def __init__(self, root: Path) -> None:
        self.images, self.table = root / "InternImgs", root / "InternData" / "data_info.json"
        self.table.parent.mkdir(parents=True)
        self.rows: dict[str, dict[str, object]] = {}
        self.made = 0

    def add(self, path: str, caption: str, size: tuple[int, int] | None = None) -> None:
        """A new row, or a new image and caption for one. size: (height, width)."""
        height, width = size or SIZES[self.made % len(SIZES)]
        self.made += 1
        noise = np.random.default_rng(self.made).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        file = self.images / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).resize((width, height)).save(file)
        self.rows[path] = {"width": width, "height": height, "ratio": height / width, "path": path, "prompt": caption}

    def remove(self, path: str) -> dict[str, object]:
        (self.images / path).unlink()
        return self.rows.pop(path)

    def rename(self, old: str, new: str) -> None:
        self.rows[new] = {**self.rows.pop(old), "path": new}
        (self.images / new).parent.mkdir(parents=True, exist_ok=True)
        (self.images / old).rename(self.images / new)

    def write(self) -> None:
        self.table.write_text(json.dumps(list(self.rows.values())))


def small(root: Path, tall: bool = True) -> Data:
    """Rows in nested folders and two buckets, one caption twice; tall: a sixth, too tall for the reader."""
    data = Data(root)
    captions = ("a red fox", "a blue whale in the sea", "a red fox", "nothing much", "one two three four five six")
    for path, caption in zip(("a.png", "b/a.png", "b/c/d.e.png", "b/c/Zoë 1.jpg", "f/g/h.png"), captions, strict=True):
        data.add(path, caption)
    if tall:
        data.add("b/tall.png", "too tall", (100, 20))
    data.write()
    return data


def run_images(data: Data, dest: Path, **settings: Any) -> Result:
    chosen: dict[str, Any] = {"resolution": 64, "multi_scale": True, "buckets": "grid:16", "batch_size": 3}
    return image_features(data.table, dest, vae="fake", threads=1, num_workers=1, **{**chosen, **settings})


def run_text(data: Data, dest: Path, **settings: Any) -> Result:
    chosen: dict[str, Any] = {"text_encoder": "fake", "token_budget": 16, "threads": 1}
    return text_features(data.table, dest, **{**chosen, **settings})


Job = Callable[..., Result]
JOBS = pytest.mark.parametrize("job", [run_images, run_text], ids=["images", "text"])
FOLDERS = {run_images: "img_sdxl_vae_features_64resolution_ms_new", run_text: "caption_features_new"}


def held(place: Path) -> dict[str, bytes]:
    """All files but the report, and all folders, of what a finished job left."""
    found = {name: data for name, data in contents(place).items() if not name.endswith("report.json")}
    found |= {f"{path.relative_to(place).as_posix()}/": b"" for path in place.rglob("*") if path.is_dir()}
    assert not [name for name in found if ".latentmill" in name], "a work folder was left behind"
    return found


def fresh(data: Data, job: Job, **settings: Any) -> dict[str, bytes]:
    """What an uninterrupted run over the source as it is now makes."""
    with TemporaryDirectory(dir=data.table.parents[2]) as folder:
        job(data, Path(folder), **settings)
        return held(Path(folder))


def index(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "latentmill-index.jsonl").read_text().splitlines()]


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.relative_to(folder).as_posix(): identity(path) for path in folder.rglob("*") if path.is_file()}
