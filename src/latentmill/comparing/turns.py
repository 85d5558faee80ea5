"""The turns that a VAE takes: a part of the photos encoded, decoded and measured; and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from latentmill.bench.figures import Figure
from latentmill.comparing.cases import Restored
from latentmill.comparing.contender import Contender, Turn, decode_turn, encode_turn
from latentmill.comparing.latents import Gathering, bytes_stored
from latentmill.comparing.photos import Photos
from latentmill.comparing.result import FLIP, PSNR, SSIM, Candidate, Metric
from latentmill.errors import ModelError, SampleError
from latentmill.records import RECOMPUTED_FLOAT32, TILED, Array, Encoded
from latentmill.report import metrics

_ROUNDS = 3


@dataclass
class Run:
    """What is known of a VAE so far."""

    contender: Contender
    batch_size: int
    decode_batch: int
    gathering: Gathering
    scores: dict[str, Array]
    encode_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    encode_peaks: list[int] = field(default_factory=list)
    decode_peaks: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)

    def candidate(self, keys: Sequence[str]) -> Candidate:
        info, latents = self.contender.info, self.gathering.figures()
        size = self.contender.encoded_size
        return Candidate(
            name=self.contender.label,
            info=info,
            scores=self.scores,
            latents=latents,
            bytes_stored=bytes_stored(latents.shape, info.posterior),
            encode=Figure.of(self.encode_seconds),
            decode=Figure.of(self.decode_seconds),
            encode_memory=max(self.encode_peaks, default=None),
            decode_memory=max(self.decode_peaks, default=None),
            decode_batch=self.decode_batch if self.decode_batch < self.batch_size else None,
            divided=size if size != self.contender.size else None,
            recomputed=self.notes.count(RECOMPUTED_FLOAT32),
            tiled=self.notes.count(TILED),
            failed=tuple((keys[number], reason) for number, reason in sorted(self.failed.items())),
        )


def parts(count: int, batch_size: int) -> list[range]:
    """The images of each round: whole batches, as even as they can be."""
    batches = -(-count // batch_size)
    rounds = min(_ROUNDS, batches)
    edges = [min(count, number * batches // rounds * batch_size) for number in range(rounds + 1)]
    return [range(low, high) for low, high in pairwise(edges)]


def take_turn(run: Run, numbers: range, photos: Photos, measured: Sequence[Metric], restored: Restored) -> None:
    """One VAE with one part of the photos. Raises LatentmillError."""
    crops = [photos.crops[number] for number in numbers]
    encoded = encode_turn(run.contender, crops, run.batch_size)
    run.encode_seconds += encoded.seconds
    run.encode_peaks += [] if encoded.peak is None else [encoded.peak]
    means = {number: run.gathering.add(array) for number, array in _good(run, numbers, encoded)}
    if not means:
        raise ModelError(f"it gave no latent that is finite: {next(iter(run.failed.values()))}")
    decoded = decode_turn(run.contender, list(means.values()), run.decode_batch)
    run.decode_seconds += decoded.seconds
    run.decode_peaks += [] if decoded.peak is None else [decoded.peak]
    pictures = _good(run, list(means), decoded)
    if not pictures:
        raise ModelError(f"it gave no picture that is finite: {next(iter(run.failed.values()))}")
    for number, picture in pictures:
        original = run.contender.original(photos.crops[number])
        for metric in measured:
            run.scores[metric.name][number] = _MEASURES[metric.name](original, picture)
        restored.keep(run.contender.label, number, picture)


_MEASURES: dict[str, Callable[[Array, Array], float]] = {
    PSNR.name: metrics.psnr, SSIM.name: metrics.ssim, FLIP.name: metrics.flip
}  # fmt: skip


def _good(run: Run, numbers: Sequence[int], turn: Turn) -> list[tuple[int, Array]]:
    """The arrays that came out, by the image's number; what did not is noted."""
    found: list[tuple[int, Array]] = []
    for number, result in zip(numbers, turn.results, strict=True):
        if isinstance(result, Encoded):
            run.notes += result.notes
            found.append((number, result.array))
        else:
            assert isinstance(result, SampleError)
            run.failed[number] = str(result)
    return found
