"""The recipes in examples/: planned as they are, without a model, and run to the end with small ones in their place."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

import tiny_text
import tiny_vision
from latentmill.formats.metadata import Metadata
from latentmill.importing import import_captioned
from latentmill.recipe import Recipe
from latentmill.recipe_plan import plan_of
from latentmill.registry import MODELS, TEXT_MODELS, TEXT_SETS, VISION_MODELS
from support import make_photos
from tiny_vaes import saved_vae

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("flux1-finetune-folder", "imagenet256-sit-repa", "imagenet512-edm2", "pixart-sigma-multiscale", "sana-dc-ae",
         "sd3")  # fmt: skip
COUNT = 4
CLIP_POOLED = 20
BUCKET = (192, 320)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models, by the names that the recipes' models have here."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("sd", "sdxl", "sd3", "flux.1", "dc-ae"):
        saved_vae(name, folder / "vae" / name)
    tiny_vision.saved(folder / "dino", "dinov2", patch_size=14)
    clip, gemma = tiny_text.clip_tokenizer(), tiny_text.gemma_tokenizer()
    t5 = (tiny_text.tiny_t5(), tiny_text.TINY_T5 / "tokenizer")
    plain, projected = tiny_text.clip(clip, projection=None), tiny_text.clip(clip, projection=CLIP_POOLED)
    tiny_text.saved(folder / "flux.1", [(plain, clip), t5])
    tiny_text.saved(folder / "sd3", [(projected, clip), (projected, clip), t5])
    tiny_text.saved(folder / "sana", [(tiny_text.gemma(gemma), gemma)])
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples' own surroundings, so that their paths hold as they are: photos, ImageNet's folders, no hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.chdir(tmp_path)
    for number, photo in enumerate(make_photos(tmp_path / "photos", COUNT)):
        photo.with_suffix(".txt").write_text(f"a photo of {number} cats")
    shutil.copytree("photos", "ILSVRC/Data/CLS-LOC/train", ignore=shutil.ignore_patterns("*.txt"))
    import_captioned("photos", "data")
    return tmp_path


def example(name: str) -> Path:
    return Path("examples") / f"{name}.toml"


def run(name: str, *settings: str) -> dict[str, Path]:
    """Made with one thread, on the CPU and in float32; gives the places."""
    overrides = ["run.device=cpu", "run.threads=1", "run.num_workers=1", *settings]
    if "dtype" in tomllib.loads(example(name).read_text()).get("defaults", {}):
        overrides.append("defaults.dtype=float32")
    results = Recipe.read(example(name), overrides).run()
    assert {result.stored for result in results.values()} == {COUNT}
    assert not any(result.rejected for result in results.values())
    return {name: result.dest for name, result in results.items()}


def described(place: Path) -> Metadata:
    metadata = Metadata.read_beside(place)
    assert metadata is not None
    return metadata


def test_every_example_is_tested() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.toml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_planned_as_it_is_without_its_models(here: Path, name: str) -> None:
    recipe = Recipe.read(example(name))
    plan = plan_of(recipe)
    assert {each.samples for each in plan.outputs} == {COUNT}
    for each in plan.outputs:
        assert each.kind == "pixels" or "the hub cannot be reached" in each.without
        assert each.bytes is not None or each.kind == "text"
    assert not (here / "data" / "flux1").exists()
    own = {model.name for models in (MODELS, TEXT_MODELS, VISION_MODELS) for model in models.values()} | set(TEXT_SETS)
    assert all(getattr(each.settings, "model", "sd3") in own for each in recipe.chosen())


@pytest.mark.parametrize("name", NAMES)
def test_a_newcomer_is_told_of_each_part(name: str) -> None:
    text = (EXAMPLES / f"{name}.toml").read_text()
    head = text[: text.index("dest = ")]
    assert f"latentmill plan {name}.toml" in head
    assert f"latentmill run {name}.toml" in head
    lines = text.splitlines()
    for number, line in enumerate(lines):
        assert len(line) <= 120
        if line.startswith("[outputs."):
            assert lines[number - 1].startswith("# ")


def test_imagenet_for_repa(here: Path, models: Path) -> None:
    made = run("imagenet256-sit-repa", f"outputs.vae-sd.model={models}/vae/sd", f"outputs.dinov2.model={models}/dino")
    root = here / "examples" / "../data/imagenet256"
    images, latents, features = (sorted((root / name / "00000").iterdir()) for name in ("images", "vae-sd", "dinov2"))
    assert [path.name for path in images] == [f"img{number:08d}.png" for number in range(COUNT)]
    assert np.load(latents[0]).shape == (8, 32, 32)
    feature = np.load(features[0])
    assert (feature.shape, feature.dtype) == ((256, tiny_vision.WIDTH), np.float16)
    labels = json.loads((made["vae-sd"] / "dataset.json").read_text())["labels"]
    assert labels == [[f"00000/img-mean-std-{number:08d}.npy", number // 2] for number in range(COUNT)]
    vision = described(made["dinov2"]).vision
    assert vision is not None
    assert (vision.input, vision.input_size, vision.grid) == ("repa", (224, 224), (16, 16))


def test_imagenet_for_edm2(here: Path, models: Path) -> None:
    made = run("imagenet512-edm2", f"outputs.img512-sd.model={models}/vae/sd", "outputs.img512-sd.batch_size=1")
    assert {place.name for place in made.values()} == {"img512.zip", "img512-sd.zip"}
    latent = described(made["img512-sd"]).latent
    assert latent is not None
    assert (latent.shape, latent.pixel_range, latent.statistic) == ([8, 64, 64], (0.0, 1.0), "moments")


def test_pixart(here: Path, models: Path) -> None:
    data = here / "data" / "InternData"
    text = [f"outputs.text.model={tiny_text.TINY_T5}", "outputs.text.dtype=float32"]
    run("pixart-sigma-multiscale", f"outputs.latents.model={models}/vae/sdxl", "outputs.latents.batch_size=1", *text)
    rows = json.loads((data / "data_info.json").read_text())
    for row in rows:
        name = Path(row["path"]).with_suffix("").as_posix().replace("/", "_")
        latent = np.load(data / "img_sdxl_vae_features_512resolution_ms_new" / f"{name}.npy")
        assert latent.shape == (8, 52, 72)
        with np.load(data / "caption_features_new" / f"{name}.npz") as feature:
            assert feature["caption_feature"].shape[1] == feature["attention_mask"].sum()


def with_text(name: str, models: Path, vae: str, *more: str) -> dict[str, Path]:
    """At a resolution that tests have time for."""
    small = ["outputs.latents.resolution=256", f"outputs.latents.model={models}/vae/{vae}"]
    return run(
        name, *small, f"outputs.text.repository={models}/{name.partition('-')[0].replace('flux1', 'flux.1')}", *more
    )


def check_latents(place: Path, channels: int, factor: int) -> None:
    """In the bucket of 256 pixels that is nearest to 48x64."""
    assert described(place).buckets is not None
    shapes = {np.load(path).shape for path in place.glob("*.npy")}
    assert shapes == {(channels, BUCKET[0] // factor, BUCKET[1] // factor)}


def test_flux(here: Path, models: Path) -> None:
    made = with_text("flux1-finetune-folder", models, "flux.1")
    assert made.keys() == {"latents", "text-clip-l", "text-t5"}
    check_latents(made["latents"], 32, 8)
    with np.load(made["text-clip-l"] / "c0_photo00000.npz") as pooled:
        assert {name: pooled[name].shape for name in pooled} == {"pooled": (1, tiny_text.WIDTH)}
    with np.load(made["text-t5"] / "c0_photo00000.npz") as feature:
        assert feature["caption_feature"].shape == (1, 512, 64)


def test_sd3(here: Path, models: Path) -> None:
    made = with_text("sd3", models, "sd3")
    assert made.keys() == {"latents", "text-clip-l", "text-clip-g", "text-t5"}
    check_latents(made["latents"], 32, 8)
    with np.load(made["text-clip-g"] / "c0_photo00000.npz") as feature:
        assert feature["caption_feature"].shape == (1, 77, tiny_text.WIDTH)
        assert feature["pooled"].shape == (1, CLIP_POOLED)


def test_sana(here: Path, models: Path) -> None:
    made = with_text("sana-dc-ae", models, "dc-ae")
    assert made.keys() == {"latents", "text-gemma"}
    check_latents(made["latents"], 4, 32)
    latent = described(made["latents"]).latent
    assert latent is not None
    assert latent.statistic == "mean"
