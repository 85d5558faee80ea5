"""A finished dataset as a PyTorch Dataset: latents normalised as trainers need them, pixels, labels and keys."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from latentmill.errors import ConfigError, SourceError
from latentmill.formats.containers import Reader
from latentmill.formats.metadata import INDEX_JSONL, METADATA_JSON, Metadata, index_rows
from latentmill.formats.repa import ImageLayout, LatentLayout

Normalize = Literal["factor", "channel", "none"]
Posterior = Literal["sample", "mean"]
_NO_LABEL = -1


def load(
    latents: str | Path,
    images: str | Path | None = None,
    *,
    normalize: Normalize = "factor",
    posterior: Posterior = "sample",
) -> LatentDataset:
    """Open a dataset of latents, and the images they pair with, for training.

    normalize: "factor" gives `(z - shift_factor) * scaling_factor` as diffusers defines it (REPA, SiT, DiT);
    "channel" gives `(z - mean) / std` with the set's own per-channel statistics (EDM2 multiplies that by 0.5, its
    sigma_data); "none" gives z.
    posterior: z is a fresh draw from the stored moments at every access, or their mean.
    Raises SourceError or ConfigError.
    """
    return LatentDataset(Path(latents), None if images is None else Path(images), normalize, posterior)


class LatentDataset(Dataset[dict[str, Any]]):
    """Map-style dataset over a folder or a zip; picklable, safe under fork and spawn.

    A sample is a dict: `moments` float32 (2C, h, w), as stored (only where moments are stored); `latent` float32
    (C, h, w), normalised; `image` uint8 (3, H, W), only with images; `label` int (-1 where there is none); `key` str.
    Draws use PyTorch's global generator, which a DataLoader seeds anew for every worker and epoch; give ranks
    different seeds where their draws should differ.
    """

    def __init__(self, latents: Path, images: Path | None, normalize: Normalize, posterior: Posterior) -> None:
        self.metadata = _metadata(latents, "latents")
        latent, model = self.metadata.latent, self.metadata.model
        assert latent is not None and model is not None
        if normalize not in ("factor", "channel", "none"):
            raise ConfigError(f"normalize must be factor, channel or none. Found: {normalize!r}")
        if posterior not in ("sample", "mean"):
            raise ConfigError(f"posterior must be sample or mean. Found: {posterior!r}")
        self.statistic, self.posterior = latent.statistic, posterior
        self.channels = model.latent_channels
        self._layout, self._image_layout = LatentLayout(latent.statistic), ImageLayout()
        self._reader = Reader(latents)
        self._images = None if images is None else Reader(images)
        self.numbers, self.labels, self._keys, self._key_ends = _columns(latents)
        if images is not None:
            _check_pairs(latents, images)
        self._subtract, self._multiply = self._normalisation(normalize)

    def _normalisation(self, normalize: Normalize) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (C, 1, 1) each: what is subtracted from z, and what the difference is multiplied by."""
        model, statistics = self.metadata.model, self.metadata.statistics
        assert model is not None
        if normalize == "channel":
            if statistics is None:
                raise ConfigError("normalize='channel' needs statistics, and these latents have none")
            spread = statistics.std_sampled if self.posterior == "sample" else statistics.std
            subtract, multiply = statistics.mean, [1 / max(value, 1e-12) for value in spread]
        elif normalize == "factor":
            subtract, multiply = [model.shift_factor or 0.0] * self.channels, [model.scaling_factor] * self.channels
        else:
            subtract, multiply = [0.0] * self.channels, [1.0] * self.channels
        return torch.tensor(subtract).view(-1, 1, 1), torch.tensor(multiply).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> dict[str, Any]:
        number = int(self.numbers[position])
        stored = torch.from_numpy(self._layout.from_bytes(self._reader.read(self._layout.name(number)))).float()
        sample: dict[str, Any] = {"label": int(self.labels[position]), "key": self.key(position)}
        if self.statistic == "moments":
            sample["moments"] = stored
            mean, std = stored.chunk(2)
            z = mean + std * torch.randn_like(std) if self.posterior == "sample" else mean
        else:
            z = stored
        sample["latent"] = (z - self._subtract) * self._multiply
        if self._images is not None:
            pixels = self._image_layout.from_bytes(self._images.read(self._image_layout.name(number)))
            sample["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return sample

    def key(self, position: int) -> str:
        """The source image's path relative to the source."""
        start = int(self._key_ends[position - 1]) if position % len(self) else 0
        end = int(self._key_ends[position])
        return self._keys[start:end].decode("utf-8", "surrogateescape")

    def denormalize(self, latent: torch.Tensor) -> torch.Tensor:
        """The exact inverse of the normalisation, for (…, C, h, w): what the VAE's decoder takes."""
        return latent / self._multiply.to(latent) + self._subtract.to(latent)


def _metadata(path: Path, kind: str) -> Metadata:
    metadata = Metadata.read_beside(path) if path.exists() else None
    if metadata is None or metadata.kind != kind:
        raise SourceError(f"{path} holds no {kind} that latentmill made (no {METADATA_JSON} of that kind)")
    return metadata


def _columns(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], bytes, np.ndarray[Any, Any]]:
    """Numbers, labels, and keys (as one text with the ends of each): small, and shared by forked workers."""
    numbers, labels, keys, ends = [], [], bytearray(), []
    for row in index_rows(path):
        if "name" not in row:
            continue
        numbers.append(row["index"])
        labels.append(_NO_LABEL if row["label"] is None else row["label"])
        keys += row["key"].encode("utf-8", "surrogateescape")
        ends.append(len(keys))
    if not numbers:
        raise SourceError(f"{path} holds no latents, or its {INDEX_JSONL} is missing")
    return np.array(numbers, np.int64), np.array(labels, np.int64), bytes(keys), np.array(ends, np.int64)


def _check_pairs(latents: Path, images: Path) -> None:
    """Refuse images that are not those of the latents: by number, and by what both say they were made from."""
    _metadata(images, "images")
    ours = (row for row in index_rows(latents) if "name" in row)
    theirs = (row for row in index_rows(images) if "name" in row)
    for latent, image in zip_longest(ours, theirs):  # both are in order of number
        if image is None or (latent is not None and latent["index"] < image["index"]):
            raise SourceError(f"{latent['name']} has no image in {images}")
        if latent is None or image["index"] < latent["index"]:
            raise SourceError(f"{image['name']} has no latent in {latents}")
        if latent["source"] not in (image["digest"], image["source"]):
            raise SourceError(f"{latent['name']} was made from other bytes than {image['name']} in {images}")
