"""A model: latents by a Haar wavelet transform of three levels, without weights, from which the image comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentmill.errors import ModelError, SampleError
from latentmill.formats.metadata import ModelInfo, Normalization
from latentmill.plugins import EncoderRequest
from latentmill.records import Array, Encoded, Sample

_LEVELS = 3
_FACTOR = 2**_LEVELS  # pixels of a side that become channels


def haar(request: EncoderRequest) -> tuple[HaarSpec, ModelInfo]:
    """`model = "haar"`: how it is opened, and what `latentmill.json` says of it. Called when a job is planned."""
    if request.store == "moments":
        raise ModelError("haar has no posterior: store must be mean. Found: moments")
    info = ModelInfo(
        name="haar",
        class_name="mill_extras.encoder.HaarSpec",
        weights_sha256="none",
        config_sha256="haar-3",  # another one makes datasets stale: change it when the arithmetic changes
        latent_channels=3 * _FACTOR**2,
        downscale_factor=_FACTOR,
        scaling_factor=1.0,
        normalization=Normalization(kind="scale-shift", scaling_factor=1.0),
    )
    return HaarSpec(request.pixel_range, request.save_dtype), info


@dataclass(frozen=True)
class HaarSpec:
    """Describes the encoder, and travels to the workers; `open` is where a real one would load its weights."""

    pixel_range: tuple[float, float]
    save_dtype: str

    def open(self) -> HaarSpec:
        return self

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """A batch of images of one size, uint8 HWC: a result for each, in their order; a SampleError rejects one."""
        return [self._encoded(sample.array) for sample in samples]

    def _encoded(self, pixels: Array) -> Encoded:
        low, high = self.pixel_range
        latent = (pixels.transpose(2, 0, 1) / 255 * (high - low) + low).astype(np.float32)
        for _ in range(_LEVELS):
            latent = _level(latent)
        mean, squares = (power.mean(axis=(1, 2), dtype=np.float64) for power in (latent, latent**2))
        return Encoded(latent.astype(self.save_dtype), sums=(*mean, *squares, *np.zeros(len(latent))))


def _level(image: Array) -> Array:
    """(C, H, W) -> (4C, H/2, W/2): sums and differences of each 2 x 2 positions, orthonormal."""
    a, b, c, d = (image[:, y::2, x::2] for y in (0, 1) for x in (0, 1))
    return np.concatenate([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d]) / 2


def image_of(latent: Array) -> Array:
    """The transform undone: float (192, h, w) -> float32 (3, 8h, 8w), in the encoder's pixel range."""
    image = latent.astype(np.float32)
    for _ in range(_LEVELS):
        s, h, v, d = np.split(image, 4)
        channels, rows, columns = s.shape
        image = np.empty((channels, 2 * rows, 2 * columns), np.float32)
        image[:, ::2, ::2], image[:, ::2, 1::2] = s + h + v + d, s - h + v - d
        image[:, 1::2, ::2], image[:, 1::2, 1::2] = s + h - v - d, s - h - v + d
        image /= 2
    return image
