"""`plan` tells what `run` then does, writes nothing, and goes without a model that cannot be had."""

from __future__ import annotations

import shutil
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fake_text
import tiny_vision
from latentmill.errors import ConfigError, LatentmillError, ModelError, SourceError
from latentmill.recipe import Recipe, RecipeError
from latentmill.recipe_plan import OutputPlan, RecipePlan, plan_of
from pixart_reader import TINY_T5
from support import contents, identity, make_photos

CROP = {"transform": "center-crop", "resolution": "64x64"}
LARGER = {"transform": "center-crop", "resolution": "128x128"}  # so that headers and indexes count less
PIXELS = {"kind": "pixels", **CROP}
FAKE = {"kind": "latents", "model": "fake", **CROP}
GRID = {"kind": "latents", "layout": "pixart", "resolution": 128, "multi_scale": True, "buckets": "grid:16"}
BUCKETS = {**GRID, "model": "fake"}
TEXT = {"kind": "text", "model": "fake"}
WORDS = "a cat sits on the old brown table near the window and looks at the birds in the quiet garden outside"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with 9 photos and their captions, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for number, photo in enumerate(make_photos(tmp_path / "photos", 9)):
        photo.with_suffix(".txt").write_text(WORDS[: 20 + number * 9])
    return tmp_path


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_text.install(monkeypatch.setattr)


def recipe(outputs: Mapping[str, Any], **more: Any) -> Recipe:
    return Recipe.of({"source": "photos", "dest": "out", "run": {"threads": 1}, "outputs": outputs, **more})


def planned(outputs: Mapping[str, Any], **more: Any) -> RecipePlan:
    """What is planned, checked to write nothing."""
    before = {path: identity(path) for path in Path().rglob("*")}
    found = plan_of(recipe(outputs, **more))
    assert {path: identity(path) for path in Path().rglob("*")} == before
    return found


def by_name(found: RecipePlan) -> dict[str, OutputPlan]:
    return {each.name: each for each in found.outputs}


def size_of(place: Path) -> int:
    """Bytes of an output, without what does not grow with it."""
    small = ("latentmill.json", "report.json", "recipe.toml", "latentmill-empty.npz")
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.name.endswith(small))


def test_counts_and_bytes_are_those_that_run_makes(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    dino = tiny_vision.saved(tmp_path_factory.mktemp("models") / "dino", "dinov2")
    text = {"kind": "text", "model": str(TINY_T5)}
    outputs = {
        "images": PIXELS,
        "sd": {**FAKE, "flip": "both", "pixels": "px"},
        "half": {**FAKE, **LARGER, "save_dtype": "float16", "path": "half.zip"},
        "buckets": BUCKETS,
        "dino": {"kind": "vision", "model": str(dino), "input": "repa", "save_dtype": "float16", **LARGER},
        "both": {"kind": "vision", "model": str(dino), "tokens": "both", **LARGER},
        "text": text,
        "padded": {**text, "pad": True, "max_length": 120},
    }
    found = by_name(planned(outputs))
    results = recipe(outputs).run()
    assert found.keys() == results.keys() == {*outputs, "sd-flip"}
    for name, each in found.items():
        assert each.samples == results[name].stored == 9
        assert each.seconds is not None
        assert each.dest == results[name].dest
        made = size_of(each.dest) + (size_of(Path("out/px" + name[2:])) if name.startswith("sd") else 0)
        assert each.bytes == pytest.approx(made, rel=0.1), name
    assert (here / "out" / "latentmill-recipe.toml").read_text() == plan_of(recipe(outputs)).recipe


def test_states_are_what_run_finds(here: Path, fakes: None) -> None:
    outputs = {"images": PIXELS, "sd": FAKE, "text": TEXT}
    assert {each.standing.word for each in planned(outputs).outputs} == {"new"}
    recipe(outputs).run()
    done = planned(outputs)
    assert {(each.standing.word, each.seconds) for each in done.outputs} == {("finished", 0.0)}
    assert (done.seconds, done.reading) == (0.0, None)
    assert [each.standing.word for each in planned(outputs, run={"overwrite": True}).outputs] == ["made anew"] * 3

    changed = {**outputs, "sd": {**FAKE, "save_dtype": "float16"}}
    standing = by_name(planned(changed, run={"threads": 1}))["sd"].standing
    assert (standing.word, standing.left) == ("other settings", 0.0)
    assert standing.why == "made with other settings (save_dtype): `run` refuses it"
    with pytest.raises(RecipeError, match="save-dtype: was float32, now float16"):
        recipe(changed).run()

    make_photos(here / "photos" / "more", 1, seed=5)
    words = {each.name: each.standing.word for each in planned(outputs).outputs}
    assert words == dict.fromkeys(outputs, "to update")
    shutil.rmtree(here / "photos" / "more")
    (here / "out" / "images").rename(here / "out" / "text" / "foreign")
    (here / "out" / "images").mkdir()
    (here / "out" / "images" / "mine.doc").touch()
    standing = by_name(planned(outputs))["images"].standing
    assert (standing.word, standing.left) == ("refused", 0.0)
    assert standing.why.startswith("the destination is not empty, and latentmill did not make it: out/images")


def test_a_run_that_was_stopped_is_begun(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)
    outputs = {"sd": {**FAKE, "batch_size": 2}}
    committed = 0

    def stop(event: Any) -> None:
        nonlocal committed
        committed = event.committed
        if committed >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe(outputs).run(lambda name: stop)
    (each,) = planned(outputs).outputs
    assert each.standing.word == "begun"
    assert each.standing.why == f"begun: {committed} of 9 are done"
    assert each.standing.left == pytest.approx(1 - committed / 9)


def test_rejects_are_seen_in_the_headers_before_any_work(here: Path, fakes: None) -> None:
    (here / "photos" / "broken.jpg").write_bytes(b"no photo")
    (here / "photos" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (here / "photos" / "c0" / "photo00000.txt").unlink()
    by_number = planned({"images": PIXELS})
    assert by_number.rejects.keys() == {"broken.jpg", "cut.png"}
    assert (by_number.images, by_number.looked) == (11, 11)
    found = planned({"buckets": BUCKETS, "text": TEXT}, run={"max_failures": "50%"})
    assert found.rejects.keys() == {"broken.jpg", "cut.png", "c0/photo00000.jpg"}
    assert by_name(found)["buckets"].samples == 9
    assert by_name(found)["text"].samples == 8
    assert any("have no caption" in warning for warning in found.warnings)
    results = recipe({"buckets": BUCKETS, "text": TEXT}, run={"max_failures": "50%", "threads": 1}).run()
    assert [results[name].stored for name in ("buckets", "text")] == [9, 8]


def test_buckets_are_those_that_run_makes(here: Path) -> None:
    Image.new("RGB", (64, 128)).save(here / "photos" / "tall.png")
    report = planned({"buckets": BUCKETS}).buckets["buckets"]
    rows = Counter({row.bucket: row.images for row in report.rows() if row.images})
    recipe({"buckets": BUCKETS}).run()
    made = [np.load(file).shape for file in (here / "out" / "buckets").glob("*.npy")]
    assert len(rows) == 2
    assert Counter((height * 8, width * 8) for _, height, width in made) == rows


# without the model

MISSING = "is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE is set)"


@pytest.mark.parametrize(
    ("output", "known"),
    [
        ({"kind": "latents", "model": "sd-vae-ft-mse", **CROP}, 9 * 4 * 8 * 8 * 8),
        ({"kind": "latents", "model": "sd3", **CROP, "store": "mean", "save_dtype": "float16"}, 9 * 2 * 16 * 8 * 8),
        ({"kind": "latents", "model": "dc-ae-f32c32", **CROP, "store": "mean"}, 9 * 4 * 32 * 2 * 2),
        ({"kind": "latents", "model": "sd-vae-ft-mse", **CROP, "pixels": "px"}, 9 * (4 * 8 * 8 * 8 + 3 * 64 * 64)),
        ({**GRID, "model": "flux.1"}, 9 * 4 * 32 * 16 * 16),
        ({"kind": "latents", "model": "owner/name", **CROP}, None),
        ({"kind": "latents", "model": "./nowhere", **CROP}, None),
        ({"kind": "vision", "model": "dinov2-vitb14", "input": "repa", **CROP}, 9 * 4 * 4 * 4 * 768),
        ({"kind": "vision", "model": "dinov2-vitb14", **CROP}, None),
        ({"kind": "vision", "model": "owner/name", "input": "repa", **CROP}, None),
        ({"kind": "text", "model": "pixart-sigma-t5"}, None),
        ({"kind": "text", "model": "sd3-t5"}, 9 * 2 * 256 * 4096),
        ({"kind": "text", "model": "flux.1-clip-l"}, 9 * 2 * 768),
        ({"kind": "text", "model": "sd3-clip-l"}, 9 * 2 * (77 * 768 + 768)),
    ],
)
def test_what_is_known_without_the_model_is_told(here: Path, output: Mapping[str, Any], known: int | None) -> None:
    (each,) = planned({"a": output}).outputs
    assert each.seconds is None
    assert each.samples == 9
    assert each.without.startswith("outputs.a: ")
    assert (
        "no model is called './nowhere'" in each.without if output["model"] == "./nowhere" else MISSING in each.without
    )
    overhead = 9 * (1500 if output.get("pixels") else 800)
    assert each.bytes is None if known is None else known < (each.bytes or 0) < known + overhead
    with pytest.raises(ModelError):
        recipe({"a": output}).run()


def test_other_outputs_are_planned_as_ever(here: Path) -> None:
    outputs = {"images": PIXELS, "sd": {"kind": "latents", "flip": "both", **CROP}, "text": {"kind": "text"}}
    found = planned(outputs)
    assert [each.name for each in found.outputs] == ["images", "sd", "sd-flip", "text"]
    assert by_name(found)["images"].seconds is not None
    assert found.seconds is not None
    assert found.images == 9
    assert Recipe.of({**found_tables(found), "dest": "x"}, folder=found.root).chosen()


def found_tables(found: RecipePlan) -> dict[str, Any]:
    return tomllib.loads(found.recipe)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"kind": "latents", "model": "dc-ae-f32c32", **CROP}, "dc-ae-f32c32 (.*) has no posterior: use store mean"),
        ({"kind": "latents", "model": "dc-ae-f32c32", **CROP, "store": "mean", "resolution": "16x16"},
         "needs sides that are multiples of 32"),
        ({**GRID, "model": "flux.2", "buckets": "grid:8"}, "flux.2 needs sides that are multiples of 16"),
        ({"kind": "text", "label": "other"}, "no caption of photos is called 'other'"),
        ({"kind": "text", "encoding": {"layer": 3}, "model": "sd3-t5"}, "there is no text setting layer"),
    ],
)  # fmt: skip
def test_what_run_would_refuse_is_refused_without_the_model_too(
    here: Path, output: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(LatentmillError, match=message):
        planned({"a": output})


def test_a_source_that_is_not_there_is_told(here: Path) -> None:
    with pytest.raises(SourceError, match=r"^source.path does not exist: nowhere$"):
        planned({"a": PIXELS}, source="nowhere")
    with pytest.raises(ConfigError, match="a recipe needs an output"):
        planned({})


def test_a_measured_time_holds_for_the_run(here: Path) -> None:
    """Of pixels, whose work is small: within a factor that a busy machine explains."""
    make_photos(here / "photos", 60, side=200)
    (each,) = planned({"a": PIXELS}, run={"num_workers": 1}).outputs
    (result,) = recipe({"a": PIXELS}, run={"num_workers": 1}).run().values()
    assert each.seconds is not None
    assert 0.02 < each.seconds / result.running_seconds < 50


def test_contents_of_the_source_do_not_matter_to_what_is_stored(here: Path, fakes: None) -> None:
    outputs = {"text": TEXT, "images": PIXELS}
    before = planned(outputs).recipe
    recipe(outputs).run()
    assert contents(here / "out")["latentmill-recipe.toml"].decode() == before == planned(outputs).recipe
