"""One image while it is loaded: what is reused, what is let go, and that no result is ever overwritten."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentmill import decoding
from latentmill.decoding import decode
from latentmill.loading import Decoded, DecodeImage, ImageLoad
from latentmill.records import Array, Sample, SampleRef
from latentmill.room import Room, Share
from latentmill.sharing import Loading, Place, Reused, Wanted
from latentmill.transforms.crop import CROPS
from support import CAN_FORK, cli_here

SIZES = [(64, 48), (96, 64), (48, 48), (64, 48)]  # (width, height)


class Photos:
    """A source of JPEGs in memory, and a part that loads them."""

    root = None

    def __init__(self, load: ImageLoad, sizes: list[tuple[int, int]], mode: str = "RGB") -> None:
        self.source, self.load = self, load
        self.data = [_jpeg(size, seed, mode) for seed, size in enumerate(sizes)]

    def read(self, ref: SampleRef) -> bytes:
        return self.data[ref.index]

    def wanted(self, number: int) -> list[Wanted]:
        return [Wanted(Place(0, 0, 0), SampleRef(number, f"{number}.jpg", ""))]


def _jpeg(size: tuple[int, int], seed: int, mode: str) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "jpeg", quality=95)
    return file.getvalue()


def loaded(loading: Loading, photos: Photos, number: int) -> Array:
    ((_, sample),) = loading(photos.wanted(number))
    assert isinstance(sample, Sample)
    return sample.array


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_results_that_lie_in_what_was_decoded_are_never_overwritten(mode: str, exif: str) -> None:
    """An image that has its size already is not copied by `none`."""
    photos = Photos(ImageLoad("none", None, exif, "drop", None), SIZES, mode)
    loading = Loading([photos], reuse=True)
    found = [loaded(loading, photos, number) for number in range(len(SIZES))]
    for array, data in zip(found, photos.data, strict=True):
        np.testing.assert_array_equal(array, decode(data)[0])


def faulty(pixels: Array, width: int, height: int) -> Array:
    raise KeyError(6)


def test_a_fault_tells_which_image_it_came_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CROPS, "center-crop", faulty)
    photos = Photos(ImageLoad("center-crop", (8, 8), "ignore", "drop", None), SIZES)
    with pytest.raises(KeyError) as found:
        Loading([photos], reuse=True)(photos.wanted(2))
    assert found.value.__notes__ == ["with 2.jpg"]


@pytest.mark.skipif(not CAN_FORK, reason="workers must see what the test has patched")
def test_a_fault_in_a_worker_tells_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("latentmill.runners.local._start_method", lambda: "fork")
    monkeypatch.setitem(CROPS, "center-crop", faulty)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(_jpeg((64, 48), 0, "RGB"))
    words = ["convert", "--source", tmp_path / "photos", "--dest", tmp_path / "out", "--num-workers", 2]
    run = cli_here(*words, "--transform", "center-crop", "--resolution", "8x8")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == (
        "error: a fault in latentmill: RuntimeError: a worker process failed: KeyError: 6, with one.jpg (--debug tells "
        "more)"
    )


def test_a_view_that_a_transform_keeps_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Array] = []

    def crop(pixels: Array, width: int, height: int) -> Array:
        kept.append(pixels[1:])
        return pixels[:height, :width].copy()

    monkeypatch.setitem(CROPS, "center-crop", crop)
    photos = Photos(ImageLoad("center-crop", (32, 32), "ignore", "drop", None), SIZES)
    loading = Loading([photos], reuse=True)
    for number in range(len(SIZES)):
        loaded(loading, photos, number)
    for array, data in zip(kept, photos.data, strict=True):
        np.testing.assert_array_equal(array, decode(data)[0][1:])


@pytest.mark.parametrize("reuse", [False, True])
def test_photos_are_decoded_into_the_memory_of_those_before(reuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lent: list[int] = []
    take = Reused.__call__

    def told(self: Reused, size: int) -> Array:
        view = take(self, size)
        lent.append(view.ctypes.data)
        return view

    monkeypatch.setattr(Reused, "__call__", told)
    photos = Photos(ImageLoad("center-crop", (32, 32), "ignore", "drop", None), [(96, 64), *SIZES])
    loading = Loading([photos], reuse=reuse)
    for number in range(len(photos.data)):
        np.testing.assert_array_equal(
            loaded(loading, photos, number), CROPS["center-crop"](decode(photos.data[number])[0], 32, 32)
        )
    assert len(set(lent)) == int(reuse)
    assert len(lent) == (len(photos.data) if reuse else 0)


def test_a_damaged_photo_leaves_the_next_one_as_it_is() -> None:
    photos = Photos(ImageLoad("center-crop", (32, 32), "ignore", "drop", None), SIZES)
    photos.data[1] = photos.data[1][:-400]
    loading = Loading([photos], reuse=True)
    for number in range(len(SIZES)):
        ((_, item),) = loading(photos.wanted(number))
        if number != 1:
            assert isinstance(item, Sample)
            expected = CROPS["center-crop"](decode(photos.data[number])[0], 32, 32)
            np.testing.assert_array_equal(item.array, expected)


@pytest.mark.parametrize("resizes", [("exact", "exact"), ("exact", "fast")])
def test_the_bytes_of_a_photo_are_let_go_once_it_is_decoded_in_every_way(resizes: tuple[str, str]) -> None:
    """Of two jobs that decode alike, after the first; of two that do not, after the second."""
    seen: list[bool] = []
    gone: list[bool] = []

    class Data(bytes):
        def __del__(self) -> None:
            gone.append(True)

    class Noting(ImageLoad):
        def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
            seen.append(bool(gone))
            return super().__call__(ref, decoded)

    parts = [
        Photos(Noting(transform, (16, 16), "ignore", "drop", None, fast=resize == "fast"), [(64, 64)])
        for transform, resize in zip(("center-crop", "none"), resizes, strict=True)
    ]
    jpeg = parts[0].data[0]
    read: Callable[[SampleRef], bytes] = lambda ref: Data(jpeg)  # noqa: E731
    for part in parts:
        part.read = read  # type: ignore[method-assign]
    Loading(parts, reuse=False)([Wanted(Place(number, 0, 0), SampleRef(0, "0", "")) for number in range(2)])
    assert seen == [resizes[0] == resizes[1], True]


@pytest.mark.parametrize(("extension", "known"), [("jpeg", True), ("png", True), ("bmp", False)])
def test_the_bytes_of_pixels_are_told_before_they_are_decoded(extension: str, known: bool) -> None:
    file = io.BytesIO()
    Image.new("RGB", (31, 17)).save(file, extension)
    told = decoding.decoded_bytes(file.getvalue())
    assert told == (decode(file.getvalue())[0].nbytes if known else 0)
    assert decoding.decoded_bytes(file.getvalue()[:20]) == 0


class NotedShare(Share):
    """Notes what it is told; nothing is held up."""

    def __init__(self, room: Room, number: int = 0) -> None:
        super().__init__(room, number)
        self.added: list[int] = []
        self.kept: list[int] = []

    def add(self, size: int) -> None:
        self.added.append(size)
        super().add(size)

    def set(self, size: int) -> None:
        self.kept.append(size)
        super().set(size)


def test_a_photo_of_more_pixels_than_may_be_decoded_takes_no_room() -> None:
    photos = Photos(ImageLoad("none", None, "ignore", "drop", None, max_pixels=64 * 48), [(64, 48), (64, 49)])
    photos.data.append(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 2**31, 2**31, 8, 2, 0, 0, 0))
    for number, pixels in enumerate([3 * 64 * 48, 0, 0]):
        share = NotedShare(Room(1))
        Loading([photos], reuse=False)(photos.wanted(number), share)
        assert share.added[0] == len(photos.data[number]) + pixels


def test_bytes_that_were_not_counted_make_no_room() -> None:
    """The photo that is waited for is loaded though there is no room."""
    photos = Photos(ImageLoad("center-crop", (16, 16), "ignore", "drop", None), [(64, 48)])
    room = Room(1, least=1)
    Share(room, 1).add(10**6)
    share = NotedShare(room)
    Loading([photos], reuse=False)(photos.wanted(0), share)
    assert share.kept == [0, 3 * 16 * 16]


def test_a_decode_of_a_plug_in_is_given_the_bytes_alone() -> None:
    class Inverted(DecodeImage):
        def __call__(self, data: bytes) -> Decoded:  # type: ignore[override]
            return Decoded(255 - decode(data)[0], ())

    class InvertedLoad(ImageLoad):
        @property
        def decode(self) -> DecodeImage:
            return Inverted(self.exif, self.alpha, self.max_pixels)

    photos = Photos(InvertedLoad("none", None, "ignore", "drop", None), [(64, 48)])
    for share in (None, Share(Room(1), 0)):
        ((_, sample),) = Loading([photos], reuse=True)(photos.wanted(0), share)
        assert isinstance(sample, Sample)
        np.testing.assert_array_equal(sample.array, 255 - decode(photos.data[0])[0])
