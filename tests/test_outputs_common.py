"""What outputs of models share: how long an image will take is told by a few small ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fake_encoders import FakeEncoderSpec
from latentmill.outputs import common

_SECONDS_A_PIXEL = 1e-6


@pytest.mark.parametrize(("disturbed", "low", "high"), [(set(), 0.99, 1.01), ({1, 2, 4}, 0.99, 1.01)])
def test_other_programs_do_not_make_an_estimate_many_times_longer(
    monkeypatch: pytest.MonkeyPatch, disturbed: set[int], low: float, high: float
) -> None:
    turns = iter(range(1000))

    def seconds(encode: object, size: tuple[int, int]) -> float:
        return 0.5 if next(turns) in disturbed else size[0] * size[1] * _SECONDS_A_PIXEL

    monkeypatch.setattr(common, "_seconds", seconds)
    told = common.seconds_an_image(FakeEncoderSpec(), (256, 256), smallest=32)
    assert low <= told / (256 * 256 * _SECONDS_A_PIXEL) <= high
