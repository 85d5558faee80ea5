"""Sums of bytes: the same whichever library computes them."""

from __future__ import annotations

import subprocess
import sys
import zlib

from hypothesis import given
from hypothesis import strategies as st

from latentmill.checksums import adler32, crc32


@given(st.lists(st.binary(max_size=4096), max_size=4))
def test_the_sums_are_zlibs(parts: list[bytes]) -> None:
    crc, adler = 0, 1
    for part in parts:
        crc, adler = crc32(part, crc), adler32(memoryview(part), adler)
    assert crc == zlib.crc32(b"".join(parts))
    assert adler == zlib.adler32(b"".join(parts))


def test_without_zlib_ng() -> None:
    code = (
        "import sys; sys.modules['zlib_ng'] = None\n"
        "import zlib, numpy\n"
        "from latentmill.checksums import crc32\n"
        "from latentmill.formats.payload import png_bytes, png_pixels\n"
        "pixels = numpy.arange(300, dtype=numpy.uint8).reshape(10, 10, 3)\n"
        "assert crc32 is zlib.crc32 and (png_pixels(png_bytes(pixels)) == pixels).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
