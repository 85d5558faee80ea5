"""A VAE of any family of diffusers as an encoder (pixels to latents) and as a decoder (latents to pixels)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from latentmill.encoders.device import choose_device as choose_device
from latentmill.encoders.device import prepare_device as prepare_device
from latentmill.encoders.device import restore_torch as restore_torch
from latentmill.encoders.memory import Halving, unless_out_of_memory
from latentmill.encoders.models import ResolvedModel, check_statistic
from latentmill.encoders.tiles import tiled_moments
from latentmill.encoders.vae_families import FAMILIES, Family, Vae
from latentmill.errors import ModelError, SampleError
from latentmill.records import RECOMPUTED_FLOAT32, SMALLER_BATCH, TILED, Array, Encoded, Sample
from latentmill.system import available_memory

if TYPE_CHECKING:
    import torch

_TILES = (2048, 1024, 512)  # pixels of a tile's side; the first that fits is taken
_SAFE_SHARE = 0.8  # of the available memory
_Computed = tuple[Array, tuple[str, ...]] | SampleError  # what the family encodes to, and notes on how it was made


@dataclass(frozen=True)
class VaeSpec:
    """How latents are computed. Everything here but `device` may change their bytes; all of it is kept in the plan.

    store: `moments` (mean and standard deviation), `mean`, or `sample` (one draw, by `seed` and the image's digest); a
    model without a posterior stores `mean`.
    tiling: an image that does not fit in memory even alone is encoded in tiles (`auto`), or rejected (`never`);
    `always` tiles every image larger than 512 pixels, in tiles of that size. See `tiles`: close, not the same.
    """

    model: ResolvedModel
    device: str
    dtype: str
    pixel_range: tuple[float, float]
    store: str
    seed: int
    save_dtype: str
    threads: int
    tiling: str = "auto"

    def open(self) -> VaeEncoder:
        """Load the model. Raises ModelError, and ConfigError where it has no posterior to store."""
        return self._opened

    def close(self) -> None:
        """Let go of the model that `open` loaded."""
        self.__dict__.pop("_opened", None)

    @cached_property
    def _opened(self) -> VaeEncoder:
        return VaeEncoder(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


class VaeEncoder:
    """uint8 HWC pixels -> float latents (2C or C, H/f, W/f), not scaled."""

    def __init__(self, spec: VaeSpec) -> None:
        import torch

        check_statistic(spec.model.info, spec.store)
        self.spec = spec
        self.family = FAMILIES[spec.model.info.class_name]
        self.device = prepare_device(spec.device, spec.threads)
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self.vae = load_vae(spec.model, self.device, self.dtype)
        self._halving: Halving[Sample] = Halving("image", cost=_pixels)
        self._room = self._halving.limit = _room(self.family, self.vae, self.device)
        self._worked = False  # whether an image has fitted

    @cached_property
    def _float32_vae(self) -> Vae:
        import torch

        return load_vae(self.spec.model, self.device, torch.float32)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Latents of one batch; what is not finite in half precision is computed again in float32.

        A batch that does not fit in memory is computed in smaller ones, an image that does not in tiles; both are
        noted. An image for which neither helps is an error of its own; raises ModelError where none ever fitted.
        """
        found = zip(samples, self._fitting(self.vae, samples), strict=True)
        return [self._mended(sample, computed) for sample, computed in found]

    def _mended(self, sample: Sample, computed: _Computed) -> Encoded | SampleError:
        """The result of one image, computed again in float32 where half precision overflowed."""
        if isinstance(computed, SampleError):
            return computed
        moments, notes = computed
        if np.isfinite(moments).all() or self.spec.dtype == "float32":
            return self._encoded(sample, moments, notes)
        (again,) = self._fitting(self._float32_vae, [sample])
        if isinstance(again, SampleError):
            return again
        moments, more = again
        return self._encoded(sample, moments, tuple(dict.fromkeys((*notes, *more, RECOMPUTED_FLOAT32))))

    def _fitting(self, vae: Vae, samples: Sequence[Sample]) -> list[_Computed]:
        """Moments of samples of one shape, in batches that fit in memory, and how they were computed."""
        if self.spec.tiling == "always" or self._too_large(vae, samples[0]):
            return [self._alone(vae, sample) for sample in samples]

        def run(batch: Sequence[Sample]) -> list[_Computed]:
            notes = (SMALLER_BATCH,) if len(batch) < len(samples) else ()
            return [(own, notes) for own in self._moments(vae, np.stack([sample.array for sample in batch]))]

        return self._halving.in_halves(run, samples, lambda limit: None, lambda sample: self._alone(vae, sample))

    def _too_large(self, vae: Vae, sample: Sample) -> bool:
        return self._exceeds(vae, _pixels([sample]))

    def _exceeds(self, vae: Vae, pixels: int) -> bool:
        """Whether so many pixels are known not to fit; `_room` is for the precision that was asked for."""
        return self._room is not None and pixels * vae.dtype.itemsize > self._room * self.dtype.itemsize

    def _alone(self, vae: Vae, sample: Sample) -> _Computed:
        """One image that does not fit as a whole: in tiles, if that is allowed and helps."""
        if self.spec.tiling == "never":
            return self._unfit(sample)
        tiles = _TILES[-1:] if self.spec.tiling == "always" else _TILES
        side = max(sample.array.shape[:2])
        for tile in [size for size in tiles if size < side and not self._exceeds(vae, size * size)] or tiles[-1:]:
            found = unless_out_of_memory(partial(self._tiled, vae, sample, tile))
            if found is not None:
                return found
        return self._unfit(sample)

    def _tiled(self, vae: Vae, sample: Sample, tile: int) -> _Computed:
        pixels = sample.array
        if max(pixels.shape[:2]) <= tile:
            return self._moments(vae, np.stack([pixels]))[0], ()  # a copy: PyTorch warns of arrays it may not write
        factor = self.spec.model.info.downscale_factor
        return tiled_moments(lambda part: self._moments(vae, part), pixels, tile, factor), (TILED,)

    def _unfit(self, sample: Sample) -> _Computed:
        """A week's run does not end for one image; where no image has fitted yet, there is no use in going on."""
        height, width = sample.array.shape[:2]
        tiles = "--tiling auto, " if self.spec.tiling == "never" else ""
        reason = (
            f"{width}x{height} pixels do not fit in the device's memory{'' if tiles else ', in tiles too'}: use "
            f"{tiles}--dtype bfloat16, or --device cpu"
        )
        if not self._worked:
            raise ModelError(f"not even one image fits: {reason}")
        return SampleError("memory", reason)

    def _encoded(self, sample: Sample, moments: Array, notes: tuple[str, ...]) -> Encoded | SampleError:
        if not np.isfinite(moments).all():
            return SampleError("encode", "the latent is not finite (NaN or infinity), in float32 too")
        mean, std = np.split(moments, 2) if self.family.posterior else (moments, np.zeros_like(moments))
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

    def _moments(self, vae: Vae, pixels: Array) -> Array:
        """uint8 NHWC 0..255 -> float32 (N, 2C, h, w): posterior mean, then standard deviation; (N, C, h, w) if none."""
        import torch

        with torch.inference_mode():
            batch = to_input(pixels, self.spec.pixel_range).to(self.device, vae.dtype)
            moments: Array = self.family.encode(vae, batch).cpu().numpy()
        self._worked = True
        return moments


class VaeDecoder:
    """Latents (C, h, w), as stored -> uint8 HWC pixels."""

    def __init__(self, spec: VaeSpec, padded_from: tuple[int, int] | None = None) -> None:
        import torch

        self.spec = spec
        self.padded_from = padded_from
        self.family = FAMILIES[spec.model.info.class_name]
        self.device = prepare_device(spec.device, spec.threads)
        self.vae = load_vae(spec.model, self.device, torch.float32)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Pixels of one batch of latents."""
        import torch

        latents = torch.from_numpy(np.stack([sample.array for sample in samples])).float()
        with torch.inference_mode():
            decoded = self.family.decode(self.vae, latents.to(self.device)).float().cpu()
        if self.padded_from is not None:
            decoded = decoded[:, :, : self.padded_from[0], : self.padded_from[1]]
        low, high = self.spec.pixel_range
        # float32 NCHW low..high -> uint8 NHWC 0..255
        scaled = ((decoded - low) * (255.0 / (high - low))).round().clamp(0, 255)
        finite = scaled.isfinite().flatten(1).all(1).tolist()
        pixels = scaled.nan_to_num().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return [
            Encoded(array) if whole else SampleError("encode", "the picture is not finite (NaN or infinity)")
            for array, whole in zip(pixels, finite, strict=True)
        ]


@dataclass(frozen=True)
class DecoderSpec:
    """Opens a VaeDecoder. padded_from: (height, width) in pixels that pictures are cut to, as LatentInfo has it."""

    vae: VaeSpec
    padded_from: tuple[int, int] | None = None

    def open(self) -> VaeDecoder:
        """Load the model. Raises ModelError."""
        return self._opened

    def close(self) -> None:
        """Let go of the model that `open` loaded."""
        self.__dict__.pop("_opened", None)

    @cached_property
    def _opened(self) -> VaeDecoder:
        return VaeDecoder(self.vae, self.padded_from)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


def channel_sums(values: Array, std: Array) -> tuple[float, ...]:
    """Per channel over the positions: mean, mean square, mean variance; what the set's statistics are made of."""
    wide = values.astype(np.float64)
    parts = (
        wide.mean(axis=(1, 2)),
        np.square(wide).mean(axis=(1, 2)),
        np.square(std, dtype=np.float64).mean(axis=(1, 2)),
    )
    return tuple(float(f"{value:.9g}") for part in parts for value in part)


def _pixels(samples: Sequence[Sample]) -> int:
    return sum(sample.array.shape[0] * sample.array.shape[1] for sample in samples)


def _room(family: Family, vae: Vae, device: torch.device) -> int | None:
    """Pixels that a batch may have by the available memory; None where the device itself says when it is full.

    A CPU does not: the system kills the process.
    """
    available = available_memory()
    if device.type != "cpu" or available is None:
        return None
    return int(_SAFE_SHARE * available / family.bytes_per_pixel(vae.config, vae.dtype.itemsize))


def to_input(pixels: Array, pixel_range: tuple[float, float]) -> torch.Tensor:
    """uint8 NHWC 0..255 -> float32 NCHW in `pixel_range`.

    Contiguous NCHW: a permuted view would silently run channels-last kernels, whose results differ.
    """
    import torch

    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
    return batch / 127.5 - 1 if pixel_range == (-1.0, 1.0) else batch / 255


def load_vae(model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> Vae:
    """The model in evaluation mode, from safetensors. Raises ModelError."""
    import diffusers
    from safetensors import SafetensorError

    family = getattr(diffusers, model.info.class_name, None)
    if family is None:
        raise ModelError(
            f"{model.info.name} needs a diffusers that has {model.info.class_name}. Found: {diffusers.__version__}; "
            "pip install -U diffusers"
        )
    try:
        vae = family.from_pretrained(
            model.folder, use_safetensors=True, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(f"{model.info.name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    vae.eval().requires_grad_(False)
    loaded: Vae = vae.to(device)
    return loaded
