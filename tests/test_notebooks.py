"""What a notebook shows: each object's HTML is whole, safe and small, samples stay dicts, and one notebook runs."""

from __future__ import annotations

import copy
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from nbclient import NotebookClient
from PIL import Image
from torch.utils.data import DataLoader, default_collate

import fake_text
import latentmill
from feature_jobs import Data, run_images, run_text
from latentmill.errors import ConfigError, ModelError
from latentmill.loaders import LatentDataset
from latentmill.loaders_sample import Sample
from latentmill.outcome import Results
from latentmill.showing import samples as showing_samples
from latentmill.showing.colours import DIRECTIONS, FITTED, directions, fitted
from latentmill.verification import verify
from support import make_photos

NOTEBOOK = Path(__file__).parent.parent / "examples" / "look.ipynb"
EVIL = '<script>alert("1")</script>&amp;'
LIMIT = 300_000  # bytes of what is displayed


class Checked(HTMLParser):
    """Text and pictures of HTML; refuses what is not closed, runs, or is fetched."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.pictures: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open
        assert len(html.encode()) < LIMIT

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "link", "form")
        if tag != "img":
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert (value or "").startswith("data:image/")
                self.pictures.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        else:
            assert "url(" not in data and "@import" not in data


def shown(thing: object) -> Checked:
    """As IPython displays it."""
    data, _ = DisplayFormatter().format(thing)
    assert set(data) == {"text/html", "text/plain"}
    return Checked(data["text/html"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos in two classes, one of them with a name that HTML would run, as pixels and latents."""
    root = tmp_path_factory.mktemp("notebooks")
    first = make_photos(root / "photos", 8, side=64)[0]
    first.rename(first.with_name(EVIL.replace("/", "") + ".jpg"))
    latentmill.encode(
        root / "photos", root / "latents", images=root / "images", model_url="fake",
        resolution="64x64", transform="center-crop", batch_size=4,
    )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    data = Data(tmp_path_factory.mktemp("captioned"))
    for number in range(6):
        data.add(f"a/{number}.png", f"caption {number} {EVIL}" + " very long" * 200 * (number == 0))
    data.write()
    folder = data.table.parent
    run_images(data, folder)
    with pytest.MonkeyPatch.context() as patched:
        fake_text.install(patched.setattr)
        run_text(data, folder)
    return latentmill.load(folder)


@pytest.fixture
def dataset(root: Path) -> LatentDataset:
    return latentmill.load(root / "latents", root / "images")


def test_a_dataset_tells_what_it_holds(root: Path, dataset: LatentDataset) -> None:
    found = shown(dataset)
    for told in ("samples 8", "fake: 4 channels", "(8, 8, 8)", "stored as moments in float32", "z * 1", "2 classes",
                 "64x64", str(root / "images"), EVIL.replace("/", "")):  # fmt: skip
        assert told in found.text
    assert len(found.pictures) == 8
    block = repr(dataset)
    assert block.startswith(f"LatentDataset('{root / 'latents'}')")
    assert len(block.splitlines()) < 12
    assert (
        "posterior's mean" not in found.text
        and "their mean" in shown(latentmill.load(root / "latents", posterior="mean")).text
    )


def test_buckets_captions_and_latents_alone(captioned: LatentDataset) -> None:
    found = shown(captioned)
    assert "prompt (" in found.text
    assert re.search(r"\d buckets height x width samples", found.text)
    assert DIRECTIONS in found.text
    assert len(found.pictures) == 6
    told = shown(captioned[0]).text
    assert "(height x width)" in told and "of the scaled image" in told
    assert EVIL in told
    assert "…" in told  # the long one is cut
    assert max(map(len, repr(captioned[0]).splitlines())) < 160


def test_looking_changes_no_draw(dataset: LatentDataset) -> None:
    torch.manual_seed(7)
    expected = dataset[0]["latent"]
    torch.manual_seed(7)
    dataset._repr_html_()
    dataset.show(n=3)
    assert torch.equal(dataset[0]["latent"], expected)


def test_a_sample_is_still_a_dict(dataset: LatentDataset) -> None:
    first, second = dataset[0], dataset[1]
    assert isinstance(first, dict) and type(first) is Sample
    assert dict(**first) == first and first == dict(first)
    assert type(default_collate([first, second])) is dict
    assert default_collate([first, second])["latent"].shape == (2, 4, 8, 8)
    assert latentmill.collate([first, second])["label"].tolist() == [0, 0]
    for copied in (copy.copy(first), copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert type(copied) is not Sample
        assert list(copied) == list(first) and torch.equal(copied["latent"], first["latent"])
    made = Sample({"latent": torch.zeros(4, 8, 8)}, key="by hand")
    assert made.origin is None and shown(made).text.startswith("Sample by hand")


def test_what_is_saved_loads_with_weights_only(dataset: LatentDataset, tmp_path: Path) -> None:
    torch.save(dataset[0], tmp_path / "sample.pt")
    loaded = torch.load(tmp_path / "sample.pt", weights_only=True)
    assert loaded["key"] == dataset[0]["key"]


def _as_they_are(samples: list[Any]) -> list[Any]:
    return samples


def test_samples_come_out_of_workers_as_they_went_in(dataset: LatentDataset) -> None:
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=_as_they_are)
    batch = next(iter(loader))
    assert [type(sample) for sample in batch] == [Sample, Sample]
    assert batch[0].origin is not None and batch[0].origin.label_name(0) == "c0"
    assert len(shown(batch[0]).pictures) == 2


def test_outside_a_notebook_show_gives_a_picture(dataset: LatentDataset, captioned: LatentDataset) -> None:
    one, grid = dataset[0].show(), dataset.show(n=5)
    assert isinstance(one, Image.Image) and isinstance(grid, Image.Image)
    assert one.width > 2 * 256 and grid.width > 4 * 160
    image = np.asarray(one)[14 : 14 + 256, 14 : 14 + 256]
    expected = Image.fromarray(np.moveaxis(dataset[0]["image"].numpy(), 0, -1)).resize((256, 256), Image.LANCZOS)
    assert np.array_equal(image, np.asarray(expected))
    assert isinstance(captioned.show(n=100), Image.Image)


def test_in_a_notebook_it_is_displayed_instead(dataset: LatentDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    htmls: list[str] = []
    monkeypatch.setattr(showing_samples, "displayed", lambda html: not htmls.append(html))
    assert dataset[0].show() is None
    assert len(Checked(htmls[0]).pictures) == 2


def test_what_cannot_be_shown_says_why(dataset: LatentDataset) -> None:
    with pytest.raises(ConfigError, match=r"n must be 1 or more\. Found: 0"):
        dataset.show(n=0)
    with pytest.raises(ConfigError, match="Found: key"):
        Sample(key="x").show()
    with pytest.raises(ConfigError, match="made by hand"):
        Sample(latent=torch.zeros(4, 2, 2)).show(decode=True)
    with pytest.raises(ModelError):
        dataset[0].show(decode=True)  # `fake` has no decoder


def test_files_that_are_gone_are_told(root: Path, tmp_path: Path) -> None:
    latentmill.encode(root / "photos", tmp_path / "gone", model_url="fake", resolution="16x16", transform="center-crop")
    dataset = latentmill.load(tmp_path / "gone")
    sample = dataset[0]
    for file in tmp_path.rglob("*.npy"):
        file.unlink()
    found = shown(dataset)
    assert "latentmill verify" in found.text and not found.pictures
    assert len(shown(sample).pictures) == 1  # by itself alone


def test_a_fitted_map_is_found_again() -> None:
    random = np.random.default_rng(0)
    weights, offset = random.uniform(-0.05, 0.05, (4, 3)), np.array([0.4, 0.5, 0.6])
    latents = [random.standard_normal((4, 8, 8)) for _ in range(3)]
    images = []
    for z in latents:
        rgb = np.rint(255 * (np.moveaxis(z, 0, -1) @ weights + offset)).clip(0, 255).astype(np.uint8)
        images.append(np.moveaxis(rgb, -1, 0).repeat(8, axis=1).repeat(8, axis=2))
    found = fitted(latents, images)
    assert found.how == FITTED
    assert np.abs(found.pixels(latents[0]).astype(int) - np.moveaxis(images[0][:, ::8, ::8], 0, -1)).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 4, 32])
def test_directions_are_grey_in_the_middle_and_take_any_channels(channels: int) -> None:
    z = np.random.default_rng(channels).standard_normal((channels, 16, 16)).astype(np.float32)
    found = directions([z])
    pixels = found.pixels(z)
    assert pixels.shape == (16, 16, 3) and 100 < pixels.mean() < 155 and pixels.std() > 20
    assert directions([np.zeros((channels, 4, 4), np.float32)]).pixels(np.full((channels, 2, 2), np.nan)).shape == (
        2,
        2,
        3,
    )


def test_recipes_plans_and_results(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 4)
    (tmp_path / "photos" / EVIL.replace("/", "")).with_suffix(".jpg").write_bytes(b"no picture")
    recipe = latentmill.Recipe(
        tmp_path / "photos", {"images": {"kind": "pixels"}, "fake": {"kind": "latents", "model": "fake"}},
        dest=tmp_path / "out", run_settings={"max_failures": 1},
        defaults={"transform": "center-crop", "resolution": "16x16"},
    )  # fmt: skip
    assert "model fake, transform center-crop, resolution 16x16" in shown(recipe).text
    assert repr(recipe).splitlines()[1] == "  images: pixels"
    plan = shown(recipe.plan())
    assert "5 images" in plan.text and "1 reject seen already" in plan.text and EVIL.replace("/", "") in plan.text
    assert repr(recipe.plan()).startswith("RecipePlan(5 images in ")
    results = recipe.run()
    assert type(results) is Results and results == dict(results)
    told = shown(results).text
    assert "4 of 5 stored, 1 rejected, 5 done now" in told and "why rejected" in told
    assert "4 of 5 stored" in shown(results["fake"]).text
    assert repr(results["images"]).count("\n") == 0
    invalid = latentmill.Recipe(tmp_path, {"x": {"kind": "pixles"}})
    assert "kind must be one of" in shown(invalid).text and "pixles" in repr(invalid)


def test_verified_and_not(root: Path, tmp_path: Path) -> None:
    latentmill.encode(root / "photos", tmp_path / "made", model_url="fake", resolution="16x16", transform="center-crop")
    assert "latents: sound, 14 files" in shown(verify(tmp_path / "made")).text
    next(tmp_path.rglob("*.npy")).write_bytes(b"")
    report = verify(tmp_path / "made")
    assert "1 problem in" in shown(report).text
    assert len(repr(report).splitlines()) == 2


def test_a_sampler_tells_of_every_bucket(captioned: LatentDataset) -> None:
    sampler = latentmill.BucketSampler(captioned, 2)
    assert sum(sampler.counts.values()) == len(captioned)
    assert "height x width samples batch size batches" in shown(sampler).text
    assert repr(sampler).startswith("BucketSampler(epoch 0: 6 samples in")


def test_the_shipped_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it displays is of the same kinds as what it was shipped with."""
    notebook = nbformat.read(NOTEBOOK, 4)
    kinds = [[output.output_type for output in cell.get("outputs", ())] for cell in notebook.cells]
    assert sum(map(len, kinds)) >= 8
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    for cell, expected in zip(notebook.cells, kinds, strict=True):
        outputs = [output for output in cell.get("outputs", ()) if output.output_type != "stream"]
        assert [output.output_type for output in outputs] == expected, cell.source
        for output in outputs:
            assert Checked(output.data["text/html"]).text
    assert (tmp_path / "look" / "captioned").is_dir()
