"""Text features as a Dataset reads them: aligned with its samples, and the batches that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from latentmill.errors import ConfigError, SourceError
from latentmill.formats.columns_texts import Texts
from latentmill.formats.layouts import layout_of_dataset
from latentmill.formats.metadata import METADATA_JSON, Metadata
from latentmill.formats.pixart import PixArtText
from latentmill.formats.reader import Reader
from latentmill.loaders_index import read_columns
from latentmill.loaders_keys import ABSENT, found_in
from latentmill.records import Array

CHOSEN = "caption"  # the name of a caption that was chosen by weights


class Encoding(NamedTuple):
    """What is stored of one caption: float16 features (L, D), and the pooled vector (P,); None where it is not."""

    caption: str
    features: torch.Tensor | None
    pooled: torch.Tensor | None


class TextFeatures:
    """One caption's features by one encoder. keys: of the samples, whose positions count here. Raises SourceError."""

    def __init__(self, folder: Path) -> None:
        metadata = Metadata.read_beside(folder) if folder.exists() else None
        if metadata is None or metadata.text is None:
            raise SourceError(f"{folder} holds no text features that latentmill made (no {METADATA_JSON} of that kind)")
        self.folder, self.metadata, self.info = folder, metadata, metadata.text
        layout = layout_of_dataset(metadata)
        assert isinstance(layout, PixArtText)
        self._layout, self._reader = layout, Reader(folder)
        self.columns = read_columns(folder, metadata)
        self._rows = np.zeros(0, np.int32)  # of a sample's features

    @property
    def name(self) -> str:
        """Of the caption, and of its encoder where that is one of several: `prompt`, `prompt/clip-l`."""
        return f"{self.info.label}/{self.info.encoder}" if self.info.encoder else self.info.label

    def align(self, keys: Texts | Sequence[str]) -> Array:
        """Find the features of these samples; gives which of them have some."""
        wanted = keys if isinstance(keys, Texts) else Texts.of(keys)
        self._rows = found_in(wanted, self.columns.keys).astype(np.int32)
        known: Array = self._rows != ABSENT
        return known

    def keep(self, positions: Array) -> None:
        """Drop all samples but these."""
        self._rows = self._rows[positions]

    def caption(self, position: int) -> str:
        """The caption at this position; "" where the sample has none."""
        row, captions = int(self._rows[position]), self.columns.captions
        return "" if row == ABSENT or captions is None else captions[row]

    def read(self, position: int, key: str, *, empty: bool = False) -> Encoding:
        """Features at the stored positions; of the empty caption where asked, or where the sample has none."""
        empty = empty or self._rows[position] == ABSENT
        data = self._reader.read(self.info.empty if empty else self._layout.name(position, key))
        array, pooled = self._layout.both_of(data)
        return Encoding(
            "" if empty else self.caption(position),
            torch.from_numpy(array) if self._layout.features else None,
            None if pooled is None else torch.from_numpy(pooled),
        )


def names_of(labels: Sequence[str], texts: Mapping[str, TextFeatures]) -> list[str]:
    """The features of these captions, by every encoder."""
    return [name for name, text in texts.items() if text.info.label in labels]


def encodings(
    texts: Mapping[str, TextFeatures], chosen: str | None, position: int, key: str, *, empty: bool
) -> dict[str, dict[str, Any]]:
    """A sample's `captions`, `text_features`, `text_mask` and `text_pooled`, by name.

    chosen: the caption that is taken, and called `caption` (`caption/clip-l`); None: all, under their own names.
    """
    names = list(texts) if chosen is None else names_of([chosen], texts)
    shown = {name if chosen is None else CHOSEN + name[len(chosen) :]: name for name in names}
    found = {name: texts[own].read(position, key, empty=empty) for name, own in shown.items()}
    features = {name: one.features for name, one in found.items() if one.features is not None}
    pooled = {name: one.pooled for name, one in found.items() if one.pooled is not None}
    sample: dict[str, dict[str, Any]] = {
        "captions": {name: one.caption for name, one in found.items()},
        "text_features": features,
        "text_mask": {name: array.new_ones(len(array), dtype=torch.int64) for name, array in features.items()},
    }
    return sample | {"text_pooled": pooled} if pooled else sample


def check_weights(weights: Mapping[str, float], texts: Mapping[str, TextFeatures]) -> tuple[list[str], torch.Tensor]:
    """Names and weights of a caption choice; those of weight 0 are left out. Raises ConfigError."""
    labels = list(dict.fromkeys(text.info.label for text in texts.values()))
    unknown = sorted(weights.keys() - set(labels))
    if unknown:
        known = f"be of {', '.join(labels)}" if texts else "be of text features (text=...), and there are none"
        raise ConfigError(f"captions must {known}. Found: {', '.join(unknown)}")
    values = list(weights.values())
    if not values or min(values) < 0 or not 0 < sum(values) < float("inf"):
        raise ConfigError(f"captions must have weights of 0 or more, not all 0. Found: {dict(weights)}")
    chosen = {name: weight for name, weight in weights.items() if weight}
    widths = {label: _widths(label, texts) for label in chosen}
    if len(set(widths.values())) > 1:
        raise ConfigError(f"captions to choose among must have features of one width. Found: {widths}")
    return list(chosen), torch.tensor(list(chosen.values()), dtype=torch.float64, device="cpu")


def _widths(label: str, texts: Mapping[str, TextFeatures]) -> int | str:
    """Of one caption's features: 64, or of several encoders `clip-l 768, t5 4096`."""
    infos = sorted((texts[name].info for name in names_of([label], texts)), key=lambda info: info.encoder)
    return infos[0].width if len(infos) == 1 else ", ".join(f"{info.encoder} {info.width}" for info in infos)


def collate(samples: Sequence[Mapping[str, Any]], max_length: int | None = None) -> dict[str, Any]:
    """A batch of samples of one bucket, for `DataLoader(collate_fn=latentmill.collate)`.

    Tensors are stacked, numbers become int64 tensors, texts lists. `text_features[name]` becomes (N, L, D), zero where
    `text_mask[name]`, int64 (N, L), is 0: L is the longest of the batch, or `max_length` (longer ones are cut).
    `text_pooled[name]` becomes (N, P), `vision[name]` (N, tokens, D); truth values become bool tensors.
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
        elif name in ("text_pooled", "vision"):
            batch[name] = {key: _stacked(f"{name}[{key!r}]", [value[key] for value in values]) for key in first}
        elif isinstance(first, dict):
            batch[name] = {key: [value[key] for value in values] for key in first}
        elif isinstance(first, torch.Tensor):
            batch[name] = _stacked(name, values)
        else:
            batch[name] = torch.tensor(values, device="cpu") if isinstance(first, int) else values
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
    mask = torch.zeros((len(features), length), dtype=torch.int64, device="cpu")
    for number, feature in enumerate(features):
        real = min(len(feature), length)
        result[number, :real] = feature[:real]
        mask[number, :real] = 1
    return result, mask
