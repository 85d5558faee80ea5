"""`latentmill verify` finds what was changed after a dataset was made, and says where."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import latentmill
from latentmill.errors import LatentmillError, SourceError
from support import cli, make_photos

CROP = {"transform": "center-crop-dhariwal", "resolution": "32x32"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents and images of 12 photos, one of them unreadable, as folders and as zips."""
    root = tmp_path_factory.mktemp("verify")
    photos = root / "photos"
    make_photos(photos, 12)
    (photos / "c0" / "bad.jpg").write_bytes(b"")
    for suffix in ("", ".zip"):
        latentmill.encode(photos, root / f"lat{suffix}", **CROP, model_url="fake", images=root / f"img{suffix}")
    return root


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def problems(latents: Path, images: Path | None = None) -> dict[str, str]:
    return {problem.where: problem.what for problem in latentmill.verify(latents, images).problems}


LATENT, OTHER = "00000/img-mean-std-00000003.npy", "00000/img-mean-std-00000004.npy"
PICTURE, OTHER_PICTURE = "00000/img00000003.png", "00000/img00000004.png"


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_whole_dataset_is_sound(made: Path, suffix: str) -> None:
    run = cli("verify", made / f"lat{suffix}", "--images", made / f"img{suffix}")
    assert run.returncode == 0, run
    assert "sound" in run.stdout
    assert problems(made / f"img{suffix}") == {}
    assert problems(made / f"lat{suffix}", made / ("img" if suffix else "img.zip")) == {}  # one of each kind


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "at"),
    [(f"lat/{LATENT}", 20), (f"lat/{LATENT}", -1), (f"img/{PICTURE}", 60), (f"img/{PICTURE}", 3)],
)
def test_a_flipped_byte(data: Path, name: str, at: int) -> None:
    flip(data / name, at)
    folder, _, file = name.partition("/")
    run = cli("verify", data / folder)
    assert run.returncode == 1
    assert file in run.stdout
    assert "1 problems" in run.stdout
    if folder == "img":
        assert list(problems(data / "lat", data / "img")) == [LATENT]


@pytest.mark.parametrize("name", ["latentmill.json", "latentmill-index.jsonl", "dataset.json"])
@pytest.mark.parametrize("kind", ["lat", "img"])
def test_any_flipped_byte_of_the_metadata(data: Path, kind: str, name: str) -> None:
    file = data / kind / name
    whole = file.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        flip(file, at)
        try:
            found = problems(data / kind)
        except LatentmillError:
            found = {"refused": ""}
        assert found, f"byte {at} of {name}: {whole[max(0, at - 30) : at + 10]!r}"
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", ["lat", "img"])
def test_any_flipped_byte_of_a_zip(data: Path, kind: str) -> None:
    archive = data / f"{kind}.zip"
    whole = archive.read_bytes()
    for at in sorted({*range(0, len(whole), len(whole) // 200), *range(200), *range(len(whole) - 400, len(whole))}):
        flip(archive, at)
        try:
            found = problems(archive)
        except LatentmillError:
            found = {"refused": ""}
        assert found, f"byte {at} of {len(whole)}: {whole[max(0, at - 30) : at + 10]!r}"
        archive.write_bytes(whole)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_zip(data: Path, share: float) -> None:
    archive = data / "lat.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    run = cli("verify", archive)
    assert run.returncode == 1
    assert "not a zip archive that can be read" in run.stdout
    assert "Traceback" not in run.stderr


def test_a_truncated_file(data: Path) -> None:
    whole = (data / "lat" / LATENT).read_bytes()
    for length in (0, 10, len(whole) - 1):
        (data / "lat" / LATENT).write_bytes(whole[:length])
        assert list(problems(data / "lat")) == [LATENT]


# members of folders and zips, changed alike


def change(dataset: Path, edit: Callable[[dict[str, bytes]], None]) -> None:
    """Apply `edit` to the members of a folder or a zip."""
    if dataset.is_dir():
        members = {p.relative_to(dataset).as_posix(): p.read_bytes() for p in dataset.rglob("*") if p.is_file()}
        edit(members)
        shutil.rmtree(dataset)
        for name, content in members.items():
            (dataset / name).parent.mkdir(parents=True, exist_ok=True)
            (dataset / name).write_bytes(content)
        return
    with zipfile.ZipFile(dataset) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(dataset, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def swap(one: str, other: str) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        members[one], members[other] = members[other], members[one]

    return edit


BOTH = pytest.mark.parametrize("suffix", ["", ".zip"], ids=["folder", "zip"])


@BOTH
def test_a_missing_file(data: Path, suffix: str) -> None:
    change(data / f"lat{suffix}", lambda members: members.pop(LATENT))
    assert problems(data / f"lat{suffix}") == {LATENT: "is missing"}
    change(data / f"img{suffix}", lambda members: members.pop(OTHER_PICTURE))
    assert problems(data / f"img{suffix}") == {OTHER_PICTURE: "is missing"}
    assert problems(data / f"lat{suffix}", data / f"img{suffix}").keys() == {LATENT, OTHER}


@BOTH
@pytest.mark.parametrize("name", ["00000/img-mean-std-00000099.npy", "00001/x.npy", "a.txt", "00000/img00000003.png"])
def test_a_stray_file(data: Path, suffix: str, name: str) -> None:
    change(data / f"lat{suffix}", lambda members: members.update({name: b"stray"}))
    found = problems(data / f"lat{suffix}")
    assert list(found) == [name]
    assert "stray" in found[name]


@BOTH
def test_a_stray_image_under_the_latents(data: Path, suffix: str) -> None:
    change(data / f"img{suffix}", lambda members: members.update({"00000/img00000099.png": b"stray"}))
    assert list(problems(data / f"lat{suffix}", data / f"img{suffix}")) == ["00000/img00000099.png"]


@BOTH
def test_a_swapped_pair(data: Path, suffix: str) -> None:
    change(data / f"lat{suffix}", swap(LATENT, OTHER))
    assert problems(data / f"lat{suffix}").keys() == {LATENT, OTHER}


@BOTH
def test_images_swapped_under_the_latents(data: Path, suffix: str) -> None:
    change(data / f"img{suffix}", swap(PICTURE, OTHER_PICTURE))
    assert problems(data / f"lat{suffix}") == {}
    assert problems(data / f"lat{suffix}", data / f"img{suffix}").keys() == {LATENT, OTHER}
    assert cli("verify", data / f"lat{suffix}", "--images", data / f"img{suffix}").returncode == 1


@BOTH
def test_sound_images_of_other_photos(data: Path, suffix: str) -> None:
    """A whole dataset that was made of other photos under the same names."""
    make_photos(data / "others", 12, seed=9)
    (data / "others" / "c0" / "bad.jpg").write_bytes(b"")
    latentmill.convert(data / "others", data / f"other{suffix}", **CROP, num_workers=1)
    assert problems(data / f"other{suffix}") == {}
    assert len(problems(data / f"lat{suffix}", data / f"other{suffix}")) == 12


@BOTH
def test_fewer_images_than_latents_and_the_other_way(data: Path, suffix: str) -> None:
    latentmill.convert(data / "photos", data / f"few{suffix}", **CROP, num_workers=1, max_images=9)
    assert len(problems(data / f"lat{suffix}", data / f"few{suffix}")) == 4
    latentmill.encode(data / "photos", data / f"fewlat{suffix}", **CROP, model_url="fake", max_images=9)
    assert len(problems(data / f"fewlat{suffix}", data / f"img{suffix}")) == 4


@BOTH
def test_images_whose_labels_differ(data: Path, suffix: str) -> None:
    names = [path.relative_to(data / "photos").as_posix() for path in (data / "photos").rglob("*.jpg")]
    (data / "photos" / "dataset.json").write_text(json.dumps({"labels": [[name, 5] for name in names]}))
    latentmill.convert(data / "photos", data / f"other{suffix}", **CROP, num_workers=1)
    found = problems(data / f"lat{suffix}", data / f"other{suffix}")
    assert len(found) == 12
    assert all("label" in what for what in found.values())


@BOTH
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'3.npy", 0', b'3.npy", 1', LATENT),
        (b"img-mean-std-00000003", b"img-mean-std-00000004", LATENT),
        (b'{"labels": [', b'{"labels": [["x.npy", 1], ', "labels"),
        (b'{"labels"', b'{"lebals"', "lebals"),
        (b"]]}", b"", "JSON"),
    ],
)
def test_a_changed_dataset_json(data: Path, suffix: str, old: bytes, new: bytes, said: str) -> None:
    def edit(members: dict[str, bytes]) -> None:
        assert old in members["dataset.json"]
        members["dataset.json"] = members["dataset.json"].replace(old, new)

    change(data / f"lat{suffix}", edit)
    found = problems(data / f"lat{suffix}")
    assert list(found) == ["dataset.json"]
    assert said in found["dataset.json"]


@BOTH
@pytest.mark.parametrize("name", ["dataset.json", "latentmill-index.jsonl", "latentmill.json"])
def test_missing_metadata(data: Path, suffix: str, name: str) -> None:
    change(data / f"lat{suffix}", lambda members: members.pop(name))
    assert problems(data / f"lat{suffix}") == {name: "is missing"}
    run = cli("verify", data / f"lat{suffix}")
    assert (run.returncode, "Traceback" in run.stderr) == (1, False)


@BOTH
def test_a_changed_index(data: Path, suffix: str) -> None:
    def edit(members: dict[str, bytes]) -> None:
        lines = members["latentmill-index.jsonl"].splitlines(keepends=True)
        members["latentmill-index.jsonl"] = b"".join(lines[:-1])
        members.pop("00000/img-mean-std-00000012.npy")

    change(data / f"lat{suffix}", edit)
    assert list(problems(data / f"lat{suffix}")) == ["latentmill-index.jsonl"]


def test_changed_statistics_and_factors(data: Path) -> None:
    file = data / "lat" / "latentmill.json"
    table = json.loads(file.read_text())
    for section, name, value in (("statistics", "mean", [0.0] * 4), ("model", "scaling_factor", 2.0)):
        changed = json.loads(file.read_text())
        changed[section][name] = value
        whole = file.read_bytes()
        file.write_text(json.dumps(changed, indent=1) + "\n")
        assert list(problems(data / "lat")) == ["latentmill.json"]
        file.write_bytes(whole)
    assert table == json.loads(file.read_text())


def test_a_forged_latent_that_is_not_finite(data: Path) -> None:
    array = np.load(data / "lat" / LATENT)
    array[0, 0, 0] = np.nan
    np.save(data / "lat" / LATENT, array)
    assert list(problems(data / "lat")) == [LATENT]


def test_nothing_to_verify(data: Path, tmp_path: Path) -> None:
    for path, said in ((tmp_path / "nothing", "nothing at"), (data / "photos", "nothing that latentmill made")):
        run = cli("verify", path)
        assert run.returncode == 2
        assert said in run.stderr
    with pytest.raises(SourceError, match="pairs latents with images"):
        latentmill.verify(data / "img", data / "lat")
    with pytest.raises(SourceError, match="no images"):
        latentmill.verify(data / "lat", data / "photos")


def test_many_problems_are_all_counted(data: Path) -> None:
    for file in (data / "lat" / "00000").iterdir():
        flip(file, 200)
    run = cli("verify", data / "lat")
    assert run.returncode == 1
    assert "12 problems" in run.stdout
