"""Diffusers' AutoencoderKL as an encoder (pixels to latents) and as a decoder (latents to pixels)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from latentmill.encoders.models import ResolvedModel
from latentmill.errors import ModelError, SampleError
from latentmill.records import RECOMPUTED_FLOAT32, Array, Encoded, Sample

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

_before: list[tuple[int, bool, bool, bool, bool]] = []
_LOG_VARIANCE_LIMITS = (-30.0, 20.0)  # as diffusers' DiagonalGaussianDistribution clamps them


@dataclass(frozen=True)
class VaeSpec:
    """How latents are computed. Everything here but `device` may change their bytes; all of it is kept in the plan.

    store: `moments` (mean and standard deviation), `mean`, or `sample` (one draw, by `seed` and the image's digest).
    """

    model: ResolvedModel
    device: str
    dtype: str
    pixel_range: tuple[float, float]
    store: str
    seed: int
    save_dtype: str
    threads: int

    def open(self) -> VaeEncoder:
        """Load the model. Raises ModelError."""
        return self._opened

    @cached_property
    def _opened(self) -> VaeEncoder:
        return VaeEncoder(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


class VaeEncoder:
    """uint8 HWC pixels -> float latents (2C or C, H/f, W/f), not scaled."""

    def __init__(self, spec: VaeSpec) -> None:
        import torch

        self.spec = spec
        self.device = prepare_device(spec.device, spec.threads)
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self.vae = load_vae(spec.model, self.device, self.dtype)

    @cached_property
    def _float32_vae(self) -> AutoencoderKL:
        import torch

        return load_vae(self.spec.model, self.device, torch.float32)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Latents of one batch; what is not finite in half precision is computed again in float32."""
        pixels = [sample.array for sample in samples]
        moments = self._moments(self.vae, np.stack(pixels))
        results: list[Encoded | SampleError] = []
        for sample, own in zip(samples, moments, strict=True):
            notes: tuple[str, ...] = ()
            if not np.isfinite(own).all() and self.spec.dtype != "float32":
                own = self._moments(self._float32_vae, np.stack([sample.array]))[0]
                notes = (RECOMPUTED_FLOAT32,)
            results.append(self._encoded(sample, own, notes))
        return results

    def _encoded(self, sample: Sample, moments: Array, notes: tuple[str, ...]) -> Encoded | SampleError:
        if not np.isfinite(moments).all():
            return SampleError("encode", "the latent is not finite (NaN or infinity), in float32 too")
        mean, std = np.split(moments, 2)
        if self.spec.store == "moments":
            array, kept, spread = moments, mean, std
        else:
            kept = mean if self.spec.store == "mean" else self._draw(sample, mean, std)
            array, spread = kept, np.zeros_like(std)
        with np.errstate(over="ignore"):
            array = array.astype(self.spec.save_dtype)
        if not np.isfinite(array).all():
            return SampleError("encode", f"the latent does not fit in {self.spec.save_dtype}")
        return Encoded(array, notes, channel_sums(kept, spread))

    def _draw(self, sample: Sample, mean: Array, std: Array) -> Array:
        """A draw from the posterior that depends on the seed and the image's bytes, not on its place or its batch."""
        import torch

        key = hashlib.sha256(f"{self.spec.seed} {sample.digest}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32).numpy()
        drawn: Array = mean + std * noise
        return drawn

    def _moments(self, vae: AutoencoderKL, pixels: Array) -> Array:
        """uint8 NHWC 0..255 -> float32 (N, 2C, h, w): posterior mean, then standard deviation."""
        import torch

        with torch.inference_mode(), _out_of_memory(len(pixels)):
            batch = to_input(pixels, self.spec.pixel_range).to(self.device, vae.dtype)
            parameters = vae.encode(batch).latent_dist.parameters.float()
            mean, log_variance = parameters.chunk(2, dim=1)
            std = torch.exp(0.5 * log_variance.clamp(*_LOG_VARIANCE_LIMITS))
            moments: Array = torch.cat([mean, std], dim=1).cpu().numpy()
        return moments


class VaeDecoder:
    """Latents (C, h, w), as stored -> uint8 HWC pixels."""

    def __init__(self, spec: VaeSpec) -> None:
        import torch

        self.spec = spec
        self.device = prepare_device(spec.device, spec.threads)
        self.vae = load_vae(spec.model, self.device, torch.float32)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Pixels of one batch of latents."""
        import torch

        latents = torch.from_numpy(np.stack([sample.array for sample in samples])).float()
        with torch.inference_mode():
            decoded = self.vae.decode(latents.to(self.device)).sample.float().cpu()
        low, high = self.spec.pixel_range
        # float32 NCHW low..high -> uint8 NHWC 0..255
        scaled = ((decoded - low) * (255.0 / (high - low))).round().clamp(0, 255)
        pixels = scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return [Encoded(array) for array in pixels]


@dataclass(frozen=True)
class DecoderSpec:
    """Opens a VaeDecoder."""

    vae: VaeSpec

    def open(self) -> VaeDecoder:
        return VaeDecoder(self.vae)


def channel_sums(values: Array, std: Array) -> tuple[float, ...]:
    """Per channel over the positions: mean, mean square, mean variance; what the set's statistics are made of."""
    wide = values.astype(np.float64)
    parts = (
        wide.mean(axis=(1, 2)),
        np.square(wide).mean(axis=(1, 2)),
        np.square(std, dtype=np.float64).mean(axis=(1, 2)),
    )
    return tuple(float(f"{value:.9g}") for part in parts for value in part)


@contextmanager
def _out_of_memory(batch_size: int) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(
            f"a batch of {batch_size} does not fit in the device's memory: use a smaller --batch-size (with "
            "--overwrite, since it may change the last digits), --dtype bfloat16, or --device cpu"
        ) from error


def to_input(pixels: Array, pixel_range: tuple[float, float]) -> torch.Tensor:
    """uint8 NHWC 0..255 -> float32 NCHW in `pixel_range`.

    Contiguous NCHW: a permuted view would silently run channels-last kernels, whose results differ.
    """
    import torch

    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
    return batch / 127.5 - 1 if pixel_range == (-1.0, 1.0) else batch / 255


def prepare_device(name: str, threads: int) -> torch.device:
    """The device, set up so that the same input gives the same bytes. Raises ModelError where it is not there."""
    import torch

    _before.append(
        (
            torch.get_num_threads(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        )
    )
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("device cuda is not there: PyTorch sees no GPU. Use --device cpu, or a CUDA build of PyTorch")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device mps is not there. Use --device cpu")
    return torch.device(name)


def restore_torch() -> None:
    """Give back PyTorch's settings as they were before `prepare_device`: they are the whole process's."""
    import torch

    while _before:
        threads, benchmark, deterministic, cudnn_tf32, matmul_tf32 = _before.pop()
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.allow_tf32 = cudnn_tf32
        torch.backends.cuda.matmul.allow_tf32 = matmul_tf32


def choose_device(name: str) -> str:
    """`auto` becomes cuda, mps or cpu, whichever this machine has first."""
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_vae(model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """The model in evaluation mode, from safetensors. Raises ModelError."""
    from diffusers import AutoencoderKL
    from safetensors import SafetensorError

    try:
        vae = AutoencoderKL.from_pretrained(
            model.folder, use_safetensors=True, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(f"{model.info.name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    vae.eval().requires_grad_(False)
    loaded: AutoencoderKL = vae.to(device)
    return loaded
