"""Text features by a real T5: captions are computed once and alone, and a killed process loses no finished work."""

from __future__ import annotations

import gc
import json
import random
import signal
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentmill
from feature_jobs import FOLDERS, Data, held, identities, index, run_text
from latentmill.encoders.text import TextEncoder, TextSpec
from latentmill.features import image_features
from latentmill.formats.pixart import EMPTY_CAPTION, PixArtText
from support import CAN_FORK, DATA, TINY_VAE, command_of_small_shards, identity, kill_when, ledger

TINY_T5 = DATA / "models" / "tiny-t5"


@pytest.fixture
def captioned(tmp_path: Path) -> Data:
    """Sixteen captions without their images."""
    data = Data(tmp_path / "data")
    words = random.Random(3)
    for number in range(16):
        caption = " ".join(words.choices(["a", "cat", "photo", "of", "water", "light", "the"], k=words.randint(1, 12)))
        data.rows[f"d/{number:02d}.png"] = {"path": f"d/{number:02d}.png", "prompt": caption}
    data.write()
    return data


REAL = {"text_encoder": str(TINY_T5), "token_budget": 40, "max_length": 20}


@pytest.fixture
def rows_computed(monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """The token ids of every forward, but for those that measure the speed."""
    forwards: list[list[bytes]] = []
    forward = TextEncoder._forward

    def spy(self: TextEncoder, model: Any, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        forwards.append([row.tobytes() for row in rows])
        return forward(self, model, rows)

    monkeypatch.setattr(TextEncoder, "_forward", spy)
    monkeypatch.setattr("latentmill.outputs.captions._seconds_a_token", lambda spec, refs: 1e-4)
    return forwards


def features(place: Path) -> dict[str, np.ndarray]:
    layout = PixArtText("multi")
    return {row["key"]: layout.from_bytes((place / FOLDERS[run_text] / row["name"]).read_bytes())
            for row in index(place / FOLDERS[run_text])}  # fmt: skip


def test_equal_captions_are_computed_once(captioned: Data, tmp_path: Path, rows_computed: list[list[bytes]]) -> None:
    copied = "a photo of the water"
    for number in range(3000):
        captioned.rows[f"copies/{number}.png"] = {"path": f"copies/{number}.png", "prompt": copied}
    captioned.write()
    distinct = {str(row["prompt"]) for row in captioned.rows.values()}
    result = run_text(captioned, tmp_path, **REAL)
    assert result.stored == 3016
    rows = [row for forward in rows_computed for row in forward]
    assert len(rows) == len(set(rows)) == len(distinct) + 1, "and the empty caption"
    one = {(tmp_path / FOLDERS[run_text] / f"copies_{number}.npz").read_bytes() for number in range(3000)}
    assert len(one) == 1


def test_an_edited_caption_is_computed_alone_and_right(
    captioned: Data, tmp_path: Path, rows_computed: list[list[bytes]]
) -> None:
    run_text(captioned, tmp_path, **REAL)
    folder = tmp_path / FOLDERS[run_text]
    before, rows_computed[:] = identities(folder), []
    captioned.rows["d/05.png"]["prompt"] = "another photo of a cat"
    captioned.write()
    assert run_text(captioned, tmp_path, **REAL).changes == (1, 15, 0, 1, 1)
    assert [len(rows) for rows in rows_computed] == [1]
    after = identities(folder)
    touched = {name for name in after if after[name] != before[name] and not name.startswith("latentmill-")}
    assert touched == {"d_05.npz", "latentmill.json"}
    run_text(captioned, tmp_path / "fresh", **REAL)
    updated, fresh = features(tmp_path), features(tmp_path / "fresh")
    assert updated.keys() == fresh.keys()
    for key, array in fresh.items():
        assert np.allclose(updated[key], array, rtol=2e-3, atol=2e-3), key
    assert (folder / EMPTY_CAPTION).read_bytes() == (tmp_path / "fresh" / folder.name / EMPTY_CAPTION).read_bytes()
    assert not latentmill.verify(folder).problems


@pytest.mark.skipif(not CAN_FORK, reason="kills processes by ways that only Linux has")
def test_a_real_process_is_killed_and_another_goes_on(captioned: Data, tmp_path: Path) -> None:
    place = tmp_path / "place"
    options = ["--token-budget", "40", "--max-length", "20", "--threads", "1"]
    arguments = ["pixart", "--data-info", captioned.table, "--dest", place, "--text-encoder", TINY_T5, *options]
    folder = place / FOLDERS[run_text]
    code, output = kill_when(lambda: len(ledger(folder)) >= 2, command_of_small_shards(*arguments))
    assert code == -signal.SIGKILL, output
    rows = [json.loads(line) for entry in ledger(folder) for line in entry.read_text().splitlines()[1:]]
    done = {name: identity(folder / name) for row in rows for name, *_ in row["files"].values()}
    result = run_text(captioned, place, **REAL)
    assert result.computed == 16 - len(done) > 0
    assert done.items() <= identities(folder).items()
    run_text(captioned, tmp_path / "fresh", **REAL)
    assert held(place) == held(tmp_path / "fresh")


def test_no_real_model_is_loaded_again(captioned: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentmill.encoders.vae import VaeEncoder

    captioned.add("e.png", "with an image", (16, 16))
    captioned.add("f.png", "with another", (16, 16))
    captioned.rows = {path: row for path, row in captioned.rows.items() if "width" in row}
    captioned.write()
    jobs = [
        partial(run_text, **REAL),
        partial(image_features, captioned.table, vae=str(TINY_VAE), resolution=32, threads=1),
    ]
    jobs[1] = lambda data, dest, job=jobs[1]: job(dest)
    for job in jobs:
        job(captioned, tmp_path / "place")
    for kind in (TextEncoder, VaeEncoder):
        monkeypatch.delattr(kind, "__init__")  # so that none can be made
    assert all(job(captioned, tmp_path / "place").already_done for job in jobs)
    captioned.remove("f.png")
    captioned.write()
    for job in jobs:
        result = job(captioned, tmp_path / "place")
        assert (result.stored, result.computed) == (1, 0)


def test_the_models_of_several_jobs_do_not_lie_in_memory_together(
    captioned: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T5-XXL is 19 GB: one for each caption label would be too much."""
    alive: list[weakref.ref[TextEncoder]] = []
    most = []
    begin = TextEncoder.__init__

    def noted(self: TextEncoder, spec: TextSpec) -> None:
        gc.collect()
        most.append(sum(encoder() is not None for encoder in alive))
        begin(self, spec)
        alive.append(weakref.ref(self))

    monkeypatch.setattr(TextEncoder, "__init__", noted)
    table = json.loads(captioned.table.read_text())
    both = tmp_path / "both.json"
    both.write_text(json.dumps([{**row, "other_prompt": row["prompt"] + " again"} for row in table]))
    made = latentmill.pixart(both, tmp_path / "out", text_encoder="mini", caption_label=["prompt", "other_prompt"])
    assert len(made.text) == 2
    assert most == [0, 0]
