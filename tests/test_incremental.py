"""After photos were added, changed, renamed or removed, a rerun ends where a fresh run would, computing only those."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import latentmill
from latentmill.errors import DestinationError
from support import CAN_FORK, cli_here, contents, fork_with, identity, ledger, make_photos

CROP = {"transform": "center-crop-dhariwal", "resolution": "32x32"}
ENCODE = {**CROP, "model_url": "fake"}


def index(dest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (dest / "latentmill-index.jsonl").read_text().splitlines()]


def files_by_bytes(dest: Path) -> dict[str, tuple[int, int]]:
    """Which file on the disk holds what was made of which bytes: (inode, time) by the digest of the source."""
    return {str(row["source"]): identity(dest / str(row["name"])) for row in index(dest) if "name" in row}


class Walk:
    """A source that changes at random, and a count of what each change should cost."""

    def __init__(self, source: Path, seed: int) -> None:
        self.source, self.random, self.made = source, random.Random(seed), 100
        for name in ("b", "d", "f"):
            self.add(name, 3)

    def photos(self) -> list[Path]:
        return sorted(path for path in self.source.rglob("*") if path.is_file())

    def folders(self) -> list[Path]:
        return sorted(path for path in self.source.iterdir() if path.is_dir())

    def _draw(self, path: Path) -> None:
        self.made += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = random.Random(self.made).randbytes(6 * 8 * 3)
        Image.frombytes("RGB", (8, 6), noise).resize((64, 48)).save(path, quality=90)

    def add(self, folder: str, count: int) -> int:
        for _ in range(count):
            self._draw(self.source / folder / f"{self.random.choice('agmsz')}{self.made}.jpg")
        return count

    def step(self) -> int:
        """One change of each of some kinds; gives how many images have to be computed."""
        return sum(change() for change in self.random.sample(self.changes(), self.random.randint(1, 3)))

    def changes(self) -> list[Callable[[], int]]:
        return [self.add_some, self.add_class, self.change, self.touch, self.remove, self.remove_class,
                self.rename, self.rename_class, self.spoil, self.swap]  # fmt: skip

    def add_some(self) -> int:
        return self.add(self.random.choice(self.folders()).name, self.random.randint(1, 3))

    def add_class(self) -> int:
        return self.add(f"{self.random.choice('aceg')}{self.made}", 2)

    def change(self) -> int:
        self._draw(self.random.choice(self.photos()))
        return 1

    def touch(self) -> int:
        os.utime(self.random.choice(self.photos()))
        return 0

    def remove(self) -> int:
        self.random.choice(self.photos()).unlink()
        return 0

    def remove_class(self) -> int:
        if len(self.folders()) > 2:
            shutil.rmtree(self.random.choice(self.folders()))
        return 0

    def rename(self) -> int:
        photo = self.random.choice(self.photos())
        photo.rename(photo.with_name(f"{self.random.choice('agmsz')}{self.made}{photo.name}"))
        return 1

    def rename_class(self) -> int:
        folder = self.random.choice(self.folders())
        count = len(list(folder.iterdir()))
        folder.rename(folder.with_name(f"{self.random.choice('aceg')}{self.made}{folder.name}"))
        return count

    def spoil(self) -> int:
        self.made += 1
        (self.source / self.folders()[0].name / f"m{self.made}.png").write_bytes(b"no picture %d" % self.made)
        return 1

    def swap(self) -> int:
        one, other = self.random.sample(self.photos(), 2)
        one.rename(one.with_suffix(".tmp"))
        other.rename(one)
        one.with_suffix(".tmp").rename(other)
        return 2


def check_unaffected(before: dict[str, tuple[int, int]], dest: Path, keys: dict[str, str]) -> None:
    """Results of the same bytes under the same key are the same files, not only the same contents."""
    after = {(str(row["key"]), str(row["source"])): dest / str(row["name"]) for row in index(dest) if "name" in row}
    for (key, source), file in after.items():
        if keys.get(key) == source:
            assert identity(file) == before[source], f"{key} was written again"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_walk_in_one_pass(tmp_path: Path, seed: int) -> None:
    walk = Walk(tmp_path / "photos", seed)
    dest, images = tmp_path / "out", tmp_path / "images"
    for step in range(15):
        settings = {**ENCODE, "images": images, "batch_size": 4, "max_failures": "50%"}
        keys = {str(row["key"]): str(row["source"]) for row in index(dest)} if step else {}
        before = [files_by_bytes(place) if step else {} for place in (dest, images)]
        expected = walk.step() if step else len(walk.photos())
        result = latentmill.encode(walk.source, dest, **settings)
        assert result.computed <= expected, f"step {step} computed too much"
        fresh = tmp_path / f"fresh{step}"
        latentmill.encode(walk.source, fresh / "out", **{**settings, "images": fresh / "images"})
        assert contents(dest) == contents(fresh / "out"), f"step {step}"
        assert contents(images) == contents(fresh / "images"), f"step {step}"
        assert not latentmill.verify(dest, images).problems
        for place, had in zip((dest, images), before, strict=True):
            check_unaffected(had, place, keys)
        shutil.rmtree(fresh)
        again = latentmill.encode(walk.source, dest, **settings)
        assert again.already_done


def test_a_random_walk_from_convert_to_encode(tmp_path: Path) -> None:
    walk = Walk(tmp_path / "photos", 3)
    images, dest = tmp_path / "images", tmp_path / "out"
    for step in range(15):
        before = files_by_bytes(dest) if step else {}
        expected = walk.step() if step else len(walk.photos())
        latentmill.convert(walk.source, images, **CROP, num_workers=1, max_failures="50%")
        result = latentmill.encode(images, dest, model_url="fake", batch_size=4)
        assert result.computed <= expected, f"step {step} computed too much"
        fresh = tmp_path / f"fresh{step}"
        latentmill.convert(walk.source, fresh / "images", **CROP, num_workers=1, max_failures="50%")
        assert contents(images) == contents(fresh / "images"), f"step {step}"
        latentmill.encode(images, fresh / "out", model_url="fake", batch_size=4)
        assert contents(dest) == contents(fresh / "out"), f"step {step}"
        assert not latentmill.verify(dest, images).problems
        kept = files_by_bytes(dest)
        rewritten = [source for source in kept.keys() & before.keys() if kept[source] != before[source]]
        assert not rewritten, f"step {step}: latents of unchanged images were written again"
        shutil.rmtree(fresh)


def test_from_a_zip_of_images_that_was_made_anew(photos: Path, tmp_path: Path) -> None:
    images, dest = tmp_path / "images.zip", tmp_path / "out"
    latentmill.convert(photos, images, **CROP, num_workers=1)
    latentmill.encode(images, dest, model_url="fake")
    had = files_by_bytes(dest)
    sorted(photos.rglob("*.jpg"))[3].unlink()
    make_photos(photos / "z", 2, seed=1)
    latentmill.convert(photos, images, **CROP, num_workers=1, overwrite=True)
    result = latentmill.encode(images, dest, model_url="fake")
    assert result.changes == (2, 11, 8, 1, 0)
    assert len(had.items() & files_by_bytes(dest).items()) == 11
    fresh = latentmill.encode(images, tmp_path / "fresh", model_url="fake")
    assert contents(dest) == contents(fresh.dest)
    assert not latentmill.verify(dest, images).problems


def test_what_is_unaffected_is_renamed_and_counted(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    latentmill.encode(photos, dest, **ENCODE)
    had = files_by_bytes(dest)
    names = sorted(photos.rglob("*.jpg"))
    names[2].unlink()
    make_photos(photos / "z", 1, seed=1)
    result = latentmill.encode(photos, dest, **ENCODE)
    assert result.changes is not None
    assert result.changes == (1, 11, 9, 1, 0)  # computed, kept, of those renamed, dropped, of those changed
    assert result.computed == 1
    assert len(had.items() & files_by_bytes(dest).items()) == 11


def test_the_command_says_what_an_update_does(photos: Path, tmp_path: Path) -> None:
    arguments = ("convert", "--source", photos, "--dest", tmp_path / "out", "--resolution", "32x32", "--num-workers", 1)
    assert cli_here(*arguments).returncode == 0
    make_photos(photos / "a", 2, seed=1)
    updated = cli_here(*arguments)
    assert updated.returncode == 0
    assert "2 to compute, 12 kept (12 renamed), 0 dropped" in updated.stdout
    assert "14 stored; 2 images in" in updated.stdout


def test_labels_alone_can_change(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.jpg"))]
    latentmill.convert(photos, dest, **CROP, num_workers=1)
    (photos / "dataset.json").write_text(json.dumps({"labels": [[name, 7] for name in names]}))
    result = latentmill.convert(photos, dest, **CROP, num_workers=1)
    assert result.computed == 0
    fresh = latentmill.convert(photos, tmp_path / "fresh", **CROP, num_workers=1)
    assert contents(dest) == contents(fresh.dest)
    assert {label for _, label in json.loads((dest / "dataset.json").read_text())["labels"]} == {7}


def test_a_class_beyond_the_limit_is_in_the_class_table(photos: Path, tmp_path: Path) -> None:
    settings = {**CROP, "num_workers": 1, "max_images": 4}
    latentmill.convert(photos, tmp_path / "out", **settings)
    make_photos(photos / "z", 1, seed=1)
    latentmill.convert(photos, tmp_path / "out", **settings)
    fresh = latentmill.convert(photos, tmp_path / "fresh", **settings)
    assert contents(tmp_path / "out") == contents(fresh.dest)


def hide_change(photo: Path) -> None:
    """Change a file's content, and put its size and time back."""
    stat, data = photo.stat(), bytearray(photo.read_bytes())
    data[len(data) // 2] ^= 0x55
    photo.write_bytes(data)
    os.utime(photo, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_hidden_change_is_found_by_digest_only(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    latentmill.encode(photos, dest, **ENCODE)
    before = contents(dest)
    same = latentmill.encode(photos, dest, **ENCODE, check="digest")
    assert same.already_done
    hide_change(sorted(photos.rglob("*.jpg"))[5])
    assert latentmill.encode(photos, dest, **ENCODE).already_done
    assert contents(dest) == before
    result = latentmill.encode(photos, dest, **ENCODE, check="digest")
    assert result.computed == 1
    fresh = latentmill.encode(photos, tmp_path / "fresh", **ENCODE)
    assert contents(dest) == contents(fresh.dest) != before


def test_touched_files_are_not_computed_again(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    latentmill.encode(photos, dest, **ENCODE)
    had = files_by_bytes(dest)
    for photo in photos.rglob("*.jpg"):
        os.utime(photo, ns=(1, 1))
    assert latentmill.encode(photos, dest, **ENCODE).computed == 0
    assert files_by_bytes(dest) == had
    fresh = latentmill.encode(photos, tmp_path / "fresh", **ENCODE)
    assert contents(dest) == contents(fresh.dest)


def test_an_image_that_can_be_read_again_is_taken_in(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    photo = sorted(photos.rglob("*.jpg"))[3]
    photo.rename(tmp_path / "away.jpg")
    photo.symlink_to(tmp_path / "later.jpg")
    assert latentmill.encode(photos, dest, **ENCODE).rejected == 1
    assert latentmill.encode(photos, dest, **ENCODE).already_done
    (tmp_path / "away.jpg").rename(tmp_path / "later.jpg")
    assert (dest / "latentmill-rejects.jsonl").exists()
    result = latentmill.encode(photos, dest, **ENCODE)
    assert (result.computed, result.rejected) == (1, 0)
    assert not (dest / "latentmill-rejects.jsonl").exists()
    fresh = latentmill.encode(photos, tmp_path / "fresh", **ENCODE)
    assert contents(dest) == contents(fresh.dest)


@pytest.mark.parametrize("max_images", [(4, 9), (9, 4)])
def test_more_or_fewer_images_of_the_same_source(photos: Path, tmp_path: Path, max_images: tuple[int, int]) -> None:
    first, then = max_images
    latentmill.encode(photos, tmp_path / "out", **ENCODE, max_images=first)
    result = latentmill.encode(photos, tmp_path / "out", **ENCODE, max_images=then)
    assert result.computed == max(0, then - first)
    fresh = latentmill.encode(photos, tmp_path / "fresh", **ENCODE, max_images=then)
    assert contents(tmp_path / "out") == contents(fresh.dest)


@pytest.mark.skipif(not CAN_FORK, reason="kills a forked process")
def test_an_update_that_was_cut_off_is_not_lost_when_the_source_changes_again(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    latentmill.encode(photos, dest, **ENCODE, batch_size=2)
    for photo in sorted(photos.rglob("*.jpg"))[:6]:
        make_photos(tmp_path / "new", 1, seed=len(list(tmp_path.rglob("*"))))
        shutil.move(tmp_path / "new" / "c0" / "photo00000.jpg", photo)

    def kill(count: int, event: str) -> None:
        if len(ledger(dest)) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)
        assert fork_with(kill, lambda: latentmill.encode(photos, dest, **ENCODE)) == -signal.SIGKILL
    make_photos(photos / "z", 1, seed=99)
    result = latentmill.encode(photos, dest, **ENCODE)
    assert result.computed == 6 - 4 + 1  # four were committed before the kill
    fresh = latentmill.encode(photos, tmp_path / "fresh", **ENCODE, batch_size=2)
    assert contents(dest) == contents(fresh.dest)


def test_a_zip_is_not_updated(photos: Path, tmp_path: Path) -> None:
    arguments = (
        "convert",
        "--source",
        photos,
        "--dest",
        tmp_path / "out.zip",
        "--resolution",
        "32x32",
        "--num-workers",
        1,
    )
    assert cli_here(*arguments).returncode == 0
    before = (tmp_path / "out.zip").read_bytes()
    sorted(photos.rglob("*.jpg"))[0].unlink()
    for extra in ((), ("--check", "digest")):
        refused = cli_here(*arguments, *extra)
        assert refused.returncode == 2
        assert "a zip cannot be updated in place" in refused.stderr
        assert "--overwrite" in refused.stderr
    assert (tmp_path / "out.zip").read_bytes() == before
    assert cli_here(*arguments, "--overwrite").returncode == 0
    assert (tmp_path / "out.zip").read_bytes() != before


def test_a_zip_whose_source_did_not_change_is_finished(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out.zip"
    latentmill.convert(photos, dest, **CROP, num_workers=1)
    assert latentmill.convert(photos, dest, **CROP, num_workers=1, check="digest").already_done
    hide_change(sorted(photos.rglob("*.jpg"))[5])
    assert latentmill.convert(photos, dest, **CROP, num_workers=1).already_done
    with pytest.raises(DestinationError, match="zip cannot be updated"):
        latentmill.convert(photos, dest, **CROP, num_workers=1, check="digest")


def test_another_source_is_refused(photos: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "other" / "deeper", 3, seed=1)
    dest = tmp_path / "out"
    arguments = ("convert", "--dest", dest, "--resolution", "32x32", "--num-workers", 1, "--source")
    assert cli_here(*arguments, photos).returncode == 0
    before = contents(dest)
    refused = cli_here(*arguments, tmp_path / "other")
    assert refused.returncode == 2
    assert "was made from another source" in refused.stderr
    assert contents(dest) == before
    assert not (dest / ".latentmill").exists()


def test_every_image_changed_is_no_other_source(photos: Path, tmp_path: Path) -> None:
    latentmill.encode(photos, tmp_path / "out", **ENCODE)
    shutil.rmtree(photos)
    make_photos(photos, 12, seed=5)
    assert latentmill.encode(photos, tmp_path / "out", **ENCODE).computed == 12


def test_a_dataset_without_its_index_is_not_built_upon(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    latentmill.encode(photos, dest, **ENCODE)
    (dest / "latentmill-index.jsonl").unlink()
    sorted(photos.rglob("*.jpg"))[0].unlink()
    with pytest.raises(DestinationError, match=r"missing.*--overwrite"):
        latentmill.encode(photos, dest, **ENCODE)
    latentmill.encode(photos, dest, **ENCODE, overwrite=True)
    assert not latentmill.verify(dest).problems


@pytest.mark.parametrize("lost", ["out/00000/img-mean-std-00000003.npy", "img/00000/img00000003.png"])
def test_a_lost_file_is_made_again_by_the_next_update(photos: Path, tmp_path: Path, lost: str) -> None:
    dest, images = tmp_path / "out", tmp_path / "img"
    latentmill.encode(photos, dest, **ENCODE, images=images)
    (tmp_path / lost).unlink()
    sorted(photos.rglob("*.jpg"))[0].unlink()
    result = latentmill.encode(photos, dest, **ENCODE, images=images)
    assert result.changes is not None and result.changes.compute == 1 and result.changes.keep == 10
    assert not latentmill.verify(dest, images).problems
    fresh = tmp_path / "fresh"
    latentmill.encode(photos, fresh / "out", **ENCODE, images=fresh / "img")
    assert contents(dest) == contents(fresh / "out") and contents(images) == contents(fresh / "img")


def test_a_changed_file_is_mended_by_a_check_of_the_digests(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    latentmill.encode(photos, dest, **ENCODE)
    before = contents(dest)
    file = dest / "00000" / "img-mean-std-00000003.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert latentmill.verify(dest).problems
    assert latentmill.encode(photos, dest, **ENCODE, check="digest").computed == 1
    assert contents(dest) == before


def test_all_photos_replaced_in_a_chain_of_convert_and_encode(photos: Path, tmp_path: Path) -> None:
    crop = {"resolution": "32x32", "transform": "center-crop", "num_workers": 1}
    for seed in (0, 7):
        make_photos(photos, 12, seed=seed)
        latentmill.convert(photos, tmp_path / "img", **crop)
        latentmill.encode(tmp_path / "img", tmp_path / "out", model_url="fake")
    assert not latentmill.verify(tmp_path / "out", tmp_path / "img").problems
