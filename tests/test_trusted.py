"""Trusting the source: what is finished or begun is not listed again, and ends as it would have."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fake_text
import latentmill
from latentmill.batching import ByCount
from latentmill.config import PixelSettings
from latentmill.errors import ConfigError, LatentmillError, SettingsChangedError, SourceError
from latentmill.formats.containers import container
from latentmill.outputs.trusted import trusted_listing
from latentmill.planning import ShardSize, write_plan
from latentmill.recipe import Recipe
from latentmill.recipe_plan import plan_of
from latentmill.sources import features, folders
from latentmill.sources.images import ImageSource
from recipe_jobs import FOUR, IMAGES, Photos, fresh, held, identities, run, stopped_after
from support import cli_here, contents, make_photos

CROP = {"transform": "center-crop", "resolution": "32x32"}


@pytest.fixture(autouse=True)
def _a_text_encoder_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_text.install(monkeypatch.setattr)


@contextmanager
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever lists a source fails."""

    def fail(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("the source was listed")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "walk", fail)
        patch.setattr(ImageSource, "listing", fail)
        patch.setattr("latentmill.sources.captioned.captioned", fail)
        patch.setattr(features.FeatureImages, "listing", fail)
        patch.setattr(features.Captions, "listing", fail)
        yield


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_what_is_finished_is_finished_without_its_source(photos: Path, tmp_path: Path, name: str) -> None:
    made = latentmill.convert(photos, tmp_path / name, **CROP)
    before = identities(tmp_path)
    shutil.rmtree(photos)
    again = latentmill.convert(photos, tmp_path / name, **CROP, trust_source=True)
    assert again.already_done
    assert (again.listed, again.stored, again.notes) == (made.listed, made.stored, made.notes)
    assert {key: value for key, value in before.items() if not key.startswith("photos")} == identities(tmp_path)
    with pytest.raises(SourceError, match="does not exist"):
        latentmill.convert(photos, tmp_path / name, **CROP)


def test_every_kind_of_output_is_finished_unlisted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = Photos(tmp_path / "photos", 6)
    run(photos.root, tmp_path / "out", FOUR)
    before = identities(tmp_path)
    with unlisted(monkeypatch):
        results = run(photos.root, tmp_path / "out", FOUR, trust_source=True)
    assert set(results) == set(FOUR)
    assert all(result.already_done for result in results.values())
    assert identities(tmp_path) == before


@pytest.mark.parametrize(
    "names", [("images", "latents", "buckets"), ("latents",), ("buckets",), ("text",)], ids="-".join
)
def test_what_was_begun_goes_on_by_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    photos = Photos(tmp_path / "photos", 6)
    outputs = {name: FOUR[name] for name in names}
    wanted = fresh(photos.root, outputs)
    with stopped_after(1, monkeypatch):
        run(photos.root, tmp_path / "out", outputs)
    photos.add("a/later.jpg")  # which a run that lists the source would make too
    with unlisted(monkeypatch):
        results = run(photos.root, tmp_path / "out", outputs, trust_source=True)
    assert held(tmp_path / "out") == wanted
    assert any(result.computed < result.listed for result in results.values())


def test_an_image_that_is_gone_meanwhile_is_a_reject(photos: Path, tmp_path: Path) -> None:
    listing = ImageSource(photos).listing()
    job = latentmill.Recipe(photos, {"images": IMAGES}, tmp_path / "out").prepare()[0].prepared.job
    work = container(tmp_path / "out" / "images").work
    write_plan(work, listing, ByCount(4), lambda: ShardSize(4), fingerprint=job.fingerprint, layouts={"images": ""})
    (photos / "c0" / "photo00001.jpg").unlink()
    result = latentmill.convert(photos, tmp_path / "out" / "images", **CROP, trust_source=True, max_failures="50%")
    assert (result.stored, result.rejected) == (11, 1)
    mended = latentmill.convert(photos, tmp_path / "out" / "images", **CROP)
    assert (mended.stored, mended.rejected) == (11, 0)


def test_a_zip_is_read_by_the_places_in_the_plan(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    latentmill.convert(source, tmp_path / "wanted", resolution="32x32")
    with stopped_after(2, monkeypatch):
        latentmill.convert(source, tmp_path / "out", num_workers=1, batch_size=2, resolution="32x32")
    with unlisted(monkeypatch):
        latentmill.convert(source, tmp_path / "out", resolution="32x32", trust_source=True)
    assert contents(tmp_path / "out", data_only=True) == contents(tmp_path / "wanted", data_only=True)


def test_the_size_of_images_that_were_not_resized_is_known(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latentmill.convert(photos, tmp_path / "images", **CROP)
    with stopped_after(2, monkeypatch):
        latentmill.encode(tmp_path / "images", tmp_path / "latents", model_url="fake", threads=1, batch_size=2)
    for expected in (False, True):
        with unlisted(monkeypatch):
            again = latentmill.encode(
                tmp_path / "images", tmp_path / "latents", model_url="fake", threads=1, trust_source=True
            )
        assert (again.already_done, again.stored) == (expected, 12)


def test_other_settings_are_still_refused(photos: Path, tmp_path: Path) -> None:
    latentmill.convert(photos, tmp_path / "out", **CROP)
    with pytest.raises(SettingsChangedError, match="resolution: was 32x32, now 16x16"):
        latentmill.convert(photos, tmp_path / "out", transform="center-crop", resolution="16x16", trust_source=True)


def test_fitted_buckets_that_are_others_are_refused(tmp_path: Path) -> None:
    photos = Photos(tmp_path / "photos", 6)
    outputs = {"buckets": FOUR["buckets"]}
    run(photos.root, tmp_path / "out", outputs)
    with pytest.raises(LatentmillError, match="buckets grid:16"):
        run(photos.root, tmp_path / "out", {"buckets": {**FOUR["buckets"], "buckets": "auto:2"}}, trust_source=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"overwrite": True}, "overwrite"),
        ({"check": "digest"}, "check digest"),
        ({"start_index": 2}, "start-index"),
        ({"end_index": 2}, "end-index"),
    ],
)
def test_it_is_refused_beside_what_contradicts_it(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        latentmill.pixart(tmp_path, tmp_path / "out", trust_source=True, **settings)
    assert "trust-source" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_begun_is_listed_and_made(photos: Path, tmp_path: Path) -> None:
    latentmill.convert(photos, tmp_path / "wanted", **CROP)
    latentmill.convert(photos, tmp_path / "out", **CROP, trust_source=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "wanted")


def test_another_number_of_images_is_listed(photos: Path, tmp_path: Path) -> None:
    latentmill.convert(photos, tmp_path / "out", **CROP, max_images=5)
    assert latentmill.convert(photos, tmp_path / "out", **CROP, max_images=5, trust_source=True).already_done
    assert latentmill.convert(photos, tmp_path / "out", **CROP, max_images=7).computed == 2
    chosen = PixelSettings(source=photos, dest=tmp_path / "out", trust_source=True, max_images=6)
    assert trusted_listing(chosen) is None


def test_one_output_more_lists_the_source_and_leaves_the_others(tmp_path: Path) -> None:
    photos = Photos(tmp_path / "photos", 6)
    run(photos.root, tmp_path / "out", {"images": IMAGES})
    before = identities(tmp_path / "out" / "images")
    photos.add("a/later.jpg")
    results = run(photos.root, tmp_path / "out", FOUR, trust_source=True)
    assert {name: result.listed for name, result in results.items()} == {
        "images": 6, "latents": 7, "buckets": 7, "text": 7,
    }  # fmt: skip
    assert identities(tmp_path / "out" / "images") == before


def test_a_variant_more_is_made_of_what_is_listed(photos: Path, tmp_path: Path) -> None:
    latentmill.convert(photos, tmp_path / "out", **CROP)
    before = identities(tmp_path / "out")
    latentmill.convert(photos, tmp_path / "out", **CROP, flip="both", trust_source=True)
    assert identities(tmp_path / "out") == before
    latentmill.convert(photos, tmp_path / "fresh", **CROP, flip="both")
    assert contents(tmp_path / "out-flip", data_only=True) == contents(tmp_path / "fresh-flip", data_only=True)


def test_a_plan_shows_what_has_changed_all_the_same(photos: Path, tmp_path: Path) -> None:
    recipe = Recipe(photos, {"images": IMAGES}, tmp_path / "out", {"trust_source": True})
    recipe.run()
    make_photos(photos / "more", 1)
    assert plan_of(recipe).outputs[0].standing.word == "to update"


def test_the_command_says_so(photos: Path, tmp_path: Path) -> None:
    latentmill.convert(photos, tmp_path / "out", resolution="32x32")
    arguments = ("convert", "--source", photos, "--dest", tmp_path / "out", "--resolution", "32x32", "--trust-source")
    shutil.rmtree(photos / "c0")
    again = cli_here(*arguments)
    assert again.returncode == 0
    assert "already finished" in again.stdout
    refused = cli_here(*arguments, "--overwrite")
    assert refused.returncode == 2
    assert "trust-source" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
