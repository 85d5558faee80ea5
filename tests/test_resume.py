"""Running a job again: finished, with other settings, over something else, beside another process."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

import latentmill
from latentmill.errors import DestinationError, LatentmillError, SettingsChangedError, SourceError
from latentmill.outcome import Event
from support import CAN_FORK, cli, cli_here, contents, fork_with, ledger, make_photos, work_folder

SIZE = "32x32"
CROP = {"transform": "center-crop-dhariwal", "resolution": SIZE}
ENCODE = {**CROP, "model_url": "fake"}


def test_a_finished_job_says_so_and_touches_nothing(photos: Path, tmp_path: Path) -> None:
    for dest in (tmp_path / "out", tmp_path / "out.zip"):
        arguments = ("convert", "--source", photos, "--dest", dest, "--resolution", SIZE)
        assert cli(*arguments).returncode == 0
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        again = cli_here(*arguments)
        assert again.returncode == 0
        assert "already finished" in again.stdout
        assert "12 images" in again.stdout
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
        assert not work_folder(dest).exists()


def test_a_finished_job_with_rejects_still_ends_with_3(photos: Path, tmp_path: Path) -> None:
    (photos / "c0" / "bad.jpg").write_bytes(b"no picture")
    arguments = ("convert", "--source", photos, "--dest", tmp_path / "out", "--num-workers", 1, "--resolution", SIZE)
    assert cli_here(*arguments).returncode == 3
    again = cli_here(*arguments)
    assert again.returncode == 3
    assert "already finished" in again.stdout
    assert "1 rejected" in again.stdout


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("resolution", "16x16", "resolution: was 32x32, now 16x16"),
        ("transform", "center-crop", "transform: was center-crop-dhariwal, now center-crop"),
        ("exif", "apply", "exif: was ignore, now apply"),
        ("alpha", "white", "alpha: was drop, now white"),
        ("pixel_range", "0,1", "pixel-range"),
        ("save_dtype", "float16", "save-dtype: was float32, now float16"),
        ("batch_size", 3, "batch-size: was 4, now 3"),
        ("threads", 3, "threads: was 1, now 3"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "begun"])
def test_another_setting_is_refused_and_named(
    photos: Path, tmp_path: Path, setting: str, value: object, said: str, state: str
) -> None:
    dest = tmp_path / "out"
    settings = {**ENCODE, "batch_size": 4, "threads": 1}
    if state == "finished":
        latentmill.encode(photos, dest, **settings)
    else:
        begin(photos, dest, **settings)
    before = contents(dest)
    with pytest.raises(SettingsChangedError, match=said) as caught:
        latentmill.encode(photos, dest, **{**settings, setting: value})
    assert "--overwrite" in str(caught.value)
    assert contents(dest) == before
    result = latentmill.encode(photos, dest, **{**settings, setting: value}, overwrite=True)
    assert result.computed == 12
    fresh = latentmill.encode(photos, tmp_path / "fresh", **{**settings, setting: value})
    assert contents(dest) == contents(fresh.dest)


def begin(source: Path, dest: Path, **settings: object) -> int:
    """Start an encode job that dies after its first shard; gives the images that are done."""
    if not CAN_FORK:
        pytest.skip("kills a forked process")

    def kill(count: int, event: str) -> None:
        if ledger(dest):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)
        assert fork_with(kill, lambda: latentmill.encode(source, dest, **settings)) == -signal.SIGKILL
    return sum(len(path.read_text().splitlines()) - 1 for path in ledger(dest))


def test_the_command_says_which_setting_differs(photos: Path, tmp_path: Path) -> None:
    arguments = ("convert", "--source", photos, "--dest", tmp_path / "out", "--num-workers", 1, "--resolution")
    assert cli_here(*arguments, "32x32").returncode == 0
    refused = cli_here(*arguments, "64x64")
    assert refused.returncode == 2
    assert "resolution: was 32x32, now 64x64" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert cli_here(*arguments, "64x64", "--overwrite").returncode == 0


def test_overwrite_removes_only_what_latentmill_made(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    latentmill.convert(photos, dest, resolution=SIZE)
    mine = [dest / "notes.txt", dest / "00000" / "notes.txt", dest / "12345" / "mine.bin", dest / "sub" / "x.json"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for photo in sorted(photos.rglob("*.jpg"))[6:]:
        photo.unlink()
    latentmill.convert(photos, dest, resolution="16x16", overwrite=True)
    assert all(path.read_text() == "mine" for path in mine)
    assert len(list(dest.rglob("*.png"))) == 6


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_overwrite_of_what_latentmill_did_not_make_is_refused(photos: Path, tmp_path: Path, name: str) -> None:
    dest = tmp_path / name
    if name.endswith(".zip"):
        dest.write_bytes(b"PK mine")
    else:
        make_photos(dest / "00000", 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for extra in ((), ("--overwrite",)):
        refused = cli_here("convert", "--source", photos, "--dest", dest, "--resolution", SIZE, *extra)
        assert refused.returncode == 2
        assert "latentmill did not make" in refused.stderr
        assert ("(it holds 00000)" in " ".join(refused.stderr.split())) == (name == "out")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_batch_size_and_threads_are_those_of_the_plan(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    done = begin(photos, dest, **ENCODE, batch_size=3, threads=5)
    assert 0 < done < 12
    result = latentmill.encode(photos, dest, **ENCODE)  # neither is given again
    assert result.computed == 12 - done
    fingerprint = json.loads((dest / "latentmill.json").read_text())["fingerprint"]
    assert (fingerprint["batch_size"], fingerprint["threads"]) == (3, 5)
    make_photos(photos / "new", 1, seed=1)
    latentmill.encode(photos, dest, **ENCODE)
    fingerprint = json.loads((dest / "latentmill.json").read_text())["fingerprint"]
    assert (fingerprint["batch_size"], fingerprint["threads"]) == (3, 5)


def test_an_overwriting_job_that_was_cut_off_goes_on(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    latentmill.encode(photos, dest, **ENCODE)
    new = {**ENCODE, "resolution": "16x16", "batch_size": 4}
    done = begin(photos, dest, **new, overwrite=True)
    assert latentmill.encode(photos, dest, **new).computed == 12 - done < 12


@pytest.mark.parametrize(("seconds", "images"), [(0.5, 40), (6.0, 4), (1000.0, 4)])
def test_shards_are_sized_by_measured_speed_so_that_a_kill_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, images: int
) -> None:
    source, dest = tmp_path / "photos", tmp_path / "out"
    make_photos(source, 60)
    monkeypatch.setattr("latentmill.outputs.latents.seconds_an_image", lambda *arguments: seconds)

    def stop(event: Event) -> None:
        if event.kind == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latentmill.encode(source, dest, **ENCODE, batch_size=4, tell=stop)
    plan = json.loads(next(dest.glob(".latentmill/plan-*/plan.json")).read_text())
    assert plan["shards"][0][1] == images  # whole batches, 20 seconds of work or one batch
    assert sum(count for _, count in plan["shards"]) == 60
    monkeypatch.setattr("latentmill.outputs.latents.seconds_an_image", lambda *arguments: 1e-6)
    assert latentmill.encode(source, dest, **ENCODE).computed == 60  # by the same plan


def test_what_is_still_being_made_is_no_source_yet(photos: Path, tmp_path: Path) -> None:
    begin(photos, tmp_path / "lat", **ENCODE, batch_size=4, images=tmp_path / "img")
    assert list(tmp_path.glob("img/*/*.png"))
    with pytest.raises(SourceError, match="still being made"):
        latentmill.encode(tmp_path / "img", tmp_path / "out", model_url="fake")
    with pytest.raises(SourceError, match="not finished"):
        latentmill.verify(tmp_path / "lat")


def test_a_begun_job_refuses_another_source_and_goes_on_with_its_own(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_photos(other / "deeper", 5, seed=1)
    dest = tmp_path / "out"
    done = begin(photos, dest, **ENCODE, batch_size=4)
    for _ in range(2):
        with pytest.raises(DestinationError, match="another source"):
            latentmill.encode(other, dest, **ENCODE)
    assert latentmill.encode(photos, dest, **ENCODE).computed == 12 - done


def test_a_begun_job_goes_on_with_the_same_images_only(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    done = begin(photos, dest, **ENCODE, batch_size=4, images=tmp_path / "images")
    with pytest.raises(DestinationError, match="images2"):
        latentmill.encode(photos, dest, **ENCODE, images=tmp_path / "images2")
    assert not list(tmp_path.glob("images2/*.png"))
    assert latentmill.encode(photos, dest, **ENCODE, images=tmp_path / "images").computed == 12 - done
    assert not latentmill.verify(dest, tmp_path / "images").problems


def test_a_finished_job_does_not_take_other_images_for_its_own(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    latentmill.encode(photos, dest, **ENCODE, images=tmp_path / "images")
    again = latentmill.encode(photos, dest, **ENCODE, images=tmp_path / "images")
    assert again.already_done
    assert not list(tmp_path.rglob(".latentmill"))
    with pytest.raises(DestinationError, match="images2"):
        latentmill.encode(photos, dest, **ENCODE, images=tmp_path / "images2")


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_images_do_not_go_into_another_dataset(photos: Path, tmp_path: Path, suffix: str) -> None:
    images = tmp_path / f"images{suffix}"
    latentmill.convert(photos, images, resolution="64x64", num_workers=1)
    before = images.read_bytes() if suffix else contents(images)
    with pytest.raises(DestinationError, match="images"):
        latentmill.encode(photos, tmp_path / "out", **ENCODE, images=images)
    assert (images.read_bytes() if suffix else contents(images)) == before
    assert not latentmill.verify(images).problems
    latentmill.encode(photos, tmp_path / "out", **ENCODE, images=images, overwrite=True)
    assert not latentmill.verify(tmp_path / "out", images).problems


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_processes_do_not_write_to_one_destination(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    monkeypatch.setattr("latentmill.destination._LOCK_SECONDS", 0.2)
    dest = tmp_path / "out"
    begin(photos, dest, **ENCODE, batch_size=4)
    before = contents(dest)
    with FileLock(dest / ".latentmill" / "lock"), pytest.raises(DestinationError, match="another latentmill process"):
        latentmill.encode(photos, dest, **ENCODE, overwrite=overwrite)
    assert contents(dest) == before


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_job_refused_before_it_began_leaves_no_trace(photos: Path, tmp_path: Path, name: str) -> None:
    for number, photo in enumerate(sorted(photos.rglob("*.jpg"))):
        Image.new("RGB", (64, 64) if number == 0 else (32, 32)).save(photo)
    with pytest.raises(LatentmillError, match="differ in size"):
        latentmill.convert(photos, tmp_path / name, num_workers=1)
    left = [path for path in tmp_path.rglob("*") if photos not in (path, *path.parents)]
    assert left in ([], [tmp_path / "out"])  # an empty folder at most
