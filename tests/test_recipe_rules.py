"""Rules of a recipe that a user would only notice much later: stale results, wrong models, work lost to a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentmill import Recipe
from latentmill.assembling import assemble
from latentmill.errors import ConfigError, SettingsChangedError
from latentmill.manifest import Plan
from latentmill.passes import Prepared, run_pass
from latentmill.recipe_plan import plan_of
from latentmill.worker import Part
from recipe_jobs import CROP, FAKE, IMAGES
from support import DATA, make_photos
from tiny_vaes import saved_vae

TINY_T5 = DATA / "models" / "tiny-t5"


@pytest.fixture(scope="module")
def flux2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_vae("flux.2", tmp_path_factory.mktemp("models") / "flux2")


def buckets(photos: Path, dest: Path, model: Path, indivisible: str) -> Recipe:
    """Latents in buckets whose sides the model's factor does not divide."""
    table = {"kind": "latents", "layout": "pixart", "model": str(model), "resolution": 72}
    more = {"multi_scale": True, "buckets": "grid:24", "fit": "cover", "batch_size": 4, "threads": 1}
    return Recipe(photos, {"buckets": {**table, **more, "indivisible": indivisible}}, dest=dest)


def test_another_rule_for_what_does_not_divide_refuses_and_plan_shows_the_buckets_that_are_made(
    photos: Path, tmp_path: Path, flux2: Path
) -> None:
    planned = plan_of(buckets(photos, tmp_path / "out", flux2, "crop")).buckets["buckets"]
    shown = {row.bucket for row in planned.rows() if row.images}
    buckets(photos, tmp_path / "out", flux2, "crop").run()
    rows = [json.loads(line) for line in (tmp_path / "out/buckets/latentmill-index.jsonl").read_text().splitlines()]
    assert {tuple(row["geometry"]["bucket"]) for row in rows} == shown
    for rule in ("pad", "refuse"):
        with pytest.raises((SettingsChangedError, ConfigError), match=r"indivisible|multiples of"):
            buckets(photos, tmp_path / "out", flux2, rule).run()


def test_a_repository_needs_a_short_name_that_tells_how_it_is_used(photos: Path, tmp_path: Path) -> None:
    for path in photos.rglob("*.jpg"):
        path.with_suffix(".txt").write_text("a photo")
    for model, close in (("sd-3", "Did you mean sd3"), ("clip", "short name")):
        text = {"kind": "text", "model": model, "repository": str(TINY_T5)}
        with pytest.raises(ConfigError, match=close):
            Recipe(photos, {"text": text}, dest=tmp_path / "out").run()
    assert not (tmp_path / "out").exists()


def test_shards_of_a_pass_are_as_long_as_all_its_jobs_take(photos: Path, tmp_path: Path) -> None:
    make_photos(photos, 40, seed=3)
    outputs: dict[str, Any] = {"images": IMAGES, "fake": FAKE, "again": {**FAKE, "save_dtype": "float16"}}
    jobs = [
        each.prepared
        for each in Recipe(photos, outputs, dest=tmp_path / "out", run_settings={"num_workers": 1}).prepare()
    ]
    for job, seconds in zip(jobs, (0.1, 4.0, 0.9), strict=True):
        job.job.measure = lambda encoder, refs, seconds=seconds: seconds
    sizes: list[int] = []

    def looked_at(job: Prepared) -> None:
        part = job.job.part

        def planned(plan: Plan) -> Part:
            sizes.append(max(count for _, count in plan.shards))
            return part(plan)

        job.job.part = planned  # type: ignore[method-assign]

    for job in jobs:
        looked_at(job)
    run_pass(jobs)
    assert sorted(sizes) == [4, 4, 32]  # 20 s of 5 s an image, in whole batches: of 2 latents, of 32 pixels


def test_a_batch_with_one_caption_needs_no_name_for_it() -> None:
    features = torch.ones(2, 3, 4)
    batch = {"text_features": {"prompt": features}, "text_mask": {"prompt": torch.ones(2, 3, dtype=torch.int64)}}
    assert assemble("wan", batch, max_length=5)["prompt_embeds"] is not None
    two = {kind: {**found, "other": found["prompt"]} for kind, found in batch.items()}
    with pytest.raises(ConfigError, match="name the caption"):
        assemble("wan", two)


def test_an_outputs_place_is_within_dest_also_on_the_command_line(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(f'dest = "out"\n[source]\npath = "{photos}"\n[outputs.a]\nkind = "pixels"\n{_toml(CROP)}')
    recipe = Recipe.read(file, ["outputs.a.path=elsewhere"])
    assert recipe.chosen()[0].settings.dest == tmp_path / "out" / "elsewhere"


def _toml(settings: dict[str, str]) -> str:
    return "".join(f'{name} = "{value}"\n' for name, value in settings.items())
