"""The data flow of a shard: what is stored, what is on record, what is left when it fails, and that it overlaps."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import latentmill
from latentmill.encoders.fake import FakeSpec
from latentmill.errors import SampleError
from latentmill.loading import Decoded, ImageLoad
from latentmill.outcome import Result
from latentmill.records import Encoded, Progress, Sample, SampleRef, ShardReport
from support import contents, run_shards, task_for, wait_until

LOAD = ImageLoad("none", (32, 32), "ignore", "drop", (32, 32))


class Encoder(FakeSpec):
    """The fake encoder, which records its batches."""

    def open(self) -> Encoder:
        self.__dict__["batches"] = []
        return self

    @property
    def batches(self) -> list[list[int]]:
        found: list[list[int]] = self.__dict__["batches"]
        return found

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        self.batches.append([sample.ref.index for sample in samples])
        return super().encode(samples)


def ledger_rows(folder: Path) -> list[dict[str, object]]:
    entries = sorted((folder / ".latentmill").glob("plan-*/shards/*.jsonl"))
    return [json.loads(line) for entry in entries for line in entry.read_text().splitlines()[1:]]


def data(folder: Path) -> set[str]:
    return {name for name in contents(folder) if not name.startswith(".latentmill/plan") and name.endswith(("g", "y"))}


def test_every_image_is_stored_or_skipped_or_rejected_and_on_record(photos: Path, tmp_path: Path) -> None:
    (photos / "c0" / "bad.jpg").write_bytes(b"no picture")
    Image.new("RGB", (16, 64)).save(photos / "c1" / "narrow.png")
    Image.new("RGBA", (64, 64)).save(photos / "c1" / "glass.png")
    load = ImageLoad("center-crop-wide", (32, 16), "ignore", "drop", (32, 32))
    task = task_for(photos, tmp_path / "out", load=load)
    events: list[Progress | ShardReport] = []
    run_shards(task, range(len(task.parts[0].plan.shards)), events.append)
    rows = ledger_rows(tmp_path / "out")
    assert [row["index"] for row in rows] == list(range(15))
    by_key = {str(row["key"]): row for row in rows}
    assert by_key["c0/bad.jpg"]["reject"] == ["decode", "not an image that can be read"]
    assert by_key["c1/narrow.png"]["skipped"] is True
    assert by_key["c1/glass.png"]["notes"] == ["transparent"]
    assert sum("files" in row for row in rows) == 13 == len(data(tmp_path / "out"))
    progress = [event for event in events if isinstance(event, Progress)]
    reports = [event for event in events if isinstance(event, ShardReport)]
    assert [sum(p.done for p in progress), sum(p.rejected for p in progress)] == [15, 1]
    assert [sum(r.images for r in reports), sum(r.stored for r in reports)] == [15, 13]
    assert [sum(r.rejected for r in reports), sum(r.skipped for r in reports)] == [1, 1]
    assert all({"load", "write", "commit"} <= report.seconds.keys() for report in reports)


def test_batches_are_those_of_the_plan_however_many_threads_load(photos: Path, tmp_path: Path) -> None:
    for threads in (0, 1, 4):
        encoder = Encoder()
        task = task_for(photos, tmp_path / f"o{threads}", tmp_path / f"i{threads}", encoder=encoder, batch_size=3,
                        load_threads=threads, shard_size=5)  # fmt: skip
        run_shards(task, range(len(task.parts[0].plan.shards)), lambda event: None)
        assert encoder.batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


class NotFinite(Encoder):
    """Gives no latent for image 1 of 0..11."""

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        results = super().encode(samples)
        rejected = SampleError("encode", "the latent is not finite (NaN or infinity), in float32 too")
        return [rejected if s.ref.index == 1 else r for s, r in zip(samples, results, strict=True)]


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_an_image_whose_latent_is_rejected_is_not_published(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("latentmill.encoders.fake.FakeSpec", NotFinite)
    latents, images = tmp_path / f"lat{suffix}", tmp_path / f"img{suffix}"
    result = latentmill.encode(photos, latents, resolution="32x32", model_url="fake", images=images)
    assert (result.stored, result.rejected) == (11, 1)
    report = latentmill.verify(latents, images)
    assert not report.problems
    for place in (latents, images):
        names = [name for name in (contents(place) if not suffix else names_of(place)) if name.startswith("0")]
        assert len(names) == 11
        assert not [name for name in names if "00000001" in name]
    rejects = latents.with_name("lat.zip.rejects.jsonl") if suffix else latents / "latentmill-rejects.jsonl"
    row = json.loads(rejects.read_text())
    assert (row["key"], row["stage"]) == ("c0/photo00001.jpg", "encode")
    assert "not finite" in row["reason"]


def names_of(archive: Path) -> list[str]:
    import zipfile

    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


class Broken(Encoder):
    """Fails as a whole in its third batch."""

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        if len(self.batches) == 3:
            raise MemoryError("no more")
        return super().encode(samples)


def test_a_shard_that_fails_leaves_nothing_and_the_one_before_stays(photos: Path, tmp_path: Path) -> None:
    latents, images = tmp_path / "lat", tmp_path / "img"
    task = task_for(photos, latents, images, encoder=Broken())
    with pytest.raises(MemoryError):
        run_shards(task, range(3), lambda event: None)
    assert task.parts[0].plan.done() == [0]
    assert data(latents) == {f"00000/img-mean-std-{n:08d}.npy" for n in range(4)}
    assert data(images) == {f"00000/img{n:08d}.png" for n in range(4)}
    assert not list(tmp_path.rglob("stage/*"))


def test_a_listener_that_stops_the_run_leaves_nothing_half_done(photos: Path, tmp_path: Path) -> None:
    def emit(event: Progress | ShardReport) -> None:
        if isinstance(event, Progress):
            raise KeyboardInterrupt

    task = task_for(photos, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run_shards(task, range(3), emit)
    assert task.parts[0].plan.done() == []
    assert data(tmp_path / "out") == set()
    assert not list(tmp_path.rglob("stage/*"))


def test_the_ledger_entry_comes_after_the_data(photos: Path, tmp_path: Path) -> None:
    task = task_for(photos, tmp_path / "out")
    seen = []

    def emit(event: Progress | ShardReport) -> None:
        if isinstance(event, ShardReport):
            names = [files["images"][0] for row in ledger_rows(tmp_path / "out") if (files := row.get("files"))]
            assert all((tmp_path / "out" / name).exists() for name in names)
            seen.append(len(names))

    run_shards(task, range(3), emit)
    assert [a <= b for a, b in zip((4, 8, 12), seen, strict=True)] == [True] * 3


class CountingLoad:
    """Counts the images that were loaded."""

    def __init__(self) -> None:
        self.count, self.lock = 0, threading.Lock()

    decode = LOAD.decode

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        sample = LOAD(ref, decoded)
        with self.lock:
            self.count += 1
        return sample


class WaitingEncoder(Encoder):
    """Looks, at each batch, how far loading has run ahead."""

    def watch(self, load: CountingLoad) -> WaitingEncoder:
        self.__dict__.update(load=load, ahead=[], given=0)
        return self

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        state = self.__dict__
        state["given"] += len(samples)
        remaining = 12 - state["given"]
        wait_until(lambda: state["load"].count - state["given"] >= min(2, remaining), 10)
        state["ahead"].append(state["load"].count - state["given"])
        return super().encode(samples)


def test_loading_runs_ahead_across_shards_but_not_far(photos: Path, tmp_path: Path) -> None:
    load = CountingLoad()
    encoder = WaitingEncoder().watch(load)
    task = task_for(photos, tmp_path / "lat", tmp_path / "img", load=load, encoder=encoder, load_threads=1)
    run_shards(task, range(3), lambda event: None)
    ahead = encoder.__dict__["ahead"]
    assert len(ahead) == 6
    assert all(count >= 2 for count in ahead[:-1]), f"loading waited for the encoder: {ahead}"
    assert max(ahead) <= 4 + 1, f"loading ran away: {ahead}"


def test_latents_and_images_come_from_one_decoding(photos: Path, tmp_path: Path) -> None:
    load = CountingLoad()
    task = task_for(photos, tmp_path / "lat", tmp_path / "img", load=load, encoder=FakeSpec())
    run_shards(task, range(3), lambda event: None)
    assert load.count == 12
    pixels = np.asarray(Image.open(tmp_path / "img" / "00000" / "img00000007.png"), dtype=np.float32)
    latent = np.load(tmp_path / "lat" / "00000" / "img-mean-std-00000007.npy")
    blocks = pixels.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(latent[:3], blocks, atol=1e-5)


def failing_at_five(photos: Path, place: Path, failure: Exception, patch: pytest.MonkeyPatch) -> Result:
    """A conversion in this process in which one photo cannot be loaded."""
    whole = ImageLoad.__call__

    def load(self: ImageLoad, ref: SampleRef, decoded: Decoded) -> Sample | None:
        if ref.index == 5:
            raise failure
        return whole(self, ref, decoded)

    patch.setattr(ImageLoad, "__call__", load)
    return latentmill.convert(photos, place, **CROP, num_workers=1, max_failures=1)


CROP = {"resolution": "32x32", "transform": "center-crop"}


def test_a_photo_for_which_memory_does_not_suffice_is_rejected_and_tried_again(photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        first = failing_at_five(photos, tmp_path / "out", MemoryError(), patch)
    assert (first.stored, first.rejected) == (11, 1)
    row = json.loads((tmp_path / "out" / "latentmill-rejects.jsonl").read_text())
    assert (row["key"], row["stage"]) == ("c0/photo00005.jpg", "memory")
    assert latentmill.convert(photos, tmp_path / "out", **CROP, num_workers=1).stored == 12


class CutOff(BaseException):
    """As a kill: nobody expects it."""


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_photo_that_was_published_by_a_run_cut_off_before_its_ledger_entry_and_is_rejected_now(
    photos: Path, tmp_path: Path, suffix: str
) -> None:
    place = tmp_path / f"out{suffix}"

    def cut_off(*_: object) -> None:
        raise CutOff

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentmill.manifest.Plan.commit", cut_off)
        with pytest.raises(CutOff):
            latentmill.convert(photos, place, **CROP, num_workers=1)
    if not suffix:
        assert (place / "00000" / "img00000005.png").exists()
    with pytest.MonkeyPatch.context() as patch:
        made = failing_at_five(photos, place, SampleError("read", "Input/output error"), patch)
    assert (made.stored, made.rejected) == (11, 1)
    names = [name for name in (names_of(place) if suffix else contents(place)) if name.endswith(".png")]
    assert len(names) == 11
    assert "00000/img00000005.png" not in names
    assert not latentmill.verify(place).problems


def test_pixels_are_let_go_once_they_are_encoded(photos: Path, tmp_path: Path) -> None:
    """Of a batch that waits to be written, only what the encoder gave is held."""
    arrays: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    class Noting(FakeSpec):
        def open(self) -> Noting:
            return self

        def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
            alive.append(sum(array() is not None for array in arrays))
            arrays.extend(weakref.ref(sample.array) for sample in samples)
            return super().encode(samples)

    task = task_for(photos, tmp_path / "out", encoder=Noting(), batch_size=2)
    part = replace(task.parts[0], outputs=task.parts[0].outputs[:1])
    run_shards(replace(task, parts=(part,)), range(len(part.plan.shards)), lambda event: None)
    assert len(alive) > 3
    assert set(alive) == {0}
