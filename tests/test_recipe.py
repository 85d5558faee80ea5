"""A recipe's settings: errors name their place, paths their folder, and what is stored with a result makes it again."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fake_text
from latentmill import api
from latentmill.config import BucketSettings, CaptionSettings, LatentSettings, PixelSettings, VisionSettings
from latentmill.errors import ConfigError, LatentmillError
from latentmill.features import feature_recipe
from latentmill.outcome import Event
from latentmill.recipe import Recipe
from support import TINY_VAE, contents, make_photos

CROP = {"transform": "center-crop", "resolution": "16x16"}
PIXELS = {"kind": "pixels", **CROP}
FAKE = {"kind": "latents", "model": "fake", **CROP}
BUCKETS = {"kind": "latents", "layout": "pixart", "model": "fake", "resolution": 64, "multi_scale": True,
           "buckets": "grid:16"}  # fmt: skip
TEXT = {"kind": "text", "model": "fake"}
RECIPE = """\
dest = "out"
[source]
path = "photos"
[run]
threads = 1
[defaults]
resolution = "16x16"
[outputs.images]
kind = "pixels"
transform = "center-crop"
[outputs.sd]
kind = "latents"
model = "fake"
transform = "center-crop"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder with captioned photos and a recipe, whose text encoder is a fake one."""
    monkeypatch.chdir(tmp_path)
    fake_text.install(monkeypatch.setattr)
    for number, photo in enumerate(make_photos(tmp_path / "photos", 4)):
        photo.with_suffix(".txt").write_text(f"caption {number}")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def refusal(text: str, *overrides: str) -> str:
    Path("recipe.toml").write_text(text)
    before = sorted(Path().rglob("*"))
    with pytest.raises(LatentmillError) as refused:
        Recipe.read("recipe.toml", overrides).prepare()
    assert sorted(Path().rglob("*")) == before
    return str(refused.value)


# what is wrong is told with its place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.toml: a recipe needs a source: [source] with path"),
        ('[source]\npath = "photos"', "recipe.toml: a recipe needs an output: [outputs.NAME] with a kind"),
        ('[sorce]\npath = "photos"', "recipe.toml, line 1: a recipe has no sorce. Did you mean source?"),
        ("\n[sorces.a]\nb = 1", "recipe.toml, line 2: a recipe has no sorces. Did you mean source?"),
        ("source = 3", "recipe.toml, line 1: source must be a table. Found: 3"),
        ("[source]\n[outputs.a]", "recipe.toml, line 1: [source] needs path"),
        ("[source]\npath = 3", "recipe.toml, line 2: source.path must be a path, as text. Found: 3"),
        ('[source]\npath = "a\\u0000b"', "recipe.toml, line 2: source.path must be a path, as text. Found: 'a\\x00b'"),
        ('exclude = "list.txt"\nsource = "photos"',
         "recipe.toml, line 1: a recipe has no exclude. It belongs in [source]"),
        ('source = "photos"\nrun = 1', "recipe.toml, line 2: run must be a table. Found: 1"),
        ('source = "photos"\noutputs = []', "recipe.toml, line 2: outputs must be a table. Found: []"),
        ('source = "photos"\n[outputs]\na = 1', "recipe.toml, line 3: outputs.a must be a table. Found: 1"),
        ('source = "photos"\n[[outputs.a]]', "recipe.toml, line 2: outputs.a must be a table. Found: [{}]"),
        ('source = "photos"\ndest = 1\n[outputs.a]\nkind = "pixels"',
         "recipe.toml, line 2: dest must be a path, as text. Found: 1"),
        ('source = "photos"\n[outputs.a]\nresolution = "1x1"',
         "recipe.toml, line 2: outputs.a: kind must be one of pixels, latents, vision, text. Found: none"),
        ('source = "photos"\n[outputs.a]\n\nkind = "latent"',
         "recipe.toml, line 4: outputs.a: kind must be one of pixels, latents, vision, text. Found: 'latent'. "
             "Did you mean latents?"),
        ('source = "nowhere"\n[outputs.a]\nkind = "text"',
         "recipe.toml, line 1: source.path does not exist: nowhere"),
        ('source = {path = "photos", images = "no"}\n[outputs.a]\nkind = "text"',
         "recipe.toml, line 1: source.images does not exist: no"),
    ],
)  # fmt: skip
def test_a_recipe_that_lacks_a_part_is_told(here: Path, text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"photos"', '"photos"\nexf = 1', "recipe.toml, line 4: [source] has no setting exf. Did you mean exif?"),
        ("threads = 1", "theads = 1", "recipe.toml, line 5: [run] has no setting theads. Did you mean threads?"),
        ("threads = 1", "exif = 1", "recipe.toml, line 5: [run] has no setting exif. It belongs in [source]"),
        ("[defaults]", "[defaults]\nmax_images = 1",
         "recipe.toml, line 7: [defaults] has no setting max_images. It belongs in [source]"),
        ("[defaults]", "[defaults]\nresolutin = 1",
         "recipe.toml, line 7: [defaults] has no setting resolutin. Did you mean resolution?"),
        ('model = "fake"', 'model = "fake"\nmodle = 1',
         "recipe.toml, line 14: outputs.sd (kind latents, layout repa) has no setting modle. Did you mean model?"),
        ('kind = "pixels"', 'kind = "pixels"\nmodel = "sd3"',
         "recipe.toml, line 10: outputs.images (kind pixels) has no setting model. There are: batch_size, check, "),
        ("threads = 1", "threads = 0",
         "recipe.toml, line 5: run.threads must be greater than or equal to 1. Found: 0"),
        ("threads = 1", "threads = true", "recipe.toml, line 5: run.threads must not be true or false. Found: True"),
        ("threads = 1", 'threads = "many"', "recipe.toml, line 5: run.threads must be a whole number. Found: 'many'"),
        ("threads = 1", "wait = 3", "recipe.toml, line 5: run.wait must be true or false. Found: 3"),
        ('"photos"', '"photos"\nexif = "yes"',
         "recipe.toml, line 4: source.exif must be 'ignore' or 'apply'. Found: 'yes'"),
        ('"16x16"', "16",
         "recipe.toml, line 7: defaults.resolution must be WxH with positive integers. Found: 16"),
        ('model = "fake"', "model = 1", "recipe.toml, line 13: outputs.sd.model must be text. Found: 1"),
        ('model = "fake"', 'model = "fake"\nbatch_size = -2',
         "recipe.toml, line 14: outputs.sd.batch_size must be a whole number from 1 on, or auto. Found: -2"),
        ('model = "fake"', 'model = "fake"\npath = 7',
         "recipe.toml, line 14: outputs.sd.path must be a path, as text. Found: 7"),
        ('resolution = "16x16"', "",
         "recipe.toml, line 8: outputs.images: transform center-crop needs a resolution (resolution WxH)"),
        ('model = "fake"', 'model = "sd-vae-mse"',
         "recipe.toml, line 13: outputs.sd: no model is called 'sd-vae-mse', and no folder is there. "
         "Did you mean sd-vae-ft-mse?"),
        ('model = "fake"', 'model = "mini"\nstore = "mode"',
         "recipe.toml, line 14: outputs.sd.store must be 'moments', 'mean' or 'sample'. Found: 'mode'"),
        ('model = "fake"', 'model = "fake"\nresolution = "20x20"',
         "recipe.toml, line 11: outputs.sd: fake needs sides that are multiples of 8. Found: 20x20; "
         "give another resolution, or indivisible crop or pad"),
    ],
)  # fmt: skip
def test_a_setting_that_is_wrong_is_told_with_its_line(here: Path, old: str, new: str, message: str) -> None:
    assert refusal(RECIPE.replace(old, new, 1)).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("outputs.sd.batch_size=x", "outputs.sd.batch_size must be a whole number from 1 on, or auto. Found: 'x'"),
        ("outputs.sd.modle=x", "outputs.sd (kind latents, layout repa) has no setting modle. Did you mean model?"),
        ("outputs.new.kind=pixel", "outputs.new: kind must be one of pixels, latents, vision, text. Found: 'pixel'"),
        ("outputs.new.kind=text", "outputs.new: no caption of photos is called 'prompt'. There are: none"),
        (
            "outputs.image.batch_size=2",
            "outputs.image: kind must be one of pixels, latents, vision, text. Found: none. "
            "Did you mean outputs.images?",
        ),
        ("source=nowhere", "source.path does not exist: nowhere"),
        ("run.device=gpu", "run.device must be auto, cpu, cpu:N, mps, cuda, cuda:N or cuda:N,M. Found: 'gpu'"),
        ("colour=red", "a recipe has no colour. There are: defaults, dest, outputs, run, source"),
    ],
)
def test_what_set_gave_is_told_as_that(here: Path, override: str, message: str) -> None:
    for caption in Path("photos").rglob("*.txt"):
        caption.unlink()
    assert refusal(RECIPE, override).startswith(f"--set {override}: {message}")


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        ({"a": PIXELS, "b": {**PIXELS, "path": "a"}}, ("b", "outputs.a", "out/a", "out/a")),
        ({"a": PIXELS, "b": {**PIXELS, "path": "./x/../a"}}, ("b", "outputs.a", "out/a", "out/a")),
        ({"a": PIXELS, "b": {**PIXELS, "path": "a/b"}}, ("b", "outputs.a", "out/a/b", "out/a")),
        ({"a": {**PIXELS, "path": "."}, "b": PIXELS}, ("b", "outputs.a", "out/b", "out")),
        ({"a": {**FAKE, "flip": "both"}, "a-flip": PIXELS}, ("a-flip", "outputs.a", "out/a-flip", "out/a-flip")),
        ({"a-crop2": PIXELS, "a": {**FAKE, "crops": 3}}, ("a", "outputs.a-crop2", "out/a-crop2", "out/a-crop2")),
        ({"a": PIXELS, "b": {**FAKE, "pixels": "a"}}, ("b", "outputs.a", "out/a", "out/a")),
        ({"b": {**FAKE, "pixels": "b"}}, ("b", "its own pixels", "out/b", "out/b")),
        ({"t": {**TEXT, "model": "sd3"}, "t-t5": PIXELS}, ("t-t5", "outputs.t", "out/t-t5", "out/t-t5")),
        (
            {"a": {**PIXELS, "path": "a.zip"}, "b": {**FAKE, "path": "a.zip"}},
            ("b", "outputs.a", "out/a.zip", "out/a.zip"),
        ),
    ],
)
def test_two_outputs_to_one_place_are_refused(
    here: Path, outputs: Mapping[str, Any], found: tuple[str, str, str, str]
) -> None:
    told = refusal(tomli_w.dumps({"dest": "out", "source": "photos", "outputs": outputs}))
    who, other, place, its_place = found
    assert told.startswith("recipe.toml, line ")
    said = f"outputs.{who} and {other} must not be the same place or inside each other. Found: {place} and {its_place}"
    assert told.endswith(f": {said}")


@pytest.mark.parametrize(
    "outputs",
    [{"a": {**FAKE, "flip": "both"}, "a-flip": {**PIXELS, "path": "b"}},
     {"t": {**TEXT, "model": "flux.1"}, "t-t5": {**PIXELS, "path": "b"}}],
)  # fmt: skip
def test_two_outputs_of_one_name_are_refused(here: Path, outputs: Mapping[str, Any]) -> None:
    told = refusal(tomli_w.dumps({"dest": "out", "source": "photos", "outputs": outputs}))
    first, second = outputs
    end = f"outputs.{second} and outputs.{first} both make {second!r}: name one otherwise"
    assert told.startswith("recipe.toml, line ")
    assert told.endswith(end)


def test_a_source_that_holds_nothing_is_told_with_its_own_line(here: Path) -> None:
    Path("empty").mkdir()
    Path("notes.md").touch()
    told = refusal(RECIPE.replace('"photos"', '"empty"'))
    assert told.startswith("recipe.toml, line 3: source.path: the source holds no images: empty")
    told = refusal(RECIPE, "source.path=notes.md")
    assert told == "--set source.path=notes.md: source.path: the source must be a folder or a .zip. Found: notes.md"


def test_a_text_output_without_captions_is_refused(here: Path) -> None:
    for caption in Path("photos").rglob("*.txt"):
        caption.unlink()
    told = refusal(f'{RECIPE}[outputs.t]\nkind = "text"\nmodel = "fake"')
    assert told == (
        "recipe.toml, line 15: outputs.t: no caption of photos is called 'prompt'. There are: none; "
        "a table's other columns can be named (caption_columns)"
    )


NAMES = st.sampled_from(
    [*PixelSettings.model_fields, *LatentSettings.model_fields, *BucketSettings.model_fields, "path", "kind", "layout",
     *CaptionSettings.model_fields, *VisionSettings.model_fields, "", "a/b", "options"]
)  # fmt: skip
SCALARS = st.one_of(
    st.sampled_from(["pixels", "latents", "text", "vision", "repa", "pixart", "16x16", "center-crop", "both", "sd3",
                     "photos", "fake", "~", "../x", "\0", "x" * 5000, "mean", "0,1"]),
    st.integers(-3, 2**70), st.booleans(), st.floats(), st.text(max_size=5), st.dates(),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=3,
)
TABLE = st.dictionaries(NAMES, VALUES, max_size=4)
OUTPUT = st.builds(lambda kind, rest: {**rest, "kind": kind}, st.sampled_from(["pixels", "latents", "text"]), TABLE)
ANY_RECIPE = st.fixed_dictionaries(
    {},
    optional={
        "source": st.just("photos") | TABLE | VALUES,
        "dest": VALUES,
        "run": TABLE | VALUES,
        "defaults": TABLE | VALUES,
        "outputs": st.dictionaries(st.sampled_from(["a", "b"]), OUTPUT | TABLE | VALUES, max_size=2) | VALUES,
        "other": VALUES,
    },
)


@given(ANY_RECIPE)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_no_recipe_is_too_wrong_to_be_told_in_a_line(tmp_path: Path, tables: dict[str, Any]) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(tables))
    try:
        found = Recipe.read(file)
        found.to_toml()
    except LatentmillError as error:
        assert str(error).startswith(str(file))
        assert "\n" not in str(error)


# paths


def test_paths_of_the_file_are_relative_to_it_and_those_of_set_to_the_working_directory(here: Path) -> None:
    (here / "sub").mkdir()
    shutil.move("recipe.toml", "sub/r.toml")
    one = Recipe.read("sub/r.toml", ["outputs.sd.pixels=px", "outputs.sd.transform=center-crop"]).chosen()[1].settings
    assert isinstance(one, LatentSettings)
    assert (one.source, one.dest, one.pixels) == (Path("sub/photos"), Path("sub/out/sd"), Path("sub/out/px"))
    two = Recipe.read("sub/r.toml", ["source.path=p", "dest=d", "outputs.images.path=i"]).chosen()
    assert [each.settings.dest for each in two] == [Path("d/i"), Path("d/sd")]
    assert two[0].settings.source == Path("p")
    assert Recipe.read("sub/r.toml", ["source=p"]).chosen()[0].settings.source == Path("p")
    table = 'outputs.images={kind = "pixels", path = "i", resolution = "8x8"}'
    assert Recipe.read("sub/r.toml", [table]).chosen()[0].settings.dest == Path("sub/out/i")


def test_home_and_absolute_paths_are_taken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    found = Recipe.of({"source": "~/p", "dest": str(here / "d"), "outputs": {"a": PIXELS}}, folder=Path("sub"))
    assert found.chosen()[0].settings.source == here / "home" / "p"
    assert found.chosen()[0].settings.dest == here / "d" / "a"


def test_a_models_folder_is_relative_to_the_file_too(here: Path) -> None:
    (here / "sub").mkdir()
    shutil.copytree(TINY_VAE, here / "sub" / "vae")
    output = {**FAKE, "model": "vae"}
    (here / "sub" / "r.toml").write_text(tomli_w.dumps({"source": "../photos", "outputs": {"sd": output}}))
    (job,) = Recipe.read("sub/r.toml", ["run.device=cpu"]).prepare()
    described = job.prepared.job.describe["latents"].model
    assert described is not None
    assert described.is_local
    assert tomllib.loads(job.prepared.job.recipe)["outputs"]["latents"]["model"] == str(here / "sub" / "vae")


def test_a_models_commit_on_the_hub_is_told_in_the_stored_recipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = here / "hub" / "models--owner--vae"
    shutil.copytree(TINY_VAE, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (job,) = Recipe("photos", {"sd": {**FAKE, "model": "owner/vae"}}, "out").prepare()
    (here / "out").mkdir()
    (here / "out" / "latentmill-recipe.toml").write_text(job.prepared.job.recipe)
    again = Recipe.read("out/latentmill-recipe.toml")
    assert again.outputs["latents"]["revision"] == commit
    assert again.prepare()[0].prepared.job.fingerprint == job.prepared.job.fingerprint
    with pytest.raises(LatentmillError, match="owner/vae"):
        Recipe.read("out/latentmill-recipe.toml", [f"outputs.latents.revision={commit[::-1]}"]).prepare()


def test_defaults_are_of_the_outputs_that_have_them(here: Path) -> None:
    tables = {"source": "photos", "defaults": {"resolution": "8x8", "store": "mean", "device": "cpu"}}
    outputs = {"a": {"kind": "pixels"}, "b": {**FAKE}, "t": TEXT}
    images, latents, text = (each.settings for each in Recipe.of({**tables, "outputs": outputs}).chosen())
    assert isinstance(images, PixelSettings)
    assert isinstance(latents, LatentSettings)
    assert (images.resolution, latents.resolution, latents.store) == ((8, 8), (16, 16), "mean")
    assert [each.device for each in (images, latents, text)] == ["cpu"] * 3


# the recipe with its result

TODAY = {
    "pixels": {"images": PIXELS},
    "all kinds": {"images": PIXELS, "sd": FAKE, "buckets": BUCKETS, "text": TEXT},
    "variants": {"sd": {**FAKE, "flip": "both", "crops": 2}, "images": {**PIXELS, "flip": "both"}},
    "paired pixels": {"sd": {**FAKE, "pixels": "px"}},
    "zips": {"images": {**PIXELS, "path": "a/i.zip", "flip": "both"}, "sd": {**FAKE, "path": "s.zip"}},
    "a set of encoders": {"text": {**TEXT, "model": "sd3"}},
}


def made(place: Path) -> dict[str, bytes]:
    """What lies there, without times; the stored recipe of the whole too."""
    return {name: data for name, data in contents(place).items() if not name.endswith("report.json")}


@pytest.mark.parametrize("outputs", TODAY.values(), ids=TODAY)
def test_the_stored_recipe_makes_the_result_again(here: Path, outputs: Mapping[str, Any]) -> None:
    settings = {"source": {"path": "photos", "exif": "apply", "max_images": 3}, "run": {"threads": 1}}
    Path("recipe.toml").write_text(tomli_w.dumps({"dest": "out", **settings, "outputs": outputs}))
    results = Recipe.read("recipe.toml").run()
    expected = made(here / "out")
    assert "latentmill-recipe.toml" in expected
    for stored in (here / "out").rglob("*[-.]recipe.toml"):
        again = Recipe.read(stored).run()
        assert all(result.already_done for result in again.values())
    assert made(here / "out") == expected

    Recipe.read("out/latentmill-recipe.toml", ["dest=elsewhere"]).run()
    assert made(here / "elsewhere") == expected

    (here / "elsewhere").rename(here / "moved")
    stored = [
        file for file in (here / "moved").rglob("*[-.]recipe.toml") if file != here / "moved" / "latentmill-recipe.toml"
    ]
    assert len(stored) == len(results)
    for file in stored:
        assert all(result.already_done for result in Recipe.read(file).run().values())
    assert all(result.already_done for result in Recipe.read("moved/latentmill-recipe.toml").run().values())
    assert made(here / "moved") == expected


def test_each_outputs_own_recipe_makes_it_elsewhere(here: Path) -> None:
    outputs = {"images": PIXELS, "sd": {**FAKE, "flip": "both", "pixels": "px"}}
    Recipe("photos", outputs, "out", {"threads": 1}).run()
    Recipe.read("out/images/latentmill-recipe.toml", ["dest=again/images"]).run()
    Recipe.read("out/sd-flip/latentmill-recipe.toml", ["dest=again/sd-flip"]).run()
    expected = made(here / "out")
    del expected["latentmill-recipe.toml"]
    assert made(here / "again") == expected


def test_the_commands_store_a_recipe_too(here: Path) -> None:
    api.convert("photos", "c/images", resolution="16x16", transform="center-crop")
    api.encode("photos", "c/sd.zip", images="c/px", model_url="fake", resolution="16x16", transform="center-crop")
    recipe, _ = feature_recipe("photos", "c/data", vae="fake", text_encoder="fake", reader="multi")
    recipe.run()
    assert not (here / "latentmill-recipe.toml").exists()
    expected = made(here / "c")
    stored = sorted(here.rglob("c/**/*recipe.toml"))
    assert len(stored) == 4
    for file in stored:
        assert all(result.already_done for result in Recipe.read(file).run().values())
    Recipe.read("c/images/latentmill-recipe.toml", ["dest=d/images"]).run()
    Recipe.read("c/sd.zip.recipe.toml", ["dest=d"]).run()
    for file in (here / "c" / "data").glob("*/latentmill-recipe.toml"):
        Recipe.read(file, [f"dest=d/data/{file.parent.name}"]).run()
    found = made(here / "d")
    assert {name for name in found if name not in expected} == {"latentmill-recipe.toml"}
    assert {name: found.get(name) for name in expected} == expected


def test_a_dataset_that_lies_with_its_source_is_moved_with_it(here: Path) -> None:
    (here / "all").mkdir()
    shutil.move("photos", "all/photos")
    Recipe("all/photos", {"images": PIXELS}, "all").run()
    shutil.move("all", "moved")
    for stored in ("moved/latentmill-recipe.toml", "moved/images/latentmill-recipe.toml"):
        assert Recipe.read(stored).run().popitem()[1].already_done


def test_a_source_whose_path_is_not_text_is_made_and_told_of(here: Path) -> None:
    odd = Path(os.fsdecode(b"ph\xff"))
    shutil.move("photos", odd)
    Recipe(odd, {"images": PIXELS}, "out").run()
    stored = (here / "out" / "latentmill-recipe.toml").read_text(encoding="utf-8")
    assert stored.startswith("# Some path is not UTF-8 text")
    again = Recipe.read("out/latentmill-recipe.toml", [f"source.path={odd}"])
    assert again.run()["images"].already_done


def test_defaults_of_models_are_told_in_the_stored_recipe(here: Path) -> None:
    text = Recipe.of({"source": "photos", "outputs": {"v": {"kind": "vision", **CROP}}}).to_toml()
    assert 'model = "dinov2-vitb14"' in text


# in Python


@pytest.mark.parametrize("outputs", TODAY.values(), ids=TODAY)
def test_python_says_the_same_as_toml(here: Path, outputs: Mapping[str, Any]) -> None:
    Recipe({"path": Path("photos")}, outputs, "one", {"threads": 1}, {}).run()
    tables = {"source": "photos", "dest": "two", "run": {"threads": 1}, "outputs": outputs}
    Path("recipe.toml").write_text(tomli_w.dumps(tables))
    Recipe.read("recipe.toml").run()
    assert made(here / "one") == made(here / "two")


@pytest.mark.parametrize(
    "outputs",
    [{}, {"a": 1}, {"a": {"kind": "x"}}, {"a": {**PIXELS, "x": 1}}, {"a": {**PIXELS, "resolution": 8}},
     {"a": {**FAKE, "model": "no"}}, {"a": PIXELS, "b": {**PIXELS, "path": "a"}}, {"a": {"kind": "pixels", "path": 1}},
     {"a": {**FAKE, "resolution": "20x20"}}],
)  # fmt: skip
def test_python_refuses_the_same(here: Path, outputs: Mapping[str, Any]) -> None:
    told = refusal(tomli_w.dumps({"source": "photos", "outputs": outputs}))
    with pytest.raises(LatentmillError) as refused:
        Recipe("photos", outputs).prepare()
    assert told.partition(": ")[2] == str(refused.value)


def test_python_refuses_what_is_no_table(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"^outputs must be a table. Found: None$"):
        Recipe("photos", None).chosen()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^run must be a table. Found: 3$"):
        Recipe("photos", {"a": PIXELS}, "out", 3).chosen()  # type: ignore[arg-type]


def test_nothing_is_told_twice_and_settings_have_their_own_names(here: Path) -> None:
    told: list[tuple[str, Event]] = []
    (here / "photos" / "c0" / "photo00000.txt").unlink()
    outputs = {"sd": {**FAKE, "flip": "both"}, "t": TEXT}
    tables = {"source": "photos", "run": {"max_failures": "50%"}, "outputs": outputs}
    Recipe.of(tables).prepare(lambda name: lambda event: told.append((name, event)))
    texts = [(name, event.text) for name, event in told]
    assert len(texts) == len(set(texts))
    assert ("sd", "the same for sd-flip") in texts
    (warning,) = [event.text for _, event in told if event.kind == "warning"]
    assert "missing_caption empty takes the empty caption" in warning
    assert "--" not in warning
