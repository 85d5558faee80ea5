"""What outputs of models share: how long an image will take is told by a few measurements."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latentmill.encoders.fake import FakeSpec
from latentmill.outputs import common

SECONDS_A_PIXEL = 1e-6


def estimate(monkeypatch: pytest.MonkeyPatch, one: Callable[[int, float], float]) -> float:
    """Seconds for 256x256, where `one` gives the seconds of a measurement, of its number and those undisturbed."""
    asked: list[float] = []

    def seconds(encode: object, size: tuple[int, int]) -> float:
        asked.append(size[0] * size[1] * SECONDS_A_PIXEL)
        return one(len(asked) - 1, asked[-1])

    monkeypatch.setattr(common, "_seconds", seconds)
    return common.seconds_an_image(FakeSpec(), (256, 256), smallest=32)


@pytest.mark.parametrize("disturbed", [set[int](), {1, 2, 4}, {5, 6, 8}, {6, 7}])
def test_other_programs_do_not_make_an_estimate_many_times_longer(
    monkeypatch: pytest.MonkeyPatch, disturbed: set[int]
) -> None:
    told = estimate(monkeypatch, lambda at, seconds: 0.5 if at in disturbed else seconds)
    assert told == pytest.approx(256 * 256 * SECONDS_A_PIXEL)


def test_a_slow_model_is_told_by_a_small_image_and_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []

    def slow(at: int, seconds: float) -> float:
        turns.append(at)
        return seconds * 2000  # 2 s for 32x32

    assert estimate(monkeypatch, slow) == pytest.approx(256 * 256 * SECONDS_A_PIXEL * 2000)
    assert len(turns) == 2  # the first warms up
