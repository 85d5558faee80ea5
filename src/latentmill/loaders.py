"""A finished dataset as a PyTorch Dataset: latents normalised as trainers need them, pixels, labels, captions, text."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from latentmill.errors import ConfigError, SourceError
from latentmill.formats.containers import Reader
from latentmill.formats.layouts import layout_of_dataset
from latentmill.formats.metadata import INDEX_JSONL, METADATA_JSON, WORK_FOLDER, Metadata, index_rows, row_geometry
from latentmill.formats.repa import ImageLayout
from latentmill.loaders_text import TextFeatures, Texts, check_weights
from latentmill.loaders_text import collate as collate
from latentmill.records import Array

Normalize = Literal["factor", "channel", "none"]
Posterior = Literal["sample", "mean"]
MissingText = Literal["error", "drop", "empty"]
CHOSEN = "caption"  # the name of a caption that was chosen by weights
_NO_LABEL = -1
_SHOWN = 3


def load(
    latents: str | Path,
    images: str | Path | None = None,
    *,
    text: str | Path | Sequence[str | Path] | None = None,
    captions: Mapping[str, float] | None = None,
    caption_dropout: float = 0.0,
    missing_text: MissingText = "error",
    normalize: Normalize = "factor",
    posterior: Posterior = "sample",
) -> LatentDataset:
    """Open a dataset of latents, and what belongs to them, for training.

    latents: a folder or zip of latents; or a PixArt root (`InternData`, or the folder above), whose one folder of
    latents and all folders of text features are taken. images: those that the latents pair with.
    text: folders of text features, paired by the image's path. captions: choose one by weights at every access,
    `{"prompt": 0.5, "sharegpt4v": 0.5}`. caption_dropout: the share of accesses that get the empty caption's features.
    missing_text: what becomes of images that lack features of a caption (where one is chosen by weights: of any that
    may be chosen): `error`, `drop` (the dataset's `left_out` names them), or `empty`, the empty caption's features.
    normalize: "factor" gives `(z - shift_factor) * scaling_factor` as diffusers defines it (REPA, SiT, DiT);
    "channel" gives `(z - mean) / std` with the set's own per-channel statistics (EDM2 multiplies that by 0.5, its
    sigma_data); "none" gives z.
    posterior: z is a fresh draw from the stored moments at every access, or their mean.
    Raises SourceError or ConfigError.
    """
    folder, texts = _discovered(Path(latents))
    if text is not None:
        texts = [Path(text)] if isinstance(text, str | Path) else list(map(Path, text))
    dataset = LatentDataset(folder, None if images is None else Path(images), normalize, posterior)
    dataset.add_text([TextFeatures(each) for each in texts], captions, caption_dropout, missing_text)
    return dataset


class LatentDataset(Dataset[dict[str, Any]]):
    """Map-style dataset over a folder or a zip; picklable, safe under fork and spawn.

    A sample is a dict: `moments` float32 (2C, h, w), as stored (only where moments are stored); `latent` float32
    (C, h, w), normalised; `image` uint8 (3, H, W), only with images; `label` int (-1 where there is none); `key` str.
    Of bucketed latents, int64: `size` (2,), height and width of the source image; `crop` (4,), the top, left, bottom
    and right of what is shown in the scaled image; `bucket` (2,), height and width.
    With text: `captions[name]` str, `text_features[name]` float16 (L, D) and `text_mask[name]` int64 (L,), all ones;
    where one is chosen by weights, its name is `caption`, and `caption_name` says which it was.
    `buckets`, int64 (N, 2), is every sample's height and width in pixels, for a BucketSampler.
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
        self._layout, self._image_layout = layout_of_dataset(self.metadata), ImageLayout()
        self._reader = Reader(latents)
        self._images = None if images is None else Reader(images)
        self._read_index(latents)
        if images is not None:
            _check_pairs(latents, images)
        self._subtract, self._multiply = self._normalisation(normalize)
        self.text: dict[str, TextFeatures] = {}
        self.caption_dropout = 0.0
        self._choice: tuple[list[str], torch.Tensor] | None = None
        self.left_out: list[str] = []

    def _read_index(self, path: Path) -> None:
        """Numbers, labels, keys and geometry of every sample, in arrays."""
        numbers, labels, keys, geometry = [], [], Texts(), []
        for row in index_rows(path):
            if "name" not in row:
                continue
            numbers.append(row["index"])
            labels.append(_NO_LABEL if row["label"] is None else row["label"])
            keys.add(row["key"])
            how = row_geometry(row)
            if how is not None:
                geometry.append((*how.size, *how.crop, *how.bucket))
        if not numbers:
            raise SourceError(f"{path} holds no latents, or its {INDEX_JSONL} is missing")
        self.numbers, self.labels = np.array(numbers, np.int64), np.array(labels, np.int64)
        self._keys = keys.close()
        self._geometry = np.array(geometry, np.int64) if geometry else None

    @property
    def buckets(self) -> Array:
        """int64 (N, 2): every sample's height and width in pixels."""
        if self._geometry is not None:
            return self._geometry[:, 6:]
        latent, model = self.metadata.latent, self.metadata.model
        assert latent is not None and model is not None
        size = [side * model.downscale_factor for side in latent.fixed_shape[1:]]
        return np.tile(np.array(size, np.int64), (len(self), 1))

    def add_text(
        self,
        texts: Sequence[TextFeatures],
        captions: Mapping[str, float] | None = None,
        caption_dropout: float = 0.0,
        missing_text: MissingText = "error",
    ) -> None:
        """Pair text features with the samples, by the image's path; see `load`. Raises SourceError or ConfigError."""
        if missing_text not in ("error", "drop", "empty"):
            raise ConfigError(f"missing_text must be error, drop or empty. Found: {missing_text!r}")
        if not 0 <= caption_dropout <= 1:
            raise ConfigError(f"caption_dropout must be between 0 and 1. Found: {caption_dropout}")
        if caption_dropout and not texts:
            raise ConfigError("caption_dropout needs text features (text=...)")
        for each in texts:
            if each.info.label in self.text:
                raise SourceError(
                    f"{self.text[each.info.label].folder} and {each.folder} both hold features of "
                    f"{each.info.label!r}: name the one to take (text=...)"
                )
            self.text[each.info.label] = each
        self.caption_dropout = caption_dropout
        self._choice = None if captions is None else check_weights(captions, self.text)
        if self.text:
            self._pair_text(missing_text)

    def _pair_text(self, missing_text: MissingText) -> None:
        needed = list(self.text) if self._choice is None else self._choice[0]
        keys = [self.key(position) for position in range(len(self))]
        known = np.stack([self._aligned(self.text[name], keys) for name in needed])
        lacking = np.flatnonzero(~known.all(axis=0))
        if not len(lacking) or missing_text == "empty":
            return
        if missing_text == "error" or len(lacking) == len(keys):
            shown = ", ".join(keys[position] for position in lacking[:_SHOWN])
            more = ", …" if len(lacking) > _SHOWN else ""
            raise SourceError(
                f"{len(lacking):,} of {len(keys):,} images have no features of {' and '.join(needed)} ({shown}{more}): "
                "make them, or load with missing_text='drop' or 'empty'"
            )
        kept = np.flatnonzero(known.all(axis=0))
        self.left_out = [keys[position] for position in lacking]
        self.numbers, self.labels = self.numbers[kept], self.labels[kept]
        self._geometry = None if self._geometry is None else self._geometry[kept]
        remaining = Texts()
        for position in kept:
            remaining.add(keys[position])
        self._keys = remaining.close()
        for name in needed:
            self.text[name].keep(kept)

    def _aligned(self, features: TextFeatures, keys: list[str]) -> Array:
        known = features.align(keys)
        if not known.any():
            raise SourceError(
                f"{features.folder} holds features of none of the {len(keys):,} images ({keys[0]}, …): it was made of "
                "another dataset"
            )
        return known

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
            subtract, multiply = (
                [model.shift_factor or 0.0] * self.channels,
                [model.scaling_factor or 1.0] * self.channels,
            )
        else:
            subtract, multiply = [0.0] * self.channels, [1.0] * self.channels
        return torch.tensor(subtract).view(-1, 1, 1), torch.tensor(multiply).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> dict[str, Any]:
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(position)
        number, key = int(self.numbers[position]), self.key(position)
        stored = torch.from_numpy(self._layout.from_bytes(self._reader.read(self._layout.name(number, key)))).float()
        sample: dict[str, Any] = {"label": int(self.labels[position]), "key": key}
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
        if self._geometry is not None:
            how = torch.from_numpy(self._geometry[position].copy())
            sample |= {"size": how[:2], "crop": how[2:6], "bucket": how[6:]}
        if self.text:
            self._add_text(sample, position, key)
        return sample

    def _add_text(self, sample: dict[str, Any], position: int, key: str) -> None:
        dropped = bool(self.caption_dropout) and torch.rand(()).item() < self.caption_dropout
        names = {name: name for name in self.text}
        if self._choice is not None:
            labels, weights = self._choice
            chosen = labels[int(torch.multinomial(weights, 1))]
            names, sample["caption_name"] = {CHOSEN: chosen}, chosen
        found = {shown: self.text[name].read(position, key, empty=dropped) for shown, name in names.items()}
        sample["captions"] = {name: caption for name, (_, caption) in found.items()}
        sample["text_features"] = {name: features for name, (features, _) in found.items()}
        sample["text_mask"] = {name: torch.ones(len(f), dtype=torch.int64) for name, (f, _) in found.items()}

    def key(self, position: int) -> str:
        """The source image's path relative to the source."""
        return self._keys[position]

    def denormalize(self, latent: torch.Tensor) -> torch.Tensor:
        """The exact inverse of the normalisation, for (…, C, h, w): what the VAE's decoder takes."""
        return latent / self._multiply.to(latent) + self._subtract.to(latent)


def _metadata(path: Path, kind: str) -> Metadata:
    metadata = Metadata.read_beside(path) if path.exists() else None
    if metadata is None or metadata.kind != kind:
        raise SourceError(f"{path} holds no {kind} that latentmill made (no {METADATA_JSON} of that kind)")
    return metadata


def _discovered(folder: Path) -> tuple[Path, list[Path]]:
    """A folder of latents alone, or of a PixArt root its one folder of latents and its folders of text features."""
    if not folder.is_dir() or (folder / METADATA_JSON).exists():
        return folder, []
    inner = folder / "InternData"
    root = inner if inner.is_dir() else folder
    made = {path.parent: Metadata.read_beside(path.parent) for path in sorted(root.glob(f"*/{METADATA_JSON}"))}
    latents = [path for path, metadata in made.items() if metadata is not None and metadata.kind == "latents"]
    if not latents:
        return folder, []
    unfinished = sorted({path.parent for path in root.glob(f"*/{WORK_FOLDER}")} - made.keys())
    if unfinished:
        names = ", ".join(path.name for path in unfinished)
        warnings.warn(f"of {root} is left out, since not finished: {names}", stacklevel=3)
    if len(latents) > 1:
        raise SourceError(
            f"{root} holds several folders of latents: {', '.join(path.name for path in latents)}. Load one of them, "
            "with text=[...]"
        )
    return latents[0], [path for path, metadata in made.items() if metadata is not None and metadata.kind == "text"]


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
