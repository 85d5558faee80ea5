"""`init` writes a recipe that plans and runs as it is, for every kind of source, and says what a newcomer needs."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import fake_text
from latentmill.errors import DestinationError, LatentmillError, SourceError
from latentmill.importing import import_captioned
from latentmill.outcome import Result
from latentmill.recipe import Recipe
from latentmill.recipe_init import look_at, write_recipe
from latentmill.recipe_plan import plan_of
from support import identity, make_photos

MODELS = ("latents", "vae-sd", "text")  # outputs with models, which tests have fake ones for


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with 6 photos in two classes, and no hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_photos(tmp_path / "photos", 6)
    return tmp_path


def caption(folder: Path, *, every: int = 1) -> None:
    for number, photo in enumerate(sorted(folder.rglob("*.jpg"))):
        if number % every == 0:
            photo.with_suffix(".txt").write_text(f"caption {number}")


def table_of(photos: Path) -> list[dict[str, str]]:
    keys = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    return [{"path": key, "prompt": f"caption of {key}", "sharegpt4v": f"a long caption of {key}"} for key in keys]


def initialised(source: str, out: str = "recipe.toml") -> Path:
    """A recipe for a source, which is left as it was."""
    before = {path: identity(path) for path in [Path(source), *Path(source).rglob("*")]}
    write_recipe(Path(source), Path(out))
    now = {path: identity(path) for path in before}
    assert now == before
    return Path(out)


def planned_and_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Result]:
    """As it is it is planned, but for the models; with fake ones it is run."""
    plan = plan_of(Recipe.read(file))
    fake_text.install(monkeypatch.setattr)
    names = [name for name in Recipe.read(file).outputs if name in MODELS]
    results = Recipe.read(file, [f"outputs.{name}.model=fake" for name in names]).run()
    assert {each.name: each.samples for each in plan.outputs} == {name: r.stored for name, r in results.items()}
    assert not any(result.rejected for result in results.values())
    return results


def test_a_folder_with_classes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = write_recipe(Path("photos"), Path("recipe.toml"))
    assert lines == ["photos: 6 images of 64x48", "2 classes"]
    results = planned_and_run(Path("recipe.toml"), monkeypatch)
    assert {name: result.dest for name, result in results.items()} == {
        "images": Path("data/images"),
        "vae-sd": Path("data/vae-sd"),
    }


def test_a_folder_with_captions(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caption(here / "photos")
    lines = write_recipe(Path("photos"), Path("recipe.toml"))
    assert lines == ["photos: 6 images of 64x48", "2 classes", "captions 'prompt': 6 of 6"]
    assert planned_and_run(Path("recipe.toml"), monkeypatch).keys() == {"latents", "text"}


def test_the_half_that_is_a_comment_runs_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments that begin with a setting, a table or a list are settings to be taken in."""
    caption(here / "photos")
    text = initialised("photos").read_text()
    setting = re.compile(r"^# (?=\[|[a-z_0-9]+ = )", re.MULTILINE)
    half = setting.sub("", text[text.index("# Or of one size") :])
    half = re.sub(r"^# (?=\[outputs.dinov2\])", "", half, flags=re.MULTILINE)
    whole = text[: text.index("# Or of one size")] + half
    assert list(tomllib.loads(whole)["outputs"]) == ["latents", "text", "images", "vae-sd"]
    Path("recipe.toml").write_text(whole)
    assert len(planned_and_run(Path("recipe.toml"), monkeypatch)) == 4


def test_every_commented_setting_is_one(here: Path) -> None:
    """With each comment that is a setting taken in, the recipe is still valid."""
    for captioned in (False, True):
        if captioned:
            caption(here / "photos", every=2)
        text = initialised("photos", f"{captioned}.toml").read_text()
        end = text.index("# Or of one size") if captioned else len(text)
        taken = re.sub(r"^# (?=\[outputs|[a-z_0-9]+ = )", "", text[:end], flags=re.MULTILINE)
        assert taken.count("\n#") < text[:end].count("\n#") - 5
        recipe = Recipe.of(tomllib.loads(taken), folder=here)
        assert len(recipe.chosen()) == (2 if captioned else 3)


def test_captions_that_some_images_lack(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caption(here / "photos", every=2)
    assert 'missing_caption = "empty"          # for 3 images without a caption' in initialised("photos").read_text()
    planned_and_run(Path("recipe.toml"), monkeypatch)


def test_a_zip(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for photo in sorted(Path("photos").rglob("*.jpg")):
            archive.write(photo, photo.relative_to("photos"))
    assert planned_and_run(initialised("photos.zip"), monkeypatch).keys() == {"images", "vae-sd"}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_table(here: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    rows = table_of(here / "photos")
    with (here / "photos" / f"all{suffix}").open("w") as file:
        if suffix == ".csv":
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    file_ = initialised(f"photos/all{suffix}")
    assert "there are also: sharegpt4v" in file_.read_text()
    assert planned_and_run(file_, monkeypatch).keys() == {"latents", "text"}


@pytest.mark.parametrize("source", ["set", "set/InternData/data_info.json"])
def test_a_pixart_dataset(here: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    caption(here / "photos")
    import_captioned("photos", "set")
    file = initialised(source)
    assert '# path = "img_sdxl_vae_features_256resolution_ms_new"' in file.read_text()
    assert '# path = "caption_features_new"' in file.read_text()
    assert planned_and_run(file, monkeypatch).keys() == {"latents", "text"}


def test_names_that_pixarts_readers_cannot_tell_apart(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caption(here / "photos")
    shutil.copy("photos/c0/photo00000.jpg", "photos/c0/photo00000.jpeg")
    lines = write_recipe(Path("photos"), Path("recipe.toml"))
    assert lines[-1].startswith("text features, and latents named as the images are, would be refused: PixArt's multi")
    text = Path("recipe.toml").read_text()
    assert "`latentmill import`" in text
    assert "missing_caption" not in text
    assert planned_and_run(Path("recipe.toml"), monkeypatch).keys() == {"images", "vae-sd"}


def test_names_for_the_single_scale_reader_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`a/b_c.png` and `a_b/c.png` are one name to the multi-scale reader."""
    for number, name in enumerate(("a_b/c.png", "a/b_c.png")):
        path = here / "two" / name
        path.parent.mkdir(parents=True)
        shutil.copy(here / "photos" / "c0" / f"photo0000{number}.jpg", path)
        path.with_suffix(".txt").write_text(f"caption {number}")
    assert look_at(Path("two")).reader == "single"
    assert initialised("two").read_text().count('reader = "single"') == 2
    planned_and_run(Path("recipe.toml"), monkeypatch)
    assert sorted(path.name for path in Path("data/latents").glob("*.npy")) == ["b_c.npy", "c.npy"]


# places


@pytest.mark.parametrize(
    ("source", "out", "path", "dest"),
    [
        ("photos", "recipe.toml", "photos", "data"),
        ("photos", "sub/dir/r.toml", "../../photos", "data"),
        ("../{here}/photos", "r.toml", "photos", "data"),
        ("{root}/photos", "sub/r.toml", "{root}/photos", "data"),
        ("photos", "{root}/sub/r.toml", "../photos", "data"),
        ("photos", "link/r.toml", "{root}/photos", "data"),
        ("photos", "photos/recipe.toml", ".", "../data"),
        (".", "recipe.toml", ".", "../data"),
    ],
)
def test_paths_are_relative_to_the_recipe(
    here: Path, tmp_path_factory: pytest.TempPathFactory, source: str, out: str, path: str, dest: str
) -> None:
    Path("link").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    words = {"root": str(here), "here": here.name}
    source, out, path = (text.format(**words) for text in (source, out, path))
    write_recipe(Path(source), Path(out))
    tables = tomllib.loads(Path(out).read_text())
    assert (tables["source"]["path"], tables["dest"]) == (path, dest)
    found = Recipe.read(out)
    assert found.chosen()[0].settings.source.resolve() == Path(source).resolve()
    plan_of(found)


def test_the_folder_of_the_outputs_is_new(here: Path) -> None:
    shutil.move("photos", "data")
    assert tomllib.loads(initialised("data").read_text())["dest"] == "data-data"
    (here / "data-data").mkdir()
    assert tomllib.loads(initialised("data", "two.toml").read_text())["dest"] == "data-data-2"


def test_names_that_need_quotes_are_quoted(here: Path) -> None:
    odd = 'a "b"\\ é\x7f {x}'
    shutil.move("photos", odd)
    caption(here / odd)
    file = initialised(odd)
    assert tomllib.loads(file.read_text(encoding="utf-8"))["source"]["path"] == odd
    plan_of(Recipe.read(file))


def test_what_exists_is_never_written_over(here: Path) -> None:
    for name in ("recipe.toml", "photos"):
        (here / "recipe.toml").write_text("mine")
        with pytest.raises(DestinationError, match=f"^{name} is there already: give another file"):
            write_recipe(Path("photos"), Path(name))
    assert (here / "recipe.toml").read_text() == "mine"
    Path("dangling.toml").symlink_to("nowhere.toml")
    with pytest.raises(DestinationError, match="is there already"):
        write_recipe(Path("photos"), Path("dangling.toml"))


def test_what_cannot_be_a_source_is_told_and_nothing_written(here: Path) -> None:
    Path("empty").mkdir()
    Path("text.md").write_text("x")
    Path("bad.jsonl").write_text("{")
    odd = os.fsdecode(b"ph\xff")
    shutil.copytree("photos", odd)
    for source in ("empty", "text.md", "nowhere", "bad.jsonl", odd):
        with pytest.raises(SourceError) as refused:
            write_recipe(Path(source), Path("sub/recipe.toml"))
        assert "\n" not in str(refused.value)
    assert not Path("sub").exists()


def test_a_place_that_cannot_be_written_is_told(here: Path) -> None:
    Path("file").touch()
    with pytest.raises(LatentmillError, match=r"file/recipe\.toml"):
        write_recipe(Path("photos"), Path("file/recipe.toml"))


def test_photos_that_are_to_be_turned_are_turned_and_it_says_so(here: Path) -> None:
    for photo in sorted((here / "photos").rglob("*.jpg"))[:2]:
        with Image.open(photo) as image:
            turned = image.getexif()
            turned[0x0112] = 6
            image.save(photo, exif=turned)
    assert '2 of 6 looked at are turned by their camera: exif = "apply"' in write_recipe(Path("photos"), Path("a.toml"))
    assert tomllib.loads(Path("a.toml").read_text())["source"]["exif"] == "apply"
