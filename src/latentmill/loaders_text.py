"""Text features as a Dataset reads them: aligned with its samples, and the batches that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentmill.errors import ConfigError, SourceError
from latentmill.formats.containers import Reader
from latentmill.formats.layouts import layout_of_dataset
from latentmill.formats.metadata import METADATA_JSON, Metadata, index_rows
from latentmill.records import Array


class Texts:
    """Many texts held as one, with the ends of each: small, and shared by forked workers."""

    def __init__(self) -> None:
        self._joined, self._ends = bytearray(), [0]

    def add(self, text: str) -> None:
        self._joined += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._joined))

    def close(self) -> Texts:
        self._text, self._bounds = bytes(self._joined), np.array(self._ends, np.int64)
        del self._joined, self._ends
        return self

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, position: int) -> str:
        """A text by its position; negative ones count from the end."""
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(position)
        start, end = self._bounds[position], self._bounds[position + 1]
        return self._text[start:end].decode("utf-8", "surrogateescape")


class TextFeatures:
    """One caption's features. keys: of the samples, whose positions count here. Raises SourceError."""

    def __init__(self, folder: Path) -> None:
        metadata = Metadata.read_beside(folder) if folder.exists() else None
        if metadata is None or metadata.text is None:
            raise SourceError(f"{folder} holds no text features that latentmill made (no {METADATA_JSON} of that kind)")
        self.folder, self.metadata, self.info = folder, metadata, metadata.text
        self._layout, self._reader = layout_of_dataset(metadata), Reader(folder)
        self.captions = Texts()
        self._known = np.zeros(0, bool)

    def align(self, keys: Sequence[str]) -> Array:
        """Take up the captions of these samples; gives which of them have features."""
        positions = {key: position for position, key in enumerate(keys)}
        found: list[str | None] = [None] * len(keys)
        for row in index_rows(self.folder):
            if "name" in row and row["key"] in positions:
                found[positions[row["key"]]] = row["caption"]
        captions = Texts()
        for caption in found:
            captions.add(caption or "")
        self.captions = captions.close()
        self._known = np.array([caption is not None for caption in found])
        return self._known

    def keep(self, positions: Array) -> None:
        """Drop all samples but these."""
        captions = Texts()
        for position in positions:
            captions.add(self.captions[position])
        self.captions, self._known = captions.close(), self._known[positions]

    def read(self, position: int, key: str, *, empty: bool = False) -> tuple[torch.Tensor, str]:
        """float16 (L, D) at the real tokens, and the caption; of the empty caption where asked, or where none is."""
        if empty or not self._known[position]:
            return torch.from_numpy(self._layout.from_bytes(self._reader.read(self.info.empty))), ""
        name = self._layout.name(position, key)
        return torch.from_numpy(self._layout.from_bytes(self._reader.read(name))), self.captions[position]


def check_weights(weights: Mapping[str, float], texts: Mapping[str, TextFeatures]) -> tuple[list[str], torch.Tensor]:
    """Names and weights of a caption choice; those of weight 0 are left out. Raises ConfigError."""
    unknown = sorted(weights.keys() - texts.keys())
    if unknown:
        known = f"be of {', '.join(texts)}" if texts else "be of text features (text=...), and there are none"
        raise ConfigError(f"captions must {known}. Found: {', '.join(unknown)}")
    values = list(weights.values())
    if not values or min(values) < 0 or not 0 < sum(values) < float("inf"):
        raise ConfigError(f"captions must have weights of 0 or more, not all 0. Found: {dict(weights)}")
    chosen = {name: weight for name, weight in weights.items() if weight}
    widths = {name: texts[name].info.width for name in chosen}
    if len(set(widths.values())) > 1:
        raise ConfigError(f"captions to choose among must have features of one width. Found: {widths}")
    return list(chosen), torch.tensor(list(chosen.values()), dtype=torch.float64)


def collate(samples: Sequence[Mapping[str, Any]], max_length: int | None = None) -> dict[str, Any]:
    """A batch of samples of one bucket, for `DataLoader(collate_fn=latentmill.collate)`.

    Tensors are stacked, numbers become int64 tensors, texts lists. `text_features[name]` becomes (N, L, D), zero where
    `text_mask[name]`, int64 (N, L), is 0: L is the longest of the batch, or `max_length` (longer ones are cut).
    Raises ConfigError where the samples are of several buckets.
    """
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if name == "text_features":
            padded = {caption: _padded([value[caption] for value in values], max_length) for caption in first}
            batch["text_features"] = {caption: features for caption, (features, _) in padded.items()}
            batch["text_mask"] = {caption: mask for caption, (_, mask) in padded.items()}
        elif name == "text_mask":
            continue  # made anew with the padding
        elif isinstance(first, dict):
            batch[name] = {key: [value[key] for value in values] for key in first}
        elif isinstance(first, torch.Tensor):
            batch[name] = _stacked(name, values)
        else:
            batch[name] = torch.tensor(values) if isinstance(first, int) else values
    return batch


def _stacked(name: str, values: list[torch.Tensor]) -> torch.Tensor:
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise ConfigError(
            f"a batch must hold samples of one bucket. Found: {name} of {shapes[0]} and {shapes[1]}. Use "
            "DataLoader(dataset, batch_sampler=latentmill.BucketSampler(dataset, ...))"
        )
    return torch.stack(values)


def _padded(features: Sequence[torch.Tensor], max_length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    length = max_length or max(map(len, features))
    result = features[0].new_zeros((len(features), length, features[0].shape[1]))
    mask = torch.zeros((len(features), length), dtype=torch.int64)
    for number, feature in enumerate(features):
        real = min(len(feature), length)
        result[number, :real] = feature[:real]
        mask[number, :real] = 1
    return result, mask
