"""PixArt's two jobs, run again after the source changed, end where a fresh run does and compute only what is new."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fake_text
import latentmill
from feature_jobs import FOLDERS, JOBS, SIZES, Data, Job, fresh, held, identities, index, run_images, run_text, small
from latentmill.encoders.fake import FakeSpec
from latentmill.errors import DestinationError, SettingsChangedError
from latentmill.formats.pixart import EMPTY_CAPTION, PixArtText


@pytest.fixture(autouse=True)
def without_a_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_text.install(monkeypatch.setattr)


@JOBS
def test_an_edit_touches_what_it_changes_alone(tmp_path: Path, job: Job) -> None:
    data, place = small(tmp_path / "data"), tmp_path / "place"
    folder = place / FOLDERS[job]
    job(data, place)
    before = identities(folder)
    if job is run_text:
        data.rows["b/a.png"]["prompt"] = "another caption"
        data.write()
        changed = "b_a.npz"
    else:
        data.add("b/c/d.e.png", "a red fox", (64, 64))
        data.write()
        changed = "b/c_d.e.npy"
    result = job(data, place)
    assert result.changes == (1, 5, 0, 1, 1)  # computed, kept, of those renamed, dropped, of those changed
    after = identities(folder)
    touched = {name for name in after if after[name] != before[name] and not name.startswith("latentmill")}
    assert touched == {changed}
    assert held(folder) == {
        name.removeprefix(f"{folder.name}/"): content
        for name, content in fresh(data, job).items()
        if name != f"{folder.name}/"
    }
    assert not latentmill.verify(folder).problems


@JOBS
def test_a_removed_row_drops_its_file_and_the_folder_that_held_it_alone(tmp_path: Path, job: Job) -> None:
    data = small(tmp_path / "data")
    folder = tmp_path / FOLDERS[job]
    job(data, tmp_path)
    assert len(list((folder / "f").iterdir())) == 1
    data.remove("f/g/h.png")
    data.write()
    assert job(data, tmp_path).changes == (0, 5, 0, 1, 0)
    assert not (folder / "f").exists()
    assert held(tmp_path).keys() >= {f"{folder.name}/b/"}
    assert not latentmill.verify(folder).problems


@JOBS
def test_a_file_takes_the_name_that_a_folder_had(tmp_path: Path, job: Job) -> None:
    """Features of `x.png/y/z.png` lie in a folder that is called as the file of `x.jpg`."""
    data = small(tmp_path / "data")
    for old, new in pairwise(["a.png", "x.png/y/z.png", "x.jpg", "x.png/y/z.png", "n.png"]):
        del data.rows[old]
        shutil.rmtree(data.images / "x.png", ignore_errors=True)
        data.add(new, "moved")
        data.write()
        job(data, tmp_path / "place")
        assert held(tmp_path / "place") == fresh(data, job)


@pytest.mark.parametrize(
    ("column", "wrong", "said"), [("width", 70, "its row says 70x64"), ("ratio", 4.6, "ratio"), ("height", 63, "63")]
)
def test_a_row_that_was_put_right_is_taken_in(tmp_path: Path, column: str, wrong: float, said: str) -> None:
    data = small(tmp_path / "data")
    folder = tmp_path / FOLDERS[run_images]
    right = data.rows["a.png"][column]
    expected = fresh(data, run_images)
    data.rows["a.png"][column] = wrong
    data.write()
    result = run_images(data, tmp_path / "out")
    assert result.stored == 4
    assert said in (tmp_path / "out" / folder.name / "latentmill-index.jsonl").read_text()
    assert run_images(data, tmp_path / "out").already_done
    data.rows["a.png"][column] = right
    data.write()
    assert run_images(data, tmp_path / "out").computed == 1
    assert held(tmp_path / "out") == expected
    data.rows["a.png"][column] = wrong
    data.write()
    assert run_images(data, tmp_path / "out").stored == 4
    assert held(tmp_path / "out") == fresh(data, run_images)


class Walk:
    """Edits of a dataset at random."""

    def __init__(self, data: Data, seed: int) -> None:
        self.data, self.random = data, random.Random(seed)
        self.words = ["red", "blue", "fox", "whale", "sea", "sky", "of", "in"]

    def step(self) -> None:
        edits = [self.add, self.add, self.remove, self.caption, self.picture, self.rename, self.empty, self.lose]
        for change in self.random.sample(edits, self.random.randint(1, 3)):
            change()
        self.data.write()

    def path(self) -> str:
        return self.random.choice(sorted(self.data.rows))

    def text(self) -> str:
        return " ".join(self.random.choices(self.words, k=self.random.randint(1, 8)))

    def new(self) -> str:
        folder = self.random.choice(["", "a/", "b/", "b/c/", "x y/ü/"])
        return f"{folder}{self.data.made}.{self.random.choice('np')}.png"

    def add(self) -> None:
        self.data.add(self.new(), self.text(), self.random.choice([*SIZES, (100, 20)]))

    def remove(self) -> None:
        if len(self.data.rows) > 3:
            del self.data.rows[self.path()]

    def caption(self) -> None:
        self.data.rows[self.path()]["prompt"] = self.text()

    def picture(self) -> None:
        path = self.path()
        self.data.add(path, str(self.data.rows[path]["prompt"]))

    def rename(self) -> None:
        old = self.path()
        if (self.data.images / old).exists():
            self.data.rename(old, self.new())

    def empty(self) -> None:
        self.data.rows[self.path()]["prompt"] = "  "

    def lose(self) -> None:
        (self.data.images / self.path()).unlink(missing_ok=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_walk_of_both_jobs(tmp_path: Path, seed: int) -> None:
    data = small(tmp_path / "data")
    walk = Walk(data, seed)
    place = tmp_path / "place"
    jobs = [
        partial(run_images, reader="multi", max_failures="100%"),
        partial(run_text, pad=bool(seed % 2), max_failures="100%"),
    ]
    for step in range(10):
        if step:
            walk.step()
        expected: dict[str, bytes] = {}
        for job in jobs:
            job(data, place)
            expected |= fresh(data, job)
        assert held(place) == expected, f"step {step}"
        for folder in place.iterdir():
            assert not latentmill.verify(folder).problems
        assert all(job(data, place).already_done for job in jobs)


def test_slices_of_the_rows_come_to_the_whole(tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    data.rows["b/a.png"]["prompt"] = ""  # rejected in every slice
    data.write()
    for job in (run_images, run_text):
        place = tmp_path / job.__name__
        for start, end in ((3, 5), (0, 3), (5, 9)):
            job(data, place, start_index=start, end_index=end, max_failures="100%")
            fake_text.opened.clear()
            again = job(data, place, start_index=start, end_index=end, max_failures="100%")
            assert again.already_done
            assert not fake_text.opened
        assert held(place) == fresh(data, job, max_failures="100%")


# refused


@pytest.mark.parametrize(
    ("job", "setting", "value", "said"),
    [
        (run_text, "max_length", 20, "max-length: was 300, now 20"),
        (run_text, "pad", True, "pad: was False, now True"),
        (run_text, "reader", "single", "reader: was multi, now single"),
        (run_text, "dtype", "bfloat16", "dtype: was float32, now bfloat16"),
        (run_text, "token_budget", 13, "token-budget: was 16, now 13"),
        (run_images, "fit", "cover", "fit: was stretch, now cover"),
        (run_images, "reader", "single", "reader: was multi, now single"),
        (run_images, "buckets", "grid:32", "bucket-table: was .*buckets: was grid:16, now grid:32"),
        (run_images, "save_dtype", "float16", "save-dtype: was float32, now float16"),
        (run_images, "exif", "apply", "exif: was ignore, now apply"),
        (run_images, "batch_size", 2, "batch-size: was 3, now 2"),
    ],
)
def test_another_setting_is_refused_by_name_and_touches_nothing(
    tmp_path: Path, job: Job, setting: str, value: object, said: str
) -> None:
    data = Data(tmp_path / "data")
    data.add("a.png", "one")
    data.add("b.png", "two")
    data.write()
    job(data, tmp_path / "place")
    before = identities(tmp_path / "place")
    for change in (False, True):
        if change:
            data.add("c.png", "three")
            data.write()
        with pytest.raises(SettingsChangedError, match=said) as caught:
            job(data, tmp_path / "place", **{setting: value})
        assert "--overwrite" in str(caught.value)
        assert identities(tmp_path / "place") == before
    job(data, tmp_path / "place", **{setting: value}, overwrite=True)
    assert held(tmp_path / "place") == fresh(data, job, **{setting: value})


@JOBS
def test_overwrite_removes_only_what_latentmill_made(tmp_path: Path, job: Job) -> None:
    data = small(tmp_path / "data")
    folder = tmp_path / FOLDERS[job]
    job(data, tmp_path)
    mine = [folder / name for name in ("notes.txt", "b/c/000.npy", "b/c/x.npz", "f/mine.bin", "own/deep/x.npz")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    data.rows = {"a.png": data.rows["a.png"]}
    data.write()
    job(data, tmp_path, overwrite=True)
    assert all(path.read_text() == "mine" for path in mine)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".npy", ".npz")}
    own = {"a.npz", EMPTY_CAPTION} if job is run_text else {"a.npy"}
    assert left == own | {"b/c/000.npy", "b/c/x.npz", "own/deep/x.npz"}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"b", "f", "own"}


@JOBS
def test_a_folder_that_another_tool_made_is_refused(tmp_path: Path, job: Job) -> None:
    data = small(tmp_path / "data")
    theirs = tmp_path / FOLDERS[job] / "b_a.npz"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    for overwrite in (False, True):
        with pytest.raises(DestinationError, match="latentmill did not make"):
            job(data, tmp_path, overwrite=overwrite)
    assert held(theirs.parent) == {"b_a.npz": b"theirs"}


def test_two_jobs_of_one_root_do_not_disturb_each_other(tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    for row in data.rows.values():
        row["long_prompt"] = f"{row['prompt']}, told at length"
    data.write()
    jobs = [run_images, run_text, partial(run_text, label="long_prompt", max_length=7)]
    for job in jobs:
        job(data, tmp_path / "place")
    before = identities(tmp_path / "place")
    assert all(job(data, tmp_path / "place").already_done for job in jobs)
    assert identities(tmp_path / "place") == before
    data.rows["a.png"]["long_prompt"] = "edited"
    data.write()
    assert [job(data, tmp_path / "place").computed for job in jobs] == [0, 0, 1]
    run_text(data, tmp_path / "place", max_length=9, overwrite=True)
    assert jobs[2](data, tmp_path / "place").already_done


# the empty caption


def empty_of(place: Path) -> Path:
    return place / FOLDERS[run_text] / EMPTY_CAPTION


@pytest.mark.parametrize("pad", [False, True])
def test_the_empty_caption_is_there_right_and_no_sample(tmp_path: Path, pad: bool) -> None:
    data = small(tmp_path / "data")
    result = run_text(data, tmp_path, pad=pad, max_length=9)
    assert result.stored == result.listed == 6
    array = PixArtText("multi", 9 if pad else None).from_bytes(empty_of(tmp_path).read_bytes())
    assert np.array_equal(array, [[1, 0, 1, 0]])
    assert not [row for row in index(empty_of(tmp_path).parent) if row["key"] == "" or row.get("name") == EMPTY_CAPTION]
    latents = run_images(data, tmp_path)
    dataset = latentmill.load(latents.dest, text=[empty_of(tmp_path).parent], missing_text="drop", caption_dropout=1.0)
    assert len(dataset) == 5
    assert dataset[0]["text_features"]["prompt"].shape == (1, 4)


def lose(file: Path) -> None:
    file.unlink()


def swap(file: Path) -> None:
    file.write_bytes((file.parent / "b_a.npz").read_bytes())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("harm", [lose, swap, cut])
def test_the_empty_caption_is_made_again_by_the_next_update(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    data = small(tmp_path / "data")
    run_text(data, tmp_path)
    before = empty_of(tmp_path).read_bytes()
    harm(empty_of(tmp_path))
    assert {problem.where for problem in latentmill.verify(empty_of(tmp_path).parent).problems} == {EMPTY_CAPTION}
    data.remove("f/g/h.png")
    data.write()
    run_text(data, tmp_path)
    assert empty_of(tmp_path).read_bytes() == before
    assert not latentmill.verify(empty_of(tmp_path).parent).problems


@pytest.mark.parametrize("harm", [lose, swap, cut])
def test_the_empty_caption_is_mended_by_a_check_of_the_digests(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    data = small(tmp_path / "data")
    run_text(data, tmp_path)
    before = held(tmp_path / FOLDERS[run_text])
    harm(empty_of(tmp_path))
    run_text(data, tmp_path, check="digest")
    assert held(tmp_path / FOLDERS[run_text]) == before
    assert run_text(data, tmp_path, check="digest").already_done


# the model


@JOBS
def test_no_model_is_loaded_where_nothing_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    data = small(tmp_path / "data")
    data.add("lost.png", "   ")  # rejected in every run
    (data.images / "lost.png").unlink()
    data.write()
    job(data, tmp_path / "place")

    def refuse(self: object) -> None:
        raise AssertionError("the model was loaded")

    for kind in (FakeSpec, fake_text.FakeTextSpec):
        monkeypatch.setattr(kind, "open", refuse)
    assert job(data, tmp_path / "place").already_done
    assert job(data, tmp_path / "place", check="digest").already_done
    data.remove("b/a.png")
    data.write()
    result = job(data, tmp_path / "place")
    assert (result.computed, result.changes and result.changes.drop) == (0, 1)
