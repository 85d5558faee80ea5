"""Pixels to a vision model's input: as the model's own image processor makes it, or as REPA's trainer does.

Either rule has `resize` for the loading threads, `size_of` for what is told before any work, and `tensor` for the
encoder. All are picklable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from latentmill.encoders.pixels import looked_up
from latentmill.errors import ConfigError
from latentmill.formats.vision import REPA_PIXELS
from latentmill.records import Array
from latentmill.transforms.resample import planes, resize

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]
_BYTES = np.arange(256)
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers
TORCH_MODES = {BILINEAR: "bilinear", BICUBIC: "bicubic"}


class InputRule(Protocol):
    """How pixels become a model's input. Pairs are (height, width)."""

    def resize(self, pixels: Array) -> Array:
        """uint8 HWC -> uint8 HWC, in the loading threads; what `tensor` takes. It may be the same array."""
        ...

    def size_of(self, pixels: Size | None) -> Size | None:
        """The input's size for pixels of a size; of None, what all sizes become, None where they differ."""
        ...

    def tensor(self, pixels: Array | torch.Tensor, device: torch.device) -> torch.Tensor:
        """uint8 NHWC, as `resize` gives them, here or on the device -> float32 NCHW on the device."""
        ...


@dataclass(frozen=True)
class Processor:
    """A model's image processor: resize (to `size`, or the shorter side to `edge`), centre crop, rescale, normalise.

    As transformers' Pillow processors compute it, to the bit. on_floats: the resize comes after the rescale, on
    floats with antialiasing, as DINOv3's does (PyTorch's arithmetic, which torchvision calls). resample: Pillow's
    number of the filter. rescale: what bytes are multiplied by, or None.
    """

    size: Size | None
    edge: int | None
    crop: Size | None
    resample: int
    rescale: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    on_floats: bool = False

    def resize(self, pixels: Array) -> Array:
        if self.on_floats:
            return pixels
        size = self._resized((pixels.shape[0], pixels.shape[1]))
        if size == pixels.shape[:2]:
            return pixels if self.crop is None else _centre(pixels, self.crop)
        top, left, height, width = (0, 0, *size) if self.crop is None else _centred(size, self.crop)
        shown = resize(pixels, size, Image.Resampling(self.resample), (top, left, top + height, left + width))
        return shown if self.crop is None else _centre(shown, self.crop)

    def size_of(self, pixels: Size | None) -> Size | None:
        if self.crop is not None:
            return self.crop
        return self.size if pixels is None else self._resized(pixels)

    def tensor(self, pixels: Array | torch.Tensor, device: torch.device) -> torch.Tensor:
        from torch.nn.functional import interpolate

        values = _BYTES if self.rescale is None else _BYTES * self.rescale
        batch = _looked_up(values.astype(np.float32), pixels, device)
        if self.on_floats:
            size, mode = self._resized((pixels.shape[1], pixels.shape[2])), TORCH_MODES[self.resample]
            batch = interpolate(batch, size, mode=mode, align_corners=False, antialias=True)
        return _normalised(batch, self.mean, self.std)

    def _resized(self, size: Size) -> Size:
        """What a size is resized to, before the crop."""
        if self.size is not None:
            return self.size
        if self.edge is None:
            return size
        height, width = size
        long = int(self.edge * max(size) / min(size))
        return (long, self.edge) if width <= height else (self.edge, long)


@dataclass(frozen=True)
class RepaInput:
    """REPA's `preprocess_raw_image`: pixels / 255, normalised, then interpolated (bicubic, no antialiasing).

    A side of 16 pixels becomes one patch, so that the tokens are those of a SiT or DiT with patches of 2 over latents
    of a factor-8 VAE: 256 pixels become 224 where patches are 14, 256 where they are 16. (REPA interpolates before
    it normalises for CLIP, which is the same but for rounding.)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int

    def resize(self, pixels: Array) -> Array:
        return pixels

    def size_of(self, pixels: Size | None) -> Size | None:
        if pixels is None:
            return None
        if min(pixels) < REPA_PIXELS:
            height, width = pixels
            raise ConfigError(
                f"input repa needs images of at least {REPA_PIXELS}x{REPA_PIXELS} pixels. Found: {width}x{height} "
                "(width x height)"
            )
        return self.patch * (pixels[0] // REPA_PIXELS), self.patch * (pixels[1] // REPA_PIXELS)

    def tensor(self, pixels: Array | torch.Tensor, device: torch.device) -> torch.Tensor:
        from torch.nn.functional import interpolate

        batch = _looked_up(_BYTES.astype(np.float32) / np.float32(255), pixels, device)
        size = self.size_of((pixels.shape[1], pixels.shape[2]))
        return interpolate(_normalised(batch, self.mean, self.std), size, mode="bicubic", align_corners=False)


def _looked_up(values: Array, pixels: Array | torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 NHWC -> float32 NCHW, contiguous: each byte its value."""
    import torch

    if isinstance(pixels, torch.Tensor):
        return looked_up(_constants(tuple(values.tolist()), device), pixels).contiguous()
    return torch.from_numpy(np.take(values, np.stack([planes(image) for image in pixels]))).to(device)


def _normalised(batch: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    shift, scale = _constants(mean, batch.device), _constants(std, batch.device)
    return (batch - shift.view(-1, 1, 1)) / scale.view(-1, 1, 1)


@lru_cache(maxsize=32)
def _constants(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """float32, copied to the device once: a copy from here would wait for all that is queued in it."""
    import torch

    return torch.tensor(values, dtype=torch.float32, device="cpu").to(device)


def _centred(size: Size, crop: Size) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the part of an image of `size` that `_centre` keeps of it."""
    height, width = min(size[0], crop[0]), min(size[1], crop[1])
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def _centre(pixels: Array, size: Size) -> Array:
    """The centre, as transformers' `center_crop` takes it; what an image lacks is black."""
    for axis, want in enumerate(size):
        spare = pixels.shape[axis] - want
        if spare < 0:
            before = -(spare // 2)
            widths = [(0, 0), (0, 0), (0, 0)]
            widths[axis] = before, -spare - before
            pixels = np.pad(pixels, widths)
        else:
            pixels = pixels[(slice(None),) * axis + (slice(spare // 2, spare // 2 + want),)]
    return np.ascontiguousarray(pixels)
