"""A stand-in for the reference trainer's two readers, written from the layout's description and not with latentmill.

It opens the names that they would open, and lets every error out. What it reads can be computed again by hand here,
with diffusers and transformers alone.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import typer
from PIL import Image
from typer.testing import CliRunner

from latentmill.cli import app
from support import DATA, PHOTOS, TINY_VAE

TINY_T5 = DATA / "models" / "tiny-t5"
GOLDEN = DATA / "pixart" / "InternData"
RATIOS = DATA.parents[1] / "src" / "latentmill" / "assets" / "aspect_ratios.json"
MAX_LENGTH = 300
_EXTENSIONS = (".png", ".jpg", ".webp", ".jpeg", ".JPEG", ".JPG")


@dataclass
class TrainerReader:
    """Samples of `<root>/InternData`: moments float32 (8, h, w), features (1, 300, D) and masks (1, 300) by label."""

    root: Path
    multi_scale: bool
    resolution: int
    labels: Sequence[str] = ("prompt",)

    @property
    def data(self) -> Path:
        return self.root / "InternData"

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return [row for row in json.loads((self.data / "data_info.json").read_text()) if row["ratio"] <= 4.5]

    @cached_property
    def ratios(self) -> dict[str, list[int]]:
        table: dict[str, dict[str, list[int]]] = json.loads(RATIOS.read_text())
        return table[str(self.resolution)]

    def __len__(self) -> int:
        return len(self.rows)

    def opened(self, path: str, suffix: str) -> str:
        """The name of the features of an image."""
        if not self.multi_scale:
            return path.split("/")[-1].replace(".png", suffix)
        name = "_".join(path.rsplit("/", 1))
        for extension in _EXTENSIONS:
            name = name.replace(extension, suffix)
        return name

    def bucket(self, row: dict[str, Any]) -> tuple[int, int]:
        """(height, width) of a row's pixels."""
        if not self.multi_scale:
            return self.resolution, self.resolution
        ratio = row["height"] / row["width"]
        height, width = self.ratios[min(self.ratios, key=lambda name: abs(float(name) - ratio))]
        return int(height), int(width)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self.rows[position]
        kind = "_ms" if self.multi_scale else ""
        folder = self.data / f"img_sdxl_vae_features_{self.resolution}resolution{kind}_new"
        moments = np.load(folder / self.opened(row["path"], ".npy"))
        height, width = self.bucket(row)
        assert moments.shape == (8, height // 8, width // 8), row["path"]
        sample: dict[str, Any] = {"row": row, "moments": moments, "features": {}, "mask": {}}
        for label in self.labels:
            sample["features"][label], sample["mask"][label] = self._text(row, label)
        return sample

    def _text(self, row: dict[str, Any], label: str) -> tuple[np.ndarray, np.ndarray]:
        folder = self.data / f"{label}_caption_features_new".replace("prompt_", "")
        with np.load(folder / self.opened(row["path"], ".npz")) as file:
            feature, mask = file["caption_feature"], file["attention_mask"]
        assert feature.shape[:2] == mask.shape
        short = MAX_LENGTH - feature.shape[1]
        if short:
            feature = np.concatenate([feature, np.repeat(feature[:, -1:], short, axis=1)], axis=1)
            mask = np.concatenate([mask, np.zeros((1, short), mask.dtype)], axis=1)
        return feature, mask

    def all(self) -> list[dict[str, Any]]:
        return [self[position] for position in range(len(self))]


def moments_by_hand(pixels: np.ndarray) -> np.ndarray:
    """uint8 HWC pixels through the small VAE alone: mean and standard deviation."""
    import torch

    vae = _small_vae()
    with torch.inference_mode():
        found = vae.encode(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous().float() / 127.5 - 1)
    return torch.cat([found.latent_dist.mean, found.latent_dist.std], dim=1)[0].numpy()


def pixels_by_hand(image: Path, size: tuple[int, int], multi_scale: bool) -> np.ndarray:
    """uint8 HWC: stretched to (height, width); for single-scale, scaled to cover it, and the centre."""
    with Image.open(image) as picture:
        picture = picture.convert("RGB")
    if multi_scale:
        return np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))
    side, short = size[0], min(picture.size)
    scaled = picture.resize([int(side * length / short) for length in picture.size], Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in scaled.size)
    return np.asarray(scaled.crop((left, top, left + side, top + side)))


def features_by_hand(caption: str, max_length: int = MAX_LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """A caption padded to `max_length` through the small T5 alone: float16 (1, L, D), and the mask (1, L)."""
    import torch

    tokenizer, t5 = _small_t5()
    tokens = tokenizer(
        caption.strip(), max_length=max_length, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = t5(**tokens).last_hidden_state
    return hidden.numpy().astype(np.float16), tokens["attention_mask"].numpy()


@cache
def _small_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(TINY_VAE)


@cache
def _small_t5() -> Any:
    from transformers import T5EncoderModel, T5TokenizerFast

    return T5TokenizerFast.from_pretrained(TINY_T5 / "tokenizer"), T5EncoderModel.from_pretrained(
        TINY_T5 / "text_encoder"
    )


def check_sample(sample: dict[str, Any], image: Path, reader: TrainerReader) -> None:
    """A sample's numbers are those of its own image and captions."""
    expected = moments_by_hand(pixels_by_hand(image, reader.bucket(sample["row"]), reader.multi_scale))
    assert np.abs(sample["moments"] - expected).max() < 1e-4, sample["row"]["path"]
    for label in reader.labels:
        features, mask = features_by_hand(sample["row"].get(label, ""))
        assert sample["mask"][label].tolist() == mask.tolist()
        real = int(mask.sum())
        assert distance(sample["features"][label][:, :real], features[:, :real]) < 2e-3


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    wide = expected.astype(np.float32)
    return float(np.abs(found.astype(np.float32) - wide).max() / np.abs(wide).max())


# datasets to read


def golden_root(root: Path) -> Path:
    """The reference's eight photos as a PixArt dataset."""
    (root / "InternData").mkdir(parents=True)
    shutil.copy(GOLDEN / "data_info.json", root / "InternData")
    for row in json.loads((GOLDEN / "data_info.json").read_text()):
        place_photo(row["source"], root / "InternImgs" / row["path"])
    return root


NESTED = {
    "a/x.png": "animal/chelsea.JPEG",
    "b/x.png": "object/coffee.JPEG",
    "c/d/e.v2.png": "place/rocket.jpg",
    "with space/ünï 猫.code.png": "shapes/tiny_40x30.jpg",
    "tall.png": "shapes/tall_64x400.jpg",
    "x.jpg.d/wide.JPG": "shapes/wide_700x60.jpg",
}


def nested_root(root: Path, names: Mapping[str, str] = NESTED) -> Path:
    """Photos under names that only a careful reader tells apart; `tall.png` is over the ratio that readers take."""
    (root / "InternData").mkdir(parents=True)
    rows = []
    for number, (name, photo) in enumerate(names.items()):
        width, height = place_photo(photo, root / "InternImgs" / name)
        rows.append(
            {"width": width, "height": height, "ratio": height / width, "path": name,
             "prompt": f" photo number {number}, of {photo}" + " and so on" * number + "\n",
             "sharegpt4v": "the same words" if number % 2 else f"other words {number}"}
        )  # fmt: skip
    (root / "InternData" / "data_info.json").write_text(json.dumps(rows))
    return root


def place_photo(photo: str, path: Path) -> tuple[int, int]:
    """A photo under another name; gives its (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(PHOTOS / photo) as picture:
        picture.convert("RGB").save(path, quality=95, compress_level=1)
        return picture.size


class Photos:
    """A PixArt dataset of small coloured rectangles. rows: as `data_info.json` will hold them."""

    def __init__(self, root: Path) -> None:
        self.data, self.images = root / "InternData", root / "InternImgs"
        self.data.mkdir(parents=True)
        self.rows: list[dict[str, Any]] = []

    def add(self, path: str, height: int, width: int, /, **more: Any) -> None:
        """An image, and a row that says the truth of it where `more` does not say otherwise."""
        file = self.images / path
        file.parent.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(len(self.rows)).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((width, height), Image.Resampling.BILINEAR).save(file)
        row = {"width": width, "height": height, "ratio": height / width, "path": path, "prompt": f"photo {path}"}
        self.rows.append({**row, **more})

    def table(self) -> Path:
        path = self.data / "data_info.json"
        path.write_text(json.dumps(self.rows))
        return path


# the command line


def in_process(*arguments: object, app: typer.Typer = app) -> Any:
    """What a command prints, and its exit code, without a process of its own."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    for each, handler in before.items():
        signal.signal(each, handler)
    return result
