"""Which files are images, their order, their numbers and their labels: the rules that trainers' data sets rest on."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from latentmill import api
from latentmill.errors import SampleError, SourceError
from latentmill.files import printable
from latentmill.formats.metadata import index_rows
from latentmill.sources.images import ImageSource
from support import cli, make_photos

LATIN_1 = os.fsdecode(b"caf\xe9.png")  # a name that is no UTF-8


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    return folder


def zipped(path: Path, members: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def keys(path: Path, **options: int) -> list[str]:
    return [ref.key for ref in ImageSource(path).listing(**options).refs()]


def labels(path: Path, **options: int) -> dict[str, int | None]:
    return {ref.key: ref.label for ref in ImageSource(path).listing(**options).refs()}


def label_file(folder: Path, text: str) -> Path:
    (folder / "dataset.json").write_text(text)
    return folder


# order and extent


@pytest.mark.parametrize("as_zip", [False, True])
def test_images_are_ordered_by_code_point_of_the_full_path(tmp_path: Path, as_zip: bool) -> None:
    """`-` sorts before `/`, capitals before small letters, and no name is compared folder by folder."""
    ordered = ["B/x.png", "a-b/x.png", "a.png", "a/10.png", "a/9.png", "a/B.png", "a/x.jpg", "a/x.png", "a/x/y.png"]
    ordered.append("é.png")
    names = [ordered[n] for n in (7, 1, 2, 5, 3, 4, 0, 9, 8, 6)]
    path = tmp_path / ("photos.zip" if as_zip else "photos")
    path = zipped(path, dict.fromkeys(names, b"x")) if as_zip else touch(path, *names)
    assert keys(path) == ordered
    assert [ref.index for ref in ImageSource(path).listing().refs()] == list(range(len(names)))


def test_an_image_has_an_extension_that_pillow_knows_in_any_case(tmp_path: Path) -> None:
    images = ["A.JPG", "b.jpeg", "c.Png", "d.webp", "e.TIF", "f.bmp", "g.gif", "h.eps", "i.pdf", "j.jp2"]
    others = ["k.txt", "l.json", "m", ".png", "n.png.bak", "o.npy", "p.jpgx", "q.mp4"]
    assert keys(touch(tmp_path / "photos", *images, *others)) == sorted(images)
    assert keys(zipped(tmp_path / "photos.zip", dict.fromkeys(images + others, "{}"))) == sorted(images)


def test_the_same_photos_are_listed_alike_from_folder_and_zip(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paths = make_photos(folder, 5)
    archive = zipped(tmp_path / "photos.zip", {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths})
    assert keys(folder) == keys(archive)
    for path in (folder, archive):
        source = ImageSource(path)
        for ref, photo in zip(source.listing().refs(), paths, strict=True):
            assert source.read(ref) == photo.read_bytes()


def test_links_are_followed(tmp_path: Path) -> None:
    outside = touch(tmp_path / "outside", "one.png", "deep/two.png")
    folder = touch(tmp_path / "photos", "b/three.png")
    (folder / "a").symlink_to(outside)
    (folder / "c.png").symlink_to(outside / "one.png")
    assert keys(folder) == ["a/deep/two.png", "a/one.png", "b/three.png", "c.png"]
    assert labels(folder) == {"c.png": 0, "a/deep/two.png": 1, "a/one.png": 1, "b/three.png": 2}


def test_links_back_to_a_parent_are_not_followed_and_named(tmp_path: Path) -> None:
    folder = touch(tmp_path / "photos", "a/one.png", "b/two.png")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "b" / "self").symlink_to(folder / "b")
    (folder / "b" / "ring").symlink_to(folder / "b" / "ring")
    listing = ImageSource(folder).listing()
    # a/up is the folder itself: nothing below it; a second way to a folder that is no parent is followed
    assert [ref.key for ref in listing.refs()] == ["a/one.png", "b/two.png"]
    (warning,) = listing.warnings
    assert "links not followed" in warning
    assert "a/up" in warning
    assert "b/self" in warning


def test_a_folder_reached_twice_is_listed_twice(tmp_path: Path) -> None:
    """Only loops are cut: two links to one class are two classes, as the reference's walk has it."""
    folder = touch(tmp_path / "photos", "a/one.png")
    (folder / "b").symlink_to(folder / "a")
    assert keys(folder) == ["a/one.png", "b/one.png"]
    assert not ImageSource(folder).listing().warnings


def test_a_link_to_nowhere_is_a_fault_of_that_image(tmp_path: Path) -> None:
    folder = touch(tmp_path / "photos", "a.png", "c.png")
    (folder / "b.png").symlink_to(folder / "gone")
    refs = list(ImageSource(folder).listing().refs())
    assert [ref.key for ref in refs] == ["a.png", "b.png", "c.png"]
    assert [bool(ref.fault) for ref in refs] == [False, True, False]
    assert "No such file" in refs[1].fault


# labels


def test_labels_are_ranks_of_top_folders(tmp_path: Path) -> None:
    """A folder without an image takes no rank; what lies at the root belongs to the class ''."""
    names = ["cat/1.png", "cat/sub/2.png", "ant/3.png", "notes/readme.txt", "dog/4.png", "5.png"]
    folder = touch(tmp_path / "photos", *names)
    (folder / "bee").mkdir()
    listing = ImageSource(folder).listing()
    assert listing.classes == ["", "ant", "cat", "dog"]
    assert labels(folder) == {"5.png": 0, "ant/3.png": 1, "cat/1.png": 2, "cat/sub/2.png": 2, "dog/4.png": 3}


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["cat/1.png", "cat/2.png"]])
def test_a_single_class_is_none(tmp_path: Path, names: list[str]) -> None:
    listing = ImageSource(touch(tmp_path / "photos", *names)).listing()
    assert listing.classes is None
    assert [ref.label for ref in listing.refs()] == [None, None]


def test_max_images_cuts_after_labels_are_given(tmp_path: Path) -> None:
    folder = touch(tmp_path / "photos", "b/1.png", "b/2.png", "c/3.png", "a/x.png")
    listing = ImageSource(folder).listing(max_images=2)
    assert listing.count == 2
    assert listing.classes == ["a", "b", "c"]
    assert labels(folder, max_images=2) == {"a/x.png": 0, "b/1.png": 1}
    assert ImageSource(folder).listing(max_images=99).count == 4


@pytest.mark.parametrize("as_zip", [False, True])
def test_dataset_json_wins_over_folders(tmp_path: Path, as_zip: bool) -> None:
    text = json.dumps({"labels": [["cat/1.png", 7], ["dog\\2.png", 0]]})
    if as_zip:
        members = {"cat/1.png": "", "dog/2.png": "", "dog/3.png": "", "dataset.json": text}
        path = zipped(tmp_path / "photos.zip", members)
    else:
        path = label_file(touch(tmp_path / "photos", "cat/1.png", "dog/2.png", "dog/3.png"), text)
    assert labels(path) == {"cat/1.png": 7, "dog/2.png": 0, "dog/3.png": None}


@pytest.mark.parametrize("text", ['{"labels": null}', '{"labels": []}', "{}"])
def test_null_or_empty_labels_leave_the_folders(tmp_path: Path, text: str) -> None:
    folder = label_file(touch(tmp_path / "photos", "cat/1.png", "dog/2.png"), text)
    assert labels(folder) == {"cat/1.png": 0, "dog/2.png": 1}
    archive = zipped(tmp_path / "photos.zip", {"cat/1.png": "", "dog/2.png": "", "dataset.json": text})
    assert labels(archive) == {"cat/1.png": None, "dog/2.png": None}


def test_a_zip_has_labels_only_by_its_dataset_json(tmp_path: Path) -> None:
    listing = ImageSource(zipped(tmp_path / "photos.zip", {"cat/1.png": "", "dog/2.png": ""})).listing()
    assert listing.classes is None
    assert [ref.label for ref in listing.refs()] == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "labels: cat",
        '{"labels": [["a.png", 1]',
        "\xff\xfe",
        '["a.png"]',
        "3",
        '{"labels": {"a.png": 1}}',
        '{"labels": [["a.png", "cat"]]}',
        '{"labels": [["a.png", 1.5]]}',
        '{"labels": [["a.png", true]]}',
        '{"labels": [["a.png"]]}',
        '{"labels": [["a.png", null]]}',
        '{"labels": [["a.png", 9223372036854775808]]}',
        '{"label": [["a.png", 1]]}',  # folders' ranks in place of what was meant would go unnoticed
        '{"a.png": 1}',
        '{"labels": false}',
        '{"labels": ""}',
    ],
)
def test_a_dataset_json_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    folder = touch(tmp_path / "photos", "a.png")
    (folder / "dataset.json").write_bytes(text.encode("latin-1"))
    archive = zipped(tmp_path / "photos.zip", {"a.png": "", "dataset.json": text.encode("latin-1")})
    for path in (folder, archive):
        with pytest.raises(SourceError, match=r"dataset\.json"):
            ImageSource(path).listing()


def test_a_damaged_dataset_json_in_a_zip_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    text = json.dumps({"labels": [["a.png", 1]]})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("dataset.json", text)
        archive.writestr("a.png", b"x")
    data = bytearray(path.read_bytes())
    data[data.index(b'["a.png", 1') + 10] = ord("2")
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"dataset\.json"):
        ImageSource(path).listing()


def test_labels_of_files_that_are_not_there_are_a_warning(tmp_path: Path) -> None:
    text = json.dumps({"labels": [["a.png", 1], ["gone.png", 2], ["lost.png", 3]]})
    listing = ImageSource(label_file(touch(tmp_path / "photos", "a.png"), text)).listing()
    assert [ref.label for ref in listing.refs()] == [1]
    (warning,) = listing.warnings
    assert "2 files" in warning
    assert "dataset.json" in warning


# sources that cannot be used


def test_sources_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        ImageSource(tmp_path / "nowhere").listing()
    with pytest.raises(SourceError, match="holds no images"):
        ImageSource(touch(tmp_path / "empty", "notes.txt")).listing()
    with pytest.raises(SourceError, match="holds no images"):
        ImageSource(zipped(tmp_path / "empty.zip", {"notes.txt": ""})).listing()
    with pytest.raises(SourceError, match=r"folder or a \.zip"):
        ImageSource(touch(tmp_path, "photo.png") / "photo.png").listing()
    (tmp_path / "fake.zip").write_bytes(b"PK\x03\x04 but not really")
    with pytest.raises(SourceError, match="not a zip archive"):
        ImageSource(tmp_path / "fake.zip").listing()


def test_an_unreadable_file_is_a_fault_of_that_image(tmp_path: Path) -> None:
    source = ImageSource(touch(tmp_path / "photos", "a.png", "b.png"))
    refs = list(source.listing().refs())
    (tmp_path / "photos" / "a.png").unlink()
    with pytest.raises(SampleError) as refused:
        source.read(refs[0])
    assert refused.value.stage == "read"
    assert source.read(refs[1]) == b"b.png"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path: Path) -> None:
    folder = touch(tmp_path / "photos", "a/1.png", "b/2.png")
    (folder / "b").chmod(0)
    try:
        with pytest.raises(SourceError, match="cannot list the folder"):
            ImageSource(folder).listing()
    finally:
        (folder / "b").chmod(0o700)


def test_names_that_leave_the_archive_are_faults_of_those_images(tmp_path: Path) -> None:
    members = {"../evil.png": "x", "ok.png": "x", "/etc/passwd.png": "x", "a/../../b.png": "x", "a\\..\\c.png": "x"}
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # past ZipInfo's own tidying
            archive.writestr(info, data)
    faults = {ref.key: ref.fault for ref in ImageSource(path).listing().refs()}
    assert faults.keys() == members.keys()
    assert {key for key, fault in faults.items() if not fault} == {"ok.png"}
    assert "leaves the archive" in faults["../evil.png"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_an_archive_holds_twice_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"one")
        archive.writestr("a.png", b"another")
        archive.writestr("b.png", b"b")
    refs = list(ImageSource(path).listing().refs())
    assert [ref.key for ref in refs] == ["a.png", "a.png", "b.png"]
    assert any("twice" in ref.fault for ref in refs[:2])
    assert not refs[2].fault


def test_a_source_can_be_pickled_with_its_archive_open(tmp_path: Path) -> None:
    source = ImageSource(zipped(tmp_path / "photos.zip", {"a.png": b"one", "b.png": b"two"}))
    first, second = source.listing().refs()
    assert source.read(first) == b"one"
    assert pickle.loads(pickle.dumps(source)).read(second) == b"two"


@pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's")
def test_a_forked_worker_opens_its_own_archive(tmp_path: Path) -> None:
    """An inherited one shares its position with the parent, which has read a few images for its estimate."""
    members = {name: os.urandom(100_000) for name in ("a.png", "b.png")}  # beyond any buffer
    path = zipped(tmp_path / "photos.zip", members)
    source = ImageSource(path)
    first, second = source.listing().refs()
    assert source.read(first) == members["a.png"]
    (handle,) = [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == os.path.realpath(path)]
    before = (Path("/proc/self/fdinfo") / handle.name).read_text()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=lambda: results.put(source.read(second)))
    process.start()
    assert results.get(timeout=30) == members["b.png"]
    process.join()
    assert (Path("/proc/self/fdinfo") / handle.name).read_text() == before


# through a whole conversion


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf_8_survive(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    make_photos(source, 2, classes=1)
    Image.new("RGB", (16, 16), "red").save(source / LATIN_1, "PNG")
    (source / os.fsdecode(b"bad\xff.png")).write_bytes(b"not a picture")
    (source / "dataset.json").write_text('{"labels": [["caf\\udce9.png", 5]]}')
    dest = tmp_path / "images"
    result = api.convert(source, dest, transform="center-crop", resolution="16x16", num_workers=1, max_failures=1)
    assert (result.stored, result.rejected) == (3, 1)
    index = (dest / "latentmill-index.jsonl").read_bytes()
    assert index.isascii()
    stored = [row["key"] for row in index_rows(dest) if "name" in row]
    assert stored == ["c0/photo00000.jpg", "c0/photo00001.jpg", LATIN_1]
    assert [row["label"] for row in index_rows(dest) if row["key"] == LATIN_1] == [5]
    assert os.fsencode(source / stored[2]) == os.fsencode(source) + b"/caf\xe9.png"
    (reject,) = [json.loads(line) for line in (dest / "latentmill-rejects.jsonl").read_text().splitlines()]
    assert os.fsencode(reject["key"]) == b"bad\xff.png"
    assert printable(LATIN_1) == "caf\\xe9.png"
    # the same names are known again: nothing is left to do
    again = api.convert(source, dest, transform="center-crop", resolution="16x16", num_workers=1, max_failures=1)
    assert again.computed == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_the_command_shows_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Where the terminal takes UTF-8 alone, a summary or an error that holds such a name is still printed."""
    make_photos(tmp_path / LATIN_1, 2)
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    arguments = ("convert", "--source", tmp_path / LATIN_1, "--transform", "center-crop", "--num-workers", 1)
    done = cli(*arguments, "--resolution", "16x16", "--dest", tmp_path / os.fsdecode(b"d\xe9st"), **strict)
    assert done.returncode == 0, done.stderr
    assert "d\\xe9st" in done.stdout
    failed = cli(*arguments, "--resolution", "16x16", "--dest", tmp_path / LATIN_1, **strict)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: the destination is the source")
    assert "caf\\xe9.png" in failed.stderr


def test_what_was_converted_without_labels_stays_without(tmp_path: Path) -> None:
    """Its folders 00000 and 00001 are chunks, not classes."""
    source = tmp_path / "photos"
    source.mkdir()
    Image.new("RGB", (8, 8), "blue").save(source / "0000.png")
    data = (source / "0000.png").read_bytes()
    for number in range(1, 1002):
        (source / f"{number:04d}.png").write_bytes(data)
    images = tmp_path / "images"
    api.convert(source, images, num_workers=1)
    assert sorted(path.name for path in images.glob("0*")) == ["00000", "00001"]
    assert json.loads((images / "dataset.json").read_text()) == {"labels": None}
    listing = ImageSource(images).listing()
    assert listing.classes is None
    assert {ref.label for ref in listing.refs()} == {None}
    api.encode(images, tmp_path / "latents", model_url="fake")
    assert json.loads((tmp_path / "latents" / "dataset.json").read_text()) == {"labels": None}


def test_numbers_of_converted_images_are_kept(tmp_path: Path) -> None:
    """A skipped or rejected photo leaves a gap; latents carry the numbers of their images, and their classes' names."""
    source = tmp_path / "photos"
    make_photos(source, 6)
    (source / "c0" / "photo00001.jpg").write_bytes(b"not a picture")
    images, latents = tmp_path / "images", tmp_path / "latents"
    api.convert(source, images, transform="center-crop", resolution="16x16", num_workers=1, max_failures=1)
    assert api.encode(images, latents, model_url="fake").stored == 5
    found = json.loads((latents / "dataset.json").read_text())["labels"]
    assert found == [[f"00000/img-mean-std-{n:08d}.npy", int(n > 2)] for n in (0, 2, 3, 4, 5)]
    assert json.loads((latents / "latentmill.json").read_text())["classes"] == ["c0", "c1"]
