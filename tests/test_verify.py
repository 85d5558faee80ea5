"""`latentmill verify` finds what was changed after a dataset was made, and says where."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fake_text
import latentmill
from latentmill.errors import LatentmillError, SettingsChangedError, SourceError
from latentmill.features import image_features, text_features
from latentmill.files import digest, digest_lines
from latentmill.formats.metadata import _sealed
from latentmill.formats.payload import npy_bytes
from latentmill.formats.pixart import EMPTY_CAPTION, PixArtLatents, PixArtText
from latentmill.records import Array
from support import cli, cli_here, make_photos

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
    run = cli_here("verify", data / folder)
    assert run.returncode == 1
    assert file in run.stdout
    assert "1 problems" in run.stdout
    if folder == "img":
        assert list(problems(data / "lat", data / "img")) == [LATENT]


@pytest.mark.parametrize("name", ["latentmill.json", "latentmill-index.jsonl", "latentmill-index.bin", "dataset.json"])
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
    run = cli_here("verify", archive)
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
    assert cli_here("verify", data / f"lat{suffix}", "--images", data / f"img{suffix}").returncode == 1


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
        (b"]]}", b"]]}\n", "other bytes"),
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
@pytest.mark.parametrize("name", ["dataset.json", "latentmill-index.jsonl", "latentmill-index.bin", "latentmill.json"])
def test_missing_metadata(data: Path, suffix: str, name: str) -> None:
    change(data / f"lat{suffix}", lambda members: members.pop(name))
    assert problems(data / f"lat{suffix}") == {name: "is missing"}
    run = cli_here("verify", data / f"lat{suffix}")
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
        run = cli_here("verify", path)
        assert run.returncode == 2
        assert said in run.stderr
    with pytest.raises(SourceError, match="pairs latents with images"):
        latentmill.verify(data / "img", data / "lat")
    with pytest.raises(SourceError, match="no images"):
        latentmill.verify(data / "lat", data / "photos")


def test_many_problems_are_all_counted(data: Path) -> None:
    for file in (data / "lat" / "00000").iterdir():
        flip(file, 200)
    run = cli_here("verify", data / "lat")
    assert run.returncode == 1
    assert "12 problems" in run.stdout


# feature folders


@pytest.fixture(scope="module")
def made_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VAE features in two buckets, and text features trimmed and padded, of six photos in nested folders."""
    root = tmp_path_factory.mktemp("features")
    photos = make_photos(root / "photos", 6)
    rows = []
    for number, photo in enumerate(photos):
        if number % 2:
            Image.open(photo).rotate(90, expand=True).save(photo)
        width, height = Image.open(photo).size
        key = photo.relative_to(root / "photos").as_posix()
        rows.append({"path": key, "width": width, "height": height, "prompt": f"photo {'very ' * number}good"})
    (root / "rows.json").write_text(json.dumps(rows))
    source = {"data_info": root / "rows.json", "dest": root}
    image_features(**source, images=root / "photos", vae="fake", resolution=64, multi_scale=True, buckets="grid:16")
    with pytest.MonkeyPatch.context() as patch:
        fake_text.install(patch.setattr)
        text_features(**source)
        text_features(**source, pad=True, max_length=12, suffix="padded")
    return root


IMAGES, TEXT, PADDED = (
    "img_sdxl_vae_features_64resolution_ms_new", "caption_features_new", "caption_features_new_padded",
)  # fmt: skip
FEATURES = pytest.mark.parametrize("folder", [IMAGES, TEXT, PADDED])


@pytest.fixture
def features(made_features: Path, tmp_path: Path, folder: str) -> Path:
    shutil.copytree(made_features / folder, tmp_path / folder)
    return tmp_path / folder


def names_in(features: Path) -> list[str]:
    """The data files: of the photos, in order."""
    return [row["name"] for row in map(json.loads, (features / "latentmill-index.jsonl").read_text().splitlines())]


@FEATURES
def test_a_whole_feature_folder_is_sound(features: Path) -> None:
    assert names_in(features)[0].startswith("c0_photo00000.np")
    run = cli_here("verify", features)
    assert run.returncode == 0, run
    assert "sound" in run.stdout


@FEATURES
def test_any_flipped_byte_of_features_and_their_metadata(features: Path) -> None:
    for name in (names_in(features)[3], "latentmill.json", "latentmill-index.jsonl"):
        whole = (features / name).read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 60)):
            flip(features / name, at)
            try:
                found = problems(features)
            except LatentmillError:
                found = {name: "refused"}
            assert name in found or name.startswith("latentmill"), f"byte {at} of {name}"
            assert found, f"byte {at} of {name}: {whole[max(0, at - 30) : at + 10]!r}"
            (features / name).write_bytes(whole)


@FEATURES
def test_features_that_are_missing_or_stray_or_swapped(features: Path) -> None:
    one, other, lost, *_ = names_in(features)
    stray = f"deep/er/stray{Path(one).suffix}"

    def edit(members: dict[str, bytes]) -> None:
        swap(one, other)(members)
        members[stray] = members[one]
        del members[lost]

    change(features, edit)
    found = problems(features)
    assert found.keys() == {one, other, lost, stray}
    assert found[lost] == "is missing"
    assert "stray" in found[stray]
    assert "not those made from c0/photo00000.jpg" in found[one]


@pytest.mark.parametrize("folder", [TEXT, PADDED])
@pytest.mark.parametrize("harm", ["missing", "changed", "another", "cut"])
def test_the_features_of_the_empty_caption(features: Path, harm: str) -> None:
    empty = features / EMPTY_CAPTION
    whole = empty.read_bytes()
    if harm == "missing":
        empty.unlink()
    else:
        other = (features / names_in(features)[0]).read_bytes()
        empty.write_bytes({"changed": whole[:50] + b"?" + whole[51:], "another": other, "cut": whole[:-9]}[harm])
    assert list(problems(features)) == [EMPTY_CAPTION]
    run = cli_here("verify", features)
    assert (run.returncode, "Traceback" in run.stderr) == (1, False)


@FEATURES
def test_a_changed_row_of_the_index(features: Path) -> None:
    file = features / "latentmill-index.jsonl"
    text = file.read_text()
    for old, new in (('"key":"c0/photo00001', '"key":"c0/photo00002'), ("\n", "\n\n"), ('"index":2', '"index":3')):
        file.write_text(text.replace(old, new, 1))
        assert file.read_text() != text
        assert list(problems(features)) == ["latentmill-index.jsonl"]


def forge(features: Path, name: str, data: bytes) -> None:
    """Put other data in the place of a file, and make index and metadata agree with it."""
    (features / name).write_bytes(data)
    rows = [json.loads(line) for line in (features / "latentmill-index.jsonl").read_text().splitlines()]
    for row in rows:
        if row["name"] == name:
            row |= {"size": len(data), "digest": digest(data), "crc": zlib.crc32(data)}
    lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows]
    (features / "latentmill-index.jsonl").write_text("".join(lines))
    table = json.loads((features / "latentmill.json").read_text())
    (features / "latentmill.json").write_text(_sealed({**table, "index_digest": digest_lines(lines)}))
    (features / "latentmill-index.bin").unlink()


def masked(array: Array) -> bytes:
    """A file whose last vector is not told to be real."""
    file = io.BytesIO()
    mask = (np.arange(len(array)) < len(array) - 1).astype(np.int16)
    np.savez(file, caption_feature=array[None], attention_mask=mask[None])
    return file.getvalue()


TRIMMED_FILE, PADDED_FILE = PixArtText("multi"), PixArtText("multi", 12)
# a latent of a bucket is (8, 6, 10); features of a caption are (3, 4)


@pytest.mark.parametrize(
    ("folder", "forged", "said"),
    [
        (
            IMAGES,
            lambda a: npy_bytes(a.swapaxes(1, 2).copy()),
            "is float32 (8, 10, 6), expected float32 (8, 6, 10)",
        ),
        (IMAGES, lambda a: npy_bytes(a.astype(np.float16)), "is float16 (8, 6, 10), expected float32 (8, 6, 10)"),
        (IMAGES, lambda a: npy_bytes(a / 0), "holds NaN or infinity"),
        (TEXT, lambda a: TRIMMED_FILE.to_bytes(a[[0, 1, 2, 2]]), "is float16 (4, 4), expected float16 (3, 4)"),
        (TEXT, lambda a: TRIMMED_FILE.to_bytes(a[:, :3]), "is float16 (3, 3), expected float16 (3, 4)"),
        (TEXT, masked, "cannot be decoded: 3 positions of which 2 are real"),
        (PADDED, TRIMMED_FILE.to_bytes, "cannot be decoded: 3 positions of which 3 are real"),
        (PADDED, lambda a: PADDED_FILE.to_bytes(a[[0, 1, 2, 2]]), "is float16 (4, 4), expected float16 (3, 4)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_forged_features_of_a_wrong_shape(
    features: Path, folder: str, forged: Callable[[Array], bytes], said: str
) -> None:
    name = names_in(features)[0]
    layout = {IMAGES: PixArtLatents("multi"), TEXT: TRIMMED_FILE, PADDED: PADDED_FILE}[folder]
    forge(features, name, forged(layout.from_bytes((features / name).read_bytes())))
    assert problems(features) == {"latentmill-index.bin": "is missing", name: said}


# what an earlier version made


def as_it_was(dataset: Path) -> None:
    """Turn a `latentmill.json` into that of the version before text-to-image datasets."""
    file = dataset / "latentmill.json"
    table = json.loads(file.read_text())
    for name in ("layout", "buckets", "text", "text_model"):
        assert table.pop(name, None) in (None, "repa/latents/moments", "repa/images")
    file.write_text(_sealed(table))


def test_an_earlier_versions_dataset_is_verified_loaded_and_updated(data: Path) -> None:
    settings = {**CROP, "model_url": "fake", "images": data / "img"}
    now = {name: (data / name / "latentmill.json").read_bytes() for name in ("lat", "img")}
    for name in now:
        as_it_was(data / name)
    assert problems(data / "lat", data / "img") == {}
    assert len(latentmill.load(data / "lat", data / "img")) == 12
    assert latentmill.encode(data / "photos", data / "lat", **settings).already_done
    moved = data / "photos" / "c1" / "photo00011.jpg"
    moved.rename(data / "moved.jpg")
    assert latentmill.encode(data / "photos", data / "lat", **settings).computed == 0
    (data / "moved.jpg").rename(moved)
    assert latentmill.encode(data / "photos", data / "lat", **settings).computed == 1
    assert problems(data / "lat", data / "img") == {}
    assert {name: (data / name / "latentmill.json").read_bytes() for name in now} == now
    (data / "photos" / "c0" / "photo00000.jpg").unlink()
    as_it_was(data / "lat")
    with pytest.raises(SettingsChangedError, match="resolution"):
        latentmill.encode(data / "photos", data / "lat", **{**settings, "resolution": "64x64"})
