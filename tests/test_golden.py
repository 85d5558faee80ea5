"""The reference tool's own outputs for 26 photos: every pixel, name, label and skip, and latents within 1e-5."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentmill import api
from latentmill.formats.metadata import index_rows
from support import DATA, PHOTOS, TINY_VAE, cli, contents

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads((DATA / "repa_pixels.json").read_text())["pixels"]
TOLERANCE = 1e-5  # of latents in float32, whatever the batch size


def read_member(dataset: Path, name: str) -> bytes:
    if dataset.suffix == ".zip":
        with zipfile.ZipFile(dataset) as archive:
            return archive.read(name)
    return (dataset / name).read_bytes()


def names(dataset: Path, ending: str) -> list[str]:
    if dataset.suffix == ".zip":
        with zipfile.ZipFile(dataset) as archive:
            return sorted(name for name in archive.namelist() if name.endswith(ending))
    return sorted(path.relative_to(dataset).as_posix() for path in dataset.rglob(f"*{ending}"))


def zip_photos(path: Path) -> Path:
    """The photos in a zip, with the labels that their folders give: a zip has no others."""
    labels = [[row["source"], row["label"]] for row in GOLDEN["none 128x128"]]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for photo in sorted(PHOTOS.rglob("*.*"), reverse=True):
            archive.write(photo, photo.relative_to(PHOTOS).as_posix())
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


def check_pixels(dataset: Path, expected: list[dict[str, Any]]) -> None:
    stored = [row for row in expected if row["name"] is not None]
    assert names(dataset, ".png") == [row["name"] for row in stored]
    assert json.loads(read_member(dataset, "dataset.json")) == {
        "labels": [[row["name"], row["label"]] for row in stored]
    }
    for row in stored:
        with Image.open(io.BytesIO(read_member(dataset, row["name"]))) as image:
            pixels = np.asarray(image)
            assert (image.format, image.mode) == ("PNG", "RGB")
        assert list(pixels.shape) == row["shape"], row["source"]
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256"], row["source"]
    index = {row["key"]: row for row in index_rows(dataset)}
    assert [key for key, row in index.items() if "skipped" in row] == [
        row["source"] for row in expected if row["name"] is None
    ]
    assert not any("reject" in row for row in index.values())


@pytest.mark.parametrize(
    ("setting", "dest", "source", "workers"),
    [
        ("center-crop-dhariwal 256x256", "images", "folder", 2),
        ("center-crop-dhariwal 64x64", "images.zip", "zip", 3),
        ("center-crop-dhariwal 512x512", "images.zip", "folder", 2),
        ("center-crop 256x256", "images", "zip", 1),
        ("center-crop-wide 128x72", "images", "folder", 3),
        ("none 128x128", "images.zip", "folder", 1),
    ],
)
def test_pixels_are_the_references(tmp_path: Path, setting: str, dest: str, source: str, workers: int) -> None:
    transform, resolution = setting.split()
    photos = PHOTOS if source == "folder" else zip_photos(tmp_path / "photos.zip")
    done = cli(
        *("convert", "--source", photos, "--dest", tmp_path / dest, "--transform", transform),
        *("--resolution", resolution, "--num-workers", workers, "--batch-size", 4),
    )
    assert done.returncode == 0, done.stderr
    check_pixels(tmp_path / dest, GOLDEN[setting])


def test_every_setting_of_the_reference_is_tested() -> None:
    assert len(GOLDEN) == 6
    assert all(len(rows) == 26 for rows in GOLDEN.values())


@pytest.mark.parametrize("dest", ["images", "images.zip"])
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, dest: str) -> None:
    found = []
    for workers in (1, 2, 3):
        place = tmp_path / str(workers) / dest
        done = cli(
            *("convert", "--source", PHOTOS, "--dest", place, "--transform", "center-crop-wide"),
            *("--resolution", "64x40", "--num-workers", workers, "--batch-size", 2),
        )
        assert done.returncode == 0, done.stderr
        found.append(place.read_bytes() if dest.endswith(".zip") else contents(place))
    assert found[0] == found[1] == found[2]


# latents

CROP = {"transform": "center-crop-dhariwal", "resolution": "256x256"}


@pytest.fixture(scope="module", params=["folder", "zip"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("converted") / ("images" if request.param == "folder" else "images.zip")
    api.convert(PHOTOS, dest, num_workers=1, **CROP)
    return dest


def check_latents(dataset: Path) -> None:
    """Names, labels and values; the labels' file names each latent in the order of the reference's array."""
    expected = json.loads((DATA / "repa_latents_dataset.json").read_text())
    assert json.loads(read_member(dataset, "dataset.json")) == expected
    latents = np.load(DATA / "repa_latents_256.npy")
    assert names(dataset, ".npy") == [name for name, _ in expected["labels"]]
    for (name, _), latent in zip(expected["labels"], latents, strict=True):
        found = np.load(io.BytesIO(read_member(dataset, name)))
        assert found.dtype == np.float32
        assert found.shape == (8, 32, 32)
        assert np.abs(found - latent).max() <= TOLERANCE, name


@pytest.mark.parametrize(("batch_size", "dest"), [(1, "latents"), (5, "latents.zip"), (26, "latents")])
def test_latents_in_one_pass_are_the_references(tmp_path: Path, batch_size: int, dest: str) -> None:
    api.encode(PHOTOS, tmp_path / dest, model_url=str(TINY_VAE), batch_size=batch_size, **CROP)
    check_latents(tmp_path / dest)


def test_latents_of_converted_images_are_the_references(converted: Path, tmp_path: Path) -> None:
    api.encode(converted, tmp_path / "latents", model_url=str(TINY_VAE))
    check_latents(tmp_path / "latents")


def test_the_command_gives_the_references_latents_and_pixels_in_one_pass(tmp_path: Path) -> None:
    done = cli(
        *("encode", "--source", PHOTOS, "--dest", tmp_path / "vae-sd", "--images", tmp_path / "images"),
        *("--transform", "center-crop-dhariwal", "--resolution", "256,256", "--vae", TINY_VAE, "--batch-size", 3),
    )
    assert done.returncode == 0, done.stderr
    check_latents(tmp_path / "vae-sd")
    check_pixels(tmp_path / "images", GOLDEN["center-crop-dhariwal 256x256"])


def test_a_gap_in_the_source_keeps_every_number(tmp_path: Path) -> None:
    """Skipped photos leave gaps; latents of what was converted carry the images' numbers, and pair by position."""
    source, images = tmp_path / "photos", tmp_path / "images"
    source.mkdir()
    (source / "a").symlink_to(PHOTOS / "shapes")
    (source / "b").symlink_to(PHOTOS / "animal")
    api.convert(source, images, transform="center-crop-wide", resolution="128x72", num_workers=1)
    api.encode(images, tmp_path / "vae-sd", model_url="fake")
    kept = {row["source"] for row in GOLDEN["center-crop-wide 128x72"] if row["name"] is not None}
    photos = [*sorted((PHOTOS / "shapes").iterdir()), *(PHOTOS / "animal").iterdir()]
    numbers = [n for n, photo in enumerate(photos) if photo.relative_to(PHOTOS).as_posix() in kept]
    assert numbers == [0, 1, 2, 7]
    assert names(images, ".png") == [f"00000/img{n:08d}.png" for n in numbers]
    assert json.loads((tmp_path / "vae-sd" / "dataset.json").read_text())["labels"] == [
        [f"00000/img-mean-std-{n:08d}.npy", int(n == 7)] for n in numbers
    ]
