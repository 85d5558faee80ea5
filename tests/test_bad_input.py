"""Whatever a user hands in: one clear line and an exit code, never a traceback; and each image's fault is on record."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import latentmill
from latentmill.sources.captioned import captioned
from latentmill.sources.images import ImageSource
from support import cli, cli_here, contents, make_photos

SIZE = ("--resolution", "32x32")


def convert(source: object, dest: object, *extra: object) -> subprocess.CompletedProcess[str]:
    """The command: in this process with one worker, or with more in a process of its own."""
    here = "--num-workers" not in extra or extra[extra.index("--num-workers") + 1] in (0, 1, "0", "1")
    workers = () if "--num-workers" in extra else ("--num-workers", 1)
    return (cli_here if here else cli)("convert", "--source", source, "--dest", dest, *extra, *workers)


def refused(run: subprocess.CompletedProcess[str], *said: str) -> None:
    """Exit code 2, and one line that says what is wrong; nothing of Python's."""
    assert run.returncode == 2, run
    for text in said:
        assert text in run.stderr
    assert run.stderr.count("error:") == 1
    assert run.stderr.startswith("error:") or "\nerror:" in run.stderr
    assert "a fault in latentmill" not in run.stderr
    assert "Traceback" not in run.stderr + run.stdout


def rejects(dest: Path) -> dict[str, tuple[str, str]]:
    """Stage and reason by key, as the file beside the data tells them."""
    file = dest.with_name(f"{dest.name}.rejects.jsonl") if dest.suffix == ".zip" else dest / "latentmill-rejects.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(row.keys() == {"key", "stage", "reason"} for row in rows)
    return {row["key"]: (row["stage"], row["reason"]) for row in rows}


def png_that_claims(width: int, height: int) -> bytes:
    """A tiny file whose header announces a huge picture."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["out", "out.zip"])
@pytest.mark.parametrize("workers", [1, 2])
def test_faulty_images_are_rejected_one_by_one(photos: Path, tmp_path: Path, name: str, workers: int) -> None:
    bad = photos / "bad"
    bad.mkdir()
    good = next(photos.rglob("*.jpg")).read_bytes()
    Image.new("RGB", (300, 200), "red").save(bad / "whole.png")
    whole = (bad / "whole.png").read_bytes()
    (bad / "whole.png").unlink()
    (bad / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (bad / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (bad / "empty.jpg").write_bytes(b"")
    (bad / "text.jpg").write_text("this is no picture")
    (bad / "program.png").write_bytes(b"\x7fELF" + bytes(200))
    (bad / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (bad / "bomb.png").write_bytes(png_that_claims(20_000, 20_000))
    (bad / "dangling.jpg").symlink_to(tmp_path / "nothing.jpg")
    (bad / "loop.jpg").symlink_to(bad / "loop.jpg")
    os.mkfifo(bad / "pipe.jpg")
    (bad / "folder.png").mkdir()  # a folder by an image's name is a folder
    (bad / "right_inside.png").write_bytes(good)  # a JPEG by another name is what its bytes say
    (bad / "notes.txt").write_text("not an image's name, so not an image")
    dest = tmp_path / name
    run = convert(photos, dest, *SIZE, "--num-workers", workers, "--max-failures", "10")
    assert run.returncode == 3, run
    assert "13 stored" in run.stdout
    assert "10 rejected" in run.stdout
    assert "Traceback" not in run.stderr
    found = rejects(dest)
    assert {key: stage for key, (stage, _) in found.items()} == {
        "bad/truncated.jpg": "decode",
        "bad/truncated.png": "decode",
        "bad/empty.jpg": "decode",
        "bad/text.jpg": "decode",
        "bad/program.png": "decode",
        "bad/script.eps": "decode",
        "bad/bomb.png": "decode",
        "bad/dangling.jpg": "list",
        "bad/loop.jpg": "list",
        "bad/pipe.jpg": "list",
    }
    assert "over the limit of 178,956,970" in found["bad/bomb.png"][1]
    assert "empty" in found["bad/empty.jpg"][1]
    assert "No such file" in found["bad/dangling.jpg"][1]
    assert not latentmill.verify(dest).problems


def test_the_bomb_limit_is_a_setting(photos: Path, tmp_path: Path) -> None:
    run = convert(photos, tmp_path / "out", *SIZE, "--max-pixels", 100, "--max-failures", "12")
    assert run.returncode == 3
    assert {stage for stage, _ in rejects(tmp_path / "out").values()} == {"decode"}
    assert "--max-pixels" in next(iter(rejects(tmp_path / "out").values()))[1]


def test_what_a_transform_leaves_out_is_no_reject(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 16)).save(photos / "c0" / "flat.png")
    Image.new("RGB", (20, 64)).save(photos / "c0" / "narrow.png")
    run = convert(photos, tmp_path / "out", "--transform", "center-crop-wide", "--resolution", "32x16")
    assert run.returncode == 0, run
    assert "2 left out by the transform's rule" in run.stdout
    report = json.loads((tmp_path / "out" / "latentmill-report.json").read_text())
    assert report["images"]["skipped"] == ["c0/flat.png", "c0/narrow.png"]
    assert not (tmp_path / "out" / "latentmill-rejects.jsonl").exists()


def test_a_photo_too_thin_for_its_crop_is_rejected(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(photos / "c0" / "thread.png")
    run = convert(photos, tmp_path / "out", "--transform", "center-crop-dhariwal", "--resolution", "256x256")
    assert run.returncode == 3
    assert rejects(tmp_path / "out")["c0/thread.png"][0] == "transform"


@pytest.mark.parametrize("command", ["convert", "encode"])
def test_rejects_in_encode_too(photos: Path, tmp_path: Path, command: str) -> None:
    (photos / "c0" / "bad.jpg").write_bytes(b"")
    model = ("--model-url", "fake", "--images", tmp_path / "images") if command == "encode" else ()
    run = cli_here(command, "--source", photos, "--dest", tmp_path / "out", *SIZE, "--num-workers", 1, *model)
    assert run.returncode == 3
    assert rejects(tmp_path / "out") == {"c0/bad.jpg": ("decode", "the file is empty")}


# zips


def zip_of(photos: Path, path: Path, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for photo in sorted(photos.rglob("*.jpg")):
            archive.write(photo, photo.relative_to(photos).as_posix())
        for name, data in (extra or {}).items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def test_zip_members_that_lead_out_are_rejected(photos: Path, tmp_path: Path) -> None:
    good = next(photos.rglob("*.jpg")).read_bytes()
    names = ["../evil.jpg", "c0/../../evil.jpg", "/etc/evil.jpg", "c0\\..\\evil.jpg"]
    source = zip_of(photos, tmp_path / "in.zip", dict.fromkeys(names, good))
    before = sorted(path for path in tmp_path.rglob("*"))
    for dest in (tmp_path / "out", tmp_path / "out.zip"):
        for said in ("12 stored", "already finished"):
            run = convert(source, dest, *SIZE, "--max-failures", "4")
            assert run.returncode == 3, run
            assert said in run.stdout
        assert len(rejects(dest)) == 4
        assert {reason for _, reason in rejects(dest).values()} == {"the member's name leaves the archive"}
    made = {path for path in tmp_path.rglob("*") if path not in before}
    assert all(path.relative_to(tmp_path).parts[0].startswith("out") for path in made)


def test_a_name_that_a_zip_holds_twice_is_taken_once(photos: Path, tmp_path: Path) -> None:
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.jpg"))]
    good = (photos / names[1]).read_bytes()
    with pytest.warns(UserWarning, match="Duplicate name"):
        source = zip_of(photos, tmp_path / "in.zip", {names[1]: good})
    run = convert(source, tmp_path / "out", *SIZE)
    assert run.returncode == 3
    assert "12 stored" in run.stdout
    assert rejects(tmp_path / "out") == {names[1]: ("list", "the archive holds this name twice")}


def test_damaged_zip_members_are_rejected(photos: Path, tmp_path: Path) -> None:
    source = zip_of(photos, tmp_path / "in.zip")
    with zipfile.ZipFile(source) as archive:
        infos = archive.infolist()
    data = bytearray(source.read_bytes())
    data[infos[2].header_offset + 200] ^= 1  # inside its bytes
    data[infos[5].header_offset] ^= 1  # its header's signature
    source.write_bytes(data)
    run = convert(source, tmp_path / "out", *SIZE, "--max-failures", "2")
    assert run.returncode == 3
    assert {key: stage for key, (stage, _) in rejects(tmp_path / "out").items()} == {
        infos[2].filename: "read",
        infos[5].filename: "read",
    }
    again = convert(source, tmp_path / "out", *SIZE, "--max-failures", "2")  # they are tried again
    assert again.returncode == 3
    assert len(rejects(tmp_path / "out")) == 2
    assert "2 to compute, 10 kept" in again.stdout
    zipped = tmp_path / "out.zip"
    assert convert(source, zipped, *SIZE).returncode == 3
    assert "already finished" in convert(source, zipped, *SIZE).stdout


def test_sources_that_are_no_zip(photos: Path, tmp_path: Path) -> None:
    whole = zip_of(photos, tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name, said in (("cut.zip", "not a zip"), ("text.zip", "not a zip"), ("empty.zip", "holds no images")):
        refused(convert(tmp_path / name, tmp_path / "out", *SIZE), said, name)
    assert not (tmp_path / "out").exists()


# dataset.json


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{not json", "is not JSON"),
        ('{"labels": 5}', "must be"),
        ('{"labels": [["c0/photo00000.jpg"]]}', "must be [name, integer]"),
        ('{"labels": [["c0/photo00000.jpg", "cat"]]}', "must be [name, integer]"),
        ('["labels"]', "must be"),
        ("\xff\xfe\x00", "is not JSON"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_dataset_json_that_cannot_be_used(photos: Path, tmp_path: Path, text: str, said: str, kind: str) -> None:
    source = photos
    data = text.encode("latin-1")
    if kind == "zip":
        source = zip_of(photos, tmp_path / "in.zip", {"dataset.json": data})
    else:
        (photos / "dataset.json").write_bytes(data)
    refused(convert(source, tmp_path / "out", *SIZE), "dataset.json", said)


def test_a_damaged_dataset_json_in_a_zip(photos: Path, tmp_path: Path) -> None:
    source = zip_of(photos, tmp_path / "in.zip", {"dataset.json": b'{"labels": [["c0/photo00000.jpg", 1]]}'})
    data = bytearray(source.read_bytes())
    data[data.index(b'{"labels"') + 3] ^= 1
    source.write_bytes(data)
    refused(convert(source, tmp_path / "out", *SIZE), "dataset.json")


def test_labels_of_missing_files_are_a_warning(photos: Path, tmp_path: Path) -> None:
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.jpg"))]
    (photos / "dataset.json").write_text(json.dumps({"labels": [[name, 3] for name in [*names, "no/such.jpg"]]}))
    run = convert(photos, tmp_path / "out", *SIZE)
    assert run.returncode == 0
    assert "warning: dataset.json names 1 files that the source does not hold" in run.stderr
    labels = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
    assert [label for _, label in labels] == [3] * 12


# sizes


def test_mixed_sizes_without_a_resolution(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number, side in enumerate((32, 32, 64)):
        Image.new("RGB", (side, side)).save(source / f"{number}.png")
    for workers in (1, 2):
        dest = tmp_path / f"out{workers}"
        refused(convert(source, dest, "--num-workers", workers), "2.png is 64x64", "32x32", "--resolution")
    refused(cli_here("encode", "--source", source, "--dest", tmp_path / "lat", "--model-url", "fake"), "--resolution")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resolution", "64x32"], "square"),
        (["--resolution", "48x48"], "must be a power of two in the layout that trainers read. Found: 48x48"),
        (["--resolution", "256"], "must be WxH with positive integers. Found: '256'"),
        (["--resolution", "0x0"], "must be WxH with positive integers"),
        (["--transform", "center-crop"], "--resolution"),
        (["--transform", "center-crop-dhariwal", "--resolution", "64x32"], "square"),
        (["--transform", "center-crop-wide", "--resolution", "32x64"], "width"),
        (["--resolution", "32x32", "--max-failures", "many"], "max-failures"),
        (["--resolution", "32x32", "--max-failures", "101%"], "max-failures"),
        (["--resolution", "32x32", "--num-workers", "0"], "num-workers"),
        (["--resolution", "32x32", "--batch-size", "0"], "batch-size"),
        (["--resolution", "32x32", "--max-images", "0"], "max-images"),
    ],
)
def test_settings_that_cannot_be(photos: Path, tmp_path: Path, options: list[str], said: str) -> None:
    refused(convert(photos, tmp_path / "out", *options), said)
    assert not (tmp_path / "out").exists()


def test_photos_of_one_odd_size_without_a_resolution(photos: Path, tmp_path: Path) -> None:
    refused(convert(photos, tmp_path / "out"), "square", "64x48")
    encode = ("encode", "--source", photos, "--dest", tmp_path / "out", "--model-url", "fake", "--resolution", "36x36")
    refused(cli_here(*encode), "multiples of 8. Found: 36x36")


# places


def test_sources_that_are_not_there(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("a")
    photo = next(photos.rglob("*.jpg"))
    for source, said in (
        (tmp_path / "nothing", "does not exist"),
        (tmp_path / "empty", "holds no images"),
        (tmp_path / "words", "holds no images"),
        (photo, "must be a folder or a .zip"),
    ):
        refused(convert(source, tmp_path / "out", *SIZE), said, str(source))


def test_destinations_that_cannot_be(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a file")
    (tmp_path / "folder.zip").mkdir()
    for dest, said in (
        (file, "must be a folder or a .zip"),
        (file / "below", "cannot write"),
        (file / "below.zip", "cannot write"),
        (Path("/proc/latentmill/out"), "cannot write"),
        (tmp_path / "folder.zip", "is a folder"),
        (photos, "the destination is the source"),
        (photos / "inside", "lies inside the source"),
        (photos / "inside.zip", "lies inside the source"),
        (tmp_path, "not empty"),
    ):
        refused(convert(photos, dest, *SIZE), said)
    assert file.read_text() == "a file"
    assert sorted(path.name for path in photos.iterdir()) == ["c0", "c1"]


def test_images_and_latents_need_places_of_their_own(photos: Path, tmp_path: Path) -> None:
    encode = ("encode", "--source", photos, "--model-url", "fake", *SIZE, "--dest", tmp_path / "out", "--images")
    refused(cli_here(*encode, tmp_path / "out"), "same place")
    refused(cli_here(*encode, tmp_path / "out" / "images"), "inside")
    refused(cli_here(*encode, tmp_path), "inside")
    refused(cli_here(*encode, photos / "images"), "inside the source")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("sd-vae-ft-msee", "Did you mean sd-vae-ft-mse?"),
        ("no-such-model", "no model is called 'no-such-model'"),
        ("nobody/nothing", "nobody/nothing"),
        ("./empty", "config.json"),
    ],
)
def test_models_that_do_not_exist(photos: Path, tmp_path: Path, model: str, said: str) -> None:
    if model == "./empty":
        (tmp_path / "empty").mkdir()
        model = str(tmp_path / "empty")
    encode = ("encode", "--source", photos, "--dest", tmp_path / "out", *SIZE, "--model-url", model)
    refused(cli(*encode, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub")), said)


# names


def test_names_that_are_not_utf8(photos: Path, tmp_path: Path) -> None:
    folder = os.fsencode(photos)
    odd = folder + b"/caf\xe9"
    os.mkdir(odd)  # noqa: PTH102 - bytes
    os.rename(next(photos.rglob("*.jpg")), odd + b"/sm\xf8rrebr\xf8d.jpg")  # noqa: PTH104
    with open(odd + b"/bad\xff.jpg", "wb"):  # noqa: PTH123
        pass
    dest, images = tmp_path / "out", tmp_path / "images"
    encode = ("encode", "--source", photos, "--dest", dest, "--images", images, *SIZE, "--model-url", "fake")
    run = cli(*encode)
    assert run.returncode == 3, run
    keys = [json.loads(line)["key"] for line in (dest / "latentmill-index.jsonl").read_text().splitlines()]
    assert os.fsencode(keys[-1]) == b"caf\xe9/sm\xf8rrebr\xf8d.jpg"
    assert [os.fsencode(key) for key in rejects(dest)] == [b"caf\xe9/bad\xff.jpg"]
    assert "already finished" in cli(*encode).stdout
    assert json.loads((dest / "latentmill.json").read_text())["classes"][-1] == os.fsdecode(b"caf\xe9")
    assert cli("verify", dest, "--images", images).returncode == 0
    sorted((photos / "c0").iterdir())[0].unlink()
    assert "1 dropped" in cli(*encode).stdout
    there = tmp_path / "fresh"
    fresh = latentmill.encode(photos, there / "latents", resolution="32x32", model_url="fake", images=there / "images")
    assert contents(dest) == contents(fresh.dest)


def test_a_source_and_a_destination_whose_names_are_not_utf8(photos: Path, tmp_path: Path) -> None:
    source, dest = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/caf\xe9", b"/o\xfft"))
    refused(convert(source, dest, *SIZE), "does not exist")
    photos.rename(source)
    run = convert(source, dest, *SIZE)
    assert run.returncode == 0, run
    assert "12 stored" in run.stdout
    verified = cli("verify", dest)
    assert verified.returncode == 0


def test_names_that_look_like_markup(photos: Path, tmp_path: Path) -> None:
    source, dest = tmp_path / "[red]photos[", tmp_path / "[b]out[.json]"
    refused(convert(source, dest, *SIZE), str(source))
    photos.rename(source)
    (source / "c0").rename(source / "[dim]c0")
    (source / "[dim]c0" / "[b]bad[.jpg").write_bytes(b"")
    run = convert(source, dest, *SIZE)
    assert run.returncode == 3
    assert str(dest) in run.stdout
    assert list(rejects(dest)) == ["[dim]c0/[b]bad[.jpg"]


def test_a_terminal_that_shows_ascii_only(photos: Path, tmp_path: Path) -> None:
    (photos / "c0").rename(photos / "ünï")
    run = cli("convert", "--source", photos, "--dest", tmp_path / "öut", *SIZE, PYTHONIOENCODING="ascii")
    assert run.returncode == 0, run


@pytest.mark.parametrize("kind", ["folder", "zip", "captions"])
def test_photos_of_a_phone_that_cannot_be_read_are_told(photos: Path, tmp_path: Path, kind: str) -> None:
    (photos / "c0" / "IMG_1.HEIC").write_bytes(b"not read here")
    (photos / "c1" / "._IMG_1.heic").write_bytes(b"of macOS, no picture")
    source = photos
    if kind == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    found = captioned(photos) if kind == "captions" else ImageSource(source).listing()
    assert any("left out (1 .heic): convert them to JPEG" in warning for warning in found.warnings)


def test_a_source_of_such_photos_alone_says_why_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_1.HEIC").write_bytes(b"not read here")
    refused(convert(tmp_path / "photos", tmp_path / "out", *SIZE), "holds no images", "(1 .heic): convert them to JPEG")


# limits


def spoil(photos: Path, count: int) -> None:
    for photo in sorted(photos.rglob("*.jpg"))[:count]:
        photo.write_bytes(b"no picture")


def test_too_many_failures_by_count(photos: Path, tmp_path: Path) -> None:
    spoil(photos, 4)
    dest = tmp_path / "out"
    extra = (*SIZE, "--batch-size", 2, "--num-workers", 1, "--max-failures")
    first = min(photo for photo in photos.rglob("*.jpg")).relative_to(photos)
    why = f"over --max-failures 3, as {first} (not an image that can be read). What is committed stays"
    refused(convert(photos, dest, *extra, 3), "were rejected", why, "run again with a higher limit")
    assert not (dest / "latentmill.json").exists()
    run = convert(photos, dest, *extra, 4)
    assert run.returncode == 3
    assert f"\n    4: not an image that can be read ({first})\n" in run.stdout
    assert len(rejects(dest)) == 4
    assert not latentmill.verify(dest).problems


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_failures_in_percent_are_judged_after_100_images(tmp_path: Path, workers: int) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    make_photos(few, 90, side=16)
    make_photos(many, 130, side=16)
    spoil(few, 60)
    spoil(many, 30)
    settings = ("--resolution", "16x16", "--batch-size", 10, "--num-workers", workers)
    assert convert(few, tmp_path / "a", *settings).returncode == 3
    refused(convert(many, tmp_path / "b", *settings), "over --max-failures 10%")
    assert convert(many, tmp_path / "b", *settings, "--max-failures", "50%").returncode == 3


# the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "latentmill-test", str(place)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("name", ["out", "out.zip"])
@pytest.mark.parametrize("command", ["convert", "encode"])
def test_a_full_disk(tmp_path: Path, small_disk: Path, command: str, name: str) -> None:
    source = tmp_path / "photos"
    make_photos(source, 40)
    dest = small_disk / name
    settings = ["--source", source, "--resolution", "64x64", "--batch-size", 4, "--num-workers", 2]
    if command == "encode":
        settings += ["--model-url", "fake", "--images", dest.with_name(f"images-{name}")]
    full = cli(command, "--dest", dest, *settings)
    refused(full, "the disk is full", "make room and run the same command again to go on")
    assert "may not fit" in full.stderr  # it was said before it began
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert cli(command, "--dest", dest, *settings).returncode == 0
    assert not list(small_disk.glob("**/*.latentmill"))
    calm = tmp_path / "calm"
    calm.mkdir()
    settings = [calm / f"images-{name}" if part == dest.with_name(f"images-{name}") else part for part in settings]
    assert cli(command, "--dest", calm / name, *settings).returncode == 0
    made, expected = ({k: v for k, v in contents(place).items() if "report" not in k} for place in (small_disk, calm))
    assert made == expected
