"""The class-conditional layouts, read as the trainers do: by walking, sorting and pairing by position."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentmill import api
from latentmill.errors import ConfigError
from latentmill.formats.repa import MAX_IMAGES, ImageLayout, LatentLayout, converted_number
from support import PHOTOS

Image.init()


@pytest.mark.parametrize(
    ("number", "chunk"), [(0, "00000"), (999, "00000"), (1000, "00001"), (12_345_678, "12345"), (99_999_999, "99999")]
)
def test_names_are_the_number_in_8_digits_in_the_folder_of_its_first_5(number: int, chunk: str) -> None:
    assert ImageLayout().name(number) == f"{chunk}/img{number:08d}.png"
    assert LatentLayout().name(number) == f"{chunk}/img-mean-std-{number:08d}.npy"
    assert LatentLayout("mean").name(number) == f"{chunk}/img-mean-{number:08d}.npy"
    assert LatentLayout("sample").name(number) == f"{chunk}/img-sample-{number:08d}.npy"
    assert converted_number(ImageLayout().name(number)) == number


@pytest.mark.parametrize("number", [-1, MAX_IMAGES])
def test_numbers_that_do_not_fit_are_refused(number: int) -> None:
    with pytest.raises(ConfigError, match="at most 100,000,000 images"):
        ImageLayout().name(number)


@pytest.mark.parametrize(
    "key",
    [
        "00001/img00000000.png",  # in the wrong folder
        "img00000000.png",
        "00000/img00000000.jpg",
        "00000/img0000000.png",
        "x/00000/img00000000.png",
        "00000/img00000000.png.png",
        "00000/IMG00000000.png",
    ],
)
def test_other_names_have_no_number(key: str) -> None:
    assert converted_number(key) is None


def test_bytes_and_back() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(ImageLayout().from_bytes(ImageLayout().to_bytes(pixels)), pixels)
    latent = random.standard_normal((8, 4, 4)).astype(np.float32)
    assert np.array_equal(LatentLayout().from_bytes(LatentLayout().to_bytes(latent)), latent)


# a whole data set, read as the trainers do


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/` and `vae-sd/` from real photos, some of which a transform leaves out and one that is damaged."""
    folder = tmp_path_factory.mktemp("root")
    source = folder / "photos"
    for path in PHOTOS.rglob("*.*"):
        if path.parent.name in ("shapes", "animal", "person"):
            target = source / path.relative_to(PHOTOS)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    (source / "animal" / "broken.jpg").write_bytes(b"not a picture")
    result = api.encode(
        source,
        folder / "vae-sd",
        images=folder / "images",
        model_url="fake",
        transform="center-crop-wide",
        resolution="128x72",
        max_failures=5,
    )
    assert (result.skipped, result.rejected) == (4, 1)
    return folder


def walked(folder: Path) -> list[str]:
    """The REPA reader's walk: every file with an extension that Pillow knows, or `.npy`, sorted."""
    kinds = {*Image.EXTENSION, ".npy"}
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix.lower() in kinds
    )


def test_repa_pairs_images_and_latents_by_position(root: Path) -> None:
    images, latents = walked(root / "images"), walked(root / "vae-sd")
    assert len(images) == len(latents) == 6
    labels = dict(json.loads((root / "vae-sd" / "dataset.json").read_text())["labels"])
    for image, latent in zip(images, latents, strict=True):
        pixels = np.asarray(Image.open(root / "images" / image))
        moments = np.load(root / "vae-sd" / latent)
        assert moments.dtype == np.float32
        blocks = pixels.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 127.5 - 1
        assert np.allclose(moments[:3], blocks, atol=1e-5)  # the fake encoder's mean: so the pair is a pair
        assert isinstance(labels[latent], int)
    assert len(labels) == len(latents)


def test_edm2_reads_members_of_one_shape_in_sorted_order(root: Path) -> None:
    for name, kind in (("images", ".png"), ("vae-sd", ".npy")):
        names = [member for member in walked(root / name) if Path(member).suffix in (".png", ".npy")]
        assert {Path(member).suffix for member in names} == {kind}
        labels = json.loads((root / name / "dataset.json").read_text())["labels"]
        assert [member for member, _ in labels] == names
        shapes = {
            (np.load(root / name / member) if kind == ".npy" else np.asarray(Image.open(root / name / member))).shape
            for member in names
        }
        assert len(shapes) == 1


def test_a_zip_reads_as_the_folder_does(root: Path, tmp_path: Path) -> None:
    dest = tmp_path / "images.zip"
    api.convert(
        root / "photos",
        dest,
        transform="center-crop-wide",
        resolution="128x72",
        max_failures=5,
        num_workers=1,
    )
    with zipfile.ZipFile(dest) as archive:
        names = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in {*Image.EXTENSION, ".npy"})
        assert names == walked(root / "images")
        assert json.loads(archive.read("dataset.json")) == json.loads((root / "images" / "dataset.json").read_text())
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        for name in names:
            image = Image.open(io.BytesIO(archive.read(name)))
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (128, 128))
            assert archive.read(name) == (root / "images" / name).read_bytes()


def test_images_that_are_not_square_powers_of_two_are_refused(tmp_path: Path) -> None:
    for resolution, expected in (("64x32", "square"), ("48x48", "power of two")):
        with pytest.raises(ConfigError, match=expected):
            api.convert(PHOTOS / "animal", tmp_path / "out", transform="center-crop", resolution=resolution)
    assert not (tmp_path / "out").exists()
