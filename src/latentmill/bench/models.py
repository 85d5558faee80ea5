"""What encoding takes on a device: images a second by batch size, captions a second by the token budget."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from latentmill.batching import ByTokens
from latentmill.bench.figures import Figure
from latentmill.config import CaptionSettings
from latentmill.errors import ModelError, SampleError
from latentmill.records import SMALLER_BATCH, TILED, Array, Encoded, Sample, SampleRef
from latentmill.stages import Encoder, EncoderSpec, WarmingUp

if TYPE_CHECKING:
    from latentmill.encoders.text import TextSpec

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_WORTH = 1.05  # a larger batch must be this much faster: it costs memory, and loses more work to a failure
_LEAST_ROUNDS = 3
_CAPTIONS = 400
_IN_FLIGHT = 4  # batches that are timed together on a GPU
_COCO_WORDS = (7, 15)  # of most captions of COCO


@dataclass(frozen=True)
class EncodeFigures:
    """seconds of wall an image, by batch size, warm. warm_up: seconds of each size's first batch, compiling included.

    batch_size: the smallest that is about as fast as any.
    """

    name: str
    device: str
    threads: int
    by_batch: dict[int, Figure]
    warm_up: dict[int, float]

    @property
    def batch_size(self) -> int:
        fastest = max(figure.rate for figure in self.by_batch.values())
        return min(size for size, figure in self.by_batch.items() if _WORTH * figure.rate >= fastest)

    @property
    def best(self) -> Figure:
        return self.by_batch[self.batch_size]


class Stopwatch:
    """Seconds of work on a device: on CUDA by its events, which are waited for; elsewhere by the clock."""

    def __init__(self, device: str) -> None:
        self.device = device

    def seconds(self, work: Callable[[], object]) -> float:
        if not self.device.startswith("cuda"):
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        return self._cuda_seconds(work)

    def _cuda_seconds(self, work: Callable[[], object]) -> float:
        import torch

        with torch.cuda.device(self.device):
            event: Any = partial(torch.cuda.Event, enable_timing=True)
            begin, end = event(), event()
            torch.cuda.synchronize()
            begin.record()
            work()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000  # which is in milliseconds


def measure_encode(
    spec: EncoderSpec, name: str, device: str, threads: int, images: Sequence[Array], seconds: float
) -> EncodeFigures:
    """Encode batches of every size in turn, as a job does, until time is up or a batch does not fit in memory."""
    encoder, watch = spec.open(), Stopwatch(device)
    found = EncodeFigures(name, device, threads, {}, {})
    batches: dict[int, list[Sample]] = {}
    for size in _SIZES:
        batch = [_sample(images[number % len(images)], number) for number in range(size)]
        results: list[Encoded | SampleError] = []
        found.warm_up[size] = watch.seconds(partial(_into, results, encoder, batch))
        if not _whole(results) and batches:
            break
        batches[size] = batch
        if found.warm_up[size] * _LEAST_ROUNDS * 4 > seconds:  # the next takes twice as long, all before half of that
            break
    rounds: dict[int, list[float]] = {size: [] for size in batches}
    flight = _IN_FLIGHT if device.startswith("cuda") else 1
    end = time.perf_counter() + seconds
    while len(rounds[1]) < _LEAST_ROUNDS or time.perf_counter() < end:
        for size, batch in batches.items():
            rounds[size].append(watch.seconds(partial(_flight, encoder, batch, flight)) / (size * flight))
    found.by_batch.update({size: Figure.of(values) for size, values in rounds.items()})
    return found


def _into(results: list[Encoded | SampleError], encoder: Encoder, batch: list[Sample]) -> None:
    if isinstance(encoder, WarmingUp):
        encoder.warm_up(batch)
    results.extend(encoder.encode(batch))


def _flight(encoder: Encoder, batch: list[Sample], count: int) -> None:
    """`count` batches; where the encoder can, each begins before the one before it is brought back, as in a job."""
    submit = getattr(encoder, "submit", None)
    waiting: Callable[[], object] | None = None
    for _ in range(count):
        started = submit(batch) if submit else partial(encoder.encode, batch)
        if waiting is not None:
            waiting()
        waiting = started
    assert waiting is not None
    waiting()


def _whole(results: Sequence[Encoded | SampleError]) -> bool:
    """Whether the batch was computed as one. Raises ModelError where an image failed."""
    for result in results:
        if isinstance(result, SampleError):
            raise ModelError(f"a photo could not be encoded: {result}")
    return not {note for result in results if isinstance(result, Encoded) for note in result.notes} & {
        SMALLER_BATCH,
        TILED,
    }


def _sample(pixels: Array, number: int) -> Sample:
    return Sample(SampleRef(number, f"{number:06d}", ""), pixels, f"{number:032x}")


@dataclass(frozen=True)
class TextFigures:
    """seconds of wall a caption. tokens: of a caption on the average, its closing one included."""

    name: str
    device: str
    figure: Figure
    tokens: float


def measure_text(spec: TextSpec, name: str, seconds: float) -> TextFigures:
    """Encode captions of COCO's lengths in batches of the usual token budget, as a job of captions does."""
    encoder, watch = spec.open(), Stopwatch(spec.device)
    captions = sample_captions(_CAPTIONS)
    tokens = spec.tokenize(captions)
    refs = [
        SampleRef(number, "", "", caption=caption, tokens=len(each.ids))
        for number, (caption, each) in enumerate(zip(captions, tokens, strict=True))
    ]
    batches: list[list[Sample]] = []
    for ref, begins in ByTokens(CaptionSettings.model_fields["token_budget"].default, spec.overhead).cut(refs):
        if begins:
            batches.append([])
        batches[-1].append(Sample(ref, tokens[ref.index].ids, ""))
    _whole(encoder.encode(batches[0]))
    used: list[list[Sample]] = []
    rounds: list[float] = []
    spent = 0.0
    for batch in batches:  # of a large model not all
        used.append(batch)
        spent += watch.seconds(partial(encoder.encode, batch))
        if spent > seconds / _LEAST_ROUNDS:
            break
    count = sum(map(len, used))
    end = time.perf_counter() + seconds - spent
    while len(rounds) < _LEAST_ROUNDS or time.perf_counter() < end:
        rounds.append(watch.seconds(lambda: [encoder.encode(batch) for batch in used]) / count)
    return TextFigures(name, spec.device, Figure.of(rounds), float(np.mean([len(each.ids) for each in tokens])))


def sample_captions(count: int) -> list[str]:
    """Different captions, of words that the packaged photos' captions have, as long as COCO's."""
    found = sorted((files("latentmill") / "assets" / "photos").iterdir(), key=lambda folder: folder.name)
    texts = [
        file.read_text() for folder in found if folder.is_dir() for file in folder.iterdir() if file.name[-4:] == ".txt"
    ]
    words = sorted({word for text in texts for word in text.split()})
    pick = random.Random(0)
    return [" ".join(pick.choices(words, k=pick.randint(*_COCO_WORDS))) for _ in range(count)]


def encoder_of(settings: dict[str, Any], threads: int) -> tuple[EncoderSpec, str]:
    """The encoder that `encode` would open with these settings, and its name. Raises LatentmillError."""
    from latentmill.config import LatentSettings, validated
    from latentmill.outputs.common import shared_vae
    from latentmill.outputs.shared import Shared

    chosen = validated(LatentSettings, {"source": ".", "dest": ".", **settings})
    spec, info = shared_vae(chosen, Shared(), threads)
    return spec, info.name
