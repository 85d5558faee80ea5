"""Reading a dataset's files the fast way: the same as any other way, also where files are not as they were written."""

from __future__ import annotations

import io
import shutil
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import latentmill
from latentmill import api
from latentmill.encoders.normalization import Affine
from latentmill.formats.metadata import INDEX_COLUMNS, METADATA_JSON, read_beside
from latentmill.formats.payload import npy_array, npy_bytes, png_bytes
from latentmill.formats.reader import Reader
from latentmill.formats.stored_png import StoredPngs
from latentmill.formats.zip_tail import last_member, open_last_member
from latentmill.loaders_draws import Draws, drawn_key
from latentmill.normals import normals
from support import make_photos

CROP = {"transform": "center-crop", "resolution": "32x32"}
COUNT = 12
PICTURE, LATENT = "00000/img00000003.png", "00000/img-mean-std-00000003.npy"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    make_photos(root / "photos", COUNT)
    for ending in ("", ".zip"):
        api.encode(root / "photos", root / f"z{ending}", model_url="fake", images=root / f"x{ending}", **CROP)
    return root


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def sample(data: Path, ending: str = "", position: int = 3) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = latentmill.load(data / f"z{ending}", data / f"x{ending}")[position]
    return found


def repacked(path: Path, compression: int, changed: dict[str, bytes] | None = None) -> None:
    """The archive as another tool makes it: other headers, another order, perhaps compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in sorted({**members, **(changed or {})}.items(), reverse=True):
            archive.writestr(name, content)


# pictures and arrays


def read_png(path: Path, data: bytes, stored: StoredPngs) -> np.ndarray | None:
    path.write_bytes(data)
    buffer = stored.buffer
    read = Reader(path.parent).fill(path.name, stored.head, buffer.data)
    return stored.planes(buffer) if read else None


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 700), seed=st.integers(0, 9))
def test_a_stored_png_of_any_size_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{height}x{width}.png"
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = png_bytes(pixels)
    stored = StoredPngs(height, width)
    assert stored.size == len(data)
    for _ in range(2):
        found = read_png(path, data, stored)
        assert found is not None
        assert np.array_equal(found, pixels.transpose(2, 0, 1))


def test_any_flipped_byte_of_a_stored_png_is_seen(tmp_path: Path) -> None:
    data = png_bytes(np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8))
    stored = StoredPngs(5, 4)
    unseen = []
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        if read_png(tmp_path / "a.png", changed, stored) is not None:
            unseen.append(at)
    assert unseen == []


@pytest.mark.parametrize("array", [np.arange(24.0), np.zeros((2, 0)), np.array(3), np.ones((2, 3), order="F")])
def test_arrays_are_read_as_numpy_reads_them(array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array)
    for data in (file.getvalue(), memoryview(bytearray(file.getvalue()))):
        found = npy_array(data)
        assert np.array_equal(found, np.load(io.BytesIO(data)))
        assert found.flags.writeable
    for wrong in (b"", data[:9], data[:60], data[: len(data) - max(1, array.nbytes)]):
        with pytest.raises((ValueError, EOFError)):
            npy_array(bytes(wrong))


def test_pickled_objects_are_never_opened() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        npy_array(file.getvalue())


# files that are not as they were written


@pytest.mark.parametrize("kind", ["compressed", "longer", "smaller"])
def test_a_picture_of_another_tool_is_read_too(data: Path, kind: str) -> None:
    expected = sample(data)["image"]
    pixels = expected.permute(1, 2, 0).numpy()
    file = data / "x" / PICTURE
    if kind == "compressed":
        Image.fromarray(pixels).save(file, compress_level=6)
    elif kind == "longer":
        file.write_bytes(file.read_bytes() + b"more")
    else:
        Image.fromarray(pixels[:8]).save(file)
        expected = expected[:, :8]
    assert torch.equal(sample(data)["image"], expected)


def test_an_array_of_another_shape_and_dtype_is_read_too(data: Path) -> None:
    array = np.arange(8 * 2 * 2, dtype=np.float16).reshape(8, 2, 2)
    (data / "z" / LATENT).write_bytes(npy_bytes(array))
    assert np.array_equal(sample(data)["moments"].numpy(), array.astype(np.float32))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_of_another_tool_is_read_too(data: Path, compression: int) -> None:
    expected = sample(data, ".zip")
    for name in ("z.zip", "x.zip"):
        repacked(data / name, compression)
    found = sample(data, ".zip")
    assert torch.equal(found["moments"], expected["moments"])
    assert torch.equal(found["image"], expected["image"])


@pytest.mark.parametrize("name", ["z.zip", "x.zip"])
def test_damage_in_an_archive_is_an_error(data: Path, name: str) -> None:
    content = bytearray((data / name).read_bytes())
    with zipfile.ZipFile(data / name) as archive:
        info = archive.infolist()[3]
    content[info.header_offset + 30 + len(info.filename) + info.file_size - 60] ^= 1
    (data / name).write_bytes(content)
    dataset = latentmill.load(data / "z.zip", data / "x.zip")
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        dataset[3]
    dataset[4]


def test_a_damaged_picture_in_a_folder_is_an_error(data: Path) -> None:
    file = data / "x" / PICTURE
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)
    with pytest.raises((OSError, SyntaxError, ValueError)):
        sample(data)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        sample(data)


# handles, threads, processes


@pytest.mark.parametrize("ending", ["", ".zip"])
def test_threads_share_a_dataset(made: Path, ending: str) -> None:
    dataset = latentmill.load(made / f"z{ending}", made / f"x{ending}", posterior="mean")
    expected = [dataset[position] for position in range(COUNT)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(dataset.__getitem__, list(range(COUNT)) * 20))
    for position, one in enumerate(found):
        assert torch.equal(one["image"], expected[position % COUNT]["image"])
        assert torch.equal(one["latent"], expected[position % COUNT]["latent"])


@pytest.mark.skipif(sys.platform != "linux", reason="handles are counted in /proc")
@pytest.mark.parametrize("ending", ["", ".zip"])
def test_handles_are_few_and_closed(made: Path, ending: str) -> None:
    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = handles()
    dataset = latentmill.load(made / f"z{ending}", made / f"x{ending}")
    for position in list(range(COUNT)) * 3:
        dataset[position]
    assert handles() <= before + 4  # of each archive, one to read and one of what is mapped
    del dataset
    assert handles() == before


@pytest.mark.parametrize("ending", ["", ".zip"])
def test_without_scattered_reads_all_is_the_same(made: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sample(made, ending)
    monkeypatch.setattr("latentmill.formats.parts.AVAILABLE", False)
    found = sample(made, ending)
    assert torch.equal(found["image"], expected["image"])
    assert torch.equal(found["moments"], expected["moments"])


# the end of an archive


@pytest.mark.parametrize("count", [0, 1, 40, 70_000])
def test_the_last_members_are_found_as_zipfile_finds_them(tmp_path: Path, count: int) -> None:
    from latentmill.formats.stored_zip import directory_entry, end_records, local_header

    path = tmp_path / "a.zip"
    members = {f"{n:06d}": b"" for n in range(count)} | {
        "PK\1\2": b"odd",
        METADATA_JSON: b"{}",
        INDEX_COLUMNS: b"x" * 9,
    }
    with path.open("wb") as file:
        entries, at = [], 0
        for name, content in members.items():
            crc = zlib.crc32(content)
            entries.append(directory_entry(name, len(content), crc, at))
            at += file.write(local_header(name, len(content), crc) + content)
        size = sum(map(file.write, entries))
        file.write(end_records(len(members), size, at))
    for name in (METADATA_JSON, INDEX_COLUMNS):
        stream = open_last_member(path, name)
        assert stream is not None
        with stream:
            assert stream.read() == members[name]
    assert last_member(path, "nothing") is None
    if count < 100:  # what is not there is left to zipfile
        assert read_beside(path, "nothing") is None
        repacked(path, zipfile.ZIP_DEFLATED)
        assert last_member(path, METADATA_JSON) is None
        assert read_beside(path, METADATA_JSON) == b"{}"


# draws


AFFINES = [
    Affine(0.0, 0.18215),
    Affine(0.1159, 0.3611),
    Affine(0.0, 1.0),
    Affine(torch.randn(4, 1, 1), torch.rand(4, 1, 1) + 0.1),
    Affine(torch.randn(16, 1, 1), torch.rand(16, 1, 1) + 0.1, divides=True, patch=2),
]


@pytest.mark.parametrize("affine", AFFINES)
def test_draws_are_bit_for_bit_what_the_formulas_give_in_pytorch(affine: Affine) -> None:
    stored = torch.randn(8, 6, 10)
    mean, std = stored.chunk(2)
    z = np.empty(std.shape, np.float32)
    torch.manual_seed(3)
    normals(drawn_key(), z)
    expected = affine.apply(mean + std * torch.from_numpy(z))
    torch.manual_seed(3)
    before = stored.clone()
    assert torch.equal(Draws(affine, True, True)(stored.numpy()), expected)
    assert torch.equal(Draws(affine, True, False)(stored.numpy()), affine.apply(mean))
    assert torch.equal(Draws(affine, False, True)(stored[:4].numpy()), affine.apply(stored[:4]))
    assert torch.equal(stored, before)
