"""Our own decoder of JPEGs is libjpeg-turbo to the bit, or leaves the JPEG to it; and how it is chosen."""

from __future__ import annotations

import io
import itertools
import os
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from latentmill import jpeg
from latentmill.compiled import load
from latentmill.errors import ConfigError
from support import PHOTOS, cli, make_photos, python

Numbers = np.random.Generator
compiled = pytest.mark.skipif(jpeg._native is None, reason=f"libjpeg-turbo decodes all: {jpeg.REASON}")
SAMPLINGS = ("444", "422", "420", "Gray")
QUALITIES = (1, 5, 30, 75, 92, 96, 100)
DQT, SOF0, DHT, SOS, DRI = 0xDB, 0xC0, 0xC4, 0xDA, 0xDD
EOI = b"\xff\xd9"
RAISED = 255  # the largest step of an 8-bit table of quantisation
Segments = list[tuple[int, bytes]]


# Of the inner loops, those that transform in registers of 64 and of 32 bytes, as far as this processor has them.
REGISTERS = [name for name in load().KERNELS if name != "plain"] if jpeg._native is not None else [""]


@pytest.fixture(params=REGISTERS)
def registers(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.param:
        yield
        return
    load().use(request.param)
    assert load().in_use()[1] == request.param
    yield
    load().use(REGISTERS[0])


with_each = pytest.mark.usefixtures("registers")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(PHOTOS / "animal" / "chelsea.JPEG").convert("RGB"))


def picture(numbers: Numbers, photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """A part of a photo, noise, a chessboard in black and white, or patches of the strongest colours."""
    kind = numbers.integers(5)
    if kind < 2:
        top, left = numbers.integers(photo.shape[0] - height + 1), numbers.integers(photo.shape[1] - width + 1)
        return np.ascontiguousarray(photo[top : top + height, left : left + width])
    noise = numbers.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == 2:
        return noise
    side = numbers.integers(1, 9)
    if kind == 3:
        fields = np.add.outer(np.arange(height) // side, np.arange(width) // side) % 2
        return np.repeat(fields[:, :, None] * 255, 3, axis=2).astype(np.uint8)
    patches: np.ndarray = (noise >> 7) * np.uint8(255)
    return np.repeat(np.repeat(patches, side, axis=0), side, axis=1)[:height, :width].copy()


def saved(pixels: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    with patch.object(ImageFile, "MAXBLOCK", 1 << 22):  # less is not enough for noise with tables of its own
        Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def encoded(pixels: np.ndarray, sampling: str = "420", quality: int = 90, **options: Any) -> bytes:
    """With libjpeg's standard Huffman tables, unless `optimize` says otherwise."""
    if sampling == "Gray":
        return saved(pixels[:, :, 0], quality=quality, **options)
    return saved(pixels, quality=quality, subsampling=("444", "422", "420").index(sampling), **options)


def by_libjpeg(data: bytes) -> np.ndarray | None:
    """None where it complains."""
    try:
        colours = simplejpeg.decode_jpeg_header(data)[2]
        found: np.ndarray = simplejpeg.decode_jpeg(data, "GRAY" if colours == "Gray" else "RGB", False, False)
    except (ValueError, KeyError):
        return None
    return found


def by_ours(data: bytes, told: jpeg.Header | None = None) -> np.ndarray | None:
    """None where it is left to libjpeg-turbo."""
    told = told or jpeg.header(data)
    if told is None:
        return None
    assert jpeg._native is not None
    out = np.zeros((told.height, told.width, told.channels), np.uint8)
    return out if jpeg._native(data, told.height, told.width, told.channels, 0, out) else None


def same(found: np.ndarray | None, expected: np.ndarray | None) -> bool:
    return found is not None and expected is not None and np.array_equal(found, expected)


def equal(data: bytes) -> bool:
    """Whether our own decoder takes it, and gives what libjpeg-turbo does."""
    return same(by_ours(data), by_libjpeg(data))


def outcome(data: bytes) -> str:
    """Who decodes it, of what is no further JPEG than may be: never other pixels than libjpeg-turbo's, nor any that it
    would not give."""
    told = jpeg.header(data)
    if told is None or told.colours not in ("YCbCr", "Gray"):
        return "refused"
    ours, found, expected = by_ours(data, told), jpeg.pixels(data, told), by_libjpeg(data)
    if expected is None:
        assert ours is None
        assert found is None
        return "refused"
    assert same(found, expected)
    assert ours is None or same(ours, expected)
    return "libjpeg" if ours is None else "ours"


def parts(data: bytes) -> tuple[Segments, bytes]:
    """The segments up to the scan's, each with its marker, and the coded data with all behind it."""
    at = 2
    found: Segments = []
    while not found or found[-1][0] != SOS:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], data[at + 4 : end]))
        at = end
    return found, data[at:]


def joined(segments: Segments, coded: bytes) -> bytes:
    heads = (struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body for marker, body in segments)
    return b"\xff\xd8" + b"".join(heads) + coded


def edited(data: bytes, marker: int, *changes: tuple[int, int]) -> bytes:
    """Bytes of the first segment of a kind, each by its place in it."""
    segments, coded = parts(data)
    number = next(k for k, (kind, _) in enumerate(segments) if kind == marker)
    body = bytearray(segments[number][1])
    for place, value in changes:
        body[place] = value
    segments[number] = (marker, bytes(body))
    return joined(segments, coded)


@compiled
@with_each
def test_every_remainder_of_both_sides_decodes_as_libjpeg_decodes_it(photo: np.ndarray) -> None:
    numbers = np.random.default_rng(1)
    for height in range(16, 32):
        for width in range(16, 32):
            pixels = picture(
                numbers, photo, height + 16 * int(numbers.integers(2)), width + 16 * int(numbers.integers(2))
            )
            for sampling in SAMPLINGS:
                assert equal(encoded(pixels, sampling)), (pixels.shape, sampling)


@compiled
@with_each
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_blocks": 7}, {"restart_marker_rows": 1}])
def test_every_quality_decodes_as_libjpeg_decodes_it(photo: np.ndarray, options: dict[str, Any]) -> None:
    numbers = np.random.default_rng(2)
    for quality in QUALITIES:
        for sampling in SAMPLINGS:
            for _ in range(5):
                pixels = picture(numbers, photo, *map(int, numbers.integers(90, 200, 2)))
                assert equal(encoded(pixels, sampling, quality, **options)), (quality, sampling, pixels.shape)


@compiled
@with_each
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 3}, {"restart_marker_blocks": 4000}])
def test_coded_data_of_any_length_decodes_as_libjpeg_decodes_it(options: dict[str, Any]) -> None:
    """It is taken in windows of 32 kB, whose ends fall upon other bytes in each of these; many are 0xFF."""
    noise = np.random.default_rng(3).integers(0, 2, (700, 900, 3), dtype=np.uint8) * np.uint8(255)
    for cut in range(0, 80, 8):
        for sampling in ("420", "Gray"):
            data = encoded(noise[:, cut:], sampling, 100, **options)
            assert len(data) > 1 << 17
            assert equal(data), (cut, sampling)


@compiled
@with_each
def test_photos_decode_as_libjpeg_decodes_them() -> None:
    found = Counter(outcome(path.read_bytes()) for path in PHOTOS.rglob("*.*") if path.read_bytes()[:2] == b"\xff\xd8")
    assert found["ours"] > found["libjpeg"]


@compiled
@with_each
def test_numbers_beyond_any_picture_decode_as_libjpeg_decodes_them_or_are_left_to_it(photo: np.ndarray) -> None:
    """The steps of quantisation are raised in what is written already: by little, and till 16 bits overflow."""
    numbers = np.random.default_rng(4)
    found: Counter[str] = Counter()
    for trial in range(600):
        pixels = picture(numbers, photo, *map(int, numbers.integers(16, 60, 2)))
        data = encoded(pixels, SAMPLINGS[trial % 4], int(numbers.choice(QUALITIES)))
        most = int(numbers.choice([2, 5, 20, RAISED]))
        places = numbers.permutation(64)[: numbers.integers(1, 65)] + 1
        found[outcome(edited(data, DQT, *((int(place), int(numbers.integers(1, most + 1))) for place in places)))] += 1
    assert found["ours"] > 150
    assert found["libjpeg"] > 50


@compiled
@with_each
def test_tables_may_be_told_together_twice_or_for_nothing(photo: np.ndarray) -> None:
    """The last of each number counts, wherever before the scan it stands."""
    segments, coded = parts(encoded(photo[:50, :70]))
    scan, tables = segments[-1], [s for s in segments if s[0] in (DQT, DHT)]
    others = [s for s in parts(encoded(photo[:50, :70], quality=20, optimize=True))[0] if s[0] in (DQT, DHT)]
    frame = [s for s in segments if s[0] == SOF0]
    together = [(kind, b"".join(body for marker, body in tables if marker == kind)) for kind in (DQT, DHT)]
    empty = [(DQT, b""), (DHT, b""), (DRI, b"\0\0"), (0xFE, b""), (0xEF, b"\xff\xd9")]
    for order in (together + frame, frame + together, others + tables + frame, frame + others + empty + tables):
        assert equal(joined([*order, scan], coded))
    assert equal(joined(segments, coded + b"anything \xff\xd8 behind it"))
    assert equal(joined([(DRI, b"\0\3"), *segments[:-1], (DRI, b"\xff\xff"), scan], coded))


@compiled
@with_each
def test_at_reduced_scale_photos_decode_as_libjpeg_decodes_them(photo: np.ndarray) -> None:
    assert jpeg._native is not None
    numbers = np.random.default_rng(7)
    options: tuple[dict[str, Any], ...] = ({}, {"optimize": True, "restart_marker_blocks": 5})
    for halvings, sampling, quality, more in itertools.product((1, 2, 3), ("444", "420", "Gray"), QUALITIES, options):
        height, width = (int(side) << halvings for side in numbers.integers(16 >> halvings, 200 >> halvings, 2))
        if min(height, width) < 16:
            continue
        data = encoded(picture(numbers, photo, height, width), sampling, quality, **more)
        kind = "GRAY" if sampling == "Gray" else "RGB"
        expected = simplejpeg.decode_jpeg(data, kind, False, False, height >> halvings, width >> halvings)
        out = np.zeros(expected.shape, np.uint8)
        decoded = jpeg._native(data, height, width, expected.shape[2], halvings, out)
        assert decoded, (halvings, sampling, quality, height, width)
        assert np.array_equal(out, expected), (halvings, sampling, quality, height, width)


@compiled
@with_each
def test_numbers_beyond_any_picture_are_reduced_as_libjpeg_reduces_them_or_left_to_it(photo: np.ndarray) -> None:
    assert jpeg._native is not None
    numbers = np.random.default_rng(8)
    found: Counter[bool] = Counter()
    for trial in range(400):
        halvings = 1 + trial % 3
        height, width = (int(side) << 3 for side in numbers.integers(2, 8, 2))
        data = encoded(
            picture(numbers, photo, height, width), ("444", "420")[trial % 2], int(numbers.choice(QUALITIES))
        )
        most = int(numbers.choice([2, 5, 20, RAISED]))
        places = numbers.permutation(64)[: numbers.integers(1, 65)] + 1
        data = edited(data, DQT, *((int(place), int(numbers.integers(1, most + 1))) for place in places))
        expected = simplejpeg.decode_jpeg(data, "RGB", False, False, height >> halvings, width >> halvings)
        out = np.zeros(expected.shape, np.uint8)
        decoded = jpeg._native(data, height, width, 3, halvings, out)
        assert not decoded or np.array_equal(out, expected), trial
        found[decoded] += 1
    assert min(found[True], found[False]) > 40


@compiled
@with_each
def test_what_is_not_reduced_here_is_left_to_libjpeg(photo: np.ndarray) -> None:
    assert jpeg._native is not None
    out = np.zeros(64 * 64 * 3, np.uint8)
    data = encoded(photo[:64, :64], "422")
    assert not jpeg._native(data, 64, 64, 3, 1, out)
    told = jpeg.header(data)
    assert told is not None
    assert same(jpeg.pixels(data, told, 1), simplejpeg.decode_jpeg(data, "RGB", False, False, 32, 32))
    assert not jpeg._native(encoded(photo[:63, :64]), 63, 64, 3, 1, out)
    for halvings in (-1, 4):
        with pytest.raises(ValueError, match="halved at most 3 times"):
            jpeg._native(data, 64, 64, 3, halvings, out)


def with_sixteen_bit_steps(data: bytes) -> bytes:
    segments, coded = parts(data)
    wide = (
        (DQT, bytes([body[0] | 16]) + b"".join(b"\0%c" % step for step in body[1:])) for m, body in segments if m == DQT
    )
    return joined([*wide, *(segment for segment in segments if segment[0] != DQT)], coded)


def with_all_ones_as_a_code(data: bytes) -> bytes:
    """One symbol more, of the one code that may not be (ITU T.81, C.2): libjpeg refuses the table."""
    segments, coded = parts(data)
    number = max(k for k, (kind, body) in enumerate(segments) if kind == DHT)
    body = segments[number][1]
    segments[number] = (DHT, body[:16] + bytes([body[16] + 1]) + body[17:] + b"\0")
    return joined(segments, coded)


def others(photo: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """JPEGs that are none of ours, by what they are."""
    pixels = np.ascontiguousarray(photo[:61, :91])
    whole, grey = encoded(pixels), encoded(pixels, "Gray")
    yield "progressive", encoded(pixels, progressive=True)
    yield "progressive grey", encoded(pixels, "Gray", progressive=True)
    for sampling in ("440", "411"):
        yield sampling, simplejpeg.encode_jpeg(pixels, 90, "RGB", sampling)
    yield "colours that are not the smaller", edited(encoded(pixels, "444"), SOF0, (10, 0x21))
    yield "grey of two blocks", edited(grey, SOF0, (7, 0x22))
    yield "CMYK", saved(pixels, "CMYK")
    for name, marker in (("extended", 0xC1), ("lossless", 0xC3), ("arithmetic", 0xC9)):
        at = whole.index(b"\xff\xc0")
        yield name, whole[:at] + bytes([0xFF, marker]) + whole[at + 2 :]
    yield "12 bits", edited(whole, SOF0, (0, 12))
    yield "steps of 16 bits", with_sixteen_bit_steps(whole)
    yield "a step of 0", edited(whole, DQT, (40, 0))
    yield "a code of ones alone", with_all_ones_as_a_code(whole)
    yield "a table that is not there", edited(whole, SOS, (2, 0x11), (4, 0x22))
    yield "steps that are not there", edited(whole, SOF0, (8, 3))
    yield "one name for two colours", edited(edited(whole, SOF0, (12, 2)), SOS, (5, 2))
    yield "a part of the numbers", edited(whole, SOS, (8, 62))
    yield "no height", edited(whole, SOF0, (1, 0), (2, 0))
    for height, width in ((15, 16), (16, 15), (1, 1), (8, 200), (200, 3)):
        yield f"{height} x {width}", encoded(photo[:height, :width])


@compiled
@with_each
def test_other_kinds_are_left_to_libjpeg(photo: np.ndarray) -> None:
    for kind, data in others(photo):
        assert by_ours(data) is None, kind
        assert outcome(data) != "ours", kind


@compiled
@with_each
def test_only_what_was_told_is_decoded(photo: np.ndarray) -> None:
    """Of another size, or of other colours."""
    data, grey = encoded(photo[:50, :70]), encoded(photo[:50, :70], "Gray")
    told = jpeg.Header(50, 70, "YCbCr", "420")
    assert by_ours(data, told) is not None
    for other in (told._replace(height=49), told._replace(width=71), told._replace(height=70, width=50)):
        assert by_ours(data, other) is None
    assert by_ours(grey, told) is None
    assert by_ours(data, told._replace(colours="Gray")) is None
    for nothing in (b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xc0", bytes(99)):
        assert by_ours(nothing, told) is None
    for name in ("RGB", "CMYK", "YCCK"):
        with pytest.raises(ValueError, match=f"a JPEG must be of YCbCr or Gray. Found: {name}"):
            jpeg.pixels(data, told._replace(colours=name))


def damaged(numbers: Numbers, whole: bytes) -> bytes:
    """Bits changed in the coded data or before it, bytes put in or left out, or all behind a place gone."""
    segments, coded = parts(whole)
    start, kind = len(whole) - len(coded), numbers.integers(6)
    data, at = bytearray(whole), int(numbers.integers(2, len(whole)))
    if kind < 2:
        for place in numbers.integers(start if kind else 2, len(whole), numbers.integers(1, 4)):
            data[place] ^= 1 << numbers.integers(8)
    elif kind == 2:
        data[at:at] = [b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\xff", b"\0", EOI][numbers.integers(6)]
    elif kind == 3:
        del data[at : at + numbers.integers(1, 4)]
    elif kind == 4:
        segments.insert(int(numbers.integers(len(segments))), segments.pop(int(numbers.integers(len(segments) - 1))))
        data = bytearray(joined(segments, coded))
    else:
        del data[at:]
    return bytes(data)


@compiled
@with_each
def test_a_damaged_jpeg_never_gives_other_pixels(photo: np.ndarray) -> None:
    numbers = np.random.default_rng(5)
    options: tuple[dict[str, Any], ...] = ({}, {"optimize": True}, {"restart_marker_blocks": 2}, {"quality": 100})
    wholes = [
        encoded(picture(numbers, photo, 50, 39), sampling, **option) for sampling in SAMPLINGS for option in options
    ]
    found = Counter(outcome(damaged(numbers, wholes[trial % len(wholes)])) for trial in range(6000))
    assert min(found[kind] for kind in ("ours", "libjpeg", "refused")) > 100, found


@compiled
@with_each
def test_a_jpeg_that_ends_early_is_never_ours(photo: np.ndarray) -> None:
    whole = encoded(photo[:33, :40], restart_marker_blocks=2)
    assert outcome(whole) == "ours"
    for length in range(len(whole)):
        assert outcome(whole[:length]) != "ours", length


@compiled
@with_each
def test_what_stands_before_a_marker_must_be_whole(photo: np.ndarray) -> None:
    """Restarts out of order, or none; bytes that nobody reads; bytes that fill a gap, which libjpeg takes silently."""
    whole = encoded(photo[:64, :64], restart_marker_blocks=2)
    assert whole.count(b"\xff\xd1") == 1
    assert whole.endswith(EOI)
    for data in (
        whole.replace(b"\xff\xd1", b"\xff\xd2"),
        whole.replace(b"\xff\xd1", b""),
        whole.replace(b"\xff\xd1", b"\xff\xd1\xff\xd1"),
        whole.replace(b"\xff\xd1", b"\0\xff\xd1"),
        whole.replace(b"\xff\xd1", b"\xff\0\xff\xd1"),
        whole.replace(b"\xff\xd1", b"\xff\xff\xd1"),
        whole.replace(b"\xff\xd1", EOI),
        whole[:-2] + b"\0" + EOI,
        whole[:-2] + b"\xff" + EOI,
        whole[:-2] + b"\xff\xd7" + EOI,
        whole[:-2] + whole,
        edited(whole, DRI, (1, 3)),
        edited(whole, DRI, (1, 0)),
    ):
        assert outcome(data) != "ours"


@compiled
@with_each
@pytest.mark.parametrize(("sampling", "kind"), [("420", "ours"), ("Gray", "ours"), ("440", "libjpeg")])
def test_the_memory_that_is_given_is_what_the_pixels_lie_in(photo: np.ndarray, sampling: str, kind: str) -> None:
    pixels = np.ascontiguousarray(photo[:50, :70])
    data = encoded(pixels, sampling) if kind == "ours" else simplejpeg.encode_jpeg(pixels, 90, "RGB", sampling)
    assert outcome(data) == kind
    told = jpeg.Header(50, 70, "Gray" if sampling == "Gray" else "YCbCr", sampling)
    room, asked = 50 * 70 * told.channels, []
    memory = np.full(room + 100, 7, np.uint8)

    def given(size: int) -> np.ndarray:
        asked.append(size)
        return memory

    assert same(jpeg.pixels(data, told, memory=given), by_libjpeg(data))
    assert asked == [room]
    assert np.shares_memory(jpeg.pixels(data, told, memory=given), memory)
    assert (memory[room:] == 7).all()


@compiled
@with_each
def test_too_little_room_is_refused_before_anything_is_written(photo: np.ndarray) -> None:
    assert jpeg._native is not None
    data = encoded(photo[:50, :70])
    small = np.zeros(50 * 70 * 3 - 1, np.uint8)
    for height, width, channels in ((50, 70, 3), (50, 70, 2), (0, 70, 3), (50, -70, 3), (1 << 30, 1 << 30, 3)):
        with pytest.raises(ValueError, match="must have room for the pixels, of 1 or 3 channels"):
            jpeg._native(data, height, width, channels, 0, small)
    with pytest.raises((ValueError, BufferError, TypeError)):
        jpeg._native(data, 50, 70, 3, 0, np.zeros((50, 140, 3), np.uint8)[:, ::2])
    small.flags.writeable = False
    with pytest.raises((ValueError, BufferError, TypeError)):
        jpeg._native(data, 50, 70, 1, 0, small)
    assert not small.any()


@compiled
@with_each
def test_threads_decode_beside_each_other(photo: np.ndarray) -> None:
    numbers = np.random.default_rng(6)
    jpegs = [encoded(picture(numbers, photo, 150, 200), SAMPLINGS[k % 4], restart_marker_rows=k % 3) for k in range(60)]
    expected = [by_libjpeg(data) for data in jpegs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(by_ours, jpegs), expected, strict=True):
                assert same(found, wanted)


def chosen(value: str) -> subprocess.CompletedProcess[str]:
    code = "from latentmill import jpeg; print(jpeg._native is not None, jpeg.REASON)"
    return python(code, **{jpeg.VARIABLE: value})


def test_libjpeg_can_be_chosen_by_hand() -> None:
    assert chosen("libjpeg").stdout == "False LATENTMILL_JPEG is libjpeg\n"


@compiled
@pytest.mark.parametrize("value", ["native", ""])
def test_our_own_can_be_asked_for_and_is_taken_unasked(value: str) -> None:
    assert chosen(value).stdout == "True \n"


def test_a_wrong_choice_is_one_clear_line(tmp_path: Path) -> None:
    message = "LATENTMILL_JPEG must be native or libjpeg, or not set. Found: 'turbo'\n"
    assert chosen("turbo").stderr.endswith(f"ConfigError: {message}")
    make_photos(tmp_path / "source", 1)
    done = cli(
        "convert", "--source", tmp_path / "source", "--dest", tmp_path / "dest", "--resolution", "32x32",
        "--transform", "center-crop", LATENTMILL_JPEG="turbo",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"error: {message}"


@compiled
def test_what_decodes_otherwise_or_not_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load()

    def off_by_one(data: bytes, height: int, width: int, channels: int, halvings: int, out: np.ndarray) -> bool:
        done: bool = decode(data, height, width, channels, halvings, out)
        out[-1] ^= 1
        return done

    decode = module.decode_jpeg
    for name, other, reason in (
        ("decode_jpeg", off_by_one, "it does not compute as the installed libjpeg-turbo does"),
        ("decode_jpeg", lambda *told: False, "it does not compute as the installed libjpeg-turbo does"),
        ("DECODES_JPEG", 0, "it is for x86-64 processors with AVX2 and BMI2"),
        ("INTERFACE", 0, "it was built of another version"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, other)
            changed.delenv(jpeg.VARIABLE, raising=False)
            native, found = jpeg._chosen()
            assert native is None
            assert found.startswith(f"the compiled decoder cannot be used: {reason}")
            changed.setenv(jpeg.VARIABLE, "native")
            with pytest.raises(ConfigError, match=f"is native, but the compiled decoder cannot be used: {reason}"):
                jpeg._chosen()


def test_libjpeg_alone_gives_the_same(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "_native", None)
    for sampling in SAMPLINGS:
        data = encoded(photo[:50, :70], sampling)
        told = jpeg.header(data)
        assert told == (50, 70, "Gray" if sampling == "Gray" else "YCbCr", sampling)
        assert same(jpeg.pixels(data, told), by_libjpeg(data))
        assert jpeg.pixels(data[:-9], told) is None
    assert jpeg.header(b"no JPEG") is None


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="only where a compiler is promised")
def test_our_own_is_in_use_in_ci() -> None:
    assert jpeg._native is not None, jpeg.REASON
