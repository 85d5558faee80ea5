"""A recipe run again: each output is updated, added, refused or left as it would be alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import fake_text
import latentmill
from latentmill.errors import SettingsChangedError
from latentmill.recipe import Recipe, RecipeError
from recipe_jobs import (
    BUCKETS,
    FAKE,
    FOUR,
    IMAGES,
    Photos,
    Work,
    alone,
    fresh,
    held,
    identities,
    index,
    recipe_file,
    run,
    work,
)
from support import cli, identity

__all__ = ["work"]  # a fixture
THREE = {name: FOUR[name] for name in ("images", "latents", "buckets")}


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(tmp_path / "photos", 9)


@pytest.fixture(autouse=True)
def without_a_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_text.install(monkeypatch.setattr)


def results_of(place: Path) -> dict[str, tuple[int, int]]:
    """Which file on the disk holds what was made of which photo, by its key and its digest."""
    rows = index(place).values()
    return {f"{row['key']} {row['source']}": identity(place / row["name"]) for row in rows if "name" in row}


def test_each_output_is_updated_as_it_would_be_alone(photos: Photos, tmp_path: Path, work: Work) -> None:
    together, apart = tmp_path / "out", tmp_path / "apart"
    run(photos.root, together, FOUR)
    alone(photos.root, apart, FOUR)
    had = {name: results_of(together / name) for name in FOUR}
    photos.edit()
    work.decoded.clear()
    results = run(photos.root, together, FOUR)
    assert set(work.decoded.values()) == {1}
    assert len(work.decoded) == 4  # added, added, renamed, changed
    for name, result in results.items():
        same = run(photos.root, apart, {name: FOUR[name]})[name]
        assert (result.changes, result.computed) == (same.changes, same.computed), name
        assert result.computed == 4
        now = results_of(together / name)
        kept = now.keys() & had[name].keys()
        assert len(kept) == 6
        assert {key: now[key] for key in kept} == {key: had[name][key] for key in kept}, f"{name}: written again"
    assert held(together) == held(apart) == fresh(photos.root, FOUR)
    work.decoded.clear()
    assert all(result.already_done for result in run(photos.root, together, FOUR).values())
    assert not work.decoded


def test_an_output_that_is_added_alone_is_computed(photos: Photos, tmp_path: Path, work: Work) -> None:
    place = tmp_path / "out"
    path = recipe_file(tmp_path / "recipe.toml", photos.root, {name: FOUR[name] for name in ("images", "latents")})
    Recipe.read(path).run()
    had = identities(place)
    had.pop("latentmill-recipe.toml")
    work.read.clear()
    recipe_file(path, photos.root, FOUR)
    results = Recipe.read(path).run()
    assert {name: result.already_done for name, result in results.items()} == {
        "images": True, "latents": True, "buckets": False, "text": False,
    }  # fmt: skip
    assert set(work.read.values()) == {1}
    assert had.items() <= identities(place).items()
    assert held(place) == fresh(photos.root, FOUR)


def test_an_output_that_is_taken_out_of_the_recipe_keeps_its_data(photos: Photos, tmp_path: Path) -> None:
    run(photos.root, tmp_path / "out", THREE)
    had = identities(tmp_path / "out" / "latents")
    photos.edit()
    results = run(photos.root, tmp_path / "out", {name: THREE[name] for name in ("images", "buckets")})
    assert [result.computed for result in results.values()] == [4, 4]
    assert identities(tmp_path / "out" / "latents") == had
    assert not latentmill.verify(tmp_path / "out" / "latents").problems
    run(photos.root, tmp_path / "out", THREE)
    assert held(tmp_path / "out") == fresh(photos.root, THREE)


@pytest.mark.parametrize("state", ["finished", "changed source"])
def test_only_the_output_whose_setting_changed_refuses(photos: Photos, tmp_path: Path, state: str) -> None:
    place = tmp_path / "out"
    run(photos.root, place, {name: THREE[name] for name in ("images", "latents")})
    had = identities(place / "latents")
    if state == "changed source":
        photos.edit()
    other = THREE | {"latents": {**FAKE, "save_dtype": "float16"}}
    path = recipe_file(tmp_path / "recipe.toml", photos.root, other)
    with pytest.raises(RecipeError) as caught:
        Recipe.read(path).run()
    assert caught.value.errors.keys() == {"latents"}
    assert isinstance(caught.value.errors["latents"], SettingsChangedError)
    line = path.read_text().splitlines().index("[outputs.latents]") + 1
    assert f"recipe.toml, line {line}: outputs.latents: " in str(caught.value)
    assert "save-dtype: was float32, now float16" in str(caught.value)
    computed = {name: result.computed for name, result in caught.value.results.items()}
    assert computed == {"images": 0 if state == "finished" else 4, "buckets": 9 if state == "finished" else 10}
    assert identities(place / "latents") == had
    rest = {name: THREE[name] for name in ("images", "buckets")}
    assert {n: d for n, d in held(place).items() if not n.startswith("latents/")} == fresh(photos.root, rest)
    refused = cli("run", path)
    assert refused.returncode == 2
    assert f"line {line}: outputs.latents: " in " ".join(refused.stderr.split())
    overwritten = cli("run", path, "--set", "outputs.latents.overwrite=true")
    assert overwritten.returncode == 0, overwritten.stderr
    assert held(place) == fresh(photos.root, other)


def test_overwriting_one_output_leaves_the_others_as_they_are(photos: Photos, tmp_path: Path) -> None:
    place = tmp_path / "out"
    run(photos.root, place, THREE)
    had = {name: identities(place / name) for name in ("images", "latents")}
    results = run(photos.root, place, THREE | {"buckets": {**BUCKETS, "fit": "cover", "overwrite": True}})
    assert {name: result.computed for name, result in results.items()} == {"images": 0, "latents": 0, "buckets": 9}
    assert {name: identities(place / name) for name in ("images", "latents")} == had
    assert held(place) == fresh(photos.root, THREE | {"buckets": {**BUCKETS, "fit": "cover"}})


def test_a_foreign_folder_refuses_one_output_and_not_the_rest(photos: Photos, tmp_path: Path) -> None:
    place = tmp_path / "out"
    (place / "latents").mkdir(parents=True)
    (place / "latents" / "diary.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"outputs\.latents: the destination is not empty") as caught:
        run(photos.root, place, THREE)
    assert [result.computed for result in caught.value.results.values()] == [9, 9]
    assert identities(place / "latents").keys() == {"diary.txt"}


def test_pixels_beside_latents_and_variants_are_updated_with_the_rest(photos: Photos, tmp_path: Path) -> None:
    outputs: dict[str, dict[str, Any]] = {
        "images": {**IMAGES, "flip": "both", "crops": 2},
        "latents": {**FAKE, "pixels": "beside", "flip": "both"},
        "packed": {**FAKE, "path": "packed.zip"},
    }
    place = tmp_path / "out"
    run(photos.root, place, {name: outputs[name] for name in ("images", "packed")})
    photos.edit()
    with pytest.raises(RecipeError, match=r"outputs\.packed: .* a zip cannot be updated in place") as caught:
        run(photos.root, place, outputs)
    assert len(caught.value.results) == 6
    run(photos.root, place, outputs | {"packed": {**outputs["packed"], "overwrite": True}})
    assert held(place) == fresh(photos.root, outputs)


@pytest.mark.parametrize("check", ["stat", "digest"])
def test_a_lost_file_is_made_again_for_its_output_alone(photos: Photos, tmp_path: Path, check: str, work: Work) -> None:
    place = tmp_path / "out"
    run(photos.root, place, THREE)
    had = identities(place)
    next((place / "latents").rglob("*3.npy")).unlink()
    os.utime(photos.root / "c0" / "p000.jpg")
    work.decoded.clear()
    results = run(photos.root, place, THREE, check=check)
    assert {name: result.computed for name, result in results.items()} == {"images": 0, "latents": 1, "buckets": 0}
    assert sum(work.decoded.values()) == 1
    now = identities(place)
    arrays = [name for name in had if name.endswith((".png", ".npy")) and had[name] != now[name]]
    assert len(arrays) == 1
    assert held(place) == fresh(photos.root, THREE)


def test_the_source_may_be_emptied_of_a_class_and_filled_again(photos: Photos, tmp_path: Path) -> None:
    place = tmp_path / "out"
    run(photos.root, place, FOUR)
    shutil.move(photos.root / "c0", tmp_path / "aside")
    run(photos.root, place, FOUR)
    assert held(place) == fresh(photos.root, FOUR)
    shutil.move(tmp_path / "aside", photos.root / "c0")
    run(photos.root, place, FOUR)
    assert held(place) == fresh(photos.root, FOUR)
