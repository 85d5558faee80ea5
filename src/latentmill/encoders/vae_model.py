"""A VAE's model on its device: loaded, fed with pixels, and its moments brought back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentmill.encoders.models import ResolvedModel
from latentmill.encoders.pixels import levels, looked_up, normalised
from latentmill.encoders.pretrained import load_errors
from latentmill.encoders.transfer import Transfer, Wait
from latentmill.encoders.vae_families import Family, Vae
from latentmill.errors import ModelError
from latentmill.records import Array

if TYPE_CHECKING:
    import torch


class Forward:
    """uint8 HWC pixels of one shape -> float32 (N, 2C, h, w): posterior mean, standard deviation; (N, C, h, w) if none.

    What it gives waits for them: on a GPU, work is only queued. even: batches are filled up to a power of two with
    copies of the last image, so that a compiled model meets few shapes.
    """

    def __init__(
        self,
        vae: Vae,
        family: Family,
        device: torch.device,
        transfer: Transfer,
        pixel_range: tuple[float, float],
        *,
        channels_last: bool = False,
        even: bool = False,
    ) -> None:
        self.vae, self._family, self._device, self._transfer = vae, family, device, transfer
        self._range, self._channels_last, self._even = pixel_range, channels_last, even
        self._levels = None if device.type == "cpu" else levels(pixel_range).to(device, vae.dtype)

    def __call__(self, arrays: Sequence[Array]) -> Wait:
        import torch

        count = len(arrays)
        if self._even:
            arrays = [*arrays, *[arrays[-1]] * (even(count) - count)]
        with torch.inference_mode():
            moments = self._family.encode(self.vae, self._input(self._transfer.upload(arrays)))
            return self._transfer.download(moments[:count])

    def _input(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 NHWC 0..255 -> NCHW in the pixel range, in the model's precision: the same bits on every device."""
        import torch

        if self._levels is None:
            batch = normalised(pixels, self._range).to(self.vae.dtype)
        else:
            batch = looked_up(self._levels, pixels)
        return batch.contiguous(memory_format=torch.channels_last) if self._channels_last else batch.contiguous()


def even(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def load_vae(model: ResolvedModel, device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> Vae:
    """The model in evaluation mode, from safetensors. Raises ModelError."""
    import diffusers
    import torch

    family = getattr(diffusers, model.info.class_name, None)
    if family is None:
        raise ModelError(
            f"{model.info.name} needs a diffusers that has {model.info.class_name}. Found: {diffusers.__version__}; "
            "pip install -U diffusers"
        )
    with load_errors(model.info.name):
        vae = family.from_pretrained(
            model.folder, use_safetensors=True, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False
        )
        vae.eval().requires_grad_(False)
        loaded: Vae = vae.to(device, memory_format=torch.channels_last) if channels_last else vae.to(device)
    return loaded
