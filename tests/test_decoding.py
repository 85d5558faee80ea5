"""Decoding is Pillow's, pixel for pixel, on every kind of photo; what is no picture, or too large, is refused."""

from __future__ import annotations

import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import EpsImagePlugin, Image, ImageOps

from latentmill.decoding import decode, image_size, is_image_extension
from latentmill.errors import SampleError
from latentmill.formats.payload import png_bytes
from latentmill.records import CMYK, EXIF_ROTATED, SIXTEEN_BIT, TRANSPARENT
from support import PHOTOS

ALL_PHOTOS = sorted(path.relative_to(PHOTOS).as_posix() for path in PHOTOS.rglob("*.*"))
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A real photo, small, with odd sides."""
    return Image.open(PHOTOS / "animal" / "chelsea.JPEG").convert("RGB").resize((91, 61))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def resampled(data: bytes, across: int, down: int) -> bytes:
    """A JPEG of 4:2:0 said to be one of so many luma samples for each of the colours, of other sides: as valid."""
    at = data.index(b"\xff\xc0") + 5
    height, width = struct.unpack_from(">HH", data, at)
    height, width = -(-height // 16) * 8 * down, -(-width // 16) * 8 * across
    return data[:at] + struct.pack(">HHBBB", height, width, 3, 1, across << 4 | down) + data[at + 7 :]


def jpegs(photo: Image.Image) -> dict[str, bytes]:
    """Kinds of JPEG that cameras and programs write."""
    pixels = np.asarray(photo)
    kinds = {s: simplejpeg.encode_jpeg(pixels, 88, "RGB", s) for s in ("444", "422", "420", "440", "411")}
    kinds["441"] = resampled(kinds["420"], 1, 4)
    kinds["grey"] = saved(photo.convert("L"), "JPEG")
    kinds["progressive"] = saved(photo, "JPEG", progressive=True)
    kinds["progressive grey"] = saved(photo.convert("L"), "JPEG", progressive=True)
    kinds["CMYK"] = saved(photo.convert("CMYK"), "JPEG")
    kinds["RGB stored as RGB"] = saved(photo, "JPEG", keep_rgb=True)
    kinds["restart markers"] = saved(photo, "JPEG", restart_marker_rows=1)
    return kinds


@pytest.mark.parametrize("name", ALL_PHOTOS)
def test_photos_decode_as_pillow_decodes_them(name: str) -> None:
    data = (PHOTOS / name).read_bytes()
    pixels, _ = decode(data)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, by_pillow(data))
    assert image_size(data) == pixels.shape[1::-1]


def test_every_kind_of_jpeg_decodes_as_pillow_decodes_it(photo: Image.Image) -> None:
    for kind, data in jpegs(photo).items():
        assert np.array_equal(decode(data)[0], by_pillow(data)), kind


def test_a_damaged_jpeg_gives_what_pillow_gives_or_a_reject(photo: Image.Image) -> None:
    """Cut off and overwritten at many places: never pixels where Pillow refuses, never others than Pillow's."""
    random = np.random.default_rng(1)
    outcomes = {"equal": 0, "refused": 0}
    for kind, whole in jpegs(photo).items():
        for trial in range(30):
            data = bytearray(whole)
            if trial % 3 == 0:
                data = data[: random.integers(1, len(data))]
            else:
                data[random.integers(2, len(data))] = random.integers(256)
            try:
                expected = by_pillow(bytes(data))
            except Exception:
                expected = None
            if expected is None:
                with pytest.raises(SampleError):
                    decode(bytes(data))
                outcomes["refused"] += 1
            else:
                assert np.array_equal(decode(bytes(data))[0], expected), (kind, trial)
                outcomes["equal"] += 1
    assert min(outcomes.values()) > 50


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "stored PNG"])
def test_damaged_files_of_every_kind_are_rejects_not_crashes(photo: Image.Image, kind: str) -> None:
    whole = png_bytes(np.asarray(photo)) if kind == "stored PNG" else saved(photo, kind)
    random = np.random.default_rng(2)
    with pytest.raises(SampleError):
        decode(whole[: len(whole) // 2])
    for size in range(min(len(whole), 120)):  # every place within the header
        with pytest.raises(SampleError):
            decode(whole[:size])
    for _ in range(40):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        try:
            assert decode(bytes(data))[0].shape[2] == 3
        except SampleError as error:
            assert error.stage == "decode"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is no picture, though it may be named photo.jpg\n" * 9, "not an image that can be read"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "not an image that can be read"),
        (b"\x89PNG\r\n\x1a\n", "not an image that can be read"),
        (bytes(4096), "not an image that can be read"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError) as refused:
        decode(data)
    assert refused.value.stage == "decode"
    assert refused.value.reason.startswith(reason)


def test_drawings_and_documents_are_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS would be drawn by Ghostscript: a program that runs what a data set holds."""
    drawn = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: drawn.append(a) or Image.new("RGB", (10, 10)))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).size == (10, 10)  # Pillow itself would take it
    wmf = b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hHIH", 0, 0, 10, 10, 72, 0, 0) + b"\1\0\t\0\0\3" + bytes(30)
    for data in (eps, b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n%%EOF\n", wmf, b"GRIB" + bytes(60)):
        with pytest.raises(SampleError, match="not an image that can be read"):
            decode(data)
        with pytest.raises(SampleError):
            image_size(data)
    assert not drawn
    known = (".eps", ".ps", ".pdf", ".jpg", ".JPEG", ".png", ".webp", ".tiff")
    assert all(map(is_image_extension, known))
    assert not any(map(is_image_extension, ("", ".", ".txt", "jpg")))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def icon_of(png: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png


def apple_icon_of(png: bytes) -> bytes:
    return b"icns" + struct.pack(">I", 16 + len(png)) + b"icp4" + struct.pack(">I", 8 + len(png)) + png


def jpeg_claiming(photo: Image.Image, width: int, height: int) -> bytes:
    data = bytearray(saved(photo, "JPEG"))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def test_decompression_bombs_are_refused_before_they_are_decoded(photo: Image.Image) -> None:
    """An icon's size is that of the picture inside it, which Pillow decodes while it opens the file."""
    bomb = png_claiming(60_000, 60_000)
    for data in (bomb, jpeg_claiming(photo, 60_000, 60_000), icon_of(bomb)):
        with pytest.raises(SampleError, match=r"over the limit of 178,956,970 .*--max-pixels") as refused:
            decode(data)
        assert refused.value.stage == "decode"
    with pytest.raises(SampleError):
        decode(apple_icon_of(bomb))


def test_the_pixel_limit_is_a_setting(photo: Image.Image) -> None:
    pixels = photo.width * photo.height
    for data in (saved(photo, "JPEG"), saved(photo, "PNG"), png_bytes(np.asarray(photo))):
        assert decode(data, max_pixels=pixels)[0].shape == (photo.height, photo.width, 3)
        with pytest.raises(SampleError, match=f"91x61 is 5,551 pixels, over the limit of {pixels - 1:,}"):
            decode(data, max_pixels=pixels - 1)
        with pytest.raises(SampleError, match="over the limit"):
            image_size(data, max_pixels=pixels - 1)


def test_a_picture_without_pixels_is_refused() -> None:
    for shape in ((0, 4, 3), (4, 0, 3)):
        with pytest.raises(SampleError, match="no pixels"):
            decode(png_bytes(np.zeros(shape, np.uint8)))


def test_decoding_in_threads_leaves_pillows_own_limit_as_it_was(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one for the whole process; the first of two threads to set it is here the first to set it back."""
    limit, opened, pauses = Image.MAX_IMAGE_PIXELS, Image.open, iter((0.1, 0.3))

    def slowly(*arguments: object, **options: object) -> Image.Image:
        image = opened(*arguments, **options)
        time.sleep(next(pauses))
        return image

    monkeypatch.setattr(Image, "open", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda data: decode(data, max_pixels=6000)[0], [saved(photo, "PNG"), saved(photo, "BMP")])
        )
    assert all(np.array_equal(pixels, np.asarray(photo)) for pixels in found)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "progressive"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_or_ignored(photo: Image.Image, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"progressive": True} if kind == "progressive" else {}
    data = saved(photo, "JPEG" if kind == "progressive" else kind, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")

    ignored, notes = decode(data)
    assert np.array_equal(ignored, by_pillow(data))
    assert notes == (() if orientation == 1 else (EXIF_ROTATED,))
    assert image_size(data) == photo.size

    applied, notes = decode(data, exif="apply")
    assert np.array_equal(applied, np.asarray(upright))
    assert notes == (() if orientation == 1 else (EXIF_ROTATED,))
    assert image_size(data, exif="apply") == upright.size


def test_an_orientation_in_xmp_or_behind_other_metadata_is_seen(photo: Image.Image) -> None:
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    early = saved(photo, "JPEG", exif=exif)
    start = early.index(b"\xff\xe1")
    thumbnails = 3 * (b"\xff\xed" + struct.pack(">H", 65_000) + bytes(64_998))  # as Photoshop puts them
    for data in (saved(photo, "JPEG", xmp=xmp), early[:start] + thumbnails + early[start:]):
        pixels, notes = decode(data, exif="apply")
        assert np.array_equal(pixels, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
        assert pixels.shape == (photo.width, photo.height, 3)
        assert notes == (EXIF_ROTATED,)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_is_none_changes_nothing(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(photo, "JPEG", exif=exif)
    pixels, notes = decode(data, exif="apply")
    assert np.array_equal(pixels, by_pillow(data))
    assert notes == ()


def transparent(photo: Image.Image) -> dict[str, bytes]:
    """The ways in which a file can be transparent."""
    ramp = Image.linear_gradient("L").resize(photo.size)
    rgba = photo.copy()
    rgba.putalpha(ramp)
    palette = photo.quantize(16)
    files = {
        "RGBA": saved(rgba, "PNG"),
        "LA": saved(rgba.convert("LA"), "PNG"),
        "WebP": saved(rgba, "WEBP", lossless=True, exact=True),
        "palette": saved(palette, "PNG", transparency=3),
        "palette, half transparent": saved(palette, "PNG", transparency=bytes([255, 128, 0] * 4)),
        "GIF": saved(palette, "GIF", transparency=3),
        "one colour of RGB": saved(photo, "PNG", transparency=photo.getpixel((5, 5))),
        "one grey": saved(photo.convert("L"), "PNG", transparency=photo.convert("L").getpixel((5, 5))),
    }
    return files


@pytest.mark.filterwarnings("ignore:Palette images")
def test_transparency_is_dropped_or_laid_on_a_colour(photo: Image.Image) -> None:
    for kind, data in transparent(photo).items():
        dropped, notes = decode(data)
        assert np.array_equal(dropped, by_pillow(data)), kind
        assert notes == (TRANSPARENT,), kind
        layer = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(float)
        colour, opacity = layer[..., :3], layer[..., 3:] / 255
        assert opacity.min() < 1, kind
        for alpha, background in (("white", 255), ("black", 0)):
            pixels, notes = decode(data, alpha=alpha)
            expected = colour * opacity + background * (1 - opacity)
            assert np.abs(pixels - expected).max() <= 1, (kind, alpha)
            assert notes == (TRANSPARENT,)


def test_opaque_pictures_are_the_same_on_any_background(photo: Image.Image) -> None:
    for data in (saved(photo, "PNG"), saved(photo, "JPEG"), saved(photo.quantize(16), "PNG")):
        assert np.array_equal(decode(data, alpha="white")[0], decode(data)[0])
        assert decode(data)[1] == ()


def test_what_a_person_may_not_expect_is_noted(photo: Image.Image) -> None:
    cmyk = saved(photo.convert("CMYK"), "JPEG")
    deep = saved(Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257), "PNG")
    floats = saved(Image.fromarray(np.asarray(photo.convert("L")).astype(np.float32)), "TIFF")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    assert decode(saved(photo, "JPEG"))[1] == ()
    assert decode(cmyk)[1] == (CMYK,)
    assert decode(deep)[1] == decode(floats)[1] == (SIXTEEN_BIT,)
    assert decode(saved(photo.convert("CMYK"), "JPEG", exif=exif))[1] == (EXIF_ROTATED, CMYK)
    rotated_alpha = saved(photo.convert("RGBA"), "PNG", exif=exif)
    assert decode(rotated_alpha)[1] == (EXIF_ROTATED, TRANSPARENT)


def test_the_first_picture_of_an_animation_is_taken(photo: Image.Image) -> None:
    frames = [photo.quantize(32), ImageOps.mirror(photo).quantize(32)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data)[0], np.asarray(frames[0].convert("RGB")))
