"""`latentmill audit`: what it finds in real files, that it agrees with what runs reject, and what it writes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import latentmill
from latentmill.auditing import kinds
from latentmill.auditing.audit import audit
from latentmill.auditing.findings import Audit
from latentmill.auditing.near import (
    DISTANCE,
    HASH_BITS,
    HASH_WORDS,
    distances,
    groups_of,
    near_groups,
    near_pairs,
    picture_hash,
    reduced,
)
from latentmill.auditing.written import check_places, write_list
from latentmill.errors import ConfigError, DestinationError
from latentmill.outcome import Event
from latentmill.runners.tasks import in_processes
from support import CAN_FORK, cli, cli_here, make_photos

PHOTOS = Path(latentmill.__file__).parent / "assets" / "photos"
CAT, COFFEE, ROCKET = (PHOTOS / name for name in ("animal/chelsea.jpg", "object/coffee.jpg", "place/rocket.jpg"))


def found_of(report: Audit, kind: str) -> set[tuple[str, ...]]:
    return {finding.keys for finding in report.of_kind(kind)}


def keys_of(report: Audit, kind: str) -> set[str]:
    return {key for finding in report.of_kind(kind) for key in finding.keys}


def damaged_photos(folder: Path, captioned: bool = False) -> Path:
    """Four sound photos, and one of each way that a file can be no photo."""
    paths = make_photos(folder, 4, side=64, classes=1)
    whole = paths[0].read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "c0" / "large.png")
    (folder / "c0" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "c0" / "empty.jpg").write_bytes(b"")
    (folder / "c0" / "page.png").write_bytes(b"<html>404</html>")
    (folder / "c0" / "no-header.jpg").write_bytes(whole[:12])
    (folder / "c0" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "c0" / "pipe.jpg")
    if captioned:
        for path in (folder / "c0").iterdir():
            path.with_suffix(".txt").write_text(f"the photo {path.name}")
        paths[1].with_suffix(".txt").write_text(" \n")
        paths[2].with_suffix(".txt").write_bytes(b"caf\xe9")
        paths[3].with_suffix(".txt").unlink()
    return folder


def rejects_of(dest: Path) -> dict[str, str]:
    lines = (dest / "latentmill-rejects.jsonl").read_text().splitlines()
    return {row["key"]: f"{row['stage']}: {row['reason']}" for row in map(json.loads, lines)}


# agreement with runs


def test_what_is_unusable_is_what_a_conversion_rejects_and_why(tmp_path: Path) -> None:
    photos = damaged_photos(tmp_path / "photos")
    found = latentmill.audit(photos, max_pixels=90 * 90)
    settings = {"resolution": "32x32", "transform": "center-crop", "num_workers": 1, "max_failures": "100%"}
    latentmill.convert(photos, tmp_path / "data", max_pixels=90 * 90, **settings)
    assert found.unusable == rejects_of(tmp_path / "data")
    by_kind = {kind.name: keys_of(found, kind.name) for kind, _ in found.kinds("unusable")}
    assert by_kind == {
        kinds.EMPTY: {"c0/empty.jpg"},
        kinds.NO_IMAGE: {"c0/page.png", "c0/no-header.jpg"},
        kinds.DAMAGED: {"c0/cut.jpg"},
        kinds.TOO_LARGE: {"c0/large.png"},
        kinds.UNREADABLE: {"c0/gone.jpg", "c0/pipe.jpg"},
    }


def test_what_is_unusable_is_what_an_import_rejects(tmp_path: Path) -> None:
    photos = damaged_photos(tmp_path / "photos", captioned=True)
    (photos / "c0" / "pipe.jpg").unlink()  # an import waits for its header, where it looks at it at all
    for missing in ("reject", "empty"):
        found = audit(photos, missing_caption=missing)
        latentmill.import_captioned(photos, tmp_path / missing, missing_caption=missing, png=True, threads=1)
        assert found.unusable.keys() == rejects_of(tmp_path / missing / "InternData").keys()
    assert keys_of(found, kinds.NO_CAPTION) == {"c0/photo00002.jpg"}  # not UTF-8, which is no empty caption


def test_what_is_unusable_is_what_both_of_pixarts_jobs_reject(tmp_path: Path) -> None:
    photos = damaged_photos(tmp_path / "photos", captioned=True)
    (photos / "c0" / "pipe.jpg").unlink()
    how = {"vae": "fake", "text_encoder": "mini", "multi_scale": True, "buckets": "grid:64", "resolution": 256}
    made = latentmill.pixart(photos, tmp_path / "data", max_failures="100%", **how)
    assert made.images is not None
    images, captions = rejects_of(made.images.dest), rejects_of(made.text["prompt"].dest)
    assert (len(images), len(captions)) == (5, 3)
    found = audit(photos)
    assert found.unusable.keys() == images.keys() | captions.keys()
    write_list(found, tmp_path / "exclude.txt", ["no-caption"])
    again = latentmill.pixart(photos, tmp_path / "data", exclude=tmp_path / "exclude.txt", **how)
    assert again.images is not None
    for result in (again.images, again.text["prompt"]):
        assert (result.stored, result.rejected, result.computed) == (2, 0, 0)


def test_what_is_unusable_of_a_zip(tmp_path: Path) -> None:
    photos = damaged_photos(tmp_path / "photos")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.glob("*/*.*g")):
            if path.is_file():
                archive.write(path, path.relative_to(photos).as_posix())
        archive.writestr("../evil.png", b"")
    found = audit(tmp_path / "photos.zip")
    settings = {"resolution": "32x32", "transform": "center-crop", "num_workers": 1, "max_failures": "100%"}
    latentmill.convert(tmp_path / "photos.zip", tmp_path / "data", **settings)
    assert found.unusable == rejects_of(tmp_path / "data")
    assert "../evil.png" in found.unusable


def test_a_list_takes_every_reject_out_of_a_run(tmp_path: Path) -> None:
    photos = damaged_photos(tmp_path / "photos")
    shutil.copy(photos / "c0" / "photo00000.jpg", photos / "c0" / "zz-copy.jpg")
    done = cli("audit", photos, "--list", tmp_path / "exclude.txt", "--num-workers", 1)
    assert done.returncode == 1, done.stderr
    made = latentmill.convert(
        photos, tmp_path / "data", exclude=tmp_path / "exclude.txt", resolution="32x32", transform="center-crop"
    )
    assert (made.stored, made.rejected) == (5, 0)
    text = (tmp_path / "exclude.txt").read_text()
    assert "c0/zz-copy.jpg\t# same-bytes as c0/photo00000.jpg\n" in text
    assert "c0/empty.jpg\t# decode: the file is empty\n" in text
    again = audit(photos, exclude=tmp_path / "exclude.txt")
    assert (again.images, again.unusable, again.of_kind(kinds.SAME_BYTES)) == (5, {}, [])


# copies


def save(picture: Image.Image, path: Path, **settings: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **settings)  # type: ignore[arg-type]


def test_copies_of_every_degree_and_what_is_kept_of_them(tmp_path: Path) -> None:
    cat, coffee, rocket = (Image.open(path).convert("RGB") for path in (CAT, COFFEE, ROCKET))
    for name in ("cats/a.jpg", "cats/b.jpg", "dogs/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(CAT, tmp_path / name)
    save(cat, tmp_path / "cats/same.bmp")
    save(coffee, tmp_path / "cups/small.png")
    save(coffee.resize((coffee.width // 2, coffee.height // 2)), tmp_path / "cups/half.webp", quality=80)
    save(coffee, tmp_path / "cups/again.jpg", quality=40)
    save(rocket, tmp_path / "cups/other.jpg")
    found = audit(tmp_path)
    assert found_of(found, kinds.SAME_BYTES) == {("cats/a.jpg", "cats/b.jpg", "dogs/c.jpg")}
    assert found_of(found, kinds.SAME_PIXELS) == {("cats/a.jpg", "cats/same.bmp")}
    assert found_of(found, kinds.NEAR) == {("cups/small.png", "cups/again.jpg", "cups/half.webp")}  # the best first
    assert found_of(found, kinds.TWO_CLASSES) == {("cats/a.jpg", "cats/b.jpg", "dogs/c.jpg", "cats/same.bmp")}
    assert found.of_kind(kinds.TWO_CLASSES)[0].detail == "cats, dogs"
    assert list(found.exclusions()) == ["cats/b.jpg", "cats/same.bmp", "dogs/c.jpg"]
    assert found.exclusions(["near"]).keys() - found.exclusions().keys() == {"cups/again.jpg", "cups/half.webp"}


def test_the_copy_with_a_caption_is_kept(tmp_path: Path) -> None:
    for name, caption in (("a", None), ("b", "a cat"), ("c", "a dog")):
        shutil.copy(CAT, tmp_path / f"{name}.jpg")
        if caption:
            (tmp_path / f"{name}.txt").write_text(caption)
    found = audit(tmp_path)
    assert found_of(found, kinds.SAME_BYTES) == {("b.jpg", "c.jpg", "a.jpg")}
    assert found.of_kind(kinds.TWO_CAPTIONS)[0].detail == "a cat / a dog"
    assert found.exclusions() == {"a.jpg": "same-bytes as b.jpg", "c.jpg": "same-bytes as b.jpg"}
    assert found.exclusions(["captions"])["a.jpg"] == "no caption prompt"


def test_one_stray_caption_file_does_not_put_all_other_photos_on_the_list(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    make_photos(photos, 4)
    next(photos.rglob("*.jpg")).with_suffix(".txt").write_text("a note")
    (photos / "broken.jpg").write_bytes(b"nothing")
    found = audit(photos)
    assert len(found.of_kind(kinds.NO_CAPTION)) == 4
    assert found.unusable_images.keys() == found.exclusions().keys() == {"broken.jpg"}
    assert len(found.exclusions(["no-caption"])) == len(found.unusable) == 4
    told = cli_here("audit", photos, "--list", tmp_path / "list.txt")
    assert "3 images without a caption not in it" in " ".join(told.stdout.split())


def test_pictures_of_another_shape_or_another_transparency_are_no_copies(tmp_path: Path) -> None:
    save(Image.new("RGB", (30, 20), "red"), tmp_path / "wide.png")
    save(Image.new("RGB", (20, 30), "red"), tmp_path / "tall.png")
    icon = Image.new("RGBA", (64, 64))
    for name, box in (("left", (0, 0, 20, 64)), ("right", (40, 0, 64, 64)), ("right-too", (40, 0, 64, 64))):
        drawn = icon.copy()
        drawn.paste((0, 0, 0, 255), box)
        save(drawn, tmp_path / f"{name}.png", compress_level=len(name))
    save(Image.open(CAT).convert("RGB"), tmp_path / "cat.png")
    save(Image.open(CAT).convert("RGBA"), tmp_path / "cat-opaque.png")
    found = audit(tmp_path)
    assert found_of(found, kinds.SAME_PIXELS) == {("cat-opaque.png", "cat.png"), ("right-too.png", "right.png")}


def test_flat_pictures_are_not_near_to_each_other_or_to_anything(tmp_path: Path) -> None:
    shades = [(255, 255, 255), (0, 0, 0), (128, 128, 128), (255, 0, 0), (250, 250, 250)]
    for number, shade in enumerate(shades):
        for kind in ("png", "jpg"):
            save(Image.new("RGB", (200, 150 + number), shade), tmp_path / f"{number}.{kind}")
    noisy = np.random.default_rng(0).integers(126, 130, (200, 200, 3), dtype=np.uint8)
    save(Image.fromarray(noisy), tmp_path / "noisy.png")
    shutil.copy(CAT, tmp_path / "cat.jpg")
    assert not audit(tmp_path).of_kind(kinds.NEAR)


def _encoded(picture: Image.Image, kind: str, **settings: object) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, **settings)  # type: ignore[arg-type]
    return Image.open(file).convert("RGB")


def _cropped(picture: Image.Image, part: float) -> Image.Image:
    across, down = round(picture.width * part / 2), round(picture.height * part / 2)
    return picture.crop((across, down, picture.width - across, picture.height - down))


def _hash(picture: Image.Image) -> np.ndarray:
    return np.frombuffer(picture_hash(reduced(np.asarray(picture))), np.uint64)


ALTERED: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {  # photos of twelve that must be found
    "jpeg 30": (lambda picture: _encoded(picture, "JPEG", quality=30), 12),
    "webp 50": (lambda picture: _encoded(picture, "WEBP", quality=50), 12),
    "half": (lambda picture: picture.resize((picture.width // 2, picture.height // 2)), 12),
    "256 wide": (lambda picture: picture.resize((256, 256 * picture.height // picture.width)), 12),
    "brighter": (lambda picture: picture.point(lambda value: min(255, round(value * 1.2))), 12),
    "darker": (lambda picture: picture.point(lambda value: round(value * 0.7)), 12),
    "cropped by 2 %": (lambda picture: _cropped(picture, 0.02), 11),
}


def test_the_distance_finds_altered_photos_and_takes_no_two_for_one() -> None:
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*/*.jpg"))]
    hashes = np.stack([_hash(photo) for photo in photos])
    between = distances(hashes[:, None], hashes[None])[np.triu_indices(len(photos), 1)]
    assert between.min() > 2 * DISTANCE
    for told, (altered, least) in ALTERED.items():
        far = distances(hashes, np.stack([_hash(altered(photo)) for photo in photos]))
        assert (far <= DISTANCE).sum() >= least, (told, far)


def test_near_hashes_are_found_among_many_without_comparing_all() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2, (20_000, 192), dtype=np.uint8)
    bits[:, 144:] = 0
    for number in range(500):  # copies at every distance up to the asked one
        bits[10_000 + number] = bits[number]
        bits[10_000 + number, random.choice(144, 1 + number % DISTANCE, replace=False)] ^= 1
    hashes = np.packbits(bits, axis=1).view(np.uint64)
    assert hashes.shape == (20_000, HASH_WORDS)
    pairs = near_pairs(hashes, DISTANCE)
    planted = {(number, 10_000 + number) for number in range(500)}
    assert len(planted & set(map(tuple, pairs.tolist()))) >= 495
    assert (distances(hashes[pairs[:, 0]], hashes[pairs[:, 1]]) <= DISTANCE).all()
    assert len(pairs) < 520


def test_a_chain_does_not_become_one_group() -> None:
    pairs = np.array([(0, 1), (1, 2), (2, 3), (3, 4)])
    assert groups_of(pairs) == [[0, 1], [2, 3]]


def test_frames_of_a_film_that_are_all_alike_do_not_make_pairs_of_each_with_each() -> None:
    random = np.random.default_rng(0)
    bits = np.repeat(random.integers(0, 2, (1, HASH_BITS), dtype=np.uint8), 600, axis=0)
    bits = np.unique(bits ^ (random.random(bits.shape) < 0.05), axis=0).astype(np.uint8)
    hashes = np.zeros((len(bits), 8 * HASH_WORDS), np.uint8)
    hashes[:, : HASH_BITS // 8] = np.packbits(bits, axis=1)
    words = hashes.view(np.uint64)
    assert len(near_pairs(words, DISTANCE)) <= 64 * len(words)
    groups = near_groups(words, DISTANCE)
    assert sum(map(len, groups)) > 0.97 * len(words)
    assert all(distances(words[group[:1]], words[group[1:]]).max() <= DISTANCE for group in groups)


# what one may not expect of an image


def test_what_images_are_beside_their_pixels(tmp_path: Path) -> None:
    cat = Image.open(CAT).convert("RGB")
    small = cat.resize((150, 100))
    turned = Image.Exif()
    turned[0x0112] = 6
    save(small, tmp_path / "turned.jpg", exif=turned)
    save(small.convert("CMYK"), tmp_path / "cmyk.jpg")
    save(small.convert("L"), tmp_path / "grey.png")
    save(small.convert("L").convert("RGB"), tmp_path / "colourless.png")
    save(small.convert("RGBA").resize((150, 99)), tmp_path / "alpha.png")
    save(Image.fromarray(np.arange(15000, dtype=np.uint16).reshape(100, 150) * 4), tmp_path / "deep.png")
    save(small, tmp_path / "several.gif", save_all=True, append_images=[small.rotate(90)])
    save(small, tmp_path / "named.png", format="JPEG")
    save(cat.resize((60, 300)), tmp_path / "tall.jpg")
    save(cat.resize((40, 60)), tmp_path / "tiny.jpg")
    save(small, tmp_path / "srgb.jpg", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    save(small, tmp_path / "lab.tif", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    found = audit(tmp_path, resolution="120x100")
    told = {kind.name: keys_of(found, kind.name) for kind, _ in found.kinds()}
    assert told[kinds.EXIF_ROTATED] == {"turned.jpg"}
    assert told[kinds.CMYK] == {"cmyk.jpg"}
    assert told[kinds.GREY] == {"grey.png", "colourless.png", "deep.png"}
    assert told[kinds.TRANSPARENT] == {"alpha.png"}
    assert told[kinds.SIXTEEN_BIT] == {"deep.png"}
    assert told[kinds.ANIMATED] == {"several.gif"}
    assert told[kinds.WRONG_EXTENSION] == {"named.png"}
    assert told[kinds.EXTREME] == {"tall.jpg"}
    assert told[kinds.TINY] == {"tiny.jpg"}
    assert told[kinds.UPSCALED] == {"tall.jpg", "alpha.png"}
    assert told[kinds.COLOUR_PROFILE] == {"lab.tif"}
    assert told[kinds.NOT_LISTED] == {"IMG_1.HEIC"}
    assert not found.unusable


def test_a_wide_gamut_profile_is_told_by_what_it_does() -> None:
    from latentmill.auditing.looking import look_at
    from latentmill.sources.images import ImageSource

    source = ImageSource(PHOTOS)
    looks = {ref.key: look_at(source, ref) for ref in source.listing().refs()}
    profiles = {key: dict(look.found).get(kinds.COLOUR_PROFILE) for key, look in looks.items()}
    tagged = {key for key in profiles if Image.open(PHOTOS / key).info.get("icc_profile")}
    assert {key for key, name in profiles.items() if name} <= tagged


def test_classes_of_few_images_and_names_that_collide(tmp_path: Path) -> None:
    make_photos(tmp_path, 24, classes=2)
    for name in ("c0/Photo00001.jpg", "c0/photo00002.png", "few/caf\u00e9.jpg", "few/cafe\u0301.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "c0" / "photo00000.jpg", tmp_path / name)
    found = audit(tmp_path)
    assert [finding.detail for finding in found.of_kind(kinds.FEW_IMAGES)] == ["few: 2"]
    assert found_of(found, kinds.SAME_STEM) == {("c0/photo00002.jpg", "c0/photo00002.png")}
    assert {
        (set(f.keys) == {"c0/Photo00001.jpg", "c0/photo00001.jpg"}, f.detail) for f in found.of_kind(kinds.SAME_NAME)
    } == {
        (True, "in case"),
        (False, "in Unicode form"),
    }


# captions


def captioned_table(folder: Path, captions: list[str | None], **more: object) -> Path:
    paths = make_photos(folder, len(captions), classes=1)
    rows = [
        {"path": path.relative_to(folder).as_posix(), "caption": caption, **more}
        for path, caption in zip(paths, captions, strict=True)
    ]
    table = folder / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def test_what_is_wrong_with_captions(tmp_path: Path) -> None:
    plain = [f"a photo of a {thing} in the snow" for thing in ("cat", "dog", "horse", "sheep", "goose", "crow")]
    odd = [
        "a caf\u00c3\u00a9 at night",
        "see <b>here</b> https://x.org",
        "word " * 400,
        "Twice",
        "twice ",
        None,
        "",
        "caf\u00e9",
    ]
    table = captioned_table(tmp_path, [*plain, *odd])
    found = audit(table)
    told = {kind.name: {int(key[-9:-4]) for key in keys_of(found, kind.name)} for kind, _ in found.kinds()}
    assert told[kinds.NO_CAPTION] == {11, 12}
    assert told[kinds.MOJIBAKE] == {6}
    assert found.of_kind(kinds.MOJIBAKE)[0].detail.endswith("\u2192 a caf\u00e9 at night")
    assert told[kinds.MARKUP] == {7}
    assert told[kinds.LONG_CAPTION] == {8}
    assert told[kinds.SAME_CAPTION] == {9, 10}
    assert [finding.detail for finding in found.of_kind(kinds.BOILERPLATE)] == [
        "a photo of a\u2026",
        "\u2026in the snow",
    ]
    assert told[kinds.BOILERPLATE] == set(range(6))
    assert found.captions == {"prompt": 12}


def test_lengths_in_tokens_of_a_model(tmp_path: Path) -> None:
    table = captioned_table(tmp_path, ["short", "long words " * 200])
    found = audit(table, model="mini", max_duplicate_distance=0)
    assert keys_of(found, kinds.LONG_CAPTION) == {"c0/photo00001.jpg"}
    assert "tokens, of which 300 are taken" in found.of_kind(kinds.LONG_CAPTION)[0].detail


def test_a_table_that_tells_another_size_and_a_pixart_dataset(tmp_path: Path) -> None:
    table = captioned_table(tmp_path / "photos", ["one", "two"], width=65, height=48)
    found = audit(table)
    assert found.of_kind(kinds.OTHER_SIZE)[0].detail == "is 64x48, its row says 65x48"
    assert len(found.unusable) == 2
    latentmill.import_captioned(table, tmp_path / "data", threads=1)
    root = audit(tmp_path / "data")
    assert (root.images, root.unusable, root.captions) == (2, {}, {"prompt": 2})


# how it works


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    if CAN_FORK:
        monkeypatch.setattr("latentmill.runners.local._start_method", lambda: "fork")


@pytest.mark.usefixtures("forking")
def test_processes_give_what_one_gives_and_progress_is_told(tmp_path: Path) -> None:
    make_photos(tmp_path, 130)
    (tmp_path / "c0" / "bad.jpg").write_bytes(b"bad")
    events: list[Event] = []
    alone, together = audit(tmp_path, num_workers=1), audit(tmp_path, num_workers=2, tell=events.append)
    assert alone.findings == together.findings
    progress = [event for event in events if event.kind == "progress"]
    assert (progress[-1].done, progress[-1].total, progress[-1].rejected) == (131, 131, 1)


def _fatal(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return -number


@pytest.mark.usefixtures("forking")
@pytest.mark.skipif(not CAN_FORK, reason="spawned processes are slow")
def test_an_item_that_kills_its_process_is_lost_and_no_other() -> None:
    assert list(in_processes(_fatal, range(20), 2, lambda number: 1000 + number, chunk=4)) == [
        1007 if number == 7 else -number for number in range(20)
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_duplicate_distance": 49}, "max-duplicate-distance"),
        ({"resolution": "256"}, "resolution must be"),
        ({"start_index": 3}, "start-index"),
        ({"modle": "mini"}, "there is no setting modle"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        audit(tmp_path, **settings)


def test_without_the_extra_the_error_names_the_pip_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(ConfigError, match=r"needs ftfy, which is not installed: pip install 'latentmill\[audit\]'"):
        audit(tmp_path)


# what it writes


def test_the_command_on_the_demos_photos(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(PHOTOS, photos)
    shutil.copy(CAT, photos / "plant" / "<b>cat&.jpg")
    (photos / "plant" / "<b>cat&.txt").write_text("<script>alert(1)</script>")
    done = cli(
        "audit", photos, "--out", tmp_path / "a.html", "--json-file", tmp_path / "a.json", "--list", tmp_path / "x.txt",
        "--list-also", "markup,near", "--quiet",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    table = json.loads((tmp_path / "a.json").read_text())
    assert table["counts"]["same-bytes"] == table["counts"]["two-classes"] == table["counts"]["markup"] == 1
    assert table["findings"]["same-bytes"]["found"] == [
        {"keys": ["animal/chelsea.jpg", "plant/<b>cat&.jpg"], "detail": ""}
    ]
    page = (tmp_path / "a.html").read_text()
    assert "Content-Security-Policy" in page
    assert "plant/&lt;b&gt;cat&amp;.jpg" in page
    assert "<script>alert" not in page
    assert page.count("data:image/jpeg") >= 2
    assert "plant/<b>cat&.jpg\t# same-bytes as animal/chelsea.jpg" in (tmp_path / "x.txt").read_text()


def test_the_summary_and_events(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 3, side=100)
    done = cli("audit", tmp_path / "photos", "--json")
    result = [json.loads(line) for line in done.stdout.splitlines()][-2:]
    found = next(event for event in result if event["event"] == "result")
    assert (found["images"], found["unusable"]) == (3, 0)
    told = cli("audit", tmp_path / "photos")
    assert "3 images, 2 classes" in told.stdout
    assert "a run would take every image" in told.stdout


@pytest.mark.parametrize("place", ["folder", "source", "nowhere", "twice"])
def test_files_that_cannot_be_written_are_told_before_the_work(tmp_path: Path, place: str) -> None:
    source = tmp_path / "table.csv"
    source.write_text("path\n")
    files = {
        "folder": [tmp_path],
        "source": [source],
        "nowhere": [tmp_path / "no" / "a.html"],
        "twice": [tmp_path / "a", None, tmp_path / "a"],
    }[place]
    with pytest.raises(DestinationError):
        check_places(source, *files, *(None,) * (3 - len(files)))


def test_a_photo_or_a_caption_is_never_written_over_and_a_former_audit_is(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 1)
    (photo,) = (tmp_path / "photos").rglob("*.jpg")
    caption = photo.with_suffix(".txt")
    caption.write_text("a cat")
    before = photo.read_bytes()
    for option, place in (("--out", photo), ("--list", caption), ("--json-file", caption)):
        refused = cli_here("audit", tmp_path / "photos", option, place)
        assert refused.returncode == 2
        assert "Give another name, or remove it" in " ".join(refused.stderr.split())
    assert (photo.read_bytes(), caption.read_text()) == (before, "a cat")
    files = {"--out": tmp_path / "a.html", "--list": tmp_path / "a.txt", "--json-file": tmp_path / "a.json"}
    for _ in range(2):
        assert (
            cli_here("audit", tmp_path / "photos", *(part for each in files.items() for part in each)).returncode == 0
        )
    assert all(file.stat().st_size for file in files.values())


def test_list_also_knows_its_names(tmp_path: Path) -> None:
    make_photos(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"Found: 'near-by'. Did you mean near\?"):
        audit(tmp_path).exclusions(["near-by"])
