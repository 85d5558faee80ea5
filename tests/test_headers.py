"""Headers of image files: the size and orientation that decoding finds, without decoding."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentmill.decoding import decode
from latentmill.sources.headers import HeaderFault, ImageHeader, read_header
from support import PHOTOS


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_headers_are_what_decoding_finds_in_order() -> None:
    keys = sorted(p.relative_to(PHOTOS).as_posix() for p in PHOTOS.rglob("*") if p.is_file() and p.suffix != ".md")
    headers = [read_header(PHOTOS, key) for key in keys]
    assert [header.key for header in headers] == keys
    for header in headers:
        assert isinstance(header, ImageHeader)
        data = (PHOTOS / header.key).read_bytes()
        assert header.size == decode(data)[0].shape[:2]
        assert header.upright == decode(data, exif="apply")[0].shape[:2]
    formats = {Path(header.key).name: header.format for header in headers if isinstance(header, ImageHeader)}
    assert formats["photo.webp"] == "WEBP"
    assert formats["cmyk.jpg"] == "JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_orientation_is_seen(tmp_path: Path, orientation: int, suffix: str) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / f"x.{suffix}", exif=turned(orientation))
    header = read_header(tmp_path, f"x.{suffix}")
    assert isinstance(header, ImageHeader)
    assert (header.size, header.orientation) == ((20, 30), orientation)
    assert header.upright == ((30, 20) if orientation >= 5 else (20, 30))


def test_a_turned_tiff_is_told_as_it_is_decoded(tmp_path: Path) -> None:
    """Pillow turns it upright whatever is asked."""
    Image.new("RGB", (30, 20)).save(tmp_path / "x.tiff", exif=turned(6))
    header = read_header(tmp_path, "x.tiff")
    assert isinstance(header, ImageHeader)
    assert header.size == header.upright == decode((tmp_path / "x.tiff").read_bytes())[0].shape[:2] == (30, 20)


def test_orientation_behind_the_pixels_of_a_large_png_is_seen(tmp_path: Path) -> None:
    """Where tools that edit metadata put it."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png", compress_level=0)
    data, exif = (tmp_path / "x.png").read_bytes(), turned(6).tobytes()[6:]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    (tmp_path / "x.png").write_bytes(data[:-12] + chunk + data[-12:])
    header = read_header(tmp_path, "x.png")
    assert isinstance(header, ImageHeader)
    assert header.upright == (300, 200)


def test_a_large_png_is_not_decoded(tmp_path: Path) -> None:
    """A damaged picture has a header still."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[: len(data) // 2])
    header = read_header(tmp_path, "x.png")
    assert isinstance(header, ImageHeader)
    assert header.size == (200, 300)


def test_a_bad_file_is_a_fault_of_its_own(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "drawn.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    keys = ["empty.png", "gone.png", "good.png", "text.png", "drawn.png", "folder.png", "pipe.png"]
    headers = [read_header(tmp_path, key) for key in keys]
    stages = {header.key: header.stage for header in headers if isinstance(header, HeaderFault)}
    assert list(stages) == [key for key in keys if key != "good.png"]
    assert {key for key, stage in stages.items() if stage == "read"} == {"gone.png", "folder.png", "pipe.png"}


def test_a_picture_over_the_limit_is_a_fault(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "x.png")
    header = read_header(tmp_path, "x.png", max_pixels=599)
    assert isinstance(header, HeaderFault)
    assert "599" in header.reason
