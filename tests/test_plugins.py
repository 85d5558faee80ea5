"""What other packages bring by entry point: used by name as what is built in, and refused in one clear line."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentmill
from acme_package import Points, install, install_acme
from latentmill import Recipe, RecipeError
from latentmill.errors import ConfigError, LatentmillError, ModelError, SettingsChangedError, SourceError
from latentmill.formats.layouts import latent_layout, layout_of
from latentmill.formats.metadata import Metadata
from latentmill.plugins import ENCODERS, FORMATS, RUNNERS, SOURCES, TRANSFORMS, installed, load
from latentmill.recipe_file import to_toml
from latentmill.recipe_plan import plan_of
from support import cli, contents
from tiny_vision import saved

SIZE = {"resolution": "32x32"}
OWN = {
    "images": {"kind": "pixels", "transform": "squares", **SIZE},
    "latents": {
        "kind": "latents", "layout": "packed", "model": "blocks", "transform": "squares", "batch_size": 2, **SIZE
    },
}  # fmt: skip
BUILT_IN = {
    "images": {"kind": "pixels", "transform": "center-crop", **SIZE},
    "latents": {"kind": "latents", "model": "fake", "transform": "center-crop", "batch_size": 2, **SIZE},
}
KINDS = ("sources", "transforms", "encoders", "formats", "runners")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that `acme-mill` is installed in, on `sys.path`."""
    folder = install_acme(tmp_path_factory.mktemp("site"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("acme_mill", None)


@pytest.fixture
def listed(photos: Path, site: Path) -> Path:
    """A file that names the photos, for the package's source."""
    return list_photos(photos)


def list_photos(photos: Path) -> Path:
    keys = [path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg")]
    (photos / "list.txt").write_text("\n".join(keys))
    return photos / "list.txt"


def recipe(listed: Path, dest: Path, outputs: dict[str, dict[str, Any]] = OWN, **options: Any) -> Recipe:
    """A recipe of the package's source and runner."""
    source = {"path": listed, "kind": "photo-list", "options": options}
    return Recipe(source, outputs, dest, {"runner": "backwards", "threads": 1})


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The latents of a dataset by key."""
    metadata = Metadata.read_beside(folder)
    assert metadata is not None
    layout = layout_of(metadata.layout)
    rows = map(json.loads, (folder / "latentmill-index.jsonl").read_text().splitlines())
    return {row["key"]: layout.from_bytes((folder / row["name"]).read_bytes()) for row in rows}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert np.array_equal(found[key], array), key


# one of each, together


def test_all_five_give_what_built_in_ones_give(photos: Path, listed: Path, tmp_path: Path) -> None:
    import acme_mill

    acme_mill.RUNS.clear()
    results = recipe(listed, tmp_path / "own").run()
    assert {name: result.stored for name, result in results.items()} == {"images": 12, "latents": 12}
    assert acme_mill.RUNS == [1], "one pass, by the package's runner"
    Recipe(photos, BUILT_IN, tmp_path / "built-in", {"threads": 1}).run()
    own, built_in = tmp_path / "own", tmp_path / "built-in"
    assert contents(own / "images", data_only=True) == contents(built_in / "images", data_only=True)
    assert (own / "latents" / "c0" / "photo00000.jpg.packed").is_file()
    assert_same(arrays(own / "latents"), arrays(built_in / "latents"))
    statistics = [Metadata.read_beside(root / "latents").statistics for root in (own, built_in)]  # type: ignore[union-attr]
    assert statistics[0] == statistics[1]


def test_the_result_is_verified_loaded_and_known_again(listed: Path, tmp_path: Path) -> None:
    dest = tmp_path / "own"
    recipe(listed, dest).run()
    for name in OWN:
        assert not latentmill.verify(dest / name).problems
    assert not latentmill.verify(dest / "latents", dest / "images").problems
    dataset = latentmill.load(dest / "latents", dest / "images", posterior="mean")
    assert len(dataset) == 12
    expected = arrays(dest / "latents")
    for sample in map(dataset.__getitem__, range(12)):
        assert np.array_equal(sample["latent"].numpy(), expected[sample["key"]][:4])
        assert sample["label"] == int(sample["key"][1])
    before = contents(dest)
    assert all(result.already_done for result in recipe(listed, dest).run().values())
    stored = Recipe.read(dest / "latents" / "latentmill-recipe.toml")
    assert all(result.already_done for result in stored.run().values())
    assert contents(dest) == before
    (dest / "latents" / "c0" / "photo00000.jpg.packed").write_bytes(b"damaged")
    assert [p.where for p in latentmill.verify(dest / "latents").problems] == ["c0/photo00000.jpg.packed"]


def test_the_encoder_is_told_what_the_recipe_says(listed: Path, tmp_path: Path) -> None:
    import acme_mill

    output = {**OWN["latents"], "store": "mean", "dtype": "bfloat16", "pixel_range": "0,1", "seed": 3}
    recipe(listed, tmp_path, {"z": {**output, "revision": "r", "subfolder": "s", "save_dtype": "float16"}}).prepare()
    told = acme_mill.REQUESTS[-1]
    assert (told.store, told.dtype, told.pixel_range, told.seed) == ("mean", "bfloat16", (0.0, 1.0), 3)
    assert (told.revision, told.subfolder, told.save_dtype, told.device) == ("r", "s", "float16", "auto")
    assert told.threads == 1


def test_options_reach_the_source(listed: Path, tmp_path: Path) -> None:
    results = recipe(listed, tmp_path / "out", skip=2).run()
    assert results["images"].stored == results["latents"].stored == 10


def test_a_changed_source_is_an_update(photos: Path, listed: Path, tmp_path: Path) -> None:
    dest = tmp_path / "own"
    recipe(listed, dest).run()
    (photos / "c0" / "photo00000.jpg").unlink()
    (photos / "c1" / "photo00006.jpg").rename(photos / "c0" / "a.jpg")
    list_photos(photos)
    results = recipe(listed, dest).run()
    assert [result.computed for result in results.values()] == [1, 1]
    recipe(listed, tmp_path / "fresh").run()
    assert contents(dest) == contents(tmp_path / "fresh")
    assert not latentmill.verify(dest / "latents").problems


def test_overwriting_leaves_no_file_of_the_layout(listed: Path, tmp_path: Path) -> None:
    recipe(listed, tmp_path).run()
    built_in = {"latents": BUILT_IN["latents"]}
    with pytest.raises(LatentmillError, match=r"layout: was packed, now not set; layout-package: was acme-mill 1\.0"):
        recipe(listed, tmp_path, built_in).run()
    Recipe(listed.parent, built_in, tmp_path, {"overwrite": True}).run()
    assert not list((tmp_path / "latents").rglob("*.packed"))
    assert not latentmill.verify(tmp_path / "latents").problems


def test_buckets_take_the_encoder_too(photos: Path, site: Path, tmp_path: Path) -> None:
    output = {"kind": "latents", "layout": "pixart", "resolution": 64, "multi_scale": True, "buckets": "grid:16"}
    for model in ("blocks", "fake"):
        Recipe(photos, {model: {**output, "model": model}}, tmp_path, {"threads": 1}).run()
    assert contents(tmp_path / "blocks", data_only=True) == contents(tmp_path / "fake", data_only=True)


def test_vision_features_take_the_transform_too(photos: Path, site: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "dinov2", "dinov2")
    for transform in ("squares", "center-crop"):
        output = {"kind": "vision", "model": str(model), "transform": transform, **SIZE}
        Recipe(photos, {transform: output}, tmp_path, {"threads": 1}).run()
    assert contents(tmp_path / "squares", data_only=True) == contents(tmp_path / "center-crop", data_only=True)


def test_spawned_workers_find_them(photos: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.runners.local._start_method", lambda: "spawn")
    source = {"path": listed, "kind": "photo-list"}
    run = {"num_workers": 2, "runner": "backwards"}
    Recipe(source, {"images": {**OWN["images"], "batch_size": 2}}, tmp_path / "own", run).run()
    latentmill.convert(photos, tmp_path / "built-in", **{k: v for k, v in BUILT_IN["images"].items() if k != "kind"})
    assert contents(tmp_path / "own" / "images", data_only=True) == contents(tmp_path / "built-in", data_only=True)


def test_what_they_give_can_be_pickled(listed: Path, tmp_path: Path) -> None:
    for each in recipe(listed, tmp_path).prepare():
        job = each.prepared.job
        for part in (job.source, job.load, job.encoder, job.outputs[0].layout):
            assert type(pickle.loads(pickle.dumps(part))) is type(part)


# the command line


def write_recipe(path: Path, listed: Path, outputs: dict[str, dict[str, Any]]) -> Path:
    """A recipe's file, whose outputs lie in `out` beside it."""
    source = {"path": str(listed), "kind": "photo-list", "options": {"skip": 2}}
    path.write_text(to_toml({"dest": "out", "source": source, "run": {"runner": "backwards"}, "outputs": outputs}))
    return path


def test_the_commands(listed: Path, site: Path, tmp_path: Path) -> None:
    mark, file = tmp_path / "imported", write_recipe(tmp_path / "recipe.toml", listed, OWN)
    environment = {"PYTHONPATH": str(site), "ACME_IMPORTED": str(mark)}
    planned = cli("plan", file, **environment)
    assert planned.returncode == 0, planned.stderr
    assert 'kind = "photo-list"' in planned.stdout
    assert 'layout = "packed"' in planned.stdout
    assert mark.exists()
    run = cli("run", file, **environment)
    assert run.returncode == 0, run.stderr
    assert "10 stored" in run.stdout
    verified = cli("verify", tmp_path / "out" / "latents", **environment)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    again = cli("run", file, **environment)
    assert again.stdout.count("already finished") == 2
    recipe(listed, tmp_path / "python", skip=2).run()
    assert contents(tmp_path / "out", data_only=True).keys() == contents(tmp_path / "python", data_only=True).keys()
    assert_same(arrays(tmp_path / "out" / "latents"), arrays(tmp_path / "python" / "latents"))


def test_nothing_is_imported_that_is_not_named(photos: Path, site: Path, tmp_path: Path) -> None:
    mark, file = tmp_path / "imported", tmp_path / "recipe.toml"
    file.write_text(to_toml({"dest": "out", "source": {"path": str(photos)}, "outputs": BUILT_IN}))
    for arguments in (("--help",), ("plan", file)):
        done = cli(*arguments, PYTHONPATH=str(site), ACME_IMPORTED=str(mark))
        assert done.returncode == 0, done.stderr
    assert not mark.exists()


def test_without_the_package_its_dataset_is_refused_in_one_line(listed: Path, tmp_path: Path) -> None:
    recipe(listed, tmp_path / "own").run()
    refused = cli("verify", tmp_path / "own" / "latents")
    assert refused.returncode == 2
    assert "does not know: 'packed/v1/moments'; nor does any installed package" in refused.stderr
    assert refused.stderr.count("\n") == 1


# names


def with_setting(listed: Path, dest: Path, name: str, value: object) -> Recipe:
    """The recipe, one setting of it other. name: `source.kind`, `run.runner`, or one of the latents."""
    source: dict[str, Any] = {"path": listed, "kind": "photo-list"}
    run, latents = {"threads": 1}, dict(OWN["latents"])
    tables = {"source": source, "run": run, "latents": latents}
    table, _, setting = name.rpartition(".")
    tables[table or "latents"][setting] = value
    return Recipe.of({"source": source, "run": run, "dest": dest, "outputs": {"latents": latents}})


SETTINGS = {
    "source.kind": ("photo-lists", "photo-list", "'files'", ConfigError),
    "transform": ("square", "squares", "'center-crop'", ConfigError),
    "model": ("block", "blocks", "'sd-vae-ft-mse'", ModelError),
    "layout": ("pack", "packed", "'pixart'", ConfigError),
    "run.runner": ("backward", "backwards", "'local'", ConfigError),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_unknown_name_is_told_what_may_be_meant(setting: str, listed: Path, tmp_path: Path) -> None:
    wrong, meant, built_in, error = SETTINGS[setting]
    with pytest.raises(error) as refused:
        with_setting(listed, tmp_path, setting, wrong).prepare()
    told = str(refused.value)
    assert f"did you mean {meant!r}?" in told
    assert f"Found: {wrong!r}" in told
    assert built_in in told
    assert "\n" not in told


def test_a_built_in_name_may_be_meant(listed: Path, tmp_path: Path) -> None:
    for setting, wrong, meant in (("transform", "centre-crop", "center-crop"), ("model", "mimi", "mini")):
        with pytest.raises(LatentmillError, match=f"did you mean '{meant}'"):
            with_setting(listed, tmp_path, setting, wrong).prepare()


def test_the_place_in_the_file_is_named(listed: Path, tmp_path: Path) -> None:
    file = write_recipe(tmp_path / "recipe.toml", listed, OWN)
    for setting in ("source.kind", "run.runner"):
        with pytest.raises(ConfigError, match=rf"^--set {setting}=x: {setting} must be"):
            Recipe.read(file, [f"{setting}=x"])
    file.write_text(file.read_text().replace('"photo-list"', '"photos"'))
    with pytest.raises(ConfigError, match=r"recipe\.toml, line 5: source\.kind must be"):
        Recipe.read(file)


TAKEN: Points = {
    "sources": {"files": "no_such_module"},
    "transforms": {"center-crop": "no_such_module"},
    "encoders": {"fake": "no_such_module", "mini": "no_such_module", "owner/name": "no_such_module"},
    "formats": {"repa": "no_such_module", "pixart": "no_such_module"},
    "runners": {"local": "no_such_module"},
}


def test_built_in_names_cannot_be_taken(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Recipe(photos, BUILT_IN, tmp_path / "before", {"threads": 1}).run()
    install(tmp_path / "site", "thief", TAKEN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert {"fake", "mini"} <= set(installed(ENCODERS))
    assert "owner/name" not in installed(ENCODERS)
    Recipe(photos, BUILT_IN, tmp_path / "after", {"threads": 1}).run()
    assert contents(tmp_path / "after") == contents(tmp_path / "before")


def test_a_name_of_two_packages_is_refused(
    photos: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "other-mill", {"transforms": {"squares": "acme_mill:squares"}})
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ConfigError, match=r"of several packages: .*'acme-mill', 'other-mill'"):
        Recipe(photos, {"images": OWN["images"]}, tmp_path / "out").prepare()


# packages that do not work


@pytest.fixture
def broken(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a package whose objects cannot be had, by what the entry points say."""

    def put(value: str) -> None:
        install(tmp_path / "broken", "broken-mill", {kind: {"broken": value} for kind in KINDS})
        (tmp_path / "broken" / "broken_mill.py").write_text("import no_such_module\n")
        (tmp_path / "broken" / "empty_mill.py").write_text("number = 1\n")
        monkeypatch.syspath_prepend(tmp_path / "broken")

    return put


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("broken_mill:thing", "cannot be imported: No module named 'no_such_module'"),
        ("missing_mill:thing", "cannot be imported: No module named 'missing_mill'"),
        ("empty_mill:thing", "cannot be imported: module 'empty_mill' has no attribute 'thing'"),
        ("empty_mill:number", "must be something to call. Found: 1"),
    ],
)
def test_what_cannot_be_had_names_its_package(
    value: str, why: str, broken: Callable[[str], None], listed: Path, tmp_path: Path
) -> None:
    broken(value)
    for setting, (_, _, _, error) in SETTINGS.items():
        expected = SourceError if setting == "source.kind" else error
        with pytest.raises(expected) as refused:
            with_setting(listed, tmp_path / "out", setting, "broken").run()
        told = str(refused.value)
        assert f"{setting.split('.')[-1]} 'broken' ({value}) of the package broken-mill 1.0 {why}" in told
        assert "\n" not in told
    assert not (tmp_path / "out").exists()


def test_plan_leaves_out_an_encoder_that_cannot_be_had(
    broken: Callable[[str], None], photos: Path, tmp_path: Path
) -> None:
    broken("broken_mill:thing")
    output = {"kind": "latents", "model": "broken", "transform": "center-crop", **SIZE}
    (planned,) = plan_of(Recipe(photos, {"latents": output}, tmp_path / "out")).outputs
    assert planned.samples == 12
    assert "of the package broken-mill 1.0 cannot be imported" in planned.without


# what each must keep to


def test_a_transform_needs_a_resolution_and_has_one_crop(photos: Path, site: Path, tmp_path: Path) -> None:
    for output, message in (
        ({"transform": "squares"}, r"transform squares needs a resolution"),
        ({"transform": "squares", "crops": 2, **SIZE}, r"crops are of a transform that crops .* Found: squares"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recipe(photos, {"images": {"kind": "pixels", **output}}, tmp_path / "out").chosen()


def test_a_transform_is_mirrored_like_any_other(photos: Path, site: Path, tmp_path: Path) -> None:
    for dest, outputs in (("own", OWN), ("built-in", BUILT_IN)):
        Recipe(photos, {"images": {**outputs["images"], "flip": "both"}}, tmp_path / dest).run()
    assert contents(tmp_path / "own", data_only=True).keys() == contents(tmp_path / "built-in", data_only=True).keys()
    own, built_in = (contents(tmp_path / dest / "images-flip", data_only=True) for dest in ("own", "built-in"))
    assert own == built_in


def test_a_transform_that_gives_another_size_is_named(photos: Path, site: Path, tmp_path: Path) -> None:
    output = {"kind": "pixels", "transform": "halves", **SIZE}
    with pytest.raises(ConfigError) as refused:
        Recipe(photos, {"images": output}, tmp_path / "out").run()
    assert str(refused.value) == (
        "transform 'halves' of acme-mill 1.0 must give uint8 pixels of (height, width, 3) = (32, 32, 3), or None. "
        "Found: uint8 (16, 16, 3)"
    )


def test_an_upgraded_package_makes_its_datasets_stale(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it computes may be other now; a dataset of built-in parts alone is as it was."""
    recipe(listed, tmp_path / "own").run()
    Recipe(listed.parent, BUILT_IN, tmp_path / "built-in", {"threads": 1}).run()
    from acme_package import ACME

    install(tmp_path / "site", "acme-mill", ACME, "2.0")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(RecipeError) as refused:
        recipe(listed, tmp_path / "own").run()
    told = {name: str(error) for name, error in refused.value.errors.items()}
    assert isinstance(refused.value.errors["images"], SettingsChangedError)
    assert "(transform-package: was acme-mill 1.0, now acme-mill 2.0)" in told["images"]
    assert "layout-package: was acme-mill 1.0, now acme-mill 2.0" in told["latents"]
    assert "vae-config: was none (acme-mill 1.0), now none (acme-mill 2.0)" in told["latents"]
    again = Recipe(listed.parent, BUILT_IN, tmp_path / "built-in", {"threads": 1}).run()
    assert all(result.already_done for result in again.values())


def test_fingerprints_of_built_in_parts_tell_of_no_package(photos: Path, site: Path, tmp_path: Path) -> None:
    for each in Recipe(photos, BUILT_IN, tmp_path).prepare():
        assert not [name for name in each.prepared.job.fingerprint if "package" in name or name == "layout"]


def test_a_source_must_list_in_order(listed: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source kind 'photo-list' of acme-mill 1\.0 must list its images in order"):
        recipe(listed, tmp_path, order="wrong").prepare()


def test_a_source_without_images_is_named(listed: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"of acme-mill 1\.0 lists no images"):
        recipe(listed, tmp_path, skip=99).prepare()


def test_options_are_of_such_a_source_alone(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options are of a source that another package brings"):
        Recipe({"path": photos, "options": {"skip": 1}}, BUILT_IN, tmp_path).chosen()


def test_a_source_has_no_captions(listed: Path, tmp_path: Path) -> None:
    for output in ({"kind": "text"}, {"kind": "latents", "layout": "pixart", "model": "fake"}):
        with pytest.raises(ConfigError, match=r"kind 'photo-list' gives images by number alone"):
            recipe(listed, tmp_path, {"out": output}).prepare()


def test_a_layout_must_be_known_by_its_code(listed: Path, tmp_path: Path) -> None:
    output = {**OWN["latents"], "layout": "stray"}
    with pytest.raises(ConfigError, match=r"layout 'stray' of acme-mill 1\.0 must be .* Found: latents, 'elsewhere/m"):
        recipe(listed, tmp_path, {"z": output}).prepare()


def test_layouts_are_of_latents_alone(listed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the layout of kind pixels must be left out\. Found: 'packed'"):
        recipe(listed, tmp_path, {"images": {**OWN["images"], "layout": "packed"}}).prepare()


@pytest.mark.parametrize("statistic", ["moments", "mean", "sample"])
@pytest.mark.parametrize("name", ["repa", "packed"])
def test_layouts_round_trip(name: str, statistic: str, site: Path) -> None:
    layout = latent_layout(name, statistic)
    assert layout_of(layout.code) == layout
    array = np.random.default_rng(0).standard_normal((8, 3, 5)).astype(np.float32)
    assert np.array_equal(layout.from_bytes(layout.to_bytes(array)), array)
    assert layout.name(0, "a/x.png") != layout.name(1, "a/y.png")
    with pytest.raises(ValueError, match=r"."):
        layout.from_bytes(b"damaged")


@pytest.mark.parametrize("code", ["packed/v2/moments", "packed/v1/x", "packed", "packed/"])
def test_codes_that_a_layout_does_not_have(code: str, site: Path) -> None:
    with pytest.raises(SourceError, match=f"does not know: {code!r}; nor does any installed package"):
        layout_of(code)


def test_a_runner_that_leaves_shards_undone_finishes_nothing(listed: Path, tmp_path: Path) -> None:
    idle = Recipe(listed.parent, {"images": BUILT_IN["images"]}, tmp_path / "out", {"runner": "idle"})
    with pytest.raises(LatentmillError, match="the runner ended with 1 shard undone"):
        idle.run()
    done = Recipe(listed.parent, {"images": BUILT_IN["images"]}, tmp_path / "out").run()
    assert done["images"].stored == 12


def test_outputs_of_other_runners_are_passes_of_their_own(listed: Path, tmp_path: Path) -> None:
    import acme_mill

    acme_mill.RUNS.clear()
    outputs = {name: {**output, "runner": "local"} for name, output in BUILT_IN.items()} | {"more": OWN["images"]}
    recipe(listed, tmp_path, outputs).run()
    assert acme_mill.RUNS == [1]
    assert contents(tmp_path / "more", data_only=True) == contents(tmp_path / "images", data_only=True)


def test_every_name_of_the_package_is_found(site: Path) -> None:
    for group, names in (
        (SOURCES, {"photo-list"}), (TRANSFORMS, {"halves", "squares"}), (ENCODERS, {"blocks"}),
        (FORMATS, {"packed", "stray"}), (RUNNERS, {"backwards", "idle"}),
    ):  # fmt: skip
        assert set(installed(group)) == names
        assert all(callable(load(group, name)) for name in names)
