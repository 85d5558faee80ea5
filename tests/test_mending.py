"""A finished job run again mends what lies beside its data, or says what cannot be mended, and changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import fake_text
import latentmill
from feature_jobs import FOLDERS, JOBS, Job, run_text, small
from latentmill.errors import DestinationError, LatentmillError
from latentmill.formats.metadata import _sealed
from latentmill.formats.pixart import EMPTY_CAPTION
from support import cli_here, contents, make_photos, work_folder
from test_verify import change

CROP = {"transform": "center-crop-dhariwal", "resolution": "32x32", "num_workers": 1}
ENCODE = {"transform": "center-crop-dhariwal", "resolution": "32x32", "model_url": "fake"}
MENDED = ["dataset.json", "latentmill-index.bin"]
INDEX = "latentmill-index.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, one of them unreadable, and their pixels in a folder and in a zip."""
    root = tmp_path_factory.mktemp("mending")
    make_photos(root / "photos", 12)
    (root / "photos" / "c0" / "bad.jpg").write_bytes(b"no picture")
    for name in ("out", "out.zip"):
        latentmill.convert(root / "photos", root / name, **CROP)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def again(root: Path, name: str = "out", **settings: object) -> latentmill.Result:
    return latentmill.convert(root / "photos", root / name, **CROP, **settings)


def line(root: Path, name: str, *more: object) -> tuple[object, ...]:
    where = ("--source", root / "photos", "--dest", root / name)
    how = ("--transform", CROP["transform"], "--resolution", "32x32", "--num-workers", 1)
    return ("convert", *where, *how, *more)


def relabel(file: Path) -> None:
    file.write_text(file.read_text().replace(", 0]", ", 1]"))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x11
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def pad(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


@pytest.mark.parametrize("settings", [{}, {"trust_source": True}, {"check": "digest"}], ids=["stat", "trust", "digest"])
@pytest.mark.parametrize("name", MENDED)
def test_a_lost_file_beside_the_data_is_made_again(root: Path, name: str, settings: dict[str, object]) -> None:
    before = contents(root / "out")
    (root / "out" / name).unlink()
    assert again(root, **settings).already_done
    assert contents(root / "out") == before
    assert not work_folder(root / "out").exists()


@pytest.mark.parametrize("harm", [relabel, flip, cut, pad])
@pytest.mark.parametrize("name", MENDED)
def test_a_damaged_file_is_made_again_by_a_check_of_the_digests(
    root: Path, name: str, harm: Callable[[Path], None]
) -> None:
    if harm is relabel and name != "dataset.json":
        pytest.skip("holds no such labels")
    before = contents(root / "out")
    harm(root / "out" / name)
    damaged = contents(root / "out")
    assert damaged != before
    assert again(root).already_done
    assert contents(root / "out") == damaged  # a plain run looks at no contents
    run = cli_here(*line(root, "out", "--check", "digest"))
    assert run.returncode == 3, run  # one reject, as ever
    assert f"{name} was damaged in" in run.stdout.replace("\n", " ")
    assert contents(root / "out") == before
    assert "was damaged" not in cli_here(*line(root, "out", "--check", "digest")).stdout


@pytest.mark.parametrize("settings", [{}, {"trust_source": True}, {"check": "digest"}], ids=["stat", "trust", "digest"])
def test_a_lost_index_is_named_with_what_to_do(root: Path, settings: dict[str, object]) -> None:
    (root / "out" / INDEX).unlink()
    before = contents(root / "out")
    with pytest.raises(DestinationError, match=rf"{INDEX} is missing from .*out, .*a copy, or .*--overwrite"):
        again(root, **settings)
    assert contents(root / "out") == before
    assert not work_folder(root / "out").exists()
    again(root, overwrite=True)
    assert not latentmill.verify(root / "out").problems


def test_a_changed_index_mends_nothing(root: Path) -> None:
    flip(root / "out" / INDEX)
    (root / "out" / "dataset.json").unlink()
    before = contents(root / "out")
    for check in ("stat", "digest"):
        with pytest.raises(DestinationError, match=rf"{INDEX} was changed in .*--overwrite"):
            again(root, check=check)
    assert contents(root / "out") == before


def test_changed_metadata_is_made_again_by_a_check_of_the_digests(root: Path) -> None:
    again(root, overwrite=True)  # its recipe names the photos where they lie now
    before, file = contents(root / "out"), root / "out" / "latentmill.json"
    table = json.loads(file.read_text())
    table["counts"]["stored"] = 5
    file.write_text(json.dumps(table, indent=1) + "\n")
    result = again(root, check="digest")
    assert (result.computed, result.stored) == (0, 12)
    assert contents(root / "out") == before
    file.write_text(file.read_text() + "\n")
    assert again(root, check="digest").computed == 0
    assert contents(root / "out") == before
    assert again(root, check="digest").already_done


def test_every_output_of_a_job_is_looked_at(made: Path, tmp_path: Path) -> None:
    job = {**ENCODE, "images": tmp_path / "img"}
    latentmill.encode(made / "photos", tmp_path / "lat", **job)
    before = contents(tmp_path)
    (tmp_path / "img" / "dataset.json").unlink()
    (tmp_path / "lat" / "latentmill-index.bin").unlink()
    assert latentmill.encode(made / "photos", tmp_path / "lat", **job).already_done
    assert contents(tmp_path) == before


def test_both_the_data_and_what_lies_beside_it(root: Path) -> None:
    again(root, overwrite=True)  # its recipe names the photos where they lie now
    before = contents(root / "out")
    flip(root / "out" / "00000" / "img00000003.png")
    flip(root / "out" / "latentmill-index.bin")
    (root / "out" / "dataset.json").unlink()
    assert again(root, check="digest").computed == 1
    assert contents(root / "out") == before


@pytest.mark.parametrize("settings", [{}, {"check": "digest"}], ids=["stat", "digest"])
def test_lost_features_of_the_empty_caption_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    fake_text.install(monkeypatch.setattr)
    data, folder = small(tmp_path / "data"), tmp_path / FOLDERS[run_text]
    run_text(data, tmp_path)
    before = contents(folder)
    (folder / EMPTY_CAPTION).unlink()
    with pytest.raises(DestinationError, match=rf"{EMPTY_CAPTION} is missing .*without --trust-source"):
        run_text(data, tmp_path, trust_source=True)
    assert run_text(data, tmp_path, **settings).computed == 0
    assert contents(folder) == before
    assert run_text(data, tmp_path, **settings).already_done


@JOBS
def test_lost_columns_of_features_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    fake_text.install(monkeypatch.setattr)
    data, folder = small(tmp_path / "data"), tmp_path / FOLDERS[job]
    job(data, tmp_path)
    before = contents(folder)
    (folder / "latentmill-index.bin").unlink()
    assert job(data, tmp_path).already_done
    assert contents(folder) == before
    flip(folder / "latentmill-index.bin")
    assert job(data, tmp_path, check="digest").already_done
    assert contents(folder) == before


# zips


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_a_damaged_zip_is_told_with_its_member_and_left_alone(root: Path, share: float) -> None:
    archive = root / "out.zip"
    data = bytearray(archive.read_bytes())
    data[int(len(data) * share)] ^= 1
    archive.write_bytes(data)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(LatentmillError, match="--overwrite") as caught:
        again(root, "out.zip", check="digest")
    if share <= 0.5:
        assert "out.zip is damaged: 00000/img" in str(caught.value)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    again(root, "out.zip", check="stat", overwrite=True)
    assert again(root, "out.zip", check="digest").already_done


def test_a_changed_image_in_a_sound_archive(root: Path) -> None:
    def edit(members: dict[str, bytes]) -> None:
        members["00000/img00000003.png"] = members["00000/img00000004.png"]

    change(root / "out.zip", edit)
    assert again(root, "out.zip").already_done
    run = cli_here(*line(root, "out.zip", "--check", "digest"))
    said = " ".join(run.stderr.split())
    assert run.returncode == 2
    assert "is damaged: 00000/img00000003.png: was changed" in said
    assert "--overwrite" in said and "Nothing was changed" in said


@pytest.mark.parametrize("name", ["dataset.json", INDEX])
def test_a_zip_that_lost_a_file_of_ours(root: Path, name: str) -> None:
    change(root / "out.zip", lambda members: members.pop(name))
    for settings in ({}, {"trust_source": True}):
        with pytest.raises(DestinationError, match=rf"{name} is missing from .*out\.zip.*--overwrite"):
            again(root, "out.zip", **settings)


def test_a_zip_that_is_cut_off(root: Path) -> None:
    cut(root / "out.zip")
    for overwrite in (False, True):
        with pytest.raises(DestinationError, match=r"cannot|can be read, though out\.zip\.report\.json .*Move it away"):
            again(root, "out.zip", overwrite=overwrite)


# without `latentmill.json`


def test_a_dataset_without_its_metadata_is_told_as_such(root: Path) -> None:
    (root / "out" / "latentmill.json").unlink()
    before = contents(root / "out")
    run = cli_here(*line(root, "out"))
    said = " ".join(run.stderr.split())
    assert run.returncode == 2
    assert "did not make" not in said
    assert f"out is not whole: it holds {INDEX}, latentmill-index.bin, but no latentmill.json" in said
    assert "from a copy" in said and "another destination" in said and "--overwrite" in said
    assert contents(root / "out") == before
    (root / "out" / "mine.txt").write_text("mine")
    again(root, overwrite=True)
    assert (root / "out" / "mine.txt").read_text() == "mine"
    (root / "out" / "mine.txt").unlink()
    assert contents(root / "out").keys() == before.keys() | {"latentmill.json"}
    assert not latentmill.verify(root / "out").problems


def test_a_zip_without_its_metadata_is_not_overwritten(root: Path) -> None:
    change(root / "out.zip", lambda members: members.pop("latentmill.json"))
    before = (root / "out.zip").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(DestinationError, match=r"out\.zip is not whole: .*move it all away") as caught:
            again(root, "out.zip", overwrite=overwrite)
        assert "--overwrite" not in str(caught.value)
    assert (root / "out.zip").read_bytes() == before


@pytest.mark.parametrize("theirs", ["copied index", "index of nothing", "index of elsewhere", "report alone"])
def test_a_foreign_folder_is_never_overwritten(root: Path, theirs: str) -> None:
    """Another tool's images, named alike, beside a file of ours that strayed there."""
    foreign = root / "foreign"
    (foreign / "00000").mkdir(parents=True)
    for number in range(13):
        (foreign / "00000" / f"img{number:08d}.png").write_bytes(b"theirs %d" % number)
    (foreign / "dataset.json").write_text('{"labels": null}')
    if theirs == "report alone":
        shutil.copy(root / "out" / "latentmill-report.json", foreign)
    else:
        row = {"index": 0, "key": "a", "name": str(root / "out" / "dataset.json"), "digest": ""}
        text = {
            "copied index": (root / "out" / INDEX).read_text(),
            "index of nothing": "[]\n7\n",
            "index of elsewhere": json.dumps(row) + "\n",
        }[theirs]
        (foreign / INDEX).write_text(text)
    before = contents(root)
    for overwrite in (False, True):
        with pytest.raises(DestinationError) as caught:
            again(root, "foreign", overwrite=overwrite)
        assert "--overwrite" not in str(caught.value)
    assert contents(root) == before


def test_overwriting_removes_nothing_outside_whatever_the_index_says(root: Path) -> None:
    file = root / "out" / INDEX
    outside = [root / "precious.txt", root / "other" / "precious.txt"]
    for path, name in zip(outside, (str(outside[0]), "../other/precious.txt"), strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        file.write_text(file.read_text() + json.dumps({"name": name}) + "\n")
    again(root, overwrite=True)
    assert all(path.read_text() == "mine" for path in outside)


def test_earlier_metadata_is_as_written(root: Path) -> None:
    """A key that an earlier version did not write yet is no damage."""
    file = root / "out" / "latentmill.json"
    table = json.loads(file.read_text())
    del table["buckets"]
    file.write_text(_sealed(table))
    before = file.read_bytes()
    assert again(root, check="digest").already_done
    assert file.read_bytes() == before
