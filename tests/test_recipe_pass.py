"""One pass: each image is read and decoded once for all outputs, which come out as if each were made alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fake_text
import latentmill
import tiny_vision
from latentmill.errors import LatentmillError, TooManyFailuresError
from latentmill.passes import units_of
from latentmill.records import SampleRef
from latentmill.worker import Part
from recipe_jobs import (
    BUCKETS,
    CROP,
    FAKE,
    FOUR,
    GRID,
    IMAGES,
    Photos,
    Work,
    fresh,
    held,
    index,
    recipe_file,
    run,
    stopped_after,
    work,
)
from support import TINY_VAE, cli, wait_until

__all__ = ["work"]  # a fixture
LARGER = {"transform": "center-crop", "resolution": "64x64"}


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.saved(tmp_path_factory.mktemp("model") / "dino", "dinov2")


@pytest.fixture
def many(tmp_path: Path) -> Photos:
    return Photos(tmp_path / "photos", 11)


@pytest.fixture(autouse=True)
def without_a_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_text.install(monkeypatch.setattr)


def five(dino: Path, **variants: Any) -> dict[str, dict[str, Any]]:
    """Pixels, two VAEs, one of them in buckets as well, and a vision encoder. variants: flip and crops."""
    crops = {"fit": "cover", **variants} if variants else {}
    return {
        "images": {"kind": "pixels", **CROP, **variants},
        "mini": {"kind": "latents", "model": "mini", **LARGER, **variants},
        "tiny": {"kind": "latents", "model": str(TINY_VAE), "batch_size": 3, **LARGER, **variants},
        "buckets": {**GRID, "model": "mini", "batch_size": 2, **crops},
        "dino": {"kind": "vision", "model": str(dino), **LARGER, **variants},
    }


@pytest.mark.parametrize("variants", [{}, {"flip": "both", "crops": 2}], ids=["plain", "flipped and cropped"])
def test_each_image_is_read_and_decoded_once_for_all_outputs(
    dino: Path, tmp_path: Path, work: Work, variants: dict[str, Any]
) -> None:
    photos = Photos(tmp_path / "photos", 5).root
    Image.open(photos / "c0" / "p001.jpg").save(photos / "c0" / "compressed.png")
    results = run(photos, tmp_path / "out", five(dino, **variants))
    assert len(results) == (20 if variants else 5)
    assert all(result.stored == 6 for result in results.values())
    assert len(work.read) == len(work.decoded) == 6
    assert len(work.jpegs) == 5
    assert set(work.read.values()) == set(work.decoded.values()) == set(work.jpegs.values()) == {1}
    assert held(tmp_path / "out") == fresh(photos, five(dino, **variants))


def test_the_outputs_are_those_of_the_commands(many: Photos, dino: Path, tmp_path: Path) -> None:
    beside = {"pixels": "beside", "batch_size": 3}
    outputs = five(dino) | {
        "tiny": {"kind": "latents", "model": str(TINY_VAE), **LARGER, **beside},
        "text": FOUR["text"],
    }
    run(many.root, tmp_path / "out", outputs, num_workers=2)
    commands = tmp_path / "commands"
    latentmill.convert(many.root, commands / "images", **CROP)
    latentmill.encode(many.root, commands / "mini", model_url="mini", threads=1, **LARGER)
    tiny = {"images": commands / "beside", "batch_size": 3, "threads": 1}
    latentmill.encode(many.root, commands / "tiny", model_url=str(TINY_VAE), **tiny, **LARGER)
    chosen = {name: value for name, value in GRID.items() if name not in ("kind", "layout")}
    latentmill.pixart(many.root, commands, vae="mini", batch_size=2, threads=1, **chosen)
    latentmill.pixart(many.root, commands, text_encoder="fake", token_budget=16, threads=1)
    (commands / "img_sdxl_vae_features_64resolution_ms_new").rename(commands / "buckets")
    (commands / "caption_features_new").rename(commands / "text")
    (tmp_path / "out" / "dino").rename(tmp_path / "dino")
    assert held(tmp_path / "out") == held(commands)


def test_outputs_at_different_states_become_what_each_would_alone(
    many: Photos, dino: Path, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels are finished, two outputs half done, photos are added since, and two outputs are new."""
    outputs = five(dino)
    place = tmp_path / "out"
    run(many.root, place, {"images": outputs["images"]})
    with stopped_after(3, monkeypatch):
        run(many.root, place, {name: outputs[name] for name in ("tiny", "buckets")})
    many.add("a/added.jpg")
    many.add("c1/p004b.jpg")
    work.read.clear(), work.decoded.clear()
    results = run(many.root, place, outputs)
    assert [results[name].computed for name in ("images", "mini", "dino")] == [2, 13, 13]
    assert 2 < results["tiny"].computed + results["buckets"].computed < 26
    assert len(work.read) == len(work.decoded) == 13
    assert set(work.decoded.values()) == set(work.read.values()) == {1}
    assert held(place) == fresh(many.root, outputs)


def test_a_half_done_run_goes_on_with_all_outputs(
    many: Photos, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = {name: FOUR[name] for name in ("images", "latents", "buckets")}
    with stopped_after(5, monkeypatch):
        run(many.root, tmp_path / "out", outputs)
    work.decoded.clear()
    results = run(many.root, tmp_path / "out", outputs)
    assert 11 < sum(result.computed for result in results.values()) < 33
    assert set(work.decoded.values()) == {1}
    assert held(tmp_path / "out") == fresh(many.root, outputs)


def test_each_output_has_its_own_rejects_and_what_its_transform_leaves_out(many: Photos, tmp_path: Path) -> None:
    (many.root / "c0" / "bad.jpg").write_bytes((many.root / "c0" / "p001.jpg").read_bytes()[:-300])
    many.add("c1/tall.jpg", (90, 30))  # too narrow for one transform only
    many.add("c1/taller.jpg", (120, 20))  # and too tall for the reader of the buckets
    wide = {"transform": "center-crop-wide", "resolution": "32x16"}
    outputs = {"images": IMAGES, "wide": {"kind": "pixels", **wide}, "latents": FAKE, "buckets": BUCKETS}
    results = run(many.root, tmp_path / "out", outputs)
    assert {name: (r.stored, r.skipped, r.rejected) for name, r in results.items()} == {
        "images": (13, 0, 1), "wide": (11, 2, 1), "latents": (13, 0, 1), "buckets": (12, 1, 1),
    }  # fmt: skip
    for name in outputs:
        row = json.loads((tmp_path / "out" / name / "latentmill-rejects.jsonl").read_text())
        assert (row["key"], row["stage"]) == ("c0/bad.jpg", "decode")
    assert "name" in index(tmp_path / "out" / "images")["c1/tall.jpg"]
    assert index(tmp_path / "out" / "wide")["c1/tall.jpg"]["skipped"]
    assert held(tmp_path / "out") == fresh(many.root, outputs)


def test_a_limit_of_failures_stops_the_pass_and_names_its_output(many: Photos, tmp_path: Path) -> None:
    for number in range(3):
        (many.root / "c0" / f"bad{number}.jpg").write_bytes(b"no picture")
    outputs = {"images": IMAGES, "latents": {**FAKE, "max_failures": "1"}}
    with pytest.raises(TooManyFailuresError, match=r"^outputs\.latents: 2 of \d+ images were rejected"):
        run(many.root, tmp_path / "out", outputs)
    path = recipe_file(tmp_path / "recipe.toml", many.root, outputs)
    refused = cli("run", path)
    assert refused.returncode == 2
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text == "[outputs.latents]")
    assert f"recipe.toml, line {line}: outputs.latents: 2 of" in " ".join(refused.stderr.split())
    run(many.root, tmp_path / "out", {"images": IMAGES, "latents": FAKE})
    assert held(tmp_path / "out") == fresh(many.root, {"images": IMAGES, "latents": FAKE})


# worker processes

PIXELS = {
    "large": {"kind": "pixels", "transform": "center-crop-dhariwal", "resolution": "64x64", "batch_size": 2},
    "small": {"kind": "pixels", "transform": "center-crop", "resolution": "16x16", "batch_size": 3},
}


@pytest.fixture
def decoded_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to which every process appends the hash of each photo that it decodes."""
    from latentmill import loading

    log, decode = tmp_path / "decoded.log", loading.decode_reduced

    def logged(data: bytes, *settings: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{hash(data)}\n")
        return decode(data, *settings)

    monkeypatch.setattr(loading, "decode_reduced", logged)
    monkeypatch.setattr("latentmill.runners.local._start_method", lambda: "fork")
    return log


@pytest.mark.parametrize("half_done", [False, True])
def test_workers_decode_each_image_once_for_several_outputs(
    many: Photos, tmp_path: Path, decoded_log: Path, monkeypatch: pytest.MonkeyPatch, half_done: bool
) -> None:
    expected = fresh(many.root, PIXELS, num_workers=1)
    for workers in (1, 2, 3):
        place = tmp_path / str(workers)
        if half_done:
            with stopped_after(2, monkeypatch):
                run(many.root, place, {"large": PIXELS["large"]}, num_workers=1)
        decoded_log.write_text("")
        run(many.root, place, PIXELS, num_workers=workers)
        lines = decoded_log.read_text().splitlines()
        assert len(lines) == len(set(lines)) == 11, f"{workers} workers"
        assert held(place) == expected, f"{workers} workers"


def test_outputs_of_pixels_share_their_shards_so_that_workers_share_the_work(many: Photos, tmp_path: Path) -> None:
    """A large and a small output begin their shards at the same images, whatever memory and time each would take."""
    seen: list[int] = []

    def keep(task: Any, units: Sequence[Any], workers: int, emit: Any) -> None:
        seen.append(len(units))
        raise LatentmillError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentmill.passes.run_local", keep)
        with pytest.raises(LatentmillError, match="seen"):
            run(many.root, tmp_path / "out", PIXELS, num_workers=2)
    assert seen[0] >= 4


class Shards:
    """Of a plan, what cutting it into units asks: the keys of each shard."""

    def __init__(self, shards: Sequence[Sequence[str]]) -> None:
        self.plan, self.shards = self, shards

    def refs(self, shard: int) -> list[SampleRef]:
        return [SampleRef(0, key, "") for key in self.shards[shard]]


@st.composite
def parts_to_run(draw: st.DrawFn) -> tuple[list[Shards], list[list[int]]]:
    """Some plans over some of the same images, cut into shards in order of key, and what is left to run of each."""
    parts, todo = [], []
    for _ in range(draw(st.integers(1, 4))):
        keys = sorted(draw(st.sets(st.integers(10, 40).map(str), min_size=1)))
        ends = sorted(draw(st.sets(st.integers(1, len(keys)))) | {len(keys)})
        parts.append(Shards([keys[start:end] for start, end in zip([0, *ends], ends, strict=False)]))
        todo.append(sorted(draw(st.sets(st.integers(0, len(ends) - 1)))))
    todo[0] = todo[0] or [0]
    return parts, todo


@given(parts_to_run(), st.integers(1, 4))
def test_units_hold_every_shard_once_and_shards_that_share_images_together(
    chosen: tuple[list[Shards], list[list[int]]], workers: int
) -> None:
    parts, todo = chosen
    units = units_of(cast("list[Part]", parts), todo, workers)
    assert all(len(unit) == len(parts) and any(unit) for unit in units)
    for part, shards in enumerate(todo):
        assert [shard for unit in units for shard in unit[part]] == shards
    seen: dict[str, int] = {}
    for number, unit in enumerate(units):
        for part, shards in enumerate(unit):
            for key in (key for shard in shards for key in parts[part].shards[shard]):
                assert seen.setdefault(key, number) == number, "an image is decoded in two workers"


def test_units_are_as_small_as_shards_that_share_images_allow() -> None:
    one, two = Shards(["ab", "cd", "ef", "gh"]), Shards(["ab", "cd", "efgh"])
    units = units_of(cast("list[Part]", [one, two]), [[0, 1, 2, 3], [0, 1, 2]], 2)
    assert units == [((0,), (0,)), ((1,), (1,)), ((2, 3), (2,))]


# two processes


def started(path: Path, said: Path, go: Path, *settings: str) -> subprocess.Popen[str]:
    """Run a recipe in a process of its own that decodes nothing before the file `go` is there."""
    code = (
        "import latentmill.destination as place, latentmill.loading as loading, pathlib, time\n"
        f"decode, go = loading.decode_reduced, pathlib.Path({str(go)!r})\n"
        "def patient(data, *settings):\n"
        "    while not go.exists(): time.sleep(0.01)\n"
        "    return decode(data, *settings)\n"
        "place._LOCK_SECONDS, loading.decode_reduced = 0.1, patient\n"
        "from latentmill.cli import main; main()"
    )
    with said.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", code, "run", str(path), *settings], stdout=file, stderr=subprocess.STDOUT, text=True
        )


def test_of_processes_on_one_recipe_one_is_refused_and_one_waits(many: Photos, tmp_path: Path) -> None:
    outputs = {name: FOUR[name] for name in ("images", "latents", "buckets")}
    path, go = recipe_file(tmp_path / "recipe.toml", many.root, outputs), tmp_path / "go"
    said = [tmp_path / name for name in ("first", "refused", "waiting")]
    first = started(path, said[0], go)
    assert wait_until(lambda: len(list((tmp_path / "out").glob("*/.latentmill/plan-*/plan.json"))) == 3)
    refused, waiting = started(path, said[1], go), started(path, said[2], go, "--set", "run.wait=true")
    assert refused.wait(30) == 2
    text = " ".join(said[1].read_text().split())
    assert all(f"outputs.{name}: another latentmill process is writing to" in text for name in outputs), text
    assert wait_until(lambda: "waiting for another latentmill process" in said[2].read_text())
    go.touch()
    assert [first.wait(30), waiting.wait(30)] == [0, 0], said[2].read_text()
    assert said[2].read_text().count("already finished") == 3
    assert held(tmp_path / "out") == fresh(many.root, outputs)


def test_each_model_has_its_own_number_of_threads(tmp_path: Path) -> None:
    """Results may depend on it: an output that was begun with another number than its neighbour must not change."""
    photos = Photos(tmp_path / "photos", 3).root
    large = {"kind": "latents", "model": "mini", "transform": "center-crop", "resolution": "128x128"}
    outputs = {str(threads): {**large, "threads": threads} for threads in (2, 1)}
    run(photos, tmp_path / "out", outputs)
    assert held(tmp_path / "out") == fresh(photos, outputs)
