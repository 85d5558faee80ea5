"""Image bytes to RGB pixels, exactly as Pillow's `convert("RGB")` gives them, and nothing that is not a picture.

Colour and grey JPEGs are decoded by `jpeg` (libjpeg-turbo's arithmetic, which is Pillow's, about twice as fast);
everything else, and every JPEG that libjpeg-turbo will not take without a complaint, goes through Pillow, which then
has the last word. The format is told by the content, never by the name.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from io import BufferedReader
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from latentmill import jpeg
from latentmill.errors import SampleError
from latentmill.formats.payload import stored_png_pixels
from latentmill.records import CMYK, EXIF_ROTATED, SIXTEEN_BIT, TRANSPARENT, Array
from latentmill.transforms.reduction import Reduction

# Pillow's own limit before it refuses an image as a decompression bomb (twice its warning limit).
DEFAULT_MAX_PIXELS = 178_956_970
_COMMON_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png"})  # known without loading a plug-in of Pillow
# Kinds that are drawn by an outside program, or that only hold data: never opened.
_NOT_RASTER = frozenset({"EPS", "WMF", "PDF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"})
_EXIF_ORIENTATION = 0x0112
_PNG_BIT_DEPTH = 24  # offset in the file: a field of the header that every PNG begins with
_PNG_SIZE_AT, _PNG_SIZE = 16, struct.Struct(">II")  # width and height, likewise
_TIFF_BITS_PER_SAMPLE = 258
# One of these stands in every JPEG that has an orientation; Pillow takes XMP's where EXIF has none.
_ORIENTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")
_PNG_LATE_KINDS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks with EXIF or XMP, which may follow the pixels
_PNG_TAIL_BYTES = 1 << 16
_STRIP_PIXELS = 1 << 20
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
# What Pillow's plug-ins are seen to raise on damaged files.
_PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError,
    AssertionError, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_OPENING = threading.Lock()  # Pillow's own limit is one for the whole process
_BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}


@lru_cache(maxsize=1024)
def is_image_extension(extension: str) -> bool:
    """Whether Pillow knows a file extension, in any case, with its dot: what counts as an image in a source."""
    ending = extension.lower()
    if ending in _COMMON_EXTENSIONS:
        return True
    Image.preinit()  # the common formats: all others take a tenth of a second to load
    if ending not in Image.EXTENSION:
        Image.init()
    return ending in Image.EXTENSION


@cache
def _openable(common: bool = False) -> tuple[str, ...]:
    """The names of the formats that are opened. common: those that Pillow itself tries first."""
    (Image.preinit if common else Image.init)()
    return tuple(name for name in Image.OPEN if name not in _NOT_RASTER)


def decode(
    data: bytes, *, exif: str = "ignore", alpha: str = "drop", max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[Array, tuple[str, ...]]:
    """Decode to uint8 HWC RGB pixels, and what was noted of the image (see `records.NOTES`).

    exif: "ignore" keeps the stored orientation, "apply" turns the picture upright. alpha: "drop" keeps the
    colours under transparent pixels as `convert("RGB")` does; "white" and "black" lay the picture on that colour.
    Raises SampleError (stage `decode`).
    """
    return decode_reduced(data, None, exif, alpha, max_pixels)[:2]


def decode_reduced(
    data: bytes, reduction: Reduction | None, exif: str, alpha: str, max_pixels: int, memory: jpeg.Memory | None = None
) -> tuple[Array, tuple[str, ...], int]:
    """As `decode`, of a JPEG at the reduced scale that `reduction` allows; and how often its sides were halved.

    memory: gives room for so many bytes, at least, which the pixels may then lie in.
    """
    if not data:
        raise SampleError("decode", "the file is empty")
    if data[:3] == b"\xff\xd8\xff":
        orientation = _jpeg_orientation(data)
        turned = exif == "apply" and orientation != 1
        found = _decode_jpeg(data, max_pixels, reduction, turned and orientation >= 5, memory)
        if found is not None:
            pixels, halvings = found
            notes = (EXIF_ROTATED,) if orientation != 1 else ()
            return (_upright(pixels, orientation) if turned else pixels), notes, halvings
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        stored = stored_png_pixels(data)
        if stored is not None:
            _check_pixels(stored.shape[1], stored.shape[0], max_pixels)
            return stored, (), 0
    return *_decode_with_pillow(data, exif, alpha, max_pixels), 0


def decoded_bytes(data: bytes, reduction: Reduction | None = None) -> int:
    """Bytes of the pixels that `decode_reduced` gives, of a JPEG or PNG, in microseconds; 0 of all else."""
    if data[:3] == b"\xff\xd8\xff":
        told = jpeg.header(data)
        if told is None:
            return 0
        halvings = _halvings(data, told, reduction, (told.height, told.width))
        return 3 * (told.height >> halvings) * (told.width >> halvings)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= _PNG_BIT_DEPTH:
        width, height = _PNG_SIZE.unpack_from(data, _PNG_SIZE_AT)
        return 3 * int(width) * int(height)
    return 0


def image_size(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, *, exif: str = "ignore") -> tuple[int, int]:
    """(width, height) that `decode` would give, from the header. Raises SampleError."""
    if data[:3] == b"\xff\xd8\xff" and (told := jpeg.header(data)) is not None:  # Pillow's plug-ins take 5 ms to load
        _check_pixels(told.width, told.height, max_pixels)
        on_its_side = exif == "apply" and _jpeg_orientation(data) >= 5
        return (told.height, told.width) if on_its_side else (told.width, told.height)
    image = _open(data, max_pixels)
    width, height = image.size
    return (height, width) if exif == "apply" and _orientation(image) >= 5 else (width, height)


def image_header(file: BufferedReader[Any], max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[tuple[int, int], int, str]:
    """(height, width) as stored, EXIF orientation 1..8 and Pillow's name of the format, without decoding.

    Of a TIFF, which Pillow itself turns upright as it decodes, the upright size and 1. Raises SampleError.
    """
    file.peek(1)  # reads ahead, while other threads may open theirs
    image = _open(file, max_pixels)
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned = 1 if image.format == "TIFF" else _orientation(image, _exif_of_header(image, file))
        return (image.height, image.width), turned, image.format or ""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the header says beside the pixels. size: (height, width) as stored. format, mode: Pillow's names.

    pictures: how many the file holds. icc: its colour profile, empty without one.
    """

    size: tuple[int, int]
    format: str
    mode: str
    pictures: int
    icc: bytes


def image_facts(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageFacts:
    """What the header of an image's bytes says, without decoding. Raises SampleError."""
    image = _open(data, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pictures = int(getattr(image, "n_frames", 1))
    except _PILLOW_ERRORS:
        pictures = 1
    icc = image.info.get("icc_profile")
    profile = icc if isinstance(icc, bytes) else b""
    return ImageFacts((image.height, image.width), image.format or "", image.mode, pictures, profile)


def _exif_of_header(image: Image.Image, file: BufferedReader[Any]) -> Callable[[], Image.Exif]:
    """How to read EXIF. Pillow decodes a whole PNG to look for it behind the pixels: only where something is there."""
    if image.format != "PNG" or "exif" in image.info:
        return image.getexif
    at = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - _PNG_TAIL_BYTES))
    tail = file.read()
    file.seek(at)
    if any(kind in tail for kind in _PNG_LATE_KINDS):
        return image.getexif
    return partial(Image.Image.getexif, image)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if not width or not height:
        raise SampleError("decode", f"the image has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise SampleError(
            "decode", f"{width}x{height} is {width * height:,} pixels, over the limit of {max_pixels:,} (--max-pixels)"
        )


def _decode_jpeg(
    data: bytes, max_pixels: int, reduction: Reduction | None, on_its_side: bool, memory: jpeg.Memory | None
) -> tuple[Array, int] | None:
    """RGB pixels of a colour or grey JPEG, and how often their sides were halved; None where Pillow must decide."""
    told = jpeg.header(data)
    if told is None or told.colours not in ("YCbCr", "Gray"):
        return None
    height, width = told[:2]
    _check_pixels(width, height, max_pixels)
    count = _halvings(data, told, reduction, (width, height) if on_its_side else (height, width))
    pixels = jpeg.pixels(data, told, count, memory)
    if pixels is None:
        return None
    least = (height >> count, width >> count)
    if pixels.shape[:2] != least:
        raise SampleError("decode", f"a JPEG decoded at 1/{1 << count} must be {least}. Found: {pixels.shape[:2]}")
    return (np.repeat(pixels, 3, axis=2) if told.colours == "Gray" else pixels), count


def _jpeg_orientation(data: bytes) -> int:
    end = jpeg.metadata_end(data)
    if all(data.find(mark, 0, end) < 0 for mark in _ORIENTATION_MARKS):
        return 1
    try:
        return _orientation(_open(data, max_pixels=DEFAULT_MAX_PIXELS * 1000))
    except SampleError:
        return 1


def _halvings(data: bytes, told: jpeg.Header, reduction: Reduction | None, size: tuple[int, int]) -> int:
    """How often the sides of a JPEG, (height, width) as it is shown, may be halved while it is decoded."""
    count = reduction(size) if reduction else 0
    return count if count and jpeg.reducible(data, told) else 0


def _orientation(image: Image.Image, getexif: Callable[[], Image.Exif] | None = None) -> int:
    """The EXIF orientation 1..8; 1 where there is none or it cannot be read."""
    try:
        value = (getexif or image.getexif)().get(_EXIF_ORIENTATION, 1)
    except _PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Array, orientation: int) -> Array:
    """Undo an EXIF orientation (TIFF 6.0, tag 274) on HWC pixels."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _open(data: bytes | BufferedReader[Any], max_pixels: int) -> Image.Image:
    """Open by content; raises SampleError for what is not a picture, or is too large to decode."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Pillow refuses what is over twice its limit. It must have one: an icon is decoded while it is opened.
        previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            image = _identified(io.BytesIO(data) if isinstance(data, bytes) else data)
        except Image.DecompressionBombError as error:
            raise SampleError("decode", f"over the limit of {max_pixels:,} pixels (--max-pixels)") from error
        except _PILLOW_ERRORS as error:
            raise SampleError("decode", _reason(error, "not an image that can be read")) from error
        finally:
            Image.MAX_IMAGE_PIXELS = previous
    _check_pixels(*image.size, max_pixels)
    return image


def _identified(stream: io.BytesIO | BufferedReader[Any]) -> Image.Image:
    try:
        return Image.open(stream, formats=_openable(common=True))
    except UnidentifiedImageError:
        return Image.open(stream, formats=_openable())


def _decode_with_pillow(data: bytes, exif: str, alpha: str, max_pixels: int) -> tuple[Array, tuple[str, ...]]:
    image = _open(data, max_pixels)
    notes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            if _orientation(image) != 1:
                notes.append(EXIF_ROTATED)
                if exif == "apply":
                    image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                notes.append(TRANSPARENT)
            if image.mode == "CMYK":
                notes.append(CMYK)
            if image.mode in _SIXTEEN_BIT_MODES or _sample_bits(image, data) == 16:
                notes.append(SIXTEEN_BIT)
            if TRANSPARENT in notes and alpha != "drop":
                layer = image.convert("RGBA")
                image = Image.new("RGBA", layer.size, (*_BACKGROUNDS[alpha], 255))
                image.alpha_composite(layer)
            return _rgb(image), tuple(notes)
    except _PILLOW_ERRORS as error:
        raise SampleError("decode", _reason(error, "the image is damaged")) from error


def _rgb(image: Image.Image) -> Array:
    """`convert("RGB")` in strips, since Pillow's own copies take 4 and 3 bytes a pixel of the whole image."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        pixels[top:bottom] = np.asarray(strip.convert("RGB"))
    return pixels


def _sample_bits(image: Image.Image, data: bytes) -> int:
    """Bits a channel in the file, where Pillow gives 8-bit pixels of a 16-bit PNG or TIFF all the same; else 0."""
    if image.format == "PNG":
        return data[_PNG_BIT_DEPTH]
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, 0)
    return max(bits) if isinstance(bits, tuple) and bits else 0


def _reason(error: Exception, otherwise: str) -> str:
    if isinstance(error, UnidentifiedImageError):
        return otherwise
    text = " ".join(str(error).split())
    return f"{otherwise}: {text}" if text else f"{otherwise}: {type(error).__name__}"
