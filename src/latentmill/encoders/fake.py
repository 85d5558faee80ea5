"""`fake`: a deterministic encoder without a model, for tests of everything around the encoder. Never for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentmill.errors import SampleError
from latentmill.formats.metadata import ModelInfo, Normalization
from latentmill.records import Encoded, Sample

_FACTOR = 8
_STD = 0.125

FAKE_INFO = ModelInfo(
    name="fake",
    class_name="fake",
    weights_sha256="none",
    config_sha256="none",
    latent_channels=4,
    downscale_factor=_FACTOR,
    scaling_factor=1.0,
    normalization=Normalization(kind="scale-shift", scaling_factor=1.0),
)


@dataclass(frozen=True)
class FakeSpec:
    """Block means of red, green, blue and grey, in -1..1, as posterior mean; a constant standard deviation."""

    save_dtype: str = "float32"

    def open(self) -> FakeSpec:
        return self

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        results: list[Encoded | SampleError] = []
        for sample in samples:
            height, width, _ = sample.array.shape
            blocks = sample.array.reshape(height // _FACTOR, _FACTOR, width // _FACTOR, _FACTOR, 3)
            colours = blocks.mean(axis=(1, 3), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
            mean = np.concatenate([colours, colours.mean(axis=0, keepdims=True)]).astype(np.float32)
            moments = np.concatenate([mean, np.full_like(mean, _STD)]).astype(self.save_dtype)
            squares = np.square(mean, dtype=np.float64).mean(axis=(1, 2))
            sums = (*mean.mean(axis=(1, 2), dtype=np.float64), *squares, *[_STD**2] * len(mean))
            results.append(Encoded(moments, (), tuple(float(f"{value:.9g}") for value in sums)))
        return results
