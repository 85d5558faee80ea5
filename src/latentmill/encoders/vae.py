"""A VAE of any family of diffusers as an encoder (pixels to latents) and as a decoder (latents to pixels)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from latentmill.encoders import heap
from latentmill.encoders.compiling import compile_errors, compile_module, uncompiled
from latentmill.encoders.device import choose_device as choose_device
from latentmill.encoders.device import own_threads
from latentmill.encoders.device import prepare_device as prepare_device
from latentmill.encoders.device import restore_torch as restore_torch
from latentmill.encoders.memory import Halving, no_room_for_float32, unless_full
from latentmill.encoders.models import ResolvedModel, check_statistic
from latentmill.encoders.pixels import to_input as to_input
from latentmill.encoders.side_by_side import AT_ONCE, LARGEST_TENSOR, SideBySide
from latentmill.encoders.tiles import tiled_moments
from latentmill.encoders.transfer import Transfer, Wait, transfer_for
from latentmill.encoders.vae_families import FAMILIES, Family, Vae
from latentmill.encoders.vae_model import Forward, even, load_vae
from latentmill.errors import ConfigError, ModelError, SampleError
from latentmill.records import RECOMPUTED_FLOAT32, SMALLER_BATCH, TILED, Array, Encoded, Sample
from latentmill.stages import Results
from latentmill.system import available_memory

if TYPE_CHECKING:
    import torch

_TILES = (2048, 1024, 512)  # pixels of a tile's side; the first that fits is taken
_SAFE_SHARE = 0.8  # of the available memory
_Computed = tuple[Wait, tuple[str, ...]] | SampleError  # what the family encodes to, and notes on how it was made


@dataclass(frozen=True)
class VaeSpec:
    """How latents are computed. Everything here but `device` may change their bytes; all of it is kept in the plan.

    store: `moments` (mean and standard deviation), `mean`, or `sample` (one draw, by `seed` and the image's digest); a
    model without a posterior stores `mean`.
    tiling: an image that does not fit in memory even alone is encoded in tiles (`auto`), or rejected (`never`);
    `always` tiles every image larger than 512 pixels, in tiles of that size. See `tiles`: close, not the same.
    channels_last: weights and activations lie in the memory's order NHWC. compile: by torch.compile, once for each
    shape; backend: the one that it takes.
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
    channels_last: bool = False
    compile: bool = False
    backend: str = "inductor"

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
    """uint8 HWC pixels -> float latents (2C or C, H/f, W/f), not scaled.

    Batches are computed in the thread that submits them, small images on a CPU `side_by_side`; results are made ready
    in the one that ends them, which computes again what overflowed, and only while no other batch is begun.
    """

    def __init__(self, spec: VaeSpec, transfer: Transfer | None = None) -> None:
        import torch

        check_statistic(spec.model.info, spec.store)
        self.spec = spec
        self.family = FAMILIES[spec.model.info.class_name]
        if spec.channels_last and self.family.frames:
            raise ConfigError(
                f"channels-last is of models with 2D convolutions. Found: {spec.model.info.name}, a "
                f"{self.family.class_name}; leave out --channels-last"
            )
        self.device = prepare_device(spec.device, spec.threads)
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self._transfer = transfer or transfer_for(self.device)
        self._forward = self._loaded(self.dtype, even=spec.compile)
        if spec.compile:
            compile_module(self.vae.encoder, spec.backend)
        self._warm: set[tuple[int, ...]] = set()
        self._forwards = threading.Lock()
        self._halving: Halving[Sample] = Halving("image", cost=_even_pixels if spec.compile else _pixels)
        self._room = self._halving.limit = _room(self.family, self.vae, self.device)
        self._beside = self._threads_beside()
        self._worked = False  # whether an image has fitted
        if self.device.type == "cpu":
            heap.keep_buffers()

    @property
    def vae(self) -> Any:
        """The model, in the precision that was asked for."""
        return self._forward.vae

    def _loaded(self, dtype: torch.dtype, *, even: bool = False) -> Forward:
        spec = self.spec
        loading = {"channels_last": True} if spec.channels_last else {}
        vae = load_vae(spec.model, self.device, dtype, **loading)
        return Forward(vae, self.family, self.device, self._transfer, spec.pixel_range, even=even, **loading)

    def _threads_beside(self) -> SideBySide[Array] | None:
        """None where forwards share what they compute with, or the model keeps frames between its operations."""
        apart = self.device.type == "cpu" and not (self.family.frames or self.spec.compile)
        return SideBySide(self.spec.threads) if apart and SideBySide.divides(self.spec.threads) else None

    @cached_property
    def _in_float32(self) -> Forward | None:
        """None where there is no room for it."""
        import torch

        return unless_full(lambda: self._loaded(torch.float32))

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Latents of one batch; what is not finite in half precision is computed again in float32.

        A batch that does not fit in memory is computed in smaller ones, an image that does not in tiles; both are
        noted. An image for which neither helps is an error of its own; raises ModelError where none ever fitted.
        """
        return self.submit(samples)()

    def submit(self, samples: Sequence[Sample]) -> Results:
        """As `encode`, in two steps; see `stages.Submitting`."""
        computed = self._begun(samples)
        return lambda: [self._mended(sample, each) for sample, each in zip(samples, computed, strict=True)]

    def _begun(self, samples: Sequence[Sample]) -> list[_Computed]:
        """Moments of one batch under way. Raises ModelError, also where a shape cannot be compiled."""
        with self._forwards, compile_errors(self.spec.model.info.name) if self.spec.compile else nullcontext():
            if self._beside is not None and self._small(samples[0]):
                begun = self._beside.begin(self._of_one, [sample.array for sample in samples])
                computed: list[_Computed] = [(wait, ()) for wait in begun]
            else:
                self.rest()
                computed = self._fitting(self._forward, samples)
        heap.bound_kept()
        return computed

    def _small(self, sample: Sample) -> bool:
        """Whether the tensors of two such images are small, and may be there at once."""
        pixels = _pixels([sample])
        tensor = pixels * self.family.tensor_bytes_per_pixel(self.vae.config, self.dtype.itemsize)
        fits = not self._exceeds(self._forward, AT_ONCE * pixels)
        return fits and tensor <= LARGEST_TENSOR and self.spec.tiling != "always"

    def _of_one(self, array: Array) -> Array:
        return _row(self._moments(self._forward, [array]), 0)

    def trial(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """As `encode`, but never compiled: to measure by, with shapes that are not those of the work."""
        if not self.spec.compile:
            return self.encode(samples)
        with uncompiled():
            return self.encode(samples)

    def warm_up(self, samples: Sequence[Sample]) -> None:
        """Compile for the shapes that this batch is computed in, unless that was done before. Raises ModelError.

        The batch is computed as it will be, in smaller ones or tiles where memory asks for it, and thrown away.
        """
        if not self.spec.compile or self._shapes(samples) in self._warm:
            return
        for each in self._begun(samples):
            if not isinstance(each, SampleError):
                wait, _ = each
                wait()
        self._warm.add(self._shapes(samples))  # by the limit as it is now: this batch may have lowered it

    def _shapes(self, samples: Sequence[Sample]) -> tuple[int, ...]:
        """Equal for batches that are computed in the same shapes."""
        count, shape, limit = len(samples), samples[0].array.shape, self._halving.limit
        if limit is None or _even_pixels(samples) <= limit:
            return (even(count), *shape)
        return (limit, count, *shape)

    def _mended(self, sample: Sample, computed: _Computed) -> Encoded | SampleError:
        """The result of one image, computed again in float32 where half precision overflowed."""
        import torch

        if isinstance(computed, SampleError):
            return computed
        wait, notes = computed
        moments = self._halving.tried(wait)
        if moments is None:  # there was no room for it beside another
            return self._mended(sample, self._again(sample, notes, self.dtype))
        if np.isfinite(moments).all() or self.spec.dtype == "float32":
            return self._encoded(sample, moments, notes)
        again = self._again(sample, (*notes, RECOMPUTED_FLOAT32), torch.float32)
        if isinstance(again, SampleError):
            return again
        wait, notes = again
        return self._encoded(sample, wait(), notes)

    def _again(self, sample: Sample, notes: tuple[str, ...], dtype: torch.dtype) -> _Computed:
        """One image computed once more, by itself."""
        with self._forwards:
            self.rest()
            forward = self._forward if dtype == self.dtype else self._in_float32
            if forward is None:
                return no_room_for_float32()
            own_threads(self.spec.threads)
            (again,) = self._fitting(forward, [sample])
        if isinstance(again, SampleError):
            return again
        wait, more = again
        return wait, tuple(dict.fromkeys((*more, *notes)))

    def rest(self) -> None:
        """Wait until nothing is computed any more; what a GPU has queued is left to it."""
        if self._beside is not None:
            self._beside.rest()

    def _fitting(self, forward: Forward, samples: Sequence[Sample]) -> list[_Computed]:
        """Moments of samples of one shape, in batches that fit in memory, and how they were computed."""
        if self.spec.tiling == "always" or self._too_large(forward, samples[0]):
            return [self._alone(forward, sample) for sample in samples]

        def run(batch: Sequence[Sample]) -> list[_Computed]:
            notes = (SMALLER_BATCH,) if len(batch) < len(samples) else ()
            wait = self._moments(forward, [sample.array for sample in batch])
            return [(partial(_row, wait, number), notes) for number in range(len(batch))]

        # each image is tried whole, whatever became of others of its size: what has no room now may have it later
        return self._halving.in_halves(run, samples, lambda limit: None, lambda sample: self._alone(forward, sample))

    def _too_large(self, forward: Forward, sample: Sample) -> bool:
        return self._exceeds(forward, _pixels([sample]))

    def _exceeds(self, forward: Forward, pixels: int) -> bool:
        """Whether so many pixels are known not to fit; `_room` is for the precision that was asked for."""
        return self._room is not None and pixels * forward.vae.dtype.itemsize > self._room * self.dtype.itemsize

    def _alone(self, forward: Forward, sample: Sample) -> _Computed:
        """One image that does not fit as a whole: in tiles, if that is allowed and helps."""
        if self.spec.tiling == "never":
            return self._unfit(sample)
        tiles = _TILES[-1:] if self.spec.tiling == "always" else _TILES
        side = max(sample.array.shape[:2])
        for tile in [size for size in tiles if size < side and not self._exceeds(forward, size * size)] or tiles[-1:]:
            found = self._halving.tried(partial(self._tiled, forward, sample, tile))
            if found is not None:
                return found
        return self._unfit(sample)

    def _tiled(self, forward: Forward, sample: Sample, tile: int) -> _Computed:
        pixels = sample.array
        if max(pixels.shape[:2]) <= tile:
            return partial(_row, self._moments(forward, [pixels]), 0), ()
        factor = self.spec.model.info.downscale_factor
        moments = tiled_moments(lambda part: self._moments(forward, [*part])(), pixels, tile, factor)
        return (lambda: moments), (TILED,)

    def _moments(self, forward: Forward, arrays: Sequence[Array]) -> Wait:
        wait = forward(arrays)
        self._worked = True
        return wait

    def _unfit(self, sample: Sample) -> _Computed:
        """A week's run does not end for one image; where no image has fitted yet, there is no use in going on."""
        height, width = sample.array.shape[:2]
        tiles = "--tiling auto, " if self.spec.tiling == "never" else ""
        reason = (
            f"{width}x{height} pixels do not fit in the device's memory{'' if tiles else ', in tiles too'}: use "
            f"{tiles}--dtype bfloat16, or --device cpu"
        )
        if not self._worked:
            raise ModelError(f"not even one image fits: {reason}. Found: {self._halving.heard or 'no room for it'}")
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
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32, device="cpu").numpy()
        drawn: Array = mean + std * noise
        return drawn


class VaeDecoder:
    """Latents (C, h, w), as stored -> uint8 HWC pixels."""

    def __init__(self, spec: VaeSpec, padded_from: tuple[int, int] | None = None) -> None:
        import torch

        self.spec = spec
        self.padded_from = padded_from
        self.family = FAMILIES[spec.model.info.class_name]
        self.device = prepare_device(spec.device, spec.threads)
        self.vae = load_vae(spec.model, self.device, torch.float32)
        self._halving: Halving[Sample] = Halving("latent", cost=_places)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Pixels of one batch of latents, in smaller ones where memory asks for it.

        Raises ModelError where not even one fits.
        """

        def run(batch: Sequence[Sample]) -> list[Encoded | SampleError]:
            return self._decoded(batch, (SMALLER_BATCH,) if len(batch) < len(samples) else ())

        return self._halving.in_halves(run, samples, lambda limit: None)

    def _decoded(self, samples: Sequence[Sample], notes: tuple[str, ...]) -> list[Encoded | SampleError]:
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
            Encoded(array, notes) if whole else SampleError("encode", "the picture is not finite (NaN or infinity)")
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


def _places(latents: Sequence[Sample]) -> int:
    return sum(latent.array.shape[-2] * latent.array.shape[-1] for latent in latents)


def _even_pixels(samples: Sequence[Sample]) -> int:
    """Of the batch that is computed where batches are even: see `Forward`."""
    return even(len(samples)) * _pixels(samples[:1])


def _room(family: Family, vae: Vae, device: torch.device) -> int | None:
    """Pixels that a batch may have by the available memory; None where the device itself says when it is full.

    A CPU does not: the system kills the process.
    """
    available = available_memory()
    if device.type != "cpu" or available is None:
        return None
    return int(_SAFE_SHARE * available / family.bytes_per_pixel(vae.config, vae.dtype.itemsize))


def _row(wait: Wait, number: int) -> Array:
    row: Array = wait()[number]
    return row
