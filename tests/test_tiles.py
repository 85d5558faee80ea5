"""Tiles cover an image evenly, and blending them gives back what does not depend on a tile's surroundings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmill.encoders.tiles import tiled_moments

FACTOR = 8


def block_means(pixels: np.ndarray) -> np.ndarray:
    """A local encoder: each position is the mean of its own pixels. (N, H, W, 3) -> (N, 3, H/8, W/8)."""
    count, height, width, _ = pixels.shape
    blocks = pixels.reshape(count, height // FACTOR, FACTOR, width // FACTOR, FACTOR, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32).transpose(0, 3, 1, 2)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([32, 64, 128]))
def test_a_local_encoder_gives_the_same_in_tiles(rows: int, columns: int, tile: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (rows * FACTOR, columns * FACTOR, 3), dtype=np.uint8)
    sizes = []

    def moments(batch: np.ndarray) -> np.ndarray:
        sizes.append(batch.shape[1:3])
        return block_means(batch)

    found = tiled_moments(moments, pixels, tile, FACTOR)
    assert np.allclose(found, block_means(pixels[None])[0], atol=1e-3)
    full = (min(tile, rows * FACTOR), min(tile, columns * FACTOR))
    assert set(sizes) == {full}  # no narrow tile at an edge, whose norms would be its own


def test_neighbours_overlap_and_seams_are_blended() -> None:
    """An encoder that gives each tile a level of its own: from one to the next it rises step by step."""
    levels = iter([0.0, 1.0, 2.0])
    shown = tiled_moments(
        lambda batch: np.full((1, 2, 8, 8), next(levels), np.float32), np.zeros((64, 160, 3), np.uint8), 64, FACTOR
    )
    steps = np.diff(shown[0, 0])
    assert shown[0, 0, 0] == 0.0 and shown[0, 0, -1] == pytest.approx(2.0)
    assert (steps >= 0).all() and steps.max() < 0.75
