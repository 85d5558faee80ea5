"""Bytes of pixels to a model's input, by the same float32 arithmetic on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentmill.records import Array

if TYPE_CHECKING:
    import torch

_BYTES = 256  # values of a uint8


def to_input(pixels: Array, pixel_range: tuple[float, float]) -> torch.Tensor:
    """uint8 NHWC 0..255 -> float32 NCHW in `pixel_range`.

    Contiguous NCHW: a permuted view would silently run channels-last kernels, whose results differ.
    """
    import torch

    return normalised(torch.from_numpy(pixels), pixel_range)


def normalised(pixels: torch.Tensor, pixel_range: tuple[float, float]) -> torch.Tensor:
    """As `to_input`, in one new buffer. On a CPU: a GPU multiplies by a reciprocal, which rounds otherwise."""
    import torch

    count, height, width, channels = pixels.shape
    batch = torch.empty((count, channels, height, width), dtype=torch.float32, device=pixels.device)
    batch.copy_(pixels.permute(0, 3, 1, 2))
    return batch.div_(127.5).sub_(1) if pixel_range == (-1.0, 1.0) else batch.div_(255)


def levels(pixel_range: tuple[float, float]) -> torch.Tensor:
    """float32 (256,): what each value of a byte becomes, by a CPU's arithmetic."""
    import torch

    every = torch.arange(_BYTES, dtype=torch.uint8, device="cpu")
    return normalised(every.view(1, 1, _BYTES, 1), pixel_range).flatten()


def looked_up(values: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """uint8 NHWC -> NCHW, a view in the memory's order of NHWC; each byte its value of `values` (256,)."""
    return values.index_select(0, pixels.flatten().int()).view(pixels.shape).permute(0, 3, 1, 2)
