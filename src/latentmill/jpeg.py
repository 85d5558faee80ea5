"""JPEGs of one kind to pixels, to the bit as libjpeg-turbo gives them, and what their markers tell.

Baseline JPEGs as cameras and web sites make them are decoded by our own code (`native/jpeg.c`), in some six tenths of
libjpeg-turbo's time: most of that goes into Huffman codes, of which it takes two at a time. It gives a JPEG back as
soon as anything about it is unusual, so that libjpeg-turbo (simplejpeg) decodes all others, and alone judges what is
damaged.
Where it was not built, the processor lacks AVX2, it does not agree with the libjpeg-turbo that is installed, or
LATENTMILL_JPEG=libjpeg says so, libjpeg-turbo decodes all; the pixels are the same. The choice is made once, at import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import numpy as np
import simplejpeg

from latentmill.compiled import choose, load
from latentmill.records import Array

VARIABLE = "LATENTMILL_JPEG"
_ERRORS = (ValueError, KeyError)  # KeyError: of a sampling of the colours that simplejpeg has no name for
_START_OF_SCAN = 0xDA
# Frames (ITU T.81, table B.1) of blocks of coefficients. Of others libjpeg-turbo gives the whole size, whatever it is
# asked for, and writes it to where there is room for the reduced one.
_FRAMES_OF_BLOCKS = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_NO_SEGMENTS = frozenset({0x00, 0x01, *range(0xD0, 0xDA), 0xFF})  # they stand alone, or fill a gap
_NO_FRAMES = frozenset({0xC4, 0xC8, 0xCC})  # among the markers that are numbered like frames
# Of others (4:1:1) libjpeg-turbo repeats the colours at reduced scale: up to 71 levels from exact.
_REDUCED_SAMPLINGS = frozenset({"444", "422", "420", "440", "Gray"})
# Halvings by (height, width): neither a multiple of what is decoded together where it need not be; whole pictures wider
# than two registers, of colours too.
_TRIALS = {(21, 149): 0, (38, 54): 1, (36, 52): 2, (40, 56): 3}
Memory = Callable[[int], Array]  # contiguous uint8, of at least so many bytes
Decode = Callable[[bytes, int, int, int, int, Array], bool]  # `decode_jpeg` of the compiled module


class Header(NamedTuple):
    """Sides as stored. colours: "YCbCr", "Gray" or another of libjpeg-turbo's; sampling: as simplejpeg names it."""

    height: int
    width: int
    colours: str
    sampling: str

    @property
    def channels(self) -> int:
        return 1 if self.colours == "Gray" else 3


def header(data: bytes) -> Header | None:
    """None where libjpeg-turbo does not read it without a complaint."""
    try:
        return Header(*simplejpeg.decode_jpeg_header(data))
    except _ERRORS:
        return None


def pixels(data: bytes, told: Header, halvings: int = 0, memory: Memory | None = None) -> Array | None:
    """uint8 HWC pixels of a colour or grey JPEG, RGB or of one channel; None where libjpeg-turbo complains.

    told: its header. halvings: how often the sides are halved, without a rest; only of a JPEG that is `reducible`.
    memory: gives room for so many bytes, at least, which the pixels may then lie in. Raises ValueError for other kinds.
    """
    if told.colours not in ("YCbCr", "Gray"):
        raise ValueError(f"a JPEG must be of YCbCr or Gray. Found: {told.colours}")
    room = (told.height >> halvings) * (told.width >> halvings) * told.channels
    buffer: Array = memory(room) if memory else np.empty(room, np.uint8)
    if _native is not None and _native(data, told.height, told.width, told.channels, halvings, buffer):
        return buffer[:room].reshape(told.height >> halvings, told.width >> halvings, told.channels)
    return _by_libjpeg(data, told, halvings, buffer)


def _by_libjpeg(data: bytes, told: Header, halvings: int, buffer: Array) -> Array | None:
    """As a view of the buffer, that keeps it alive."""
    least = (told.height >> halvings, told.width >> halvings) if halvings else (0, 0)
    kind = "RGB" if told.channels == 3 else "GRAY"
    try:
        shape = simplejpeg.decode_jpeg(data, kind, False, False, *least, buffer=buffer).shape
    except _ERRORS:
        return None
    return buffer[: math.prod(shape)].reshape(shape)


def reducible(data: bytes, told: Header) -> bool:
    """Whether a JPEG may be decoded at reduced scale, as far as its kind goes."""
    frames = (m for _, m in _segments(data) if 0xC0 <= m <= 0xCF and m not in _NO_FRAMES)
    return told.sampling in _REDUCED_SAMPLINGS and next(frames, None) in _FRAMES_OF_BLOCKS


def metadata_end(data: bytes) -> int:
    """Where a JPEG's metadata ends: at its first scan (ITU T.81, B.1.1); its length, where that is not clear."""
    return next((at for at, marker in _segments(data) if marker == _START_OF_SCAN), len(data))


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each segment of a JPEG lies, and its marker, as far as one follows the other beyond doubt.

    Not behind what has no length, or an impossible one, nor behind bytes that fill a gap: a file could be made that
    libjpeg reads in another way.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _NO_SEGMENTS or length < 2:
            return
        yield at, marker
        at += 2 + length


def _chosen() -> tuple[Decode | None, str]:
    """The compiled decoder, or None and why. Raises ConfigError."""
    return choose(VARIABLE, "libjpeg", "decoder", lambda: _find(load()))


def _find(module: ModuleType) -> Decode:
    """Raises ImportError where it is not there, or does not agree with libjpeg-turbo."""
    if not module.DECODES_JPEG:
        raise ImportError("it is for x86-64 processors with AVX2 and BMI2")
    decode: Decode = module.decode_jpeg
    for (height, width), halvings in _TRIALS.items():
        noise = (np.arange(height * width * 3, dtype=np.uint32) * 2654435761 >> 24).astype(np.uint8)
        picture = noise.reshape(height, width, 3)
        grey = simplejpeg.encode_jpeg(np.ascontiguousarray(picture[:, :, :1]), 80, "GRAY", "Gray")
        kinds = ("444", "420") if halvings else ("444", "422", "420")  # all that are decoded here
        colour = (simplejpeg.encode_jpeg(picture, 80, "RGB", kind) for kind in kinds)
        if not all(_agrees(decode, data, halvings) for data in (grey, *colour)):
            raise ImportError("it does not compute as the installed libjpeg-turbo does")
    return decode


def _agrees(decode: Decode, data: bytes, halvings: int) -> bool:
    told = Header(*simplejpeg.decode_jpeg_header(data))
    found, theirs = np.empty((2, (told.height >> halvings) * (told.width >> halvings) * told.channels), np.uint8)
    decoded = decode(data, told.height, told.width, told.channels, halvings, found)
    return decoded and _by_libjpeg(data, told, halvings, theirs) is not None and np.array_equal(found, theirs)


_native, REASON = _chosen()  # REASON: why libjpeg-turbo decodes all; empty where it does not
