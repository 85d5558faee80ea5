"""Variants and vision features in the loader: one variant a sample and whole, evenly drawn; what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import fake_text
import latentmill
from feature_jobs import index, run_images, run_text, small
from latentmill import api
from latentmill.errors import ConfigError, SourceError
from latentmill.formats.metadata import INDEX_COLUMNS, INDEX_JSONL, METADATA_JSON
from latentmill.recipe import Recipe
from support import make_photos
from tiny_vision import saved

SIDE, COUNT = 32, 10
CROP = {"transform": "center-crop", "resolution": f"{SIDE}x{SIDE}"}
SUFFIXES = ("", "-flip", "-crop1", "-crop1-flip", "-crop2", "-crop2-flip")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/`, and of them pixels `x`, latents `z` and vision features `dino`, six variants of each."""
    root = tmp_path_factory.mktemp("root")
    make_photos(root / "photos", COUNT)
    shown = {**CROP, "flip": "both", "crops": 3}
    model = str(saved(root / "vit", "dinov2"))
    outputs = {
        "x": {"kind": "pixels", **shown},
        "z": {"kind": "latents", "model": "fake", **shown},
        "dino": {"kind": "vision", "model": model, "save_dtype": "float16", **shown},
    }
    Recipe(root / "photos", outputs, dest=root, run_settings={"threads": 1}).run()
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """Latents and pixels that a test may change."""
    for name in ("z", "x"):
        for suffix in SUFFIXES:
            shutil.copytree(root / f"{name}{suffix}", tmp_path / f"{name}{suffix}")
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    """Change a dataset's metadata; `fingerprint` is added to."""
    metadata = json.loads((folder / METADATA_JSON).read_text())
    fingerprint = {**metadata["fingerprint"], **changes.pop("fingerprint", {})}
    (folder / METADATA_JSON).write_text(json.dumps({**metadata, **changes, "fingerprint": fingerprint}))


def reject(folder: Path, number: int) -> None:
    """Have a dataset say that it could not make this image."""
    rows = index(folder)
    kept = {name: rows[number][name] for name in ("index", "key", "stat", "label", "source")}
    rows[number] = {**kept, "reject": ["encode", "not finite"]}
    (folder / INDEX_JSONL).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / INDEX_COLUMNS).unlink(missing_ok=True)


def stored(root: Path, name: str, number: int) -> list[np.ndarray]:
    """One image's files, of every variant; all of them must differ."""
    found = [np.load(next((root / f"{name}{suffix}").rglob(f"*{number:08d}.npy"))) for suffix in SUFFIXES]
    assert len({array.tobytes() for array in found}) == len(SUFFIXES), "choose another image for this test"
    return found


def drawn(dataset: Any, position: int, moments: list[np.ndarray]) -> tuple[int, dict[str, Any]]:
    """A sample, and which of these variants it is of."""
    sample = dataset[position]
    return next(v for v, array in enumerate(moments) if np.array_equal(sample["moments"].numpy(), array)), sample


# what is drawn


def test_a_sample_is_wholly_of_one_variant(root: Path) -> None:
    dataset = latentmill.load(root / "z", root / "x", vision=root / "dino", variants=True)
    assert [variant.suffix for variant in dataset.variants] == list(SUFFIXES)
    assert len(dataset) == COUNT
    moments, features = stored(root, "z", 3), stored(root, "dino", 3)
    for _ in range(30):
        variant, sample = drawn(dataset, 3, moments)
        assert sample["flip"] is SUFFIXES[variant].endswith("flip")
        picture = np.asarray(Image.open(root / f"x{SUFFIXES[variant]}" / "00000/img00000003.png"))
        assert np.array_equal(sample["image"].numpy(), picture.transpose(2, 0, 1))
        assert sample["vision"]["dino"].dtype == torch.float16
        assert np.array_equal(sample["vision"]["dino"].numpy(), features[variant])
        row = index(root / f"z{SUFFIXES[variant]}")[3]
        box = row["geometry"]["crop"] if "geometry" in row else [0, 8, 48, 56]  # the centre of 48x64
        assert sample["crop"].tolist() == box
        assert sample["size"].tolist() == [48, 64]
        assert sample["bucket"].tolist() == [SIDE, SIDE]


def test_every_variant_is_as_likely(root: Path) -> None:
    dataset = latentmill.load(root / "z", variants=True)
    moments = stored(root, "z", 0)
    torch.manual_seed(0)
    counts = Counter(drawn(dataset, 0, moments)[0] for _ in range(600))
    assert sorted(counts) == [0, 1, 2, 3, 4, 5]
    assert max(abs(count - 100) for count in counts.values()) < 40


def test_draws_follow_the_seed(root: Path) -> None:
    dataset = latentmill.load(root / "z", root / "x", variants=True)
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([dataset[position] for position in range(COUNT)])
    assert len({(sample["flip"], tuple(sample["crop"].tolist())) for sample in runs[0]}) > 3
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first["latent"], second["latent"])
        assert torch.equal(first["image"], second["image"])


def test_draws_are_the_same_whatever_the_default_device(root: Path) -> None:
    runs = []
    for device in ("cpu", "meta"):
        torch.manual_seed(5)
        with torch.device(device):
            dataset = latentmill.load(root / "z", root / "x", vision=root / "dino", variants=True)
            runs.append(latentmill.collate([dataset[position] for position in range(COUNT)]))
    assert len(set(map(tuple, runs[0]["crop"].tolist()))) > 1
    for name in ("flip", "crop", "latent", "image", "label"):
        assert torch.equal(runs[0][name], runs[1][name])
    assert torch.equal(runs[0]["vision"]["dino"], runs[1]["vision"]["dino"])


@pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's")
def test_workers_draw_anew_in_every_epoch(root: Path) -> None:
    dataset = latentmill.load(root / "z", vision=[root / "dino"], variants=True, posterior="mean")
    epochs = []
    for _ in range(2):
        torch.manual_seed(2)
        loader = DataLoader(dataset, 5, num_workers=2, multiprocessing_context="fork", collate_fn=latentmill.collate)
        epochs.append([list(loader) for _ in range(2)])
    batch = epochs[0][0][0]
    assert batch["flip"].dtype == torch.bool
    assert batch["crop"].shape == (5, 4)
    assert batch["vision"]["dino"].shape == (5, 36, 24)
    boxes = [[torch.cat([batch["crop"] for batch in epoch]).tolist() for epoch in run] for run in epochs]
    assert boxes[0] == boxes[1]
    assert boxes[0][0] != boxes[0][1]


def test_without_variants_nothing_is_drawn_or_added(root: Path) -> None:
    dataset = latentmill.load(root / "z", root / "x", posterior="mean")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert set(dataset[0]) == {"moments", "latent", "image", "label", "key"}
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mirrored_alone_has_no_boxes(root: Path, tmp_path: Path) -> None:
    for suffix in ("", "-flip"):
        shutil.copytree(root / f"z{suffix}", tmp_path / f"z{suffix}")
    dataset = latentmill.load(tmp_path / "z", variants=True)
    assert set(dataset[0]) == {"moments", "latent", "label", "key", "flip"}
    assert {dataset[0]["flip"] for _ in range(20)} == {True, False}


def test_statistics_are_the_plain_ones(copy: Path) -> None:
    change(copy / "z-flip", statistics={"mean": [9.0] * 4, "std": [9.0] * 4, "std_sampled": [9.0] * 4})
    plain = latentmill.load(copy / "z", normalize="channel", posterior="mean")
    dataset = latentmill.load(copy / "z", normalize="channel", posterior="mean", variants=True)
    variants = [torch.from_numpy(array[:4]) for array in stored(copy, "z", 1)]
    found = dataset.denormalize(dataset[1]["latent"])
    assert any(torch.allclose(found, one, atol=1e-5) for one in variants)
    assert torch.equal(dataset.denormalize(torch.ones(4, 1, 1)), plain.denormalize(torch.ones(4, 1, 1)))


def test_an_image_that_a_variant_has_not_comes_from_the_others(copy: Path) -> None:
    for name in "zx":
        for suffix, number in (("", 0), ("-flip", 5), ("-crop1", 5)):
            reject(copy / f"{name}{suffix}", number)
    dataset = latentmill.load(copy / "z", copy / "x", variants=True)
    assert dataset.numbers.tolist() == list(range(COUNT))
    assert dataset.labels.tolist() == [0] * 5 + [1] * 5
    for number, expected in ((0, {1, 2, 3, 4, 5}), (5, {0, 3, 4, 5})):
        moments = stored(copy, "z", number)
        assert {drawn(dataset, number, moments)[0] for _ in range(120)} == expected
    assert len(latentmill.load(copy / "z", copy / "x")) == COUNT - 1


def test_a_box_that_no_variant_tells_is_named(copy: Path) -> None:
    for suffix in SUFFIXES[2:]:
        reject(copy / f"z{suffix}", 4)
    with pytest.raises(SourceError, match=r"not known how c0/photo00004\.jpg was cropped"):
        latentmill.load(copy / "z", variants=True)


def test_zips_and_pickles(root: Path, tmp_path: Path) -> None:
    shown = {**CROP, "flip": "both", "threads": 1}
    api.encode(root / "photos", tmp_path / "z.zip", images=tmp_path / "x.zip", model_url="fake", **shown)
    dataset = pickle.loads(pickle.dumps(latentmill.load(tmp_path / "z.zip", tmp_path / "x.zip", variants=True)))
    torch.manual_seed(0)
    found = [dataset[7] for _ in range(20)]
    for sample in found:
        suffix = "-flip" if sample["flip"] else ""
        picture = np.asarray(Image.open(root / f"x{suffix}" / "00000/img00000007.png")).transpose(2, 0, 1)
        assert np.array_equal(sample["image"].numpy(), picture)
    assert {sample["flip"] for sample in found} == {True, False}


def test_buckets_with_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PixArt root whose latents have variants is loaded as a whole; images without text are left out of all."""
    fake_text.install(monkeypatch.setattr)
    data = small(tmp_path, tall=False)
    run_images(data, tmp_path / "InternData", fit="cover", flip="both", crops=2)
    run_text(data, tmp_path / "InternData", end_index=4)
    assert len(latentmill.load(tmp_path, missing_text="drop").variants) == 1
    dataset = latentmill.load(tmp_path, missing_text="drop", variants=True)
    assert (len(dataset.variants), len(dataset), len(dataset.left_out)) == (4, 4, 1)
    sampler = latentmill.BucketSampler(dataset, 2)
    seen = Counter()
    for _ in range(20):
        for batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=latentmill.collate):
            for bucket, key, latent in zip(batch["bucket"], batch["key"], batch["latent"], strict=True):
                assert [side * 8 for side in latent.shape[1:]] == bucket.tolist()
                seen[key] += 1
            assert set(batch["captions"]) == {"prompt"}
    assert set(seen.values()) == {20}
    assert {dataset[0]["flip"] for _ in range(20)} == {True, False}
    (wide,) = [position for position in range(len(dataset)) if dataset.key(position) == "b/c/d.e.png"]
    boxes = {tuple(dataset[wide]["crop"].tolist()) for _ in range(30)}
    assert len(boxes) == 2  # 64x60 in a bucket of 64x64 or near: the crop moves, mirroring does not move it


# what is refused


def test_variants_that_are_not_there(root: Path, tmp_path: Path, copy: Path) -> None:
    shutil.copytree(root / "z", tmp_path / "alone")
    with pytest.raises(SourceError, match=r"alone has none beside it: make it with flip='both' or crops=2"):
        latentmill.load(tmp_path / "alone", variants=True)
    with pytest.raises(ConfigError, match=r"takes the plain dataset, beside which they lie\. Found: .*z-flip"):
        latentmill.load(copy / "z-flip", variants=True)
    shutil.rmtree(copy / "x-crop1")
    with pytest.raises(SourceError, match=r"x has no x-crop1 beside it"):
        latentmill.load(copy / "z", copy / "x", variants=True)
    with pytest.raises(SourceError, match=r"takes the plain one, beside which its variants lie\. Found: .*x-flip"):
        latentmill.load(copy / "z", copy / "x-flip", variants=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": {"store": "mean"}}, r"different settings \(store: mean, there moments\)"),
        ({"source_digest": "other"}, "different states of the source"),
        (
            {"fingerprint": {"crop": 7}},
            r"named as a variant of .* \(crop 1 of seed 0\) and is none\. Found: latents, crop 7",
        ),
        ({"kind": "images"}, r"and is none\. Found: images"),
    ],
)
def test_what_is_no_variant_of_it(copy: Path, changes: dict[str, Any], message: str) -> None:
    change(copy / "z-crop1", **changes)
    with pytest.raises(SourceError, match=message):
        latentmill.load(copy / "z", variants=True)


def test_what_only_rounds_otherwise_is_no_other_making(copy: Path) -> None:
    change(copy / "z-flip", fingerprint={"threads": 64, "batch_size": 3})
    assert len(latentmill.load(copy / "z", variants=True).variants) == len(SUFFIXES)


def test_a_variant_that_is_not_finished(copy: Path) -> None:
    (copy / "z-crop2" / METADATA_JSON).unlink()
    with pytest.raises(SourceError, match=r"z-crop2 is not finished: run its command again"):
        latentmill.load(copy / "z", variants=True)


def test_pixels_cropped_elsewhere(copy: Path) -> None:
    for suffix in SUFFIXES[2:]:
        change(copy / f"x{suffix}", fingerprint={"crop_seed": 8})
    with pytest.raises(SourceError, match=r"x-crop1 must be cropped as the latents are, with crop_seed 0\. Found: 8"):
        latentmill.load(copy / "z", copy / "x", variants=True)


def test_plain_latents_and_mirrored_pixels_are_no_pair(root: Path) -> None:
    with pytest.raises(SourceError, match=r"of one variant\. Found: .*z is plain and .*x-flip is mirrored"):
        latentmill.load(root / "z", root / "x-flip")
    with pytest.raises(SourceError, match=r"z-crop1 is crop 1 of seed 0 and .*dino-crop1-flip is crop 1 of seed 0, mi"):
        latentmill.load(root / "z-crop1", vision=root / "dino-crop1-flip")
    assert "image" in latentmill.load(root / "z-flip", root / "x-flip", vision=root / "dino-flip")[0]


# vision features


def test_vision_features_come_with_their_image(root: Path) -> None:
    dataset = latentmill.load(root / "z", vision=str(root / "dino"))
    for number in range(COUNT):
        found = dataset[number]["vision"]
        assert set(found) == {"dino"}
        file = root / "dino" / f"00000/img-feature-{number:08d}.npy"
        assert np.array_equal(found["dino"].numpy(), np.load(file))


def test_images_without_vision_features_are_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "dino", tmp_path / "dino")
    for number in (1, 6):
        reject(tmp_path / "dino", number)
    with pytest.raises(
        SourceError, match=r"2 of 10 images have no features in .*dino \(c0/photo00001\.jpg, c1/photo00006\.jpg\): make"
    ):
        latentmill.load(root / "z", vision=tmp_path / "dino")
    with pytest.raises(SourceError, match=r"dino and .*dino are both called dino: rename one"):
        latentmill.load(root / "z", vision=[root / "dino", tmp_path / "dino"])
    with pytest.raises(SourceError, match="holds no vision features"):
        latentmill.load(root / "z", vision=root / "x")


def test_vision_features_of_other_images(root: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "photos" / "elsewhere", 2)
    output = {"kind": "vision", "model": str(root / "vit"), **CROP}
    Recipe(tmp_path / "photos", {"dino": output}, dest=tmp_path).run()
    with pytest.raises(SourceError, match="holds features of none of the 10 images"):
        latentmill.load(root / "z", vision=tmp_path / "dino")
