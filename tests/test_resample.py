"""The resampler is Pillow to the bit: sizes, windows, filters, strides, halvings, threads; and how it is chosen."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentmill.errors import ConfigError
from latentmill.formats.payload import png_bytes
from latentmill.transforms import resample, resample_native
from latentmill.transforms.resample import halve, mirrored, planes, resize, stored_planes
from support import cli, make_photos, python

with contextlib.suppress(ImportError):
    from latentmill.transforms import _resample

KERNELS = _resample.KERNELS if resample.IMPLEMENTATION == "native" else ()
FILTERS = [Image.Resampling(number) for number in resample_native.FILTERS]
Numbers = np.random.Generator


@pytest.fixture(params=[*KERNELS, "pillow"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each of the inner loops that this processor has, and the fallback."""
    if request.param == "pillow":
        monkeypatch.setattr(resample, "_native", None)
        yield request.param
    else:
        _resample.use(request.param)
        yield request.param
        _resample.use(KERNELS[0])


def picture(numbers: Numbers, height: int, width: int) -> np.ndarray:
    """Noise, black and white noise (whose sums overshoot), one colour, or a gradient."""
    kind = numbers.integers(5)
    if kind == 0:
        return np.full((height, width, 3), numbers.integers(256), np.uint8)
    if kind == 1:
        steps = np.linspace(0, 255, height * width * 3)
        return steps.reshape(height, width, 3).astype(np.uint8)
    noise = numbers.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return noise if kind < 4 else (noise >> 7) * np.uint8(255)


def laid_out(numbers: Numbers, pixels: np.ndarray) -> np.ndarray:
    """The same pixels, otherwise in memory: within a larger picture, upside down, by columns, read only."""
    height, width = pixels.shape[:2]
    kind = numbers.integers(6)
    if kind == 0:
        larger = numbers.integers(0, 256, (height + 3, width + 5, 3), dtype=np.uint8)
        larger[1:-2, 4:-1] = pixels
        return larger[1:-2, 4:-1]
    if kind == 1:
        return pixels[::-1].copy()[::-1]
    if kind == 2:
        return pixels[:, ::-1].copy()[:, ::-1]
    if kind == 3:
        return np.asfortranarray(pixels)
    pixels.flags.writeable = kind != 4
    return pixels


def window_of(numbers: Numbers, size: tuple[int, int]) -> tuple[int, int, int, int]:
    top, left = (int(numbers.integers(side)) for side in size)
    return top, left, int(numbers.integers(top + 1, size[0] + 1)), int(numbers.integers(left + 1, size[1] + 1))


def by_pillow(
    pixels: np.ndarray, size: tuple[int, int], method: int, window: tuple[int, int, int, int], halvings: int = 0
) -> np.ndarray:
    image = Image.fromarray(pixels)
    for _ in range(halvings):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    top, left, bottom, right = window
    return np.asarray(image.resize(size[::-1], method))[top:bottom, left:right]


def check(numbers: Numbers, source: tuple[int, int], size: tuple[int, int], method: int, halvings: int = 0) -> None:
    pixels = picture(numbers, *source)
    window = window_of(numbers, size)
    found = resize(laid_out(numbers, pixels), size, Image.Resampling(method), window, halvings)
    expected = by_pillow(pixels, size, method, window, halvings)
    assert found.flags.c_contiguous
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected), (source, size, method, window, halvings)


@pytest.mark.parametrize("method", FILTERS)
def test_any_size_to_any_size(implementation: str, method: int) -> None:
    numbers = np.random.default_rng(method)
    for _ in range(600):
        height, width, to_height, to_width = (int(side) for side in numbers.integers(1, 130, 4))
        size = to_height if numbers.random() < 0.9 else height, to_width if numbers.random() < 0.9 else width
        check(numbers, (height, width), size, method)


@pytest.mark.parametrize("method", FILTERS)
def test_extreme_ratios(implementation: str, method: int) -> None:
    numbers = np.random.default_rng(method)
    for short, long in [(1, 3000), (2, 999), (3, 1), (1, 1), (700, 2)]:
        for source in [(short, long), (long, short)]:
            for size in [(1, 1), (1, 700), (700, 1), (5, 4), (64, 3)]:
                check(numbers, source, size, method)


def test_photo_sizes(implementation: str) -> None:
    numbers = np.random.default_rng(0)
    for source, size in [((500, 375), (341, 256)), ((768, 1024), (512, 683)), ((333, 500), (1024, 1538))]:
        for method in FILTERS:
            check(numbers, source, size, method)


def test_halvings_before_a_resize(implementation: str) -> None:
    """As the dhariwal crop does; tall pictures too, of which Pillow 13 halves the height first."""
    numbers = np.random.default_rng(0)
    for number in range(800):
        halvings = number % 4
        height, width = (int(side) for side in numbers.integers(1 << halvings, 160, 2))
        size = int(numbers.integers(1, 60)), int(numbers.integers(1, 60))
        check(numbers, (height, width), size, FILTERS[number // 4 % 4], halvings)
        check(numbers, (height, width), (height >> halvings, width >> halvings), FILTERS[0], halvings)


def test_halving_alone(implementation: str) -> None:
    numbers = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in numbers.integers(2, 200, 2))
        pixels = picture(numbers, height, width)
        half = height // 2, width // 2
        assert np.array_equal(halve(pixels), by_pillow(pixels, half, Image.Resampling.BOX, (0, 0, *half)))


def test_planes_and_mirrors(implementation: str) -> None:
    numbers = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in numbers.integers(1, 70, 2))
        pixels = picture(numbers, height, width)
        again = laid_out(numbers, pixels)
        assert np.array_equal(planes(again), pixels.transpose(2, 0, 1))
        assert np.array_equal(mirrored(again), pixels[:, ::-1])
        assert planes(again).flags.c_contiguous
        assert mirrored(again).flags.c_contiguous


@pytest.mark.parametrize("size", [(1, 1), (1, 21845), (2, 21845), (3, 43690), (65535, 1), (90, 256), (256, 256)])
def test_planes_of_stored_blocks(implementation: str, size: tuple[int, int]) -> None:
    """Rows that end with a block, or are divided by one or several; a block's header or a filter that is another."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    blocks = memoryview(bytearray(png_bytes(pixels)[43:-20]))
    found = stored_planes(blocks, size)
    assert found is not None
    assert np.array_equal(found, pixels.transpose(2, 0, 1))
    row, block = 1 + 3 * size[1], 0xFFFF
    starts = range(0, size[0] * row, block)
    wrong = [start // block * (block + 5) + byte for start in starts for byte in range(5)]
    wrong += [at // block * (block + 5) + 5 + at % block for at in (0, (size[0] - 1) * row)]
    for at in wrong:
        blocks[at] ^= 4
        assert stored_planes(blocks, size) is None
        blocks[at] ^= 4
    for other in (blocks[:-1], blocks[:0], memoryview(bytes(blocks) + b"0")):
        with pytest.raises(ValueError, match="blocks"):
            stored_planes(other, size)


def test_filters_that_are_not_compiled_are_pillows() -> None:
    pixels = picture(np.random.default_rng(2), 40, 30)
    for method in (Image.Resampling.NEAREST, Image.Resampling.HAMMING):
        assert np.array_equal(resize(pixels, (13, 17), method), by_pillow(pixels, (13, 17), method, (0, 0, 13, 17)))


def test_a_side_too_long_for_the_compiled_one_is_pillows() -> None:
    pixels = picture(np.random.default_rng(2), 2, resample_native.LARGEST + 1)
    assert np.array_equal(resize(pixels, (1, 5), FILTERS[2]), by_pillow(pixels, (1, 5), FILTERS[2], (0, 0, 1, 5)))


def test_the_result_is_new_memory(implementation: str) -> None:
    pixels = picture(np.random.default_rng(2), 8, 9)
    found = resize(pixels, (8, 9), FILTERS[0])
    assert np.array_equal(found, pixels)
    assert not np.shares_memory(found, pixels)
    assert found.flags.writeable


def test_threads_give_the_same(implementation: str) -> None:
    numbers = np.random.default_rng(0)
    cases = []
    for number in range(200):
        source, size = (int(numbers.integers(1, 300)), 200), (int(numbers.integers(1, 90)), 80)
        pixels, window = picture(numbers, *source), window_of(numbers, size)
        cases.append((pixels, size, FILTERS[number % 4], window))
    alone = [resize(*case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            together = list(pool.map(lambda case: resize(*case), cases))
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.int8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_other_pixels_are_refused(implementation: str, pixels: np.ndarray) -> None:
    for change in (planes, mirrored, lambda pixels: resize(pixels, (2, 2), FILTERS[0])):
        with pytest.raises(ValueError, match=r"pixels must be uint8 of \(height, width, 3\), none of these 0. Found"):
            change(pixels)


@pytest.mark.parametrize("window", [(0, 0, 0, 4), (-1, 0, 4, 4), (0, 0, 5, 4), (0, 3, 4, 3), (0, 2, 4, 6)])
def test_windows_without_pixels_or_outside_are_refused(implementation: str, window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"must not be empty and lie within \(4, 5\). Found: \("):
        resize(np.zeros((8, 8, 3), np.uint8), (4, 5), FILTERS[0], window)


def test_sizes_below_a_pixel_are_refused(implementation: str) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"must be at least 1. Found: \(0, 4\)"):
        resize(pixels, (0, 4), FILTERS[0])
    with pytest.raises(ValueError, match=r"leave each side a pixel. Found: 4 of \(8, 8\)"):
        resize(pixels, (2, 2), FILTERS[0], halvings=4)
    with pytest.raises(ValueError, match="at least 1"):
        halve(pixels[:1])


@pytest.mark.skipif(not KERNELS, reason="the compiled resampler is not there")
def test_the_compiled_one_refuses_what_it_is_not_made_for() -> None:
    """Called past the checks in Python, it raises, and reads and writes nothing."""
    numbers = np.random.default_rng(0)
    pixels, out = np.zeros((20, 20, 3), np.uint8), np.zeros((5, 6, 3), np.uint8)
    tables = [
        _resample.table(*told)[0] for told in ((20, 10, 0, 0, 10), (20, 6, 1, 0, 6), (20, 5, 2, 0, 5), (10, 5, 3, 1, 4))
    ]
    refused = 0
    for _ in range(2000):
        across, down, first, second = ([None, *tables][int(k)] for k in numbers.integers(5, size=4))
        chain = ((first, second, True),) if numbers.random() < 0.3 else ()
        try:
            _resample.resize(pixels, out, chain, across, down, False, *map(int, numbers.integers(-3, 30, 2)))
        except (ValueError, TypeError):
            refused += 1
    assert 1500 < refused < 2000
    for told in (
        (0, 5, 0, 0, 1),
        (5, 0, 0, 0, 1),
        (5, 5, 4, 0, 1),
        (5, 5, 0, 3, 3),
        (5, 5, 0, 0, 6),
        (1 << 25, 5, 0, 0, 1),
    ):
        with pytest.raises(ValueError, match="a table must be"):
            _resample.table(*told)
    for bad in (pixels.astype(np.int16), pixels[..., 0], pixels[:, :, :2], pixels[:, ::2], pixels[:0]):
        with pytest.raises((ValueError, BufferError)):
            _resample.resize(bad, out, (), tables[1], tables[2], False, 0, 0)
    with pytest.raises((ValueError, BufferError)):
        _resample.planes(pixels, out)
    for bad in (np.zeros((3, 5, 6), np.int16), np.zeros((4, 5, 6), np.uint8), np.zeros((3, 0, 6), np.uint8), b"x"):
        with pytest.raises((ValueError, BufferError)):
            _resample.stored_planes(bytes(100), bad)


def chosen(value: str) -> subprocess.CompletedProcess[str]:
    code = "from latentmill.transforms import resample; print(resample.IMPLEMENTATION, resample.REASON)"
    return python(code, **{resample.VARIABLE: value})


def test_pillow_can_be_chosen_by_hand() -> None:
    assert chosen("pillow").stdout == "pillow LATENTMILL_RESAMPLER is pillow\n"


def test_a_wrong_choice_is_one_clear_line(tmp_path: Path) -> None:
    make_photos(tmp_path / "source", 1)
    done = cli(
        "convert", "--source", tmp_path / "source", "--dest", tmp_path / "dest", "--resolution", "32x32",
        "--transform", "center-crop", LATENTMILL_RESAMPLER="simd",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: LATENTMILL_RESAMPLER must be native or pillow, or not set. Found: 'simd'\n"


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="only where a compiler is promised")
def test_the_compiled_resampler_is_in_use_in_ci() -> None:
    assert resample.IMPLEMENTATION == "native", resample.REASON


@pytest.mark.skipif(not KERNELS, reason="the compiled resampler is not there")
def test_another_arithmetic_is_not_taken_for_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Image.Image.resize

    def off_by_one(self: Image.Image, *args: object) -> Image.Image:
        return original(self, *args).point(lambda value: value ^ (value == 77))

    monkeypatch.setattr(Image.Image, "resize", off_by_one)
    native, reason = resample._chosen()
    assert native is None
    assert "it does not compute as Pillow" in reason
    monkeypatch.setenv(resample.VARIABLE, "native")
    with pytest.raises(ConfigError, match="is native, but the compiled resampler cannot be used: it does not compute"):
        resample._chosen()


@pytest.mark.skipif(not KERNELS, reason="the compiled resampler is not there")
def test_the_order_of_the_passes_is_that_of_the_pillow_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow below 13 makes the horizontal pass first, always: as two resizes of one side each."""
    original = Image.Image.resize

    def across_first(self: Image.Image, size: tuple[int, int], method: int) -> Image.Image:
        return original(original(self, (size[0], self.height), method), size, method)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", across_first)
        native = resample_native.find()
        assert native._order is resample_native._across_first
    pixels = picture(np.random.default_rng(5), 90, 20)
    old = native.resize(pixels, [(90, 20)], (9, 31), Image.Resampling.BICUBIC, (0, 0, 9, 31))
    image = Image.fromarray(pixels).resize((31, 90), Image.Resampling.BICUBIC)
    assert np.array_equal(old, np.asarray(image.resize((31, 9), Image.Resampling.BICUBIC)))
