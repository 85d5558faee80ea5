"""A folder of photos with captions that changes, and recipes over it, for tests of the pass."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentmill import jpeg, loading
from latentmill.files import digest
from latentmill.outcome import Result
from latentmill.recipe import Recipe
from latentmill.recipe_file import to_toml
from latentmill.records import SampleRef
from latentmill.sources.features import FeatureImages
from latentmill.sources.images import ImageSource
from support import contents, identity

SIZES = [(64, 64), (48, 80), (64, 60), (90, 60)]  # (height, width): three buckets of the grid
CROP = {"transform": "center-crop", "resolution": "32x32"}
IMAGES = {"kind": "pixels", **CROP}
FAKE = {"kind": "latents", "model": "fake", "batch_size": 2, **CROP}
GRID = {"kind": "latents", "layout": "pixart", "resolution": 64, "multi_scale": True, "buckets": "grid:16"}
BUCKETS = {**GRID, "model": "fake", "batch_size": 2}
TEXT = {"kind": "text", "model": "fake", "token_budget": 16}
FOUR: dict[str, dict[str, Any]] = {"images": IMAGES, "latents": FAKE, "buckets": BUCKETS, "text": TEXT}
Outputs = Mapping[str, Mapping[str, Any]]


class Photos:
    """JPEGs in class folders, each with its caption beside it."""

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.made = root, 0
        for number in range(count):
            self.add(f"c{int(number > 2)}/p{number:03d}.jpg")

    def add(self, key: str, size: tuple[int, int] | None = None) -> Path:
        """A new photo, or another one in place of one. size: (height, width)."""
        height, width = size or SIZES[self.made % len(SIZES)]
        self.made += 1
        noise = np.random.default_rng(self.made).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).resize((width, height)).save(path, quality=90)
        path.with_suffix(".txt").write_text(f"caption {self.made} of {'some ' * (self.made % 4)}words")
        return path

    def remove(self, key: str) -> None:
        for suffix in (".jpg", ".txt"):
            (self.root / key).with_suffix(suffix).unlink()

    def rename(self, old: str, new: str) -> None:
        (self.root / new).parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".jpg", ".txt"):
            (self.root / old).with_suffix(suffix).rename((self.root / new).with_suffix(suffix))

    def edit(self) -> None:
        """One added before and one behind all others, one removed, one renamed, one changed."""
        self.add("a/first.jpg")
        self.add("z/last.jpg")
        self.remove("c0/p001.jpg")
        self.rename("c1/p003.jpg", "c0/renamed.jpg")
        self.add("c0/p000.jpg", (90, 60))


def run(photos: Path, dest: Path, outputs: Outputs, **settings: Any) -> dict[str, Result]:
    return Recipe(photos, outputs, dest, {"threads": 1, **settings}).run()


def alone(photos: Path, dest: Path, outputs: Outputs, **settings: Any) -> None:
    """Each output by a recipe of its own."""
    for name, output in outputs.items():
        run(photos, dest, {name: output}, **settings)


def fresh(photos: Path, outputs: Outputs, **settings: Any) -> dict[str, bytes]:
    """What runs of each output alone make of the photos as they are now."""
    with TemporaryDirectory(dir=photos.parent) as folder:
        alone(photos, Path(folder) / "out", outputs, **settings)
        return held(Path(folder) / "out")


def held(place: Path) -> dict[str, bytes]:
    """All files but the reports, and the recipe of the whole, of what finished jobs left."""
    found = {name: data for name, data in contents(place).items() if not name.endswith("report.json")}
    found.pop("latentmill-recipe.toml", None)
    assert not [name for name in found if ".latentmill" in name], "a work folder was left behind"
    return found


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.relative_to(folder).as_posix(): identity(path) for path in folder.rglob("*") if path.is_file()}


def index(folder: Path) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, (folder / "latentmill-index.jsonl").read_text().splitlines())
    return {row["key"]: row for row in rows}


def recipe_file(path: Path, source: Path, outputs: Outputs, **run_settings: Any) -> Path:
    """A recipe's file, whose outputs lie in `out` beside it."""
    settings = {"threads": 1, **run_settings}
    path.write_text(to_toml({"dest": "out", "source": {"path": source}, "run": settings, "outputs": outputs}))
    return path


class Work:
    """How often each image was decoded, and read by the loading threads, in this process."""

    def __init__(self) -> None:
        self.decoded: Counter[str] = Counter()  # by digest
        self.jpegs: Counter[str] = Counter()  # likewise, of all that are decoded as such
        self.read: Counter[str] = Counter()  # by key


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts from here on."""
    found = Work()
    decode, decode_jpeg = loading.decode_reduced, jpeg.pixels

    def counted_decode(data: bytes, *settings: Any) -> Any:
        found.decoded[digest(data)] += 1
        return decode(data, *settings)

    def counted_jpeg(data: bytes, *arguments: Any, **settings: Any) -> Any:
        found.jpegs[digest(bytes(data))] += 1
        return decode_jpeg(data, *arguments, **settings)

    def counted_read(kind: type[Any]) -> Callable[[Any, SampleRef], bytes]:
        read = kind.read

        def counted(source: Any, ref: SampleRef) -> bytes:
            if threading.current_thread().name.startswith("load"):
                found.read[ref.key] += 1
            return bytes(read(source, ref))

        return counted

    monkeypatch.setattr(loading, "decode_reduced", counted_decode)
    monkeypatch.setattr(jpeg, "pixels", counted_jpeg)
    for kind in (ImageSource, FeatureImages):
        monkeypatch.setattr(kind, "read", counted_read(kind))
    return found


class Stopped(BaseException):
    """Ends a run from within."""


@contextmanager
def stopped_after(commits: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End what runs within after so many shards are committed, in shards of one batch."""
    from latentmill.manifest import Plan

    commit, left = Plan.commit, [commits]

    def counted(*arguments: Any) -> None:
        if not left[0]:
            raise Stopped
        left[0] -= 1
        commit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)
        patch.setattr(Plan, "commit", counted)
        with pytest.raises(Stopped):
            yield
