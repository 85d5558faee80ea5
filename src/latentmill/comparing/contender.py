"""One VAE of a comparison: found, opened for a turn of encoding and one of decoding, timed, and closed again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from latentmill.comparing.memory import Peak
from latentmill.config import LatentSettings
from latentmill.encoders.device import restore_torch
from latentmill.encoders.memory import Halving
from latentmill.encoders.vae import DecoderSpec, VaeEncoder, VaeSpec
from latentmill.encoders.vae_families import FAMILIES
from latentmill.errors import ModelError, SampleError
from latentmill.formats.metadata import ModelInfo
from latentmill.outputs.common import divided, vae_spec
from latentmill.records import Array, Encoded, Sample, SampleRef
from latentmill.registry import FAKE
from latentmill.system import available_memory
from latentmill.transforms.divide import Divide

_DECODED_SHARE = 0.4  # of the available memory; a decoder holds about twice what the encoder does
_NO_DECODER = "{} is an encoder without a decoder: only VAEs of diffusers can be compared"


@dataclass(frozen=True)
class Contender:
    """A VAE that was found. label: its name for a person; size, encoded_size: (height, width) of the crops, and of what
    is encoded of them.
    """

    label: str
    info: ModelInfo
    spec: VaeSpec
    divide: Divide
    size: tuple[int, int]
    encoded_size: tuple[int, int]

    @property
    def padded_from(self) -> tuple[int, int] | None:
        return self.size if self.divide.rule == "pad" and self.encoded_size != self.size else None

    def original(self, crop: Array) -> Array:
        """What a picture of it is compared with: the crop, or what is left of it to encode."""
        return crop if self.padded_from else self.divide(crop)


@dataclass
class Turn:
    """What one turn gave: by image a result or a failure, and seconds of one image, forward by forward."""

    results: list[Encoded | SampleError]
    seconds: list[float]
    peak: int | None


def find(name: str, label: str, chosen: LatentSettings, size: tuple[int, int], threads: int) -> Contender:
    """A VAE by short name, hub repository (`owner/name`, `owner/name/subfolder`, `@revision`) or folder.

    size: (height, width) of the crops. Raises ModelError, and ConfigError where its factor does not divide them.
    """
    if name == FAKE:
        raise ModelError(_NO_DECODER.format(name))
    model, revision, subfolder = split_name(name)
    spec, info = vae_spec(
        model, revision or chosen.revision, subfolder or chosen.subfolder,
        device=chosen.device, dtype=chosen.dtype, pixel_range=chosen.pixel_range, save_dtype="float32", threads=threads,
        store="mean",
    )  # fmt: skip
    if not isinstance(spec, VaeSpec):
        raise ModelError(_NO_DECODER.format(name))
    spec = replace(spec, store="moments" if info.posterior else "mean")
    width, height = divided(size[::-1], info, chosen.indivisible)
    return Contender(label, info, spec, Divide(chosen.indivisible, info.pixel_multiple), size, (height, width))


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """(model, revision, subfolder) of `owner/name/subfolder@revision`; a folder's path and a short name are whole."""
    if Path(name).exists():
        return name, None, None
    model, _, revision = name.partition("@")
    owner, *rest = model.split("/")
    if len(rest) > 1 and owner not in ("", ".", "..", "~"):
        return "/".join((owner, rest[0])), revision or None, "/".join(rest[1:])
    return model, revision or None, None


def labels(names: Sequence[str]) -> dict[str, str]:
    """Names for a person: of a folder its own name, where no other VAE has that; else as given."""
    short = {name: Path(name).resolve().name if Path(name).is_dir() else name for name in names}
    taken = Counter(short.values())
    return {name: label if taken[label] == 1 else name for name, label in short.items()}


def encode_turn(contender: Contender, crops: Sequence[Array], batch_size: int) -> Turn:
    """Latents of the crops: moments, or the mean without a posterior. The first batch is encoded before, untimed."""
    samples = [_sample(contender.divide(crop), number) for number, crop in enumerate(crops)]
    with _opened(contender.spec) as (encoder, peak):
        found = _timed(encoder.encode, samples, batch_size)
        return replace(found, peak=peak.bytes())


def decode_turn(contender: Contender, means: Sequence[Array], batch_size: int) -> Turn:
    """uint8 HWC pictures of latents (C, h, w), in float32; of the size before padding."""
    samples = [_sample(mean, number) for number, mean in enumerate(means)]
    with _opened(DecoderSpec(replace(contender.spec, dtype="float32"), contender.padded_from)) as (decoder, peak):
        halving: Halving[Sample] = Halving("latent")

        def run(batch: Sequence[Sample]) -> list[Encoded | SampleError]:
            return halving.in_halves(decoder.encode, batch, lambda limit: None)

        found = _timed(run, samples, batch_size)
        return replace(found, peak=peak.bytes())


def decode_batch(contender: Contender, batch_size: int) -> int:
    """Latents a forward of the decoder: fewer than `batch_size` where a CPU's memory has no room for them."""
    available = available_memory()
    if not contender.spec.device.startswith("cpu") or available is None:
        return batch_size
    config, family = _config(contender), FAMILIES[contender.info.class_name]
    pixels = contender.encoded_size[0] * contender.encoded_size[1]
    return max(1, min(batch_size, int(_DECODED_SHARE * available / (family.bytes_per_pixel(config, 4) * pixels))))


def _config(contender: Contender) -> dict[str, object]:
    from latentmill.encoders.hub import config_of

    return config_of(contender.spec.model.folder, f"{contender.label} has no config.json any more", contender.label)


@contextmanager
def _opened(spec: VaeSpec | DecoderSpec) -> Iterator[tuple[VaeEncoder, Peak]]:
    """The model, alone on its device, and what it takes there from now on. Closed and given back afterwards."""
    vae = spec.vae if isinstance(spec, DecoderSpec) else spec
    peak = Peak(vae.device)
    try:
        yield spec.open(), peak  # type: ignore[misc]  # both have `encode`
    finally:
        spec.close()
        restore_torch()


def _timed(
    run: Callable[[Sequence[Sample]], list[Encoded | SampleError]], samples: Sequence[Sample], batch_size: int
) -> Turn:
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    run(batches[0])
    turn = Turn([], [], None)
    for batch in batches:
        begun = time.perf_counter()
        turn.results += run(batch)
        turn.seconds.append((time.perf_counter() - begun) / len(batch))
    if len(batches) > 1 and len(batches[-1]) < batch_size:  # a smaller batch is another measurement
        turn.seconds.pop()
    return turn


def _sample(array: Array, number: int) -> Sample:
    return Sample(SampleRef(number, f"{number:06d}", ""), np.ascontiguousarray(array), "")
