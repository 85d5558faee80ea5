"""What a comparison of VAEs found, and the same as a table for programs. Pairs of sizes are (height, width)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from latentmill.bench.figures import Figure
from latentmill.formats.metadata import ModelInfo
from latentmill.records import Array

_TAIL = 5.0  # percent of the images: where the bad end of a spread is told


@dataclass(frozen=True)
class Metric:
    """One of the measures. higher: whether more is better. digits: that a person is shown."""

    name: str
    unit: str
    higher: bool
    digits: int
    what: str


PSNR = Metric("PSNR", "dB", True, 2, "peak signal-to-noise ratio of 8-bit RGB, in dB")
SSIM = Metric("SSIM", "", True, 4, "structural similarity (Wang et al. 2004), the mean of R, G and B; at most 1")
FLIP = Metric(
    "FLIP",
    "",
    False,
    4,
    "how much of the difference a person sees when flipping between the two (NVIDIA); 0 is nothing",
)


@dataclass(frozen=True)
class Spread:
    """Of one measure over the images: the median, and the value that the worst 5 % are beyond."""

    median: float
    worst: float

    @classmethod
    def of(cls, values: Array, metric: Metric) -> Spread:
        kept = np.sort(values[~np.isnan(values)])
        place = _TAIL / 100 * (len(kept) - 1)
        tail = float(kept[math.floor(place) if metric.higher else -1 - math.floor(place)])
        return cls(float(np.median(kept)), tail)


@dataclass(frozen=True)
class LatentFigures:
    """Of the latents of all images, as the VAE gives them. mean, std, std_sampled: float64 (C,).

    std: of the posterior's mean; std_sampled: of draws from it, what a trainer gets (equal without a posterior).
    normalised: mean and deviation of all values after the model's own normalisation, which are meant to be 0 and 1.
    dead: channels that carry nearly nothing (see `latents.dead_channels`). largest: of all absolute values.
    """

    shape: tuple[int, int, int]
    mean: Array
    std: Array
    std_sampled: Array
    overall_mean: float
    overall_std: float
    normalised: tuple[float, float]
    dead: tuple[int, ...]
    largest: float

    @property
    def suggested(self) -> tuple[float, float]:
        """(scale, shift) that bring draws of this sample to mean 0 and deviation 1, as (z - shift) * scale."""
        return 1 / max(self.overall_std, 1e-12), self.overall_mean


@dataclass(frozen=True)
class Candidate:
    """One VAE. scores: float64 (N,) by measure, of every image in order; NaN where it gave no picture.

    encode, decode: seconds of one image. encode_memory, decode_memory: bytes at the peak, weights included; None where
    that cannot be told. decode_batch: images a forward, where they are fewer than encoded.
    bytes_stored: of one image's file, by `moments` (None without a posterior) or `mean`, and by dtype.
    divided: the (height, width) that was encoded, where it is not that of the crops. recomputed: images that half
    precision was too small for; failed: key and reason of those that gave nothing.
    """

    name: str
    info: ModelInfo
    scores: dict[str, Array]
    latents: LatentFigures
    bytes_stored: dict[str, int]
    encode: Figure
    decode: Figure
    encode_memory: int | None
    decode_memory: int | None
    decode_batch: int | None
    divided: tuple[int, int] | None
    recomputed: int
    tiled: int
    failed: tuple[tuple[str, str], ...]

    def spread(self, metric: Metric) -> Spread:
        return Spread.of(self.scores[metric.name], metric)

    @property
    def bytes_float16(self) -> int:
        """Of an image's file with what pictures are made of here: the mean, in float16."""
        return self.bytes_stored["mean float16"]


@dataclass(frozen=True)
class Conditions:
    """Under which all were measured. listed: images of the source; used: of them compared; left_out: key and reason."""

    source: str
    listed: int
    used: int
    left_out: tuple[tuple[str, str], ...]
    size: tuple[int, int]
    transform: str
    indivisible: str
    dtype: str
    pixel_range: tuple[float, float]
    batch_size: int
    threads: int
    device: str
    machine: str
    versions: dict[str, str]
    seconds: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """keys: of the images, in order. failures: name and reason of VAEs that could not be compared."""

    conditions: Conditions
    metrics: tuple[Metric, ...]
    keys: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    failures: tuple[tuple[str, str], ...]
    worst: tuple[Case, ...] = ()
    reading: str = ""

    def as_table(self) -> dict[str, object]:
        """Everything but the pictures, as JSON has it; sizes in bytes, times in seconds, pairs (height, width)."""
        conditions = vars(self.conditions)
        return {
            "reading": self.reading,
            "conditions": {**conditions, "left_out": dict(conditions["left_out"])},
            "metrics": {each.name: {"better": "higher" if each.higher else "lower", "what": each.what}
                        for each in self.metrics},
            "images": list(self.keys),
            "vaes": [self._told(each) for each in self.candidates],
            "failures": dict(self.failures),
        }  # fmt: skip

    def _told(self, each: Candidate) -> dict[str, object]:
        latents, spreads = each.latents, {metric.name: each.spread(metric) for metric in self.metrics}
        scale, shift = latents.suggested
        return {
            "name": each.name,
            "model": each.info.model_dump(mode="json"),
            "scores": {name: {**vars(spread), "each": [_finite(value) for value in each.scores[name]]}
                       for name, spread in spreads.items()},
            "latent": {
                "shape": list(latents.shape), "mean": latents.mean.tolist(), "std": latents.std.tolist(),
                "std_sampled": latents.std_sampled.tolist(), "overall_mean": latents.overall_mean,
                "overall_std": latents.overall_std, "normalised_mean": latents.normalised[0],
                "normalised_std": latents.normalised[1], "suggested_scale": scale, "suggested_shift": shift,
                "dead_channels": list(latents.dead), "largest": latents.largest,
            },
            "bytes_per_image": each.bytes_stored,
            "encode": each.encode.told(), "decode": each.decode.told(),
            "encode_memory": each.encode_memory, "decode_memory": each.decode_memory,
            "decode_batch": each.decode_batch, "divided": each.divided,
            "recomputed_in_float32": each.recomputed, "tiled": each.tiled, "failed": dict(each.failed),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        """For notebooks: the table of the terminal."""
        from latentmill.comparing.page import overview

        return str(overview(self))


@dataclass(frozen=True)
class Case:
    """One image as every VAE gives it back: uint8 HWC, 1:1. why: it is shown. at: (top, left) of what is shown.

    restored: by VAE, the same part of the picture as `crop`; a VAE that failed is left out.
    """

    number: int
    why: str
    at: tuple[int, int]
    crop: Array
    restored: dict[str, Array]


def best_of(candidates: Sequence[Candidate], value: Callable[[Candidate], float | None], *, higher: bool) -> set[str]:
    """Names of those with the best value; none where all are equal, or there is one alone."""
    found = {each.name: known for each in candidates if (known := value(each)) is not None}
    if len(set(found.values())) < 2:
        return set()
    best = (max if higher else min)(found.values())
    return {name for name, known in found.items() if known == best}


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity: a picture that is equal to the last bit is told as null, as a missing one."""
    return round(float(value), 6) if math.isfinite(value) else None
