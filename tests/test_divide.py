"""What does not divide by a model's factor: refused, cropped at the centre, or padded with its edge."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmill.errors import ConfigError, SampleError
from latentmill.transforms.divide import RULES, Divide, divided_size

SIDES = st.integers(1, 70)


def picture(height: int, width: int) -> np.ndarray:
    """uint8 HWC; every pixel tells its row and column."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns, rows ^ columns], axis=2).astype(np.uint8)


@given(SIDES, SIDES, st.sampled_from([1, 2, 8, 16, 32]))
def test_padding_keeps_the_picture_and_repeats_its_edge(height: int, width: int, factor: int) -> None:
    pixels = picture(height, width)
    padded = Divide("pad", factor)(pixels)
    assert padded.shape[:2] == divided_size((height, width), factor, "pad")
    assert all(side % factor == 0 for side in padded.shape[:2])
    assert 0 <= padded.shape[0] - height < factor
    assert 0 <= padded.shape[1] - width < factor
    assert np.array_equal(padded[:height, :width], pixels)
    assert (padded[height:, :, 0] == height - 1).all()
    assert (padded[:, width:, 1] == width - 1).all()


@given(SIDES, SIDES, st.sampled_from([1, 2, 8, 16, 32]))
def test_cropping_keeps_the_centre(height: int, width: int, factor: int) -> None:
    divide = Divide("crop", factor)
    if min(height, width) < factor:
        with pytest.raises(SampleError, match=f"transform: nothing is left of {height}x{width}"):
            divide(picture(height, width))
        return
    cropped = divide(picture(height, width))
    assert cropped.shape[:2] == divided_size((height, width), factor, "crop")
    assert cropped.flags.c_contiguous
    for axis, old in ((0, height), (1, width)):
        side, first = cropped.shape[axis], int(cropped[0, 0, axis])
        assert side == old // factor * factor
        assert first == (old - side) // 2
        assert int(cropped[-1, -1, axis]) == first + side - 1


def test_what_does_not_divide_is_refused_by_its_size() -> None:
    with pytest.raises(SampleError) as refused:
        Divide("refuse", 8)(picture(16, 20))
    assert str(refused.value) == "transform: 16x20 (height x width) has a side that is no multiple of 8: crop or pad it"


@pytest.mark.parametrize("rule", RULES)
def test_what_divides_is_left_as_it_is(rule: str) -> None:
    pixels = picture(16, 24)
    divide = pickle.loads(pickle.dumps(Divide(rule, 8)))
    assert divide == Divide(rule, 8)
    assert divide(pixels) is pixels


def test_a_rule_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"divide must be refuse, crop or pad\. Found: 'stretch'"):
        Divide("stretch", 8)
    with pytest.raises(ConfigError, match=r"must be positive\. Found: 0"):
        Divide("crop", 0)
