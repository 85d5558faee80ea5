"""Whether photos are decoded and resized here pixel for pixel as Pillow does it, by doing both."""

from __future__ import annotations

import io
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
from PIL import Image, features

from latentmill.compiled import load
from latentmill.decoding import decode
from latentmill.doctor.findings import Finding
from latentmill.records import Array
from latentmill.transforms.crop import CROPS

GROUP = "pictures"
_TURBO = re.compile(rb"libjpeg-turbo version (\d+\.\d+(?:\.\d+)?)")
_OLDEST_TURBO = (2, 1)  # before it, some damaged files crashed the decoder
_SIDES = (256, 64)  # of the crops that are compared: with and without halving


def findings() -> list[Finding]:
    photos = _photos()
    return [
        _decoders(), _baseline(), _same_pixels(photos), _resampler(), _same_crops(photos), _draws(), _png(), _digests()
    ]  # fmt: skip


def _photos() -> list[bytes]:
    folder = files("latentmill") / "assets" / "photos"
    return [
        file.read_bytes()
        for group in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if group.is_dir()
        for file in sorted(group.iterdir(), key=lambda entry: entry.name)
        if file.name.endswith(".jpg")
    ]


def turbo_versions() -> tuple[str, str]:
    """libjpeg-turbo's version in simplejpeg (found in its library, since it does not tell) and in Pillow; "": none."""
    spec = find_spec("simplejpeg._jpeg")
    library = Path(spec.origin).read_bytes() if spec and spec.origin else b""
    match = _TURBO.search(library)
    theirs = features.version("libjpeg_turbo") if features.check("libjpeg_turbo") else None
    return match[1].decode() if match else "", str(theirs or "")


def _decoders() -> Finding:
    ours, theirs = turbo_versions()
    value = (
        f"simplejpeg {simplejpeg.__version__} (libjpeg-turbo {ours or 'of unknown version'}), Pillow "
        f"{PIL.__version__} ({f'libjpeg-turbo {theirs}' if theirs else 'another libjpeg'})"
    )
    if not theirs:
        advice = "Pillow has another libjpeg than the one its wheels have: pip install --force-reinstall pillow"
        return Finding(GROUP, "JPEG decoders", value, "warning", advice)
    old = [name for name, told in (("simplejpeg", ours), ("pillow", theirs)) if told and _numbers(told) < _OLDEST_TURBO]
    if old:
        return Finding(GROUP, "JPEG decoders", value, "warning", f"an old libjpeg: pip install -U {' '.join(old)}")
    return Finding(GROUP, "JPEG decoders", value)


def _baseline() -> Finding:
    from latentmill import jpeg

    if not jpeg.REASON:
        return Finding(GROUP, "baseline JPEGs", f"native (the package's own, compiled; {load().in_use()[1]})")
    return Finding(GROUP, "baseline JPEGs", f"libjpeg-turbo: {jpeg.REASON}")


def _numbers(told: str) -> tuple[int, ...]:
    return tuple(int(part) for part in told.split(".")[:2])


def pillow_pixels(data: bytes) -> Array:
    """uint8 HWC RGB pixels, by Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _same_pixels(photos: list[bytes]) -> Finding:
    worst = max(_difference(decode(data)[0], pillow_pixels(data)) for data in photos)
    if worst == 0:
        return Finding(GROUP, "decoding compared", f"{len(photos)} JPEGs are the same by both")
    return Finding(
        GROUP, "decoding compared", f"up to {worst} of 255 levels differ", "broken",
        "crops would not be those of the literature: pip install --force-reinstall pillow simplejpeg",
    )  # fmt: skip


def _difference(first: Array, second: Array) -> int:
    """The largest difference in levels; 255 where shapes differ."""
    if first.shape != second.shape:
        return 255
    return int(np.abs(first.astype(np.int16) - second).max())


def _resampler() -> Finding:
    from latentmill.transforms import resample

    if resample.IMPLEMENTATION == "native":
        return Finding(GROUP, "resampler", f"native (the package's own, compiled; {load().in_use()[0]})")
    advice = "crops take several times as long; install a C compiler, then reinstall latentmill"
    return Finding(GROUP, "resampler", f"{resample.IMPLEMENTATION}: {resample.REASON}", "warning", advice)


def _draws() -> Finding:
    from latentmill import normals

    if not normals.REASON:
        return Finding(GROUP, "loaders' draws", "native (the package's own, compiled)")
    advice = "loading a drawn latent takes several times as long; install a C compiler, then reinstall latentmill"
    return Finding(GROUP, "loaders' draws", f"NumPy: {normals.REASON}", "warning", advice)


def pillow_crop(pixels: Array, side: int) -> Array:
    """The dhariwal crop as its arithmetic is written down, by Pillow alone."""
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]


def _same_crops(photos: list[bytes]) -> Finding:
    worst = compared = 0
    for pixels in map(pillow_pixels, photos):
        for side in _SIDES:
            found = CROPS["center-crop-dhariwal"](pixels, side, side)
            assert found is not None
            worst, compared = max(worst, _difference(found, pillow_crop(pixels, side))), compared + 1
        stretched = CROPS["none"](pixels, _SIDES[0], _SIDES[0])
        assert stretched is not None
        whole = Image.fromarray(pixels).resize((_SIDES[0], _SIDES[0]), Image.Resampling.LANCZOS)
        worst, compared = max(worst, _difference(stretched, np.asarray(whole))), compared + 1
    if worst == 0:
        return Finding(GROUP, "resizing compared", f"{compared} crops are the same by both")
    return Finding(
        GROUP, "resizing compared", f"up to {worst} of 255 levels differ", "broken",
        "set LATENTMILL_RESAMPLER=pillow, and tell us your processor and Pillow's version",
    )  # fmt: skip


def _png() -> Finding:
    found = find_spec("zlib_ng") is not None
    if found:
        return Finding(GROUP, "CRC-32", "zlib-ng")
    return Finding(GROUP, "CRC-32", "zlib", "warning", "PNGs take longer to write: pip install zlib-ng")


def _digests() -> Finding:
    from latentmill import checksums

    if not checksums.REASON:
        return Finding(GROUP, "SHA-256", "native (the package's own, compiled)")
    return Finding(GROUP, "SHA-256", f"OpenSSL: {checksums.REASON}")
