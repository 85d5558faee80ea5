"""Sums of bytes: the same whichever library computes them."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmill import checksums
from latentmill.checksums import adler32, crc32, sha256
from latentmill.compiled import load
from latentmill.errors import ConfigError
from latentmill.files import digest, digests
from support import cli, make_photos, python

compiled = pytest.mark.skipif(bool(checksums.REASON), reason=f"OpenSSL tells all: {checksums.REASON}")
FORMS = [checksums._by_openssl] if checksums.REASON else [checksums._by_openssl, sha256]


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


def by_openssl(buffers: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(each).digest() for each in buffers)


@pytest.mark.parametrize("form", FORMS)
def test_the_digest_of_nothing_and_of_every_length(form: Any) -> None:
    """FIPS 180-4's own examples; then every place in a block where a message can end, beside one of another length."""
    assert form(()) == ()
    assert form((b"", b"abc")) == (
        bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    )
    data = np.random.default_rng(0).integers(0, 256, 400, np.uint8).tobytes()
    lengths = tuple(data[:length] for length in range(len(data)))
    assert form(lengths) == by_openssl(lengths)
    assert form(lengths[::-1]) == by_openssl(lengths[::-1])
    for first in range(0, 200, 7):
        for second in range(0, 200, 9):
            assert form((data[:first], data[second:])) == by_openssl((data[:first], data[second:]))


@compiled
@given(st.lists(st.integers(0, 20_000), max_size=7), st.integers(0, 63))
def test_digests_side_by_side_are_those_of_each(lengths: list[int], start: int) -> None:
    numbers = np.random.default_rng(sum(lengths)).integers(0, 256, 20_063, np.uint8).data
    buffers = tuple(numbers[start : start + length] for length in lengths)
    assert sha256(buffers) == tuple(hashlib.sha256(each).digest() for each in buffers)


@compiled
def test_threads_digest_beside_each_other() -> None:
    numbers = np.random.default_rng(1)
    sets = [tuple(numbers.bytes(int(length)) for length in numbers.integers(0, 300_000, 3)) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sha256, sets)) == [by_openssl(each) for each in sets]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", [(b"first", "text"), (np.zeros((4, 4), np.uint8)[:, :2].data,), (None,)])
def test_what_has_no_bytes_side_by_side_is_refused(form: Any, wrong: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, BufferError)):
        form(wrong)


def test_files_are_told_by_the_first_half_of_it() -> None:
    data = [b"one", memoryview(b"two"), b"x" * 1000]
    assert digests(data) == [digest(each) for each in data] == [hashlib.sha256(each).hexdigest()[:32] for each in data]


def chosen(value: str) -> subprocess.CompletedProcess[str]:
    code = "from latentmill import checksums; print(checksums.sha256.__name__, checksums.REASON)"
    return python(code, **{checksums.VARIABLE: value})


def test_openssl_can_be_chosen_by_hand() -> None:
    assert chosen("openssl").stdout == "_by_openssl LATENTMILL_SHA256 is openssl\n"


@compiled
@pytest.mark.parametrize("value", ["native", ""])
def test_our_own_is_taken_asked_for_or_not(value: str) -> None:
    assert chosen(value).stdout == "sha256 \n"


def test_a_wrong_choice_is_one_clear_line(tmp_path: Path) -> None:
    make_photos(tmp_path / "source", 1)
    done = cli("convert", "--source", tmp_path / "source", "--dest", tmp_path / "dest", LATENTMILL_SHA256="md5")
    assert done.returncode == 2
    assert done.stderr == "error: LATENTMILL_SHA256 must be native or openssl, or not set. Found: 'md5'\n"


@compiled
def test_what_tells_other_digests_or_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load()
    ours = module.sha256
    monkeypatch.delenv(checksums.VARIABLE, raising=False)
    for name, other, reason in (
        ("sha256", lambda buffers: (*ours(buffers)[:-1], b"?" * 32), "it does not compute as OpenSSL does"),
        ("HASHES", 0, "it is for x86-64 processors with instructions for SHA-256"),
        ("INTERFACE", 0, "it was built of another version"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, other)
            native, found = checksums._chosen()
            assert native is None
            assert found.startswith(f"the compiled SHA-256 cannot be used: {reason}")
            changed.setenv(checksums.VARIABLE, "native")
            with pytest.raises(ConfigError, match=f"is native, but the compiled SHA-256 cannot be used: {reason}"):
                checksums._chosen()


@pytest.mark.skipif(
    os.environ.get("CI") != "true" or sys.platform != "linux" or platform.machine() != "x86_64",
    reason="only where a compiler is promised, and the system tells what the processor has",
)
def test_ci_uses_what_the_processor_has() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    module = load()
    assert bool(module.HASHES) == ({"sha_ni", "sse4_1"} <= flags) == (not checksums.REASON)
    assert bool(module.DECODES_JPEG) == ({"avx2", "bmi2"} <= flags)
    wide = {"avx2", "avx512f", "avx512bw", "avx512vbmi"} <= flags
    expected = ["avx512"] * wide + ["avx2"] * ("avx2" in flags) + ["plain"]
    assert list(module.KERNELS) == expected
    if "avx2" in flags:
        assert module.in_use() == (expected[0], expected[0])
