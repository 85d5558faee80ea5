"""Images to vision features: the tokens of DINOv2, DINOv3, CLIP and SigLIP that trainers align with.

Patch tokens are the model's last hidden state (after its final layer norm; CLIP has none for them), row by row of the
grid of patches, without class token and registers. The pooled vector is DINO's normed class token, CLIP's image
embedding where the model projects, else what the model pools. A batch that does not fit in the device's memory is
halved; what is not finite in half precision is computed again in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import isqrt, prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from latentmill.encoders import heap
from latentmill.encoders.device import own_threads, prepare_device
from latentmill.encoders.memory import Halving, no_room_for_float32, unless_full
from latentmill.encoders.pretrained import load_pretrained
from latentmill.encoders.transfer import Wait, transfer_for
from latentmill.encoders.vision_input import InputRule, RepaInput, Size
from latentmill.encoders.vision_models import ResolvedVisionModel, resolve_vision
from latentmill.errors import ConfigError, SampleError
from latentmill.formats.metadata import VisionInfo, VisionModelInfo
from latentmill.records import RECOMPUTED_FLOAT32, SMALLER_BATCH, Array, Encoded, Sample
from latentmill.stages import Results

if TYPE_CHECKING:
    import torch

Tokens = Literal["patch", "pooled", "both"]
Input = Literal["processor", "repa"]
Precision = Literal["float32", "bfloat16", "float16"]
SaveDtype = Literal["float32", "float16"]
_UNUSED = "mask_token"  # of training: some files lack it


@dataclass(frozen=True)
class VisionSpec:
    """How vision features are computed. Everything here but `device` may change their bytes.

    tokens: `patch` (N, D), `pooled` (1, D) or `both` (1 + N, D), the pooled vector first. input: `processor` brings
    the pixels to the model as its own image processor does, `repa` as REPA's trainer does (see `vision_input`), with
    position embeddings of DINOv2 resampled as REPA has timm do it. Raises ConfigError.
    """

    model: ResolvedVisionModel
    device: str
    dtype: Precision
    tokens: Tokens
    input: Input
    save_dtype: SaveDtype
    threads: int

    def __post_init__(self) -> None:
        for setting, allowed in (("dtype", Precision), ("tokens", Tokens), ("input", Input), ("save_dtype", SaveDtype)):
            if getattr(self, setting) not in get_args(allowed):
                raise ConfigError(
                    f"{setting} must be one of {', '.join(get_args(allowed))}. Found: {getattr(self, setting)!r}"
                )
        self._check_pooled()

    def _check_pooled(self) -> None:
        name, pooled, width = self.model.info.name, self.model.pooled_width, self.model.info.width
        if self.tokens != "patch" and pooled is None:
            raise ConfigError(f"{name} has no pooled vector: use tokens patch. Found: tokens {self.tokens}")
        if self.tokens == "both" and pooled != width:
            raise ConfigError(
                f"tokens both needs vectors of one width, and {name} has patch tokens of {width} and a pooled vector "
                f"of {pooled}: use tokens patch, or pooled"
            )

    @property
    def width(self) -> int:
        """D of what is stored."""
        pooled = self.model.pooled_width
        return pooled if self.tokens == "pooled" and pooled is not None else self.model.info.width

    @property
    def rule(self) -> InputRule:
        """How pixels become the model's input."""
        processor = self.model.processor
        if self.input == "processor":
            return processor
        return RepaInput(processor.mean, processor.std, self.model.info.patch_size)

    def resize(self, pixels: Array) -> Array:
        """uint8 HWC -> uint8 HWC as `encode` takes them: the part of the work that belongs to the loading threads."""
        return self.rule.resize(pixels)

    def grid(self, size: Size) -> Size:
        """(height, width) in patches of an input of this size. Raises ConfigError where it has none."""
        patch = self.model.info.patch_size
        if min(size) < patch:
            raise ConfigError(
                f"{self.model.info.name} needs an input of at least {patch}x{patch} pixels. Found: {size[1]}x{size[0]} "
                "(width x height)"
            )
        return size[0] // patch, size[1] // patch

    def open(self) -> VisionEncoder:
        """Load the model. Raises ModelError."""
        return self._opened

    def close(self) -> None:
        """Let go of the model that `open` loaded."""
        self.__dict__.pop("_opened", None)

    @cached_property
    def _opened(self) -> VisionEncoder:
        return VisionEncoder(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


def vision_spec(
    name: str,
    revision: str | None = None,
    subfolder: str | None = None,
    *,
    device: str = "cpu",
    dtype: Precision = "float32",
    tokens: Tokens = "patch",
    input: Input = "processor",  # noqa: A002  # the setting's name
    save_dtype: SaveDtype = "float32",
    threads: int = 1,
) -> tuple[VisionSpec, VisionModelInfo]:
    """The encoder of a model that is found or downloaded. Raises ModelError, and ConfigError of a setting."""
    model = resolve_vision(name, revision, subfolder)
    return VisionSpec(model, device, dtype, tokens, input, save_dtype, threads), model.info


def vision_info(spec: VisionSpec, pixel_size: Size | None) -> VisionInfo:
    """What the metadata says of the features of images of this size (None: every bucket has its own).

    Raises ConfigError where such images are too small.
    """
    size = spec.rule.size_of(pixel_size)
    return VisionInfo(
        tokens=spec.tokens,
        input=spec.input,
        input_size=size,
        grid=None if size is None else spec.grid(size),
        width=spec.width,
        dtype=spec.save_dtype,
        compute_dtype=spec.dtype,
    )


_Found = tuple[Array, tuple[str, ...]]  # features of an image, and notes on how they were computed
_Computed = tuple[Wait, int, tuple[str, ...]]  # features of a batch, which of them, notes on how they were computed


class VisionEncoder:
    """uint8 HWC pixels, as `VisionSpec.resize` gives them -> features, float32 or float16."""

    def __init__(self, spec: VisionSpec) -> None:
        import torch

        self.spec = spec
        self.device = prepare_device(spec.device, spec.threads)
        self.model = load_vision(spec, self.device, getattr(torch, spec.dtype))
        self._halving: Halving[Sample] = Halving("image", cost=_pixels)
        self._transfer = transfer_for(self.device)
        self._forwards = threading.Lock()
        if self.device.type == "cpu":
            heap.keep_buffers()

    @cached_property
    def _float32_model(self) -> Any | None:
        """None where there is no room for it."""
        import torch

        return unless_full(lambda: load_vision(self.spec, self.device, torch.float32))

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Features of one batch; those not finite in half precision are computed again in float32.

        Raises ModelError where not even one image fits in memory.
        """
        return self.submit(samples)()

    def submit(self, samples: Sequence[Sample]) -> Results:
        """As `encode`, in two steps; see `stages.Submitting`."""
        with self._forwards:
            computed = self._computed(self.model, samples)
        heap.bound_kept()
        return lambda: self._ended(samples, computed)

    def _ended(self, samples: Sequence[Sample], computed: Sequence[_Computed]) -> list[Encoded | SampleError]:
        results: list[_Found] = [(wait()[number], notes) for wait, number, notes in computed]
        again = [place for place, (array, _) in enumerate(results) if not np.isfinite(array).all()]
        if again and self.spec.dtype != "float32":
            better = self._in_float32([samples[place] for place in again])
            if better is None:
                failed = set(again)
                return [
                    no_room_for_float32() if n in failed else self._checked(*each) for n, each in enumerate(results)
                ]
            for place, (array, notes) in zip(again, better, strict=True):
                results[place] = array, tuple(dict.fromkeys((*results[place][1], *notes, RECOMPUTED_FLOAT32)))
        return [self._checked(array, notes) for array, notes in results]

    def _in_float32(self, samples: Sequence[Sample]) -> list[_Found] | None:
        """None where the model has no room in float32."""
        with self._forwards:
            if self._float32_model is None:
                return None
            own_threads(self.spec.threads)
            computed = unless_full(lambda: self._computed(self._float32_model, samples))
        return None if computed is None else [(wait()[number], notes) for wait, number, notes in computed]

    def _computed(self, model: Any, samples: Sequence[Sample]) -> list[_Computed]:
        """float32 features of samples of one shape, in batches that fit in memory, and how they were computed."""

        def run(batch: Sequence[Sample]) -> list[_Computed]:
            notes = (SMALLER_BATCH,) if len(batch) < len(samples) else ()
            wait = self._features(model, [sample.array for sample in batch])
            return [(wait, number, notes) for number in range(len(batch))]

        return self._halving.in_halves(run, samples, lambda limit: None)

    def _features(self, model: Any, arrays: Sequence[Array]) -> Wait:
        """uint8 HWC each -> float32 (B, N, D)."""
        import torch

        with torch.inference_mode():
            pixels = np.stack(arrays) if self.device.type == "cpu" else self._transfer.upload(arrays)
            batch = self.spec.rule.tensor(pixels, self.device)
            return self._transfer.download(self._chosen(model, batch.to(model.dtype)).float())

    def _chosen(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        """The tokens that are asked for, of an input NCHW."""
        import torch

        height, width = batch.shape[-2:]
        side, family = self.spec.model.side, self.spec.model.family
        how = {"interpolate_pos_encoding": True} if family.asked and (height, width) != (side, side) else {}
        output = model(pixel_values=batch, **how)
        hidden: torch.Tensor = output.last_hidden_state
        patches = hidden[:, hidden.shape[1] - prod(self.spec.grid((height, width))) :]
        if self.spec.tokens == "patch":
            return patches
        pooled: torch.Tensor = output.image_embeds if self.spec.model.projected else output.pooler_output
        pooled = pooled.unsqueeze(1)
        return pooled if self.spec.tokens == "pooled" else torch.cat([pooled, patches], dim=1)

    def _checked(self, array: Array, notes: tuple[str, ...]) -> Encoded | SampleError:
        if not np.isfinite(array).all():
            return SampleError("encode", "the vision features are not finite (NaN or infinity), in float32 too")
        with np.errstate(over="ignore"):
            stored = array.astype(self.spec.save_dtype)
        if not np.isfinite(stored).all():
            return SampleError("encode", f"the vision features do not fit in {self.spec.save_dtype}")
        return Encoded(stored, notes)


def load_vision(spec: VisionSpec, device: torch.device, dtype: torch.dtype) -> Any:
    """The model in evaluation mode. Raises ModelError."""
    resolved = spec.model
    settings = {"projection_dim": resolved.pooled_width} if resolved.projected else {}
    name, family = resolved.info.name, resolved.family
    model = load_pretrained(family.class_name, resolved.folder, name, device, dtype, unused=_UNUSED, **settings)
    if family.resampled and spec.input == "repa":
        model.embeddings.interpolate_pos_encoding = partial(_antialiased_positions, model.embeddings)
    return model


def _antialiased_positions(embeddings: Any, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """DINOv2's position embeddings for an input of this size, (1, 1 + N, D), the class token's first.

    Bicubic with antialiasing, as timm's `resample_abs_pos_embed`, which REPA calls; transformers' own has none, so
    that the targets of a 256-pixel run would differ from those that REPA computes.
    """
    import torch
    from torch.nn.functional import interpolate

    table, patch = embeddings.position_embeddings, embeddings.config.patch_size
    side = isqrt(table.shape[1] - 1)
    grid = height // patch, width // patch
    if grid == (side, side):
        return table  # type: ignore[no-any-return]
    square = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resampled = interpolate(square, grid, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([table[:, :1], resampled.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def _pixels(samples: Sequence[Sample]) -> int:
    return sum(sample.array.shape[0] * sample.array.shape[1] for sample in samples)
