"""What the bytes of one image say: whether a run takes it, digests to find copies by, what one may not expect."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageChops, ImageCms

from latentmill.auditing import kinds
from latentmill.auditing.near import picture_hash, reduced
from latentmill.decoding import DEFAULT_MAX_PIXELS, ImageFacts, decode, image_facts
from latentmill.errors import SampleError
from latentmill.files import digest
from latentmill.records import CMYK, EXIF_ROTATED, SIXTEEN_BIT, TRANSPARENT, Array, SampleRef
from latentmill.stages import Source

_OF_NOTES = {
    EXIF_ROTATED: kinds.EXIF_ROTATED,
    TRANSPARENT: kinds.TRANSPARENT,
    CMYK: kinds.CMYK,
    SIXTEEN_BIT: kinds.SIXTEEN_BIT,
}
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})
_COLOURLESS = 2  # levels between channels of a picture that is stored in colour and has none
_SAME_COLOURS = 4  # levels: less is rounding, and nobody sees it
_FAMILIES = {"MPO": "JPEG", "DIB": "BMP"}  # a JPEG that more pictures follow is a JPEG
_SEVERAL_AS_ONE = frozenset({"MPO", "ICO", "ICNS"})  # the others are previews, depth, or smaller sizes


@dataclass(frozen=True, slots=True)
class Look:
    """One image. stage, reason: as a run would reject it, else "". size: (height, width) as stored; (0, 0) unknown.

    length: bytes. digest, pixels: of the bytes, and of the upright pixels with their size and transparency. hash: see
    `near.picture_hash`.
    found: kinds of finding, each with what is to be said of this image.
    """

    stage: str = ""
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    length: int = 0
    digest: str = ""
    pixels: str = ""
    hash: bytes = b""
    found: tuple[tuple[str, str], ...] = ()


def look_at(source: Source, ref: SampleRef, max_pixels: int = DEFAULT_MAX_PIXELS) -> Look:
    """Read and decode one image, once. Raises nothing for an image that cannot be used: that is a Look too."""
    try:
        data = source.read(ref)
    except SampleError as error:
        return Look(error.stage, error.reason)
    try:
        pixels, notes = decode(data, exif="apply", max_pixels=max_pixels)
        facts = image_facts(data, max_pixels)
        alike = _digest_of(pixels)
        if TRANSPARENT in notes:
            alike = _with_alpha(alike, decode(data, exif="apply", alpha="white", max_pixels=max_pixels)[0])
    except SampleError as error:
        return Look(error.stage, error.reason, digest=digest(data))
    height, width = pixels.shape[:2]
    picture = reduced(pixels)
    return Look(
        size=facts.size if EXIF_ROTATED in notes else (height, width),
        length=len(data),
        digest=digest(data),
        pixels=alike,
        hash=picture_hash(picture),
        found=tuple(_found(ref.key, facts, notes, picture)),
    )


def _digest_of(pixels: Array) -> str:
    """Of pixels and their size: a blank page has the bytes of any other shape of as many pixels."""
    height, width = pixels.shape[:2]
    return digest(f"{height}x{width} {digest(np.ascontiguousarray(pixels).data.cast('B'))}".encode())


def _with_alpha(alike: str, on_white: Array) -> str:
    """The digest told apart by what transparency leaves to be seen: icons may differ in nothing else."""
    seen = _digest_of(on_white)
    return alike if seen == alike else digest(f"{alike} {seen}".encode())


def _found(key: str, facts: ImageFacts, notes: tuple[str, ...], picture: Image.Image) -> Iterator[tuple[str, str]]:
    for note in notes:
        yield _OF_NOTES[note], ""
    if _format_of(key) not in ("", facts.format, _FAMILIES.get(facts.format)):
        yield kinds.WRONG_EXTENSION, f"is {facts.format}"
    if facts.pictures > 1 and facts.format not in _SEVERAL_AS_ONE:
        yield kinds.ANIMATED, f"{facts.pictures:,} pictures of {facts.format}"
    if facts.mode in _GREY_MODES or facts.mode.startswith("I;"):
        yield kinds.GREY, "stored without colour"
    elif _is_colourless(picture):
        yield kinds.GREY, "stored in colour"
    if facts.icc and (name := _other_profile(facts.icc)):
        yield kinds.COLOUR_PROFILE, name


def _is_colourless(picture: Image.Image) -> bool:
    red, green, blue = picture.split()
    differing = (ImageChops.difference(red, green), ImageChops.difference(green, blue))
    return all(np.asarray(each).max() <= _COLOURLESS for each in differing)


@lru_cache(maxsize=256)
def _format_by_extension(extension: str) -> str:
    Image.init()
    found = Image.EXTENSION.get(extension, "")
    return _FAMILIES.get(found, found)


def _format_of(key: str) -> str:
    """Pillow's name of the format that a file's name tells; "" of an extension that it does not know."""
    return _format_by_extension(PurePosixPath(key).suffix.lower())


@lru_cache(maxsize=256)
def _other_profile(icc: bytes) -> str:
    """The name of a colour profile whose colours are others than sRGB's; "" where they are the same.

    Told by what the profile does to a cube of colours, and not by its name: many that are sRGB are called otherwise.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        name = " ".join(ImageCms.getProfileDescription(profile).split()) or "without a name"
        if profile.profile.xcolor_space.strip() != "RGB":
            return f"{name} ({profile.profile.xcolor_space.strip()})"
        levels = np.linspace(0, 255, 9).astype(np.uint8)
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
        image = ImageCms.profileToProfile(Image.fromarray(cube), profile, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "a profile that cannot be read"
    if image is None:
        return name
    differing = np.abs(np.asarray(image).astype(np.int16) - cube).max()
    return name if differing > _SAME_COLOURS else ""
