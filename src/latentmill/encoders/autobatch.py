"""The batch size that encodes the most images a second on this machine, by trying."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from latentmill.errors import SampleError
from latentmill.records import SMALLER_BATCH, TILED, Array, Encoded, Sample, SampleRef
from latentmill.stages import Encoder

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_WORTH = 1.05  # a larger batch must be this much faster: it costs memory, and loses more work to a failure
_SHORT_SECONDS = 2.0  # of a trial that is worth repeating: the first of a shape also prepares for it
_LONGEST_SECONDS = 20.0  # of one trial; a larger one is not begun


def best_batch_size(encoder: Encoder, size: tuple[int, int]) -> tuple[int, dict[int, float]]:
    """The smallest batch size that is about as fast as any for pixels of (height, width), and images/s by size.

    Each size is timed once, after a warm-up of its own where that is short, until a batch does not fit or takes too
    long. A model that is to be compiled is measured uncompiled. Raises ModelError where not even one image fits.
    """
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rates: dict[int, float] = {}
    encode = getattr(encoder, "trial", encoder.encode)
    encode(_samples(noise, 1))
    for count in _SIZES:
        results, seconds = _timed(encode, noise, count)
        if seconds < _SHORT_SECONDS:
            results, seconds = _timed(encode, noise, count)
        noted = {note for result in results if not isinstance(result, SampleError) for note in result.notes}
        if rates and (noted & {SMALLER_BATCH, TILED}):
            break
        rates[count] = count / max(seconds, 1e-9)
        if 2 * seconds > _LONGEST_SECONDS:
            break
    fastest = max(rates.values())
    return min(count for count, rate in rates.items() if _WORTH * rate >= fastest), rates


def _timed(
    encode: Callable[[Sequence[Sample]], list[Encoded | SampleError]], noise: Array, count: int
) -> tuple[list[Encoded | SampleError], float]:
    start = time.perf_counter()
    results = encode(_samples(noise, count))
    return results, time.perf_counter() - start


def _samples(pixels: Array, count: int) -> list[Sample]:
    return [Sample(SampleRef(number, "", ""), pixels, "") for number in range(count)]
