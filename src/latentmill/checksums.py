"""CRC-32 and Adler-32 by zlib-ng, which takes some 3 us for 200 kB, and by zlib (some 70 us) where it is missing."""

from __future__ import annotations

try:
    from zlib_ng.zlib_ng import adler32, crc32
except ImportError:  # no wheel for this machine: the sums are the same
    from zlib import adler32, crc32

__all__ = ["adler32", "crc32"]
