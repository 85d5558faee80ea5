"""Several encoder processes on one machine: which devices there are, and that their number changes no byte."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fake_text
import latentmill
from latentmill.config import LatentSettings, validated
from latentmill.devices import cpu_processes, each_device, encoder_device, show_only
from latentmill.errors import ConfigError, ModelError
from latentmill.outcome import Event
from latentmill.passes import units_of
from latentmill.recipe import Recipe
from latentmill.records import Encoded, Sample
from latentmill.system import available_memory, share_memory
from latentmill.worker import Part
from recipe_jobs import CROP, FOUR, Photos, held, run
from support import (
    CAN_FORK,
    TINY_VAE,
    cli,
    command_of_small_shards,
    contents,
    descendants,
    ledger,
    make_photos,
    wait_until,
)
from support import running as is_running

needs_fork = pytest.mark.skipif(not CAN_FORK, reason="workers must see what the test has patched")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.runners.local._start_method", lambda: "fork")
    monkeypatch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)
    fake_text.install(monkeypatch.setattr)


# names


@pytest.mark.parametrize("name", ["auto", "cpu", "cpu:1", "cpu:16", "mps", "cuda", "cuda:0", "cuda:3", "cuda:0,1,12"])
def test_names_that_are_devices(name: str) -> None:
    assert validated(LatentSettings, {"source": "a", "dest": "b", "device": name}).device == name


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cpu:", "cpu:1,2", "cuda:", "cuda:1,", "cuda:1,1", "cuda:-1", ""])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match=r"device must be auto, cpu, cpu:N, mps, cuda, cuda:N or cuda:N,M. Found"):
        validated(LatentSettings, {"source": "a", "dest": "b", "device": name})


def test_the_process_of_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert each_device("cuda", "cuda") == each_device("auto", "cuda") == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert each_device("cuda:1,3", "cuda") == ("cuda:1", "cuda:3")
    assert each_device("cuda:2", "cuda:2") == ("cuda:2",)
    assert each_device("auto", "cpu") == each_device("cpu", "cpu") == ("cpu",)
    assert each_device("cpu:3", "cpu") == ("cpu",) * 3
    assert each_device("mps", "mps") == ("mps",)
    with pytest.raises(ModelError, match=r"device cuda:4 is not there: PyTorch sees 4 GPUs, counted from 0"):
        each_device("cuda:0,4", "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert each_device("cuda", "cuda") == ("cuda",)


def test_an_encoder_is_told_one_device() -> None:
    told = {"cuda:0,1": "cuda", "cuda:1": "cuda:1", "cpu:4": "cpu", "auto": "auto", "mps": "mps"}
    assert {name: encoder_device(name) for name in told} == told
    assert [cpu_processes(name) for name in ("cpu", "cpu:4", "cuda:4", "auto")] == [1, 4, 1, 1]


@pytest.mark.parametrize(
    ("seen", "device", "shown"),
    [
        (None, "cuda:1", "1"),
        ("4,6", "cuda:1", "6"),
        ("GPU-aa, GPU-bb", "cuda:1", "GPU-bb"),
        ("4,6", "cuda", "4,6"),
        ("4,6", "cpu", "4,6"),
        (None, "", None),
    ],
)
def test_a_process_sees_its_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, device: str, shown: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    show_only(device)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == shown


def test_processes_share_the_memory_and_the_cores(tmp_path: Path, photos: Path) -> None:
    whole = available_memory()
    assert whole is not None
    try:
        share_memory(4)
        share = available_memory()
    finally:
        share_memory(1)
    assert share is not None
    assert abs(share - whole / 4) < whole / 8
    told: list[Event] = []
    Recipe(photos, {"sd": {"kind": "latents", "model": "fake", **CROP}}, tmp_path, {"device": "cpu:2"}).prepare(
        lambda name: told.append
    )
    cores = len(os.sched_getaffinity(0)) if CAN_FORK else os.cpu_count() or 1
    assert any(f"2 processes, each with {max(1, cores // 2)} thread" in event.text for event in told)


# bytes


@needs_fork
@pytest.mark.usefixtures("forked")
def test_every_output_of_a_recipe_is_the_same_from_any_number_of_processes(tmp_path: Path) -> None:
    photos = Photos(tmp_path / "photos", 11)
    calm = run(photos.root, tmp_path / "one", FOUR, device="cpu")
    for processes in (2, 3):
        made = run(photos.root, tmp_path / str(processes), FOUR, device=f"cpu:{processes}")
        assert {name: (each.stored, each.rejected) for name, each in made.items()} == {
            name: (each.stored, each.rejected) for name, each in calm.items()
        }
        assert held(tmp_path / str(processes)) == held(tmp_path / "one")


@needs_fork
@pytest.mark.usefixtures("forked")
def test_the_number_of_processes_may_change_between_runs(tmp_path: Path) -> None:
    photos = Photos(tmp_path / "photos", 11)
    run(photos.root, tmp_path / "out", FOUR, device="cpu:3")
    again = run(photos.root, tmp_path / "out", FOUR, device="cpu")
    assert all(each.already_done for each in again.values())
    photos.edit()
    run(photos.root, tmp_path / "out", FOUR, device="cpu:2")
    run(photos.root, tmp_path / "fresh", FOUR, device="cpu")
    fresh = held(tmp_path / "fresh")
    assert {name: held(tmp_path / "out")[name] for name in fresh} == fresh


def test_a_real_model_in_two_processes_gives_the_bytes_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)
    make_photos(tmp_path / "photos", 8, side=40)
    crop = {**CROP, "batch_size": 2, "threads": 1, "model_url": str(TINY_VAE)}
    for device in ("cpu", "cpu:2"):
        latentmill.encode(tmp_path / "photos", tmp_path / device, **crop, device=device)
    assert contents(tmp_path / "cpu:2") == contents(tmp_path / "cpu")


class Decoder:
    """Grey pictures, as bright as the latent's mean."""

    def open(self) -> Decoder:
        return self

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        return [Encoded(np.full((32, 32, 3), int(sample.array.mean() * 90 + 128), np.uint8)) for sample in samples]


@needs_fork
@pytest.mark.usefixtures("forked")
def test_latents_are_decoded_by_any_number_of_processes(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latentmill.encode(photos, tmp_path / "lat", **CROP, model_url="fake")
    monkeypatch.setattr("latentmill.encoders.decoder.model_of", lambda info, url: SimpleNamespace(info=info))
    monkeypatch.setattr("latentmill.encoders.decoder.decoder_spec", lambda *told: Decoder())
    for device in ("cpu", "cpu:3"):
        latentmill.decode(tmp_path / "lat", tmp_path / device, batch_size=2, threads=1, device=device)
    assert contents(tmp_path / "cpu:3") == contents(tmp_path / "cpu")
    assert len(list((tmp_path / "cpu").rglob("*.png"))) == 12


@needs_fork
def test_no_encoder_process_outlives_its_job(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 60)
    crop = ("--resolution", "32x32", "--transform", "center-crop", "--batch-size", 2)
    settings = (
        "--source",
        tmp_path / "photos",
        "--dest",
        tmp_path / "out",
        "--vae",
        "fake",
        *crop,
        "--device",
        "cpu:3",
    )
    with subprocess.Popen(command_of_small_shards("encode", *settings), stdout=subprocess.DEVNULL) as process:
        assert wait_until(lambda: len(ledger(tmp_path / "out")) > 2)
        workers = descendants(process.pid)
        process.kill()
    assert len(workers) == 1 + 3  # the process that schedules, and one for each device
    assert wait_until(lambda: not any(map(is_running, workers)), 10)
    again = cli("encode", *settings)
    assert again.returncode == 0
    assert "going on" in again.stdout
    assert not latentmill.verify(tmp_path / "out").problems


# units of jobs that share images


class _Spans:
    """A plan whose shards hold these keys."""

    def __init__(self, *shards: str) -> None:
        self.held = shards

    def refs(self, shard: int) -> list[Any]:
        return [type("Ref", (), {"key": key}) for key in self.held[shard]]


def parts(*plans: _Spans) -> list[Any]:
    return [type("Part", (), {"plan": plan}) for plan in plans]


def test_shards_that_overlap_in_a_chain_are_still_shared_out() -> None:
    aligned, bucketed = _Spans("ab", "cd", "ef", "gh"), _Spans("acb", "dfe", "gbh")
    found: list[Part] = parts(aligned, bucketed)
    assert units_of(found, [[0, 1, 2, 3], [0, 1, 2]], 1) == [((0, 1, 2, 3), (0, 1, 2))]
    units = units_of(found, [[0, 1, 2, 3], [0, 1, 2]], 3)
    assert len(units) > 1
    assert sorted(shard for unit in units for shard in unit[0]) == [0, 1, 2, 3]
    assert sorted(shard for unit in units for shard in unit[1]) == [0, 1, 2]
    same = parts(aligned, _Spans("ab", "cd", "ef", "gh"))
    assert units_of(same, [[0, 1, 2, 3]] * 2, 2) == [((n,), (n,)) for n in range(4)]


def test_cli_tells_the_devices() -> None:
    assert "cpu:N" in cli("encode", "--help", COLUMNS="160").stdout
    run = subprocess.run([sys.executable, "-c", "import latentmill.devices, sys; sys.exit('torch' in sys.modules)"])
    assert run.returncode == 0
