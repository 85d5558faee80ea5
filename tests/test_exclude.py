"""`--exclude`: what a list leaves out is as if its file were not there, in every command that reads a source."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import latentmill
from latentmill import cli as commands
from latentmill import cli_features as of_features
from latentmill import cli_recipe as of_recipes
from latentmill.cli_audit import audit
from latentmill.errors import SourceError
from latentmill.outcome import Event
from latentmill.outputs.buckets import preview_buckets
from latentmill.sources.excluding import read_exclusion, write_exclusion
from support import cli, contents, make_photos

OF_A_LIST = ("latentmill-recipe.toml",)  # which names it
KEYS = st.text(st.characters(exclude_characters="\0"), min_size=1).map(lambda text: os.fsdecode(os.fsencode(text)))


def listed(folder: Path, *lines: str) -> Path:
    path = folder / "exclude.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def same_but_the_recipe(one: Path, other: Path) -> bool:
    a, b = ({k: v for k, v in contents(each).items() if k not in OF_A_LIST} for each in (one, other))
    return a == b


def captioned_photos(folder: Path, count: int) -> list[str]:
    paths = make_photos(folder, count)
    for number, path in enumerate(paths):
        path.with_suffix(".txt").write_text(f"photo number {number}")
    return [path.relative_to(folder).as_posix() for path in paths]


CONVERT = {"resolution": "32x32", "transform": "center-crop", "num_workers": 1}


def test_a_dataset_with_a_list_is_that_of_the_source_without_the_files(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 6, classes=3)
    shutil.copytree(tmp_path / "photos", tmp_path / "fewer")
    gone = ["c0/photo00001.jpg", "c1/photo00002.jpg", "c1/photo00003.jpg"]  # a class as a whole too
    for key in gone:
        (tmp_path / "fewer" / key).unlink()
    (tmp_path / "fewer" / "c1").rmdir()
    exclude = listed(tmp_path, *(f"{key}\t# a reason" for key in gone))
    with_list = latentmill.convert(tmp_path / "photos", tmp_path / "a", exclude=exclude, **CONVERT)
    latentmill.convert(tmp_path / "fewer", tmp_path / "b", **CONVERT)
    assert (with_list.listed, with_list.stored, with_list.rejected, with_list.skipped) == (3, 3, 0, 0)
    assert same_but_the_recipe(tmp_path / "a", tmp_path / "b")
    assert not latentmill.verify(tmp_path / "a").problems


def test_an_update_after_the_list_has_changed_drops_and_makes(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 6)
    exclude = listed(tmp_path, "c0/photo00000.jpg", "c0/photo00001.jpg")
    latentmill.convert(tmp_path / "photos", tmp_path / "data", exclude=exclude, **CONVERT)
    again = latentmill.convert(tmp_path / "photos", tmp_path / "data", exclude=exclude, **CONVERT)
    assert again.already_done
    listed(tmp_path, "c0/photo00001.jpg", "c1/photo00005.jpg")  # one is back, another is out
    changed = latentmill.convert(tmp_path / "photos", tmp_path / "data", exclude=exclude, **CONVERT)
    assert changed.computed == 1
    assert changed.changes is not None
    assert (changed.changes.compute, changed.changes.keep, changed.changes.drop) == (1, 3, 1)
    latentmill.convert(tmp_path / "photos", tmp_path / "fresh", exclude=exclude, **CONVERT)
    assert contents(tmp_path / "data", data_only=True) == contents(tmp_path / "fresh", data_only=True)


def test_a_line_that_matches_nothing_is_a_warning_with_its_count(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 3)
    exclude = listed(tmp_path, "# a comment", "", "c0/photo00000.jpg", "photo00001.jpg", "c9/gone.jpg")
    events: list[Event] = []
    latentmill.convert(tmp_path / "photos", tmp_path / "data", exclude=exclude, tell=events.append, **CONVERT)
    assert [event.kind for event in events if event.text.endswith(": 3 keys")] == ["plan"]
    assert next(event.text for event in events if "match nothing" in event.text).startswith("2 of the 3 keys in")


@pytest.mark.parametrize("kind", ["missing", "folder", "quoted", "everything"])
def test_a_list_that_cannot_be_used_is_one_clear_error(tmp_path: Path, kind: str) -> None:
    make_photos(tmp_path / "photos", 2, classes=1)
    path = tmp_path / "exclude.txt"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text('"c0/photo' if kind == "quoted" else "c0/photo00000.jpg\nc0/photo00001.jpg\n")
    expected = {"quoted": "line 1: expected a key", "everything": "leaves out"}.get(kind, "cannot be read")
    with pytest.raises(SourceError, match=expected):
        latentmill.convert(tmp_path / "photos", tmp_path / "data", exclude=path, **CONVERT)
    assert not (tmp_path / "data").exists()


@given(st.lists(st.tuples(KEYS, st.text()), max_size=5, unique_by=lambda each: each[0]))
def test_any_key_comes_back_from_a_list(
    tmp_path_factory: pytest.TempPathFactory, reasons: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "exclude-any.txt"
    write_exclusion(path, ["head"], reasons)
    found = read_exclusion(path)
    assert found is not None
    assert list(found.keys) == [key for key, _ in reasons]


def test_names_that_are_not_utf_8_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "exclude.txt"
    path.write_bytes(b"\xef\xbb\xbfa/b.jpg\r\nc \xff.png\r\n")
    found = read_exclusion(path)
    assert found is not None
    assert list(found.keys) == ["a/b.jpg", os.fsdecode(b"c \xff.png")]


def test_a_zip_a_table_and_a_number_of_images(tmp_path: Path) -> None:
    keys = captioned_photos(tmp_path / "photos", 4)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for key in keys:
            archive.write(tmp_path / "photos" / key, key)
    table = tmp_path / "photos" / "table.jsonl"
    table.write_text("".join(json.dumps({"path": key, "caption": key}) + "\n" for key in keys))
    exclude = listed(tmp_path, keys[0], keys[2])
    for source in (tmp_path / "photos.zip", table):
        dest = tmp_path / f"of-{source.stem}"
        made = latentmill.convert(source, dest, exclude=exclude, max_images=1, **CONVERT)
        rows = [json.loads(line) for line in (dest / "latentmill-index.jsonl").read_text().splitlines()]
        assert made.listed == 1
        assert [row["key"] for row in rows if "key" in row] == [keys[1]]  # the first of those that are left


def test_import_leaves_out_and_takes_back(tmp_path: Path) -> None:
    keys = captioned_photos(tmp_path / "photos", 4)
    exclude = listed(tmp_path, keys[1])
    latentmill.import_captioned(tmp_path / "photos", tmp_path / "data", exclude=exclude)
    table = tmp_path / "data" / "InternData" / "data_info.json"
    assert [row["path"] for row in json.loads(table.read_text())] == [keys[0], *keys[2:]]
    exclude.write_text(f"{keys[3]}\n")
    again = latentmill.import_captioned(tmp_path / "photos", tmp_path / "data", exclude=exclude)
    assert (again.placed, again.removed) == (1, 1)
    assert [row["path"] for row in json.loads(table.read_text())] == keys[:3]


def test_buckets_and_their_preview(tmp_path: Path) -> None:
    keys = captioned_photos(tmp_path / "photos", 4)
    exclude = listed(tmp_path, keys[1])
    settings = {"vae": "fake", "resolution": 256, "multi_scale": True, "buckets": "grid:64"}
    made = latentmill.pixart(tmp_path / "photos", tmp_path / "data", exclude=exclude, **settings)
    assert made.images is not None
    assert made.images.listed == 3
    stored = [path.name for path in (tmp_path / "data").rglob("*photo*.np?")]
    assert len(stored) == 3
    assert not any("photo00001" in name for name in stored)
    assert preview_buckets(tmp_path / "photos", 512, exclude=exclude).totals().images == 3


def test_a_recipe_names_its_list_and_is_stored_with_it(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 4)
    listed(tmp_path, "c0/photo00000.jpg")
    done = cli("init", tmp_path / "photos", "--out", tmp_path / "recipe.toml", "--exclude", tmp_path / "exclude.txt")
    assert done.returncode == 0, done.stderr
    assert "exclude.txt" in (tmp_path / "recipe.toml").read_text()
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        'dest = "data"\n[source]\npath = "photos"\nexclude = "exclude.txt"\n'
        '[outputs.images]\nkind = "pixels"\ntransform = "center-crop"\nresolution = "32x32"\n'
    )
    assert latentmill.Recipe.read(recipe).run()["images"].stored == 3
    stored = tmp_path / "data" / "latentmill-recipe.toml"
    assert str(tmp_path / "exclude.txt") in stored.read_text()
    assert latentmill.Recipe.read(stored).run()["images"].already_done
    (tmp_path / "exclude.txt").unlink()
    with pytest.raises(SourceError, match=r"own.toml, line 4: source.exclude does not exist"):
        latentmill.Recipe.read(recipe).run()


def test_the_commands_take_it(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 3)
    exclude = listed(tmp_path, "c0/photo00000.jpg")
    size = ("--resolution", "32x32", "--transform", "center-crop")
    places = ("--source", tmp_path / "photos", "--dest", tmp_path / "latents", "--vae", "fake")
    done = cli("encode", *places, *size, "--exclude", exclude)
    assert done.returncode == 0, done.stderr
    assert "2 stored" in done.stdout
    pages = (commands.convert, of_features.pixart, of_features.import_, of_features.buckets, of_recipes.init, audit)
    assert all("exclude" in inspect.signature(page).parameters for page in pages)


def test_latents_of_a_converted_dataset_keep_their_numbers(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 3)
    latentmill.convert(tmp_path / "photos", tmp_path / "images", **CONVERT)
    exclude = listed(tmp_path, "00000/img00000001.png")
    latentmill.encode(tmp_path / "images", tmp_path / "latents", model_url="fake", exclude=exclude)
    names = sorted(path.name for path in (tmp_path / "latents" / "00000").iterdir())
    assert [name[-12:-4] for name in names] == ["00000000", "00000002"]


def test_a_source_of_another_package_keeps_its_numbers(tmp_path: Path) -> None:
    from latentmill.records import Listing, SampleRef
    from latentmill.sources.excluding import Exclusion, without

    refs = [SampleRef(3 * number, f"k{number}", "") for number in range(4)]
    listing = Listing(4, None, ["its own"], False, lambda: iter(refs))
    found = without(listing, Exclusion(tmp_path, {"k0": None, "none": None}), tmp_path, 2)
    assert (found.count, [ref.index for ref in found.refs()], len(found.warnings)) == (2, [3, 6], 2)
    assert [ref.key for ref in found.spread(2)] == ["k1", "k2"]


def test_pixels_of_others_are_not_touched(tmp_path: Path) -> None:
    """What is excluded is not even opened: a list is the way around a photo that kills a decoder."""
    make_photos(tmp_path / "photos", 2, classes=1)
    bad = tmp_path / "photos" / "c0" / "bad.png"
    os.mkfifo(bad)
    assert np.asarray(Image.open(tmp_path / "photos" / "c0" / "photo00000.jpg")).any()
    made = latentmill.convert(tmp_path / "photos", tmp_path / "a", exclude=listed(tmp_path, "c0/bad.png"), **CONVERT)
    assert (made.stored, made.rejected) == (2, 0)


def test_a_list_that_a_trusted_source_passes_over_is_told(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 3)
    how = {"resolution": "32x32", "transform": "center-crop", "num_workers": 1}
    latentmill.convert(tmp_path / "photos", tmp_path / "out", **how)
    (tmp_path / "list.txt").write_text("c0/photo00000.jpg\n")
    events: list[Event] = []
    again = latentmill.convert(
        *(tmp_path / "photos", tmp_path / "out"),
        **{**how, "exclude": tmp_path / "list.txt", "trust_source": True, "tell": events.append},
    )
    assert again.stored == 3
    assert any("list.txt is not looked at" in event.text for event in events)
