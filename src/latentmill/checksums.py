"""CRC-32, Adler-32 and SHA-256, which are computed of every byte that is read or written.

CRC-32 and Adler-32 are zlib-ng's, which takes some 3 us for 200 kB, and zlib's (some 70 us) where it is missing.
SHA-256 of several buffers is told by our own code (`native/sha256.c`), two side by side, in two thirds of the time that
OpenSSL takes for one after the other; of one alone in as much. Where it was not built, the processor has no
instructions for it, or LATENTMILL_SHA256=openssl says so, OpenSSL does it all. The sums are the same; the choice is
made once, at import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import ModuleType

from latentmill.compiled import choose, load

try:
    from zlib_ng.zlib_ng import adler32, crc32
except ImportError:  # no wheel for this machine
    from zlib import adler32, crc32

__all__ = ["REASON", "VARIABLE", "adler32", "crc32", "sha256"]

VARIABLE = "LATENTMILL_SHA256"
Buffer = bytes | memoryview  # contiguous
Digests = Callable[[tuple[Buffer, ...]], tuple[bytes, ...]]
# Lengths about those at which a message ends in one more block, and some of several blocks (FIPS 180-4, 5.1.1).
_TRIALS = (0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 300)


def _by_openssl(buffers: tuple[Buffer, ...]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(buffer).digest() for buffer in buffers)


def _find(module: ModuleType) -> Digests:
    """Raises ImportError where it is not there, or does not agree with OpenSSL."""
    if not module.HASHES:
        raise ImportError("it is for x86-64 processors with instructions for SHA-256")
    sha256: Digests = module.sha256
    trials = tuple((bytes(range(256)) * 2)[:length] for length in _TRIALS)
    if sha256(trials) != _by_openssl(trials):
        raise ImportError("it does not compute as OpenSSL does")
    return sha256


def _chosen() -> tuple[Digests | None, str]:
    """The compiled form, or None and why. Raises ConfigError."""
    return choose(VARIABLE, "openssl", "SHA-256", lambda: _find(load()))


_native, REASON = _chosen()  # REASON: why OpenSSL tells all; empty where it does not
sha256 = _native or _by_openssl  # of each of a tuple of buffers; the interpreter's lock is let go of meanwhile
