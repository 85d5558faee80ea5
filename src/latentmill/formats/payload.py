"""Arrays to file bytes and back: uncompressed PNG and NPY, both with bytes that depend on the array alone."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from PIL import Image

from latentmill.checksums import adler32, crc32
from latentmill.records import Array

# What reading a damaged or missing array, image or archive member is seen to raise.
ARRAY_ERRORS = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_RGB, _EIGHT_BIT = 2, 8
_STORED_BLOCK = 0xFFFF  # the most bytes that a stored deflate block holds (RFC 1951, 3.2.4)
_ZLIB_HEADER = b"\x78\x01"
_IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"
_NPY_1_0 = b"\x93NUMPY\x01\x00"
_IHDR_END, _IDAT_DATA = 33, 41  # offsets in the files that `png_bytes` makes


def _chunk(kind: bytes, parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    crc = crc32(kind)
    for part in parts:
        crc = crc32(part, crc)
    return [struct.pack(">I", sum(map(len, parts))), kind, *parts, struct.pack(">I", crc)]


def png_bytes(pixels: Array) -> bytes:
    """uint8 HWC RGB -> PNG: 8-bit, filter 0, stored (RFC 1951 stored blocks), one IDAT; no compression at all.

    Written by hand and not by zlib at level 0, whose block sizes differ between zlib builds.
    """
    height, width, channels = pixels.shape
    if channels != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 HWC RGB. Found: {pixels.dtype} {pixels.shape}")
    rows = np.empty((height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 0] = 0  # the filter
    rows[:, 1:] = pixels.reshape(height, 3 * width)
    raw = rows.reshape(-1).data
    blocks: list[bytes | memoryview] = [_ZLIB_HEADER]
    for start in range(0, len(raw), _STORED_BLOCK):
        block = raw[start : start + _STORED_BLOCK]
        last = start + _STORED_BLOCK >= len(raw)
        blocks.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF))
        blocks.append(block)
    blocks.append(struct.pack(">I", adler32(raw)))
    header = struct.pack(">IIBBBBB", width, height, _EIGHT_BIT, _COLOUR_RGB, 0, 0, 0)
    return b"".join((_SIGNATURE, *_chunk(b"IHDR", [header]), *_chunk(b"IDAT", blocks), *_chunk(b"IEND", [])))


def stored_png_pixels(data: bytes) -> Array | None:
    """Pixels of a PNG as `png_bytes` makes them, read without a codec; None for any other PNG, or a damaged one."""
    if data[:16] != _SIGNATURE + b"\0\0\0\rIHDR" or data[24:29] != bytes((_EIGHT_BIT, _COLOUR_RGB, 0, 0, 0)):
        return None
    if len(data) < _IDAT_DATA:
        return None
    width, height, length = *struct.unpack_from(">II", data, 16), *struct.unpack_from(">I", data, _IHDR_END)
    size = height * (1 + 3 * width)
    overhead = len(_ZLIB_HEADER) + 5 * -(-size // _STORED_BLOCK) + 4
    end = _IDAT_DATA + length
    if data[37:43] != b"IDAT" + _ZLIB_HEADER or length != size + overhead or data[end + 4 :] != _IEND:
        return None
    view = memoryview(data)
    if crc32(view[12:29]) != struct.unpack_from(">I", data, 29)[0]:
        return None
    if crc32(view[37:end]) != struct.unpack_from(">I", data, end)[0]:
        return None
    parts, at, remaining = [], _IDAT_DATA + 2, size
    while remaining > 0:
        count = min(remaining, _STORED_BLOCK)
        if data[at : at + 5] != struct.pack("<BHH", count == remaining, count, count ^ 0xFFFF):
            return None
        parts.append(view[at + 5 : at + 5 + count])
        at, remaining = at + 5 + count, remaining - count
    rows = np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(height, 1 + 3 * width)
    if rows[:, 0].any():  # a filter other than 0
        return None
    return np.ascontiguousarray(rows[:, 1:]).reshape(height, width, 3)


def png_pixels(data: bytes) -> Array:
    """uint8 HWC RGB pixels of any PNG. Raises OSError or ValueError when it is damaged."""
    pixels = stored_png_pixels(data)
    if pixels is None:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
    return pixels


def npy_bytes(array: Array) -> bytes:
    """Any array -> NPY (version 1.0, C order, little-endian)."""
    ordered = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if ordered.dtype.hasobject:
        raise ValueError(f"an array of {ordered.dtype} cannot be stored without pickling")
    return b"".join((npy_header(ordered.dtype, ordered.shape), ordered.reshape(-1).view(np.uint8).data))


@lru_cache(maxsize=64)
def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers of an NPY file (version 1.0, C order)."""
    file = io.BytesIO()
    table = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, table)
    return file.getvalue()


def npy_array(data: bytes | memoryview) -> Array:
    """The array of an NPY file; never unpickles. It shares the memory of a buffer that can be written to.

    Raises ValueError when the file is damaged.
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    if data[:8] == _NPY_1_0 and len(data) > start:
        dtype, shape, in_order = _npy_layout(bytes(data[10:start]))
        count = prod(shape)
        if in_order and count and not dtype.hasobject and len(data) >= start + count * dtype.itemsize:
            array: Array = np.frombuffer(data, dtype, count, start).reshape(shape)
            return array if array.flags.writeable else array.copy()
    whole: Array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return whole


@lru_cache(maxsize=64)
def _npy_layout(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """dtype, shape and whether the numbers are in C order. Raises ValueError."""
    sized = struct.pack("<H", len(header)) + header
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(sized))
    return dtype, shape, not fortran_order
