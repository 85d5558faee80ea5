"""Latents as pictures without their VAE: a linear map of the channels to red, green and blue.

Where pixels lie beside the latents, the map is that of the least squared error to them, each latent position beside the
mean of the pixels that it stands for, over a few samples of the dataset. Else brightness is the direction in which the
latents of those samples vary most, and the next two directions tint it: that shows structure, not the true colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from latentmill.records import Array

_SAMPLES = 16  # that the map is found from, evenly spread
_RIDGE = 1e-3  # of the channels' mean variance, so that channels that go together cannot cancel out
_SPREAD = 2.5  # deviations of a principal direction on either side of grey
_TINTS = np.array([[1.0, 1.0, 1.0], [0.4, 0.0, -0.4], [0.2, -0.2, 0.2]])  # RGB of the three directions
FITTED = "channels as colours, fitted to the pixels beside"
DIRECTIONS = "channels as colours: its main directions, not true colours"


@dataclass(frozen=True)
class Colours:
    """RGB in 0..1 is `z @ weights + offset`, for the C channels of a latent as it is stored. how: in words.

    weights: (C, 3). offset: (3,).
    """

    weights: Array
    offset: Array
    how: str

    def pixels(self, z: Array) -> Array:
        """float32 (C, h, w), not normalised -> uint8 (h, w, 3)."""
        rgb = np.moveaxis(np.asarray(z, np.float64), 0, -1) @ self.weights + self.offset
        found: Array = np.rint(255 * np.nan_to_num(rgb).clip(0, 1)).astype(np.uint8)
        return found


def fitted(latents: Sequence[Array], images: Sequence[Array]) -> Colours:
    """The least squares map of latents, (C, h, w) each, to images, uint8 (3, H, W) each, their pixels' mean."""
    rows = np.concatenate([_positions(z) for z in latents])
    wanted = np.concatenate(
        [_positions(_shrunk(image, z.shape[-2:])) for z, image in zip(latents, images, strict=True)]
    )
    mean, middle = rows.mean(axis=0), wanted.mean(axis=0)
    centred = rows - mean
    square = centred.T @ centred
    square += np.eye(len(square)) * max(_RIDGE * square.trace() / len(square), 1e-12)
    weights = np.linalg.solve(square, centred.T @ (wanted - middle))
    return Colours(weights, middle - mean @ weights, FITTED)


def directions(latents: Sequence[Array]) -> Colours:
    """By the principal directions of the positions of latents, (C, h, w) each."""
    rows = np.concatenate([_positions(z) for z in latents])
    mean = rows.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((rows - mean).T).reshape(rows.shape[1], -1))
    main = vectors[:, ::-1][:, :3]
    main = main * np.where(main[np.abs(main).argmax(axis=0), range(main.shape[1])] < 0, -1, 1)  # a sign that stays
    spread = np.sqrt(np.maximum(values[::-1][:3], 1e-12))
    weights = (main / (2 * _SPREAD * spread)) @ _TINTS[: main.shape[1]]
    return Colours(weights, 0.5 - mean @ weights, DIRECTIONS)


def colours_of(latents: Path, images: Path | None) -> Colours:
    """The map of a dataset, from a few of its samples. Raises what reading it does."""
    from latentmill.loaders import LatentDataset

    dataset = LatentDataset(latents, images, "none", "mean")
    samples = [dataset[position] for position in spread_over(len(dataset), _SAMPLES)]
    stored = [dataset.denormalize(sample["latent"]).numpy() for sample in samples]
    if images is None:
        return directions(stored)
    return fitted(stored, [sample["image"].numpy() for sample in samples])


def spread_over(total: int, count: int) -> list[int]:
    """At most `count` positions of `total`, evenly spread."""
    count = min(total, count)
    return [position * total // count for position in range(count)]


def _positions(planes: Array) -> Array:
    """(C, h, w) -> float64 (h * w, C)."""
    return np.moveaxis(np.asarray(planes, np.float64), 0, -1).reshape(-1, len(planes))


def _shrunk(image: Array, size: tuple[int, int]) -> Array:
    """uint8 (3, H, W) -> float (3, h, w), 0..1: the mean of the pixels of each position."""
    pixels = torch.from_numpy(image).float()[None]
    return torch.nn.functional.adaptive_avg_pool2d(pixels, size)[0].numpy() / 255
