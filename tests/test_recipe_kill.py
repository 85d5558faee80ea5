"""A recipe killed at any moment and run again ends where an uninterrupted one does, in every output."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import fake_text
from latentmill.recipe import Recipe
from recipe_jobs import CROP, FOUR, GRID, Outputs, Photos, fresh, held, recipe_file, run
from support import CAN_FORK, kill_before_change, kill_when, ledger

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="kills processes by ways that only Linux has")
# Batches of three: with five photos two shards an output, and three of the buckets.
OUTPUTS = {name: {**output, "batch_size": 3} if "batch_size" in output else output for name, output in FOUR.items()}
EVERY = 7  # changes, of about 300 in a run; 1 tests all of them in two minutes


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of one batch, and no text model."""
    fake_text.install(monkeypatch.setattr)
    monkeypatch.setattr("latentmill.job.SHARD_SECONDS", 1e-9)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: these tests sync thousands of times."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


class Steps:
    """A recipe in this process, to be stopped before each change that it makes to the filesystem."""

    def __init__(self, memory: Path, outputs: Outputs) -> None:
        self.photos, self.outputs = Photos(memory / "photos", 5), outputs
        self.start, self.place = memory / "start", memory / "place"
        self.start.mkdir()

    def run(self, outputs: Outputs | None = None) -> object:
        return run(self.photos.root, self.place, outputs or self.outputs)

    def killed_at_each(self, every: int) -> Iterator[int]:
        """For each change that a run makes from the start on: put the start back, kill it there, and yield."""
        number = 0
        while True:
            shutil.rmtree(self.place, ignore_errors=True)
            shutil.copytree(self.start, self.place, copy_function=shutil.copy2)
            if not kill_before_change(number, self.run):
                assert number > 200
                return
            yield number
            number += every

    def check(self, number: int, expected: dict[str, bytes]) -> None:
        assert held(self.place) == expected, f"killed before change {number}"
        assert not list(self.place.glob("*.tmp*")), f"killed before change {number}"


@pytest.mark.usefixtures("small_shards")
def test_killed_before_changes_of_a_first_run(memory: Path) -> None:
    steps = Steps(memory, OUTPUTS)
    expected = fresh(steps.photos.root, OUTPUTS)
    for number in steps.killed_at_each(EVERY):
        steps.run()
        steps.check(number, expected)


@pytest.mark.usefixtures("small_shards")
def test_killed_before_changes_of_an_update(memory: Path) -> None:
    steps = Steps(memory, OUTPUTS)
    run(steps.photos.root, steps.start, OUTPUTS)
    steps.photos.edit()
    expected = fresh(steps.photos.root, OUTPUTS)
    for number in steps.killed_at_each(EVERY):
        steps.run()
        steps.check(number, expected)


@pytest.mark.usefixtures("small_shards")
def test_killed_and_then_recipe_and_source_change(memory: Path) -> None:
    """One output is taken out, one is added, and a photo is gone."""
    steps = Steps(memory, {name: OUTPUTS[name] for name in ("images", "latents", "text")})
    later = {name: OUTPUTS[name] for name in ("images", "latents", "buckets")}
    photo, aside = steps.photos.root / "c1" / "p003.jpg", memory / "aside"
    photo.rename(aside)
    expected = fresh(steps.photos.root, later)
    aside.rename(photo)
    for number in steps.killed_at_each(2 * EVERY):
        photo.rename(aside)
        steps.run(later)
        aside.rename(photo)
        shutil.rmtree(steps.place / "text", ignore_errors=True)
        steps.check(number, expected)


def test_killed_for_good_with_a_model(memory: Path) -> None:
    photos, place = Photos(memory / "photos", 48).root, memory / "out"
    outputs: dict[str, dict[str, Any]] = {
        "images": {"kind": "pixels", **CROP, "batch_size": 4},
        "latents": {"kind": "latents", "model": "mini", **CROP, "batch_size": 4},
        "buckets": {**GRID, "model": "mini", "batch_size": 4},
    }
    path = recipe_file(memory / "recipe.toml", photos, outputs)
    code = "import latentmill.job as job; job.SHARD_SECONDS = 1e-9; from latentmill.__main__ import main; main()"
    arguments = [sys.executable, "-c", code, "run", str(path)]

    def committed() -> list[Path]:
        return [entry for name in outputs for entry in ledger(place / name)]

    exit_code, said = kill_when(lambda: len(committed()) > 4, arguments)
    assert exit_code == -signal.SIGKILL, said
    left = 3 * 48 - 4 * len(committed())
    assert 0 < left < 3 * 48
    assert sum(result.computed for result in Recipe.read(path).run().values()) == left
    assert held(place) == fresh(photos, outputs)
