"""A stand-in for the reference trainer's two readers, written from the layout's description and not with latentmill.

It opens the names that they would open, and lets every error out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support import DATA

RATIOS = DATA.parents[1] / "src" / "latentmill" / "assets" / "aspect_ratios.json"
MAX_LENGTH = 300
_EXTENSIONS = (".png", ".jpg", ".webp", ".jpeg", ".JPEG", ".JPG")


class TrainerReader:
    """Samples of `<root>/InternData`: moments float32 (8, h, w), features (1, 300, D) and masks (1, 300) by label."""

    def __init__(self, root: Path, *, multi_scale: bool, resolution: int, labels: Sequence[str] = ("prompt",)) -> None:
        self.data = root / "InternData"
        self.multi_scale, self.resolution, self.labels = multi_scale, resolution, labels
        rows = json.loads((self.data / "data_info.json").read_text())
        self.rows = [row for row in rows if row["ratio"] <= 4.5]
        self.ratios: dict[str, list[int]] = json.loads(RATIOS.read_text()).get(str(resolution), {})

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
