"""What the figures say, in words: which VAE keeps most, whether that is clear on this sample, and what it costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from latentmill.comparing.result import PSNR, best_of
from latentmill.wording import counted

if TYPE_CHECKING:
    from latentmill.comparing.result import Candidate, Comparison

_CLEAR = 0.95  # of the chance that a coin gives fewer wins: below, the sample does not tell the two apart
_FEW = 8  # images: fewer tell nothing


def reading(found: Comparison) -> str:
    """One sentence about the two best by PSNR, paired image by image, and what the best costs; then what it is not.

    The claim is made only where a sign test (one-sided, exact) says that the wins are no chance at 5 %.
    """
    ranked = sorted(found.candidates, key=lambda each: -each.spread(PSNR).median)
    if len(ranked) == 1:
        return f"{_alone(ranked[0])} {_NOT_SAID}"
    return f"{_of_two(*ranked[:2])}{_other_measures(found, ranked[0].name)} {_NOT_SAID}"


def _other_measures(found: Comparison, best: str) -> str:
    """Where another measure puts another VAE first, that is told."""
    told = []
    for metric in found.metrics:
        names = best_of(found.candidates, lambda each, of=metric: each.spread(of).median, higher=metric.higher)  # type: ignore[misc]
        if names and best not in names:
            told.append(f"by {metric.name}, {' and '.join(sorted(names))} is the best")
    return f" But {'; '.join(told)}." if told else ""


_NOT_SAID = (
    "This tells what latents keep of these photos, not how well a model trains on them: more channels keep more, and "
    "are harder to generate."
)


def _alone(only: Candidate) -> str:
    return f"{only.name} keeps a median PSNR of {only.spread(PSNR).median:.1f} dB of these photos."


def _of_two(best: Candidate, second: Candidate) -> str:
    ours, theirs = best.scores[PSNR.name], second.scores[PSNR.name]
    both = ~(np.isnan(ours) | np.isnan(theirs)) & (ours != theirs)
    wins, count = int((ours[both] > theirs[both]).sum()), int(both.sum())
    if count < _FEW or chance(wins, count) > 1 - _CLEAR:
        return (
            f"By PSNR, {counted(count, 'photos')} do not tell {best.name} and {second.name} apart ({wins} of {count} "
            "are better with the first); choose by size and speed, or give a larger --sample."
        )
    gain = float(np.median(ours[both] - theirs[both]))
    return (
        f"{best.name} keeps most: by PSNR it is better than {second.name}, the next, on {wins} of {count} photos (by "
        f"{gain:.1f} dB in the median), {_at_cost(best, second)}."
    )


def _at_cost(best: Candidate, second: Candidate) -> str:
    size, speed = best.bytes_float16 / second.bytes_float16, best.encode.median / second.encode.median
    return f"{_times(size, 'the bytes an image')} and {_times(speed, 'the time to encode')}"


def _times(ratio: float, what: str) -> str:
    if 0.95 < ratio < 1.05:
        return f"at the same {what.removeprefix('the ')}"
    return f"at {ratio:.2g} times {what}"


def chance(wins: int, count: int) -> float:
    """That a fair coin gives so many heads of `count`, or more."""
    ways = sum(math.comb(count, heads) for heads in range(wins, count + 1))
    return float(ways / 2**count)
