"""Bucket tables: the reference's and made ones, the nearest bucket with its ties, the fitted optimum, the report."""

from __future__ import annotations

import json
import time
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latentmill.errors import ConfigError
from latentmill.transforms.bucket import (
    Bucket,
    BucketTable,
    fitted_table,
    grid_table,
    reference_table,
    square_table,
    table_for,
)
from latentmill.transforms.bucket_report import BucketReport, BucketRow, BucketTotals, LeftOut
from latentmill.transforms.fit import geometry
from support import DATA

RESOLUTIONS = (256, 512, 1024, 2048, 2880)

side = st.integers(1, 5000)
ratio = st.floats(1e-300, 1e300) | st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0]) | side.map(lambda width: 1 / width)


@st.composite
def tables(draw: st.DrawFn) -> BucketTable:
    sizes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=8, unique=True))
    return BucketTable("made", tuple(Bucket(draw(ratio), *size) for size in sizes))


def first_nearest(table: BucketTable, height: int, width: int) -> Bucket:
    """The rule as it is written: `min` gives the first of those that are equally far."""
    return min(table.buckets, key=lambda bucket: abs(bucket.ratio - height / width))


@settings(max_examples=300, deadline=None)
@given(tables(), side, side)
@example(BucketTable("far", (Bucket(2e-300, 9, 9), Bucket(1e-300, 8, 8))), 1, 1)  # both are 1.0 away in float64
def test_nearest_is_the_first_of_the_smallest_differences(table: BucketTable, height: int, width: int) -> None:
    assert table.nearest(height, width) == first_nearest(table, height, width)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_nearest_holds_at_every_middle_of_the_references_tables(resolution: int) -> None:
    """Ratios have two digits, so a height / 200 hits each middle; float64 decides there, not arithmetic."""
    table = reference_table(resolution)
    for below, above in pairwise(bucket.ratio for bucket in table.buckets):
        middle = round(100 * (below + above))
        for height in (middle - 1, middle, middle + 1):
            assert table.nearest(height, 200) == first_nearest(table, height, 200)


def test_a_tie_goes_to_the_first_in_order() -> None:
    small, large = Bucket(0.5, 32, 64), Bucket(1.0, 48, 48)
    assert BucketTable("t", (small, large)).nearest(3, 4) == small
    assert BucketTable("t", (large, small)).nearest(3, 4) == large


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_reference_tables_are_the_references_figures(resolution: int) -> None:
    text = (DATA.parents[1] / "src/latentmill/assets/aspect_ratios.json").read_text()
    table = reference_table(resolution)
    assert [(bucket.ratio, [*bucket.size]) for bucket in table.buckets] == [
        (float(key), size) for key, size in json.loads(text)[str(resolution)].items()
    ]
    assert len(table.buckets) == 40


def test_some_known_buckets_of_the_reference() -> None:
    assert reference_table(512).nearest(512, 512).size == (512, 512)
    assert reference_table(2880).nearest(68, 100) == Bucket(0.68, 2304, 3392)  # 2304 / 3392 is 0.679
    assert reference_table(1024).nearest(9000, 1).size == (2048, 512)
    assert square_table(256).nearest(1, 9) == Bucket(1.0, 256, 256)


@settings(max_examples=100, deadline=None)
@given(tables())
def test_a_table_in_one_line_reads_back_equal(table: BucketTable) -> None:
    text = table.to_text()
    assert "\n" not in text
    assert BucketTable.from_text(text) == table


@pytest.mark.parametrize("text", ["", "name", "name 0.5", "name 0.5=3x", "name x=3x4", "name inf=3x4", "name 1.0=0x4"])
def test_a_line_that_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Found: "):
        BucketTable.from_text(text)


@pytest.mark.parametrize(("base", "step"), [(512, 64), (256, 8), (1024, 32), (2880, 64), (64, 64)])
def test_a_grid_has_the_largest_sizes_of_its_steps(base: int, step: int) -> None:
    buckets = grid_table(base, step).buckets
    ratios = [bucket.ratio for bucket in buckets]
    assert ratios == sorted(set(ratios))
    assert Bucket(1.0, base, base) in buckets
    for bucket in buckets:
        height, width = bucket.size
        assert bucket.ratio == height / width
        assert 0.25 <= bucket.ratio <= 4
        assert height % step == width % step == 0
        assert height * width <= base**2 < max((height + step) * width, height * (width + step))
        assert Bucket(width / height, width, height) in buckets  # the same photo, turned


def test_a_small_grid_in_full() -> None:
    """Area up to 256²; of the ratio 1 only the largest; 64x1024 is out of the range."""
    wide = [(128, 512), (128, 448), (128, 384), (192, 320)]
    tall = [(320, 192), (384, 128), (448, 128), (512, 128)]
    assert [bucket.size for bucket in grid_table(256, 64).buckets] == [*wide, (256, 256), *tall]


def lost(table: BucketTable, images: list[tuple[int, int]]) -> float:
    """Shares of the images that are cropped away, by the rule of `nearest`."""
    total = 0.0
    for height, width in images:
        image, bucket = height / width, table.nearest(height, width)
        total += 1 - min(image * bucket.width / bucket.height, bucket.height / bucket.width / image)
    return total


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12), st.integers(1, 3))
@example([(3, 4)] * 3 + [(4, 3)] * 3 + [(9, 16), (16, 9), (1, 1)], 3)
@example([(1, 1), (7, 2), (2, 1)], 2)  # in the middle of two candidates: the lower's
@example([(4, 5), (5, 8)], 3)  # likewise, where the middle in float64 is not where the differences are equal
def test_the_fitted_table_loses_no_more_than_any_other(images: list[tuple[int, int]], count: int) -> None:
    candidates = grid_table(64, 16).buckets
    assert len(candidates) >= 7
    table = fitted_table(count, 64, np.array(images), 16)
    assert set(table.buckets) <= set(candidates)
    subsets = (chosen for number in range(1, count + 1) for chosen in combinations(candidates, number))
    best = min(lost(BucketTable("any", chosen), images) for chosen in subsets)
    assert lost(table, images) == pytest.approx(best, abs=1e-7)
    assert len(table.buckets) <= count
    assert {table.nearest(*image) for image in images} == set(table.buckets)  # none without an image


def test_no_more_buckets_are_fitted_than_are_useful() -> None:
    table = fitted_table(8, 512, np.array([[600, 600], [512, 256], [64, 64]]))
    assert [bucket.size for bucket in table.buckets] == [(512, 512), (704, 320)]


def test_a_million_images_are_fitted_in_seconds() -> None:
    sizes = np.random.default_rng(0).integers(300, 2000, (1_000_000, 2))
    started = time.process_time()
    table = fitted_table(20, 1024, sizes, 16)
    assert time.process_time() - started < 5  # about 0.3 where nothing else runs
    assert len(table.buckets) == 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reference", reference_table(512)),
        ("grid", grid_table(512)),
        ("grid:32", grid_table(512, 32)),
        ("grid:32:0.5:2", grid_table(512, 32, 0.5, 2)),
        ("auto:2", fitted_table(2, 512, np.array([[3, 4], [4, 3], [1, 1]]))),
        ("auto:1:32", fitted_table(1, 512, np.array([[3, 4], [4, 3], [1, 1]]), 32)),
    ],
)
def test_the_option_names_a_table(text: str, expected: BucketTable) -> None:
    assert table_for(text, 512, lambda: np.array([[3, 4], [4, 3], [1, 1]])) == expected


@pytest.mark.parametrize(
    ("text", "resolution", "message"),
    [
        ("auto", 512, "buckets must be reference, .*auto:N:STEP. Found: 'auto'"),
        ("grid:64:2", 512, "Found: 'grid:64:2'"),
        ("grid:64:1.2.3:4", 512, "Found: 'grid:64:1.2.3:4'"),
        ("reference", 640, "one of 256, 512, 1024, 2048, 2880 .* Found: 640"),
        ("grid:96", 512, "multiple of 8 that divides the resolution 512. Found: 96"),
        ("grid:4", 512, "Found: 4"),
        ("grid:0", 512, "Found: 0"),
        ("grid:64:2:0.5", 512, "from a lower to a higher number, .* Found: 2.0 to 0.5"),
        ("grid:64:0:2", 512, "Found: 0.0 to 2.0"),
        ("grid:64:1.01:1.02", 512, "at least one size .* widen the range"),
        ("auto:0", 512, "at least 1. Found: 0"),
        ("auto:3:60", 512, "Found: 60"),
        ("auto:3", 512, "at least one pair of positive .* shape"),
    ],
)
def test_a_wrong_option_is_one_clear_line(text: str, resolution: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table_for(text, resolution, lambda: np.zeros((0, 2), dtype=np.int64))


def test_sizes_are_not_asked_for_before_the_option_is_right() -> None:
    """They may be the headers of a million files."""
    with pytest.raises(ConfigError, match="Found: 96"):
        table_for("auto:3:96", 512, lambda: pytest.fail("the sizes were read"))
    with pytest.raises(ConfigError, match="use grid instead"):
        table_for("auto:3", 512)


def test_the_report_says_what_each_bucket_got() -> None:
    table = BucketTable("t", (Bucket(0.5, 32, 64), Bucket(1.0, 48, 48), Bucket(2.0, 64, 32)))
    report = BucketReport(table)
    report.add(geometry("cover", (96, 128), (48, 48)))
    report.add(geometry("cover", (48, 48), (48, 48)))
    report.add(geometry("stretch", (20, 50), (32, 64)))
    report.leave_out("a/thin.png", "ratio 9.0 is above 4.5")
    assert report.rows() == [
        BucketRow((32, 64), 0.5, 1, 0.0, 0.25, 1),
        BucketRow((48, 48), 1.0, 2, 0.125, 0.0, 0),
        BucketRow((64, 32), 2.0, 0, 0.0, 0.0, 0),
    ]
    assert report.totals() == BucketTotals(3, 0.083333, 0.083333, 1, 1)
    assert report.left_out == [LeftOut("a/thin.png", "ratio 9.0 is above 4.5")]
    row = json.loads(json.dumps(report.as_json()))[1]
    assert list(row.values()) == [[48, 48], 1.0, 2, 0.125, 0.0, 0]
    assert list(row) == ["bucket", "ratio", "images", "cropped_away", "distortion", "upscaled"]
