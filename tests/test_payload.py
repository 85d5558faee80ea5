"""PNG and NPY bytes: readable by everyone, equal for equal arrays, and our own reader never trusts a damaged one."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latentmill.formats.payload import npy_array, npy_bytes, png_bytes, png_pixels, stored_png_pixels
from support import PHOTOS


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
def test_pillow_reads_the_pixels_that_were_written(height: int, width: int, seed: int) -> None:
    pixels = noise(height, width, seed)
    data = png_bytes(pixels)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, image.size) == ("RGB", (width, height))
        assert np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(stored_png_pixels(data), pixels)
    assert np.array_equal(png_pixels(data), pixels)


@pytest.mark.parametrize(("height", "width"), [(15, 1456), (30, 1456), (1, 21844), (1, 21845), (3, 43690)])
def test_rows_that_fill_a_stored_block_to_the_byte(height: int, width: int) -> None:
    """A deflate block holds 65,535 bytes, which are 15 rows of 1,456 pixels and their filter bytes."""
    pixels = noise(height, width)
    data = png_bytes(pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    assert np.array_equal(stored_png_pixels(data), pixels)


def test_the_file_is_uncompressed_8_bit_rgb_with_valid_checksums() -> None:
    pixels = noise(64, 64)
    data = png_bytes(pixels)
    assert data[24:29] == bytes((8, 2, 0, 0, 0))
    at, chunks = 8, []
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks.append(kind)
        if kind == b"IDAT":
            raw = zlib.decompress(body)  # which checks the Adler-32 too
            assert raw[1:193] == pixels[0].tobytes()
        at += 12 + length
    assert chunks == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize("side", [8, 64, 256])
def test_it_takes_no_more_space_than_pillows_uncompressed_png(side: int) -> None:
    pixels = noise(side, side)
    ours, pillows = png_bytes(pixels), saved(pixels, compress_level=0)
    assert pixels.nbytes < len(ours) <= len(pillows)
    assert len(ours) - pixels.nbytes < 100 + side + 5 * (1 + pixels.nbytes // 65000)


def test_layout_in_memory_changes_no_byte() -> None:
    pixels = noise(20, 30)
    expected = png_bytes(pixels)
    assert png_bytes(np.asfortranarray(pixels)) == expected
    assert png_bytes(pixels[::-1][::-1]) == expected
    assert png_bytes(np.repeat(pixels, 2, axis=1)[:, ::2]) == expected


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_other_arrays_than_rgb_bytes_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be uint8 HWC RGB"):
        png_bytes(pixels)


def test_a_damaged_stored_png_is_never_read_as_sound() -> None:
    """Every bit of the header, the checksums and the ends, and some of the pixels."""
    pixels = noise(16, 16)
    whole = png_bytes(pixels)
    places = [*range(60), *range(60, len(whole) - 30, 37), *range(len(whole) - 30, len(whole))]
    for place in places:
        for bit in (0, 3, 7):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            assert stored_png_pixels(bytes(data)) is None, place
    for size in range(len(whole)):
        assert stored_png_pixels(whole[:size]) is None
    assert stored_png_pixels(whole + b"\0") is None


@pytest.mark.parametrize("level", [0, 1, 9])
def test_other_programs_pngs_are_left_to_pillow(level: int) -> None:
    pixels = np.asarray(Image.open(PHOTOS / "animal" / "chelsea.JPEG"))[:40, :50]
    data = saved(pixels, compress_level=level)
    fast = stored_png_pixels(data)
    assert fast is None or np.array_equal(fast, pixels)
    assert np.array_equal(png_pixels(data), pixels)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "I;16", "LA"])
def test_other_pixel_formats_are_left_to_pillow(mode: str) -> None:
    image = Image.fromarray(noise(9, 9)).convert("L") if mode == "I;16" else Image.fromarray(noise(9, 9))
    file = io.BytesIO()
    image.convert(mode).save(file, "PNG", compress_level=0)
    assert stored_png_pixels(file.getvalue()) is None
    assert np.array_equal(png_pixels(file.getvalue()), np.asarray(Image.open(file).convert("RGB")))


def test_filtered_rows_are_left_to_pillow() -> None:
    """A stored PNG whose rows carry a filter: its bytes are differences, not pixels."""
    pixels = noise(3, 3)
    rows = np.zeros((3, 10), np.uint8)
    rows[:, 1:] = pixels.reshape(3, 9)
    rows[1, 0], rows[1, 1:] = 2, rows[1, 1:] - rows[0, 1:]  # filter 2: difference to the row above
    body = zlib.compress(rows.tobytes(), 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 3, 3, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert stored_png_pixels(data) is None
    assert np.array_equal(png_pixels(data), pixels)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", ">f4"])
@settings(max_examples=10, deadline=None)
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_npy_round_trip(dtype: str, shape: list[int]) -> None:
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    data = npy_bytes(array)
    back = npy_array(data)
    assert np.array_equal(back, array)
    assert back.dtype == np.dtype(dtype).newbyteorder("<")
    assert np.array_equal(np.load(io.BytesIO(data), allow_pickle=False), array)
    assert npy_bytes(array) == data


def test_npy_of_views_is_that_of_their_values() -> None:
    base = np.arange(96, dtype=np.float32).reshape(4, 6, 4)
    for view in (base[:, ::2], base.transpose(2, 0, 1), np.asfortranarray(base), base[::-1]):
        data = npy_bytes(view)
        assert data == npy_bytes(view.copy(order="C"))
        assert np.array_equal(npy_array(data), view)
        assert b"'fortran_order': False" in data[:128]
    assert npy_bytes(base)[6:8] == b"\x01\x00"


def test_npy_never_unpickles() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle=False"):
        npy_array(file.getvalue())


def test_a_cut_off_npy_is_an_error() -> None:
    data = npy_bytes(np.ones((4, 4), np.float32))
    for size in (0, 5, 60, len(data) - 1):
        with pytest.raises((ValueError, EOFError)):
            npy_array(data[:size])
