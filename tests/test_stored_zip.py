"""Our zips are read by others, past 4 GiB and 65,535 members too; those of others are never trusted."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from latentmill.errors import SampleError
from latentmill.formats.stored_zip import DirectoryWriter, directory_entry, end_records, local_header, read_member

LIMIT = 1 << 20
MEMBERS = {
    "00000/img00000000.png": b"not really a PNG",
    "00000/img00000001.png": bytes(range(256)) * 300,
    "00001/empty.bin": b"",
}


def write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """As a job does it: members appended one after the other, then the directory."""
    with path.open("w+b") as file:
        writer = DirectoryWriter(file, path.with_suffix(".directory"))
        for name, data in members:
            crc = zlib.crc32(data)
            file.write(local_header(name, len(data), crc) + data)
            writer.note(name, len(data), crc)
        writer.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "data.zip"
    write_archive(path, MEMBERS.items())
    return path


def place(info: zipfile.ZipInfo) -> tuple[int, int, int, int]:
    return info.header_offset, info.compress_size, info.compress_type, info.CRC


def test_zipfile_reads_it(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in opened.namelist()} == MEMBERS
        for info in opened.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == 0o100644


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")
def test_unzip_reads_it(archive: Path, tmp_path: Path) -> None:
    checked = subprocess.run(["unzip", "-t", archive], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "No errors detected" in checked.stdout
    subprocess.run(["unzip", "-q", archive, "-d", tmp_path / "out"], check=True, timeout=60)
    for name, data in MEMBERS.items():
        assert (tmp_path / "out" / name).read_bytes() == data


def test_the_same_members_give_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.zip"
    write_archive(again, MEMBERS.items())
    assert again.read_bytes() == archive.read_bytes()


def test_a_whole_file_can_be_appended(tmp_path: Path) -> None:
    source, path = tmp_path / "dataset.json", tmp_path / "data.zip"
    source.write_bytes(b"{}" * 700_000)
    with path.open("w+b") as file:
        writer = DirectoryWriter(file, tmp_path / "directory")
        writer.append("dataset.json", source)
        writer.close()
    with zipfile.ZipFile(path) as opened:
        assert opened.read("dataset.json") == source.read_bytes()


def test_members_that_do_not_add_up_are_never_closed_over(tmp_path: Path) -> None:
    with (tmp_path / "data.zip").open("w+b") as file:
        writer = DirectoryWriter(file, tmp_path / "directory")
        file.write(local_header("a", 3, 0) + b"ab")  # one byte short
        writer.note("a", 3, 0)
        with pytest.raises(ValueError, match="members end at byte"):
            writer.close()


@pytest.mark.parametrize("count", [65_534, 65_535, 66_000])
def test_more_members_than_the_old_format_can_count(tmp_path: Path, count: int) -> None:
    path = tmp_path / "many.zip"
    write_archive(path, ((f"{number:05d}", b"%d" % number) for number in range(count)))
    data = path.read_bytes()
    assert (b"PK\x06\x06" in data[-200:]) == (count >= 65_535)  # zip64 records where they are needed, else not
    with zipfile.ZipFile(path) as opened:
        assert len(opened.namelist()) == count
        for number in (0, 1, count // 2, count - 1):
            assert opened.read(f"{number:05d}") == b"%d" % number
    if count == 66_000 and shutil.which("unzip"):
        checked = subprocess.run(["unzip", "-tqq", path], capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stdout[-500:] + checked.stderr


@pytest.mark.parametrize("gap", [(1 << 32) - 2, (1 << 32) - 1, 1 << 32, 5 << 30])
def test_members_beyond_4_gib(tmp_path: Path, gap: int) -> None:
    """A file with a hole: its members start at `gap`, and so does, past them, the directory."""
    path, directory, at = tmp_path / "large.zip", b"", gap
    with path.open("wb") as file:
        file.seek(gap)
        for name, data in MEMBERS.items():
            crc = zlib.crc32(data)
            directory += directory_entry(name, len(data), crc, at)
            at += file.write(local_header(name, len(data), crc) + data)
        file.write(directory + end_records(len(MEMBERS), len(directory), at))
    with zipfile.ZipFile(path) as opened, path.open("rb") as file:
        for info in opened.infolist():
            assert opened.read(info) == MEMBERS[info.filename]
            assert bool(info.extra) == (info.header_offset >= 0xFFFFFFFF)  # which says: see the extra field
            assert read_member(file, *place(info), LIMIT) == MEMBERS[info.filename]
        assert opened.infolist()[0].header_offset == gap
    path.unlink()


def test_a_member_of_4_gib_is_refused() -> None:
    with pytest.raises(ValueError, match="4 GiB"):
        local_header("large.npy", (1 << 32) - 1, 0)


# reading members of any archive


def archive_of(data: bytes, method: int, **options: object) -> tuple[bytes, zipfile.ZipInfo]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, **options) as writer:
        writer.writestr("first", b"something before it")
        writer.writestr("photo.jpg", data)
    return file.getvalue(), zipfile.ZipFile(file).getinfo("photo.jpg")


PHOTO = random.Random(0).randbytes(5000) + bytes(5000)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_members_are_read(method: int) -> None:
    data, info = archive_of(PHOTO, method)
    assert read_member(io.BytesIO(data), *place(info), LIMIT) == PHOTO
    assert read_member(io.BytesIO(data), *place(info), len(PHOTO)) == PHOTO


def test_a_streamed_archive_is_read() -> None:
    """Written to a pipe: sizes and CRC follow the data, and its local header has none."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("photo.jpg", PHOTO)
    info = zipfile.ZipFile(io.BytesIO(pipe.data)).getinfo("photo.jpg")
    assert info.flag_bits & 8
    assert read_member(io.BytesIO(pipe.data), *place(info), LIMIT) == PHOTO


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_a_reject(method: int) -> None:
    data, info = archive_of(PHOTO, method)
    start = info.header_offset + 30 + len("photo.jpg")
    for at in (start, start + 100, start + info.compress_size // 2):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(SampleError) as refused:
            read_member(io.BytesIO(damaged), *place(info), LIMIT)
        assert refused.value.stage == "read"


def reason(data: bytes, where: tuple[int, int, int, int], limit: int = LIMIT) -> str:
    with pytest.raises(SampleError) as refused:
        read_member(io.BytesIO(data), *where, limit)
    assert refused.value.stage == "read"
    return refused.value.reason


def test_a_wrong_checksum_is_a_reject() -> None:
    data, info = archive_of(PHOTO, zipfile.ZIP_STORED)
    offset, size, method, crc = place(info)
    assert "CRC-32" in reason(data, (offset, size, method, crc ^ 1))


def test_an_encrypted_member_is_a_reject() -> None:
    data, info = archive_of(PHOTO, zipfile.ZIP_STORED)
    locked = bytearray(data)
    locked[info.header_offset + 6] |= 1
    assert "encrypted" in reason(bytes(locked), place(info))


def test_a_cut_off_archive_is_a_reject() -> None:
    data, info = archive_of(PHOTO, zipfile.ZIP_STORED)
    assert "cut off" in reason(data[: info.header_offset + 500], place(info))
    assert "no member starts" in reason(data[: info.header_offset + 10], place(info))


def test_a_directory_that_points_elsewhere_is_a_reject() -> None:
    data, info = archive_of(PHOTO, zipfile.ZIP_STORED)
    _, *rest = place(info)
    for offset in (1, 7, len(data) + 1000):
        assert "no member starts" in reason(data, (offset, *rest))


def test_an_inflate_bomb_is_a_reject_before_it_is_inflated() -> None:
    data, info = archive_of(bytes(8 << 20), zipfile.ZIP_DEFLATED)
    assert info.compress_size < 20_000
    assert "over 1,048,576 bytes" in reason(data, place(info), 1 << 20)


def test_a_size_beyond_all_memory_is_a_reject() -> None:
    data, info = archive_of(PHOTO, zipfile.ZIP_STORED)
    offset, _, method, crc = place(info)
    assert "over 1,048,576 bytes" in reason(data, (offset, 1 << 60, method, crc), 1 << 20)


def test_other_compression_is_a_reject_that_names_it() -> None:
    data, info = archive_of(PHOTO, zipfile.ZIP_BZIP2)
    assert "method 12" in reason(data, place(info))


def test_deflated_data_that_ends_early_is_a_reject() -> None:
    data, info = archive_of(PHOTO, zipfile.ZIP_DEFLATED)
    offset, size, method, crc = place(info)
    assert reason(data, (offset, size - 100, method, crc))
