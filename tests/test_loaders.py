"""The loader: what a training loop gets from a finished data set, in this process and in a DataLoader's workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import latentmill
from latentmill import api
from latentmill.errors import ConfigError, SourceError
from support import TINY_VAE, make_photos, without_columns

SIDE = 32
CROP = {"transform": "center-crop", "resolution": f"{SIDE}x{SIDE}"}
COUNT = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/`, and of them `images` and `vae-sd` with moments, `mean` and `sample`, in folders and as zips."""
    root = tmp_path_factory.mktemp("root")
    make_photos(root / "photos", COUNT)
    for ending in ("", ".zip"):
        places = {"images": root / f"images{ending}"}
        api.encode(root / "photos", root / f"vae-sd{ending}", model_url=str(TINY_VAE), **CROP, **places)
    for store in ("mean", "sample"):
        api.encode(root / "images", root / store, model_url=str(TINY_VAE), store=store)
    return root


@pytest.fixture(params=["", ".zip"])
def pair(root: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    return root / f"vae-sd{request.param}", root / f"images{request.param}"


def moments_of(root: Path) -> np.ndarray:
    return np.stack([np.load(path) for path in sorted((root / "vae-sd").rglob("*.npy"))])


def metadata_of(root: Path, name: str = "vae-sd") -> dict[str, Any]:
    return json.loads((root / name / "latentmill.json").read_text())


def read_positions(path: Path) -> list[str]:
    """Where this process reads next in each of its handles on a file."""
    handles = [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(path.resolve())]
    return [(Path("/proc/self/fdinfo") / link.name).read_text().splitlines()[0] for link in handles]


def test_a_sample_holds_what_is_stored(root: Path, pair: tuple[Path, Path]) -> None:
    dataset = latentmill.load(*pair)
    moments = moments_of(root)
    assert len(dataset) == COUNT
    for position in range(COUNT):
        found = dataset[position]
        assert set(found) == {"moments", "latent", "image", "label", "key"}
        assert found["moments"].dtype == torch.float32
        assert np.array_equal(found["moments"].numpy(), moments[position])
        assert found["latent"].shape == (4, SIDE // 8, SIDE // 8)
        assert found["latent"].dtype == torch.float32
        picture = np.asarray(Image.open(root / "images" / f"00000/img{position:08d}.png"))
        assert found["image"].dtype == torch.uint8
        assert np.array_equal(found["image"].numpy(), picture.transpose(2, 0, 1))
        assert found["label"] == int(position >= COUNT // 2)
        assert type(found["label"]) is int
        assert found["key"] == f"c{found['label']}/photo{position:05d}.jpg"


def test_without_images_there_is_none(root: Path) -> None:
    assert set(latentmill.load(root / "vae-sd")[0]) == {"moments", "latent", "label", "key"}


@pytest.mark.parametrize("normalize", ["factor", "channel", "none"])
def test_the_mean_is_normalised_as_asked(root: Path, normalize: str) -> None:
    dataset = latentmill.load(root / "vae-sd", normalize=normalize, posterior="mean")
    found = torch.stack([dataset[position]["latent"] for position in range(COUNT)]).numpy()
    mean = moments_of(root)[:, :4]
    statistics = metadata_of(root)["statistics"]
    if normalize == "factor":
        expected = mean * 0.13025
    elif normalize == "channel":
        centre, spread = (np.array(statistics[name]).reshape(1, 4, 1, 1) for name in ("mean", "std"))
        expected = (mean - centre) / spread
        assert np.allclose(found.mean(axis=(0, 2, 3)), 0, atol=1e-3)
        assert np.allclose(found.std(axis=(0, 2, 3)), 1, atol=1e-3)
    else:
        expected = mean
    assert np.allclose(found, expected, atol=1e-4)


def test_a_shift_factor_is_subtracted_before_scaling(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "vae-sd", tmp_path / "shifted")
    metadata = metadata_of(root)
    metadata["model"] |= {"shift_factor": 0.5, "scaling_factor": 2.0, "normalization": None}
    (tmp_path / "shifted" / "latentmill.json").write_text(json.dumps(metadata))
    found = latentmill.load(tmp_path / "shifted", posterior="mean")[3]["latent"]
    assert np.allclose(found.numpy(), (moments_of(root)[3, :4] - 0.5) * 2, atol=1e-5)


@pytest.mark.parametrize("normalize", ["factor", "channel", "none"])
def test_denormalize_is_the_inverse(root: Path, normalize: str) -> None:
    dataset = latentmill.load(root / "vae-sd", normalize=normalize, posterior="mean")
    one = dataset[5]["latent"]
    assert np.allclose(dataset.denormalize(one).numpy(), moments_of(root)[5, :4], atol=1e-5)
    batch = torch.stack([dataset[n]["latent"] for n in range(3)])
    assert np.allclose(dataset.denormalize(batch).numpy(), moments_of(root)[:3, :4], atol=1e-5)
    assert dataset.denormalize(batch.half()).dtype == torch.float16


def test_every_access_is_a_fresh_draw(root: Path) -> None:
    dataset = latentmill.load(root / "vae-sd", normalize="none")
    torch.manual_seed(1)
    first, second = dataset[0]["latent"], dataset[0]["latent"]
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(dataset[0]["latent"], first)
    mean, std = np.split(moments_of(root)[0], 2)
    drawn = np.stack([dataset[0]["latent"].numpy() for _ in range(200)])
    standard = (drawn - mean) / std
    assert abs(standard.mean()) < 0.05
    assert abs(standard.std() - 1) < 0.05


def test_draws_normalised_by_channel_have_unit_variance(root: Path) -> None:
    """Their spread is that of the posterior's means and of its variance together."""
    dataset = latentmill.load(root / "vae-sd", normalize="channel")
    torch.manual_seed(0)
    drawn = torch.stack([dataset[n]["latent"] for _ in range(20) for n in range(COUNT)])
    assert torch.allclose(drawn.std(dim=(0, 2, 3)), torch.ones(4), atol=0.05)
    assert torch.allclose(drawn.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.05)


@pytest.mark.parametrize("normalize", ["factor", "channel", "none"])
def test_whatever_the_default_device_samples_are_on_the_cpu(root: Path, normalize: str) -> None:
    """`torch.set_default_device` is for a model's sake; `meta` stands for a GPU."""
    runs = []
    for device in ("cpu", "meta"):
        torch.manual_seed(3)
        with torch.device(device):
            dataset = latentmill.load(root / "vae-sd", root / "images", normalize=normalize)
            runs.append(latentmill.collate([dataset[position] for position in range(COUNT)]))
            assert dataset.denormalize(runs[-1]["latent"]).device.type == "cpu"
    for name in ("moments", "latent", "image", "label"):
        assert torch.equal(runs[0][name], runs[1][name])


@pytest.mark.parametrize("store", ["mean", "sample"])
def test_other_statistics_are_the_latent_itself(root: Path, store: str) -> None:
    dataset = latentmill.load(root / store, root / "images", normalize="none")
    found = dataset[2]
    assert "moments" not in found
    assert np.array_equal(found["latent"].numpy(), np.load(root / store / f"00000/img-{store}-00000002.npy"))
    assert torch.equal(dataset[2]["latent"], found["latent"])
    assert found["key"] == "00000/img00000002.png"  # what it was encoded from


def test_positions_count_from_the_end_too_and_end(root: Path) -> None:
    dataset = latentmill.load(root / "vae-sd", posterior="mean")
    assert dataset[-1]["key"] == dataset[COUNT - 1]["key"] == dataset.key(-1)
    assert torch.equal(dataset[-1]["latent"], dataset[COUNT - 1]["latent"])
    assert dataset.key(-COUNT) == dataset.key(0) == dataset[-COUNT]["key"]
    for position in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            dataset[position]
    assert len(list(dataset)) == COUNT  # so a plain for loop ends


def test_keys_and_labels_can_be_looked_up_without_reading_arrays(root: Path, tmp_path: Path) -> None:
    """A sampler that balances classes, or one that follows a list of names, needs them before the data."""
    shutil.copytree(root / "vae-sd", tmp_path / "copy")
    dataset = latentmill.load(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "00000")
    assert [dataset.key(n) for n in range(COUNT)] == [f"c{n // 6}/photo{n:05d}.jpg" for n in range(COUNT)]
    assert dataset.labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.metadata.classes == ["c0", "c1"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_missing_labels_gaps_and_odd_names(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    odd = os.fsdecode(b"caf\xe9.png")
    make_photos(source, 4, classes=1)
    shutil.move(source / "c0" / "photo00000.jpg", source / "c0" / odd)
    (source / "c0" / "photo00001.jpg").write_bytes(b"not a picture")
    api.encode(source, tmp_path / "z", images=tmp_path / "images", model_url="fake", max_failures=1, **CROP)
    dataset = latentmill.load(tmp_path / "z", tmp_path / "images", posterior="mean", normalize="none")
    assert [dataset[n]["key"] for n in range(3)] == [f"c0/{odd}", "c0/photo00002.jpg", "c0/photo00003.jpg"]
    assert [dataset[n]["label"] for n in range(3)] == [-1, -1, -1]
    assert dataset.numbers.tolist() == [0, 2, 3]
    for position in range(3):  # the fake encoder's mean is that of 8x8 blocks
        found = dataset[position]
        blocks = found["image"].float().reshape(3, 4, 8, 4, 8).mean(dim=(2, 4)) / 127.5 - 1
        assert torch.allclose(found["latent"][:3], blocks, atol=1e-5)


def test_a_data_set_can_be_pickled(root: Path, pair: tuple[Path, Path]) -> None:
    dataset = latentmill.load(*pair, posterior="mean")
    first = dataset[0]["latent"]  # its archives are open by now
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0]["latent"], first)
    assert torch.equal(again[7]["image"], dataset[7]["image"])


@pytest.mark.parametrize(("method", "ending"), [("fork", ""), ("fork", ".zip"), ("spawn", ".zip")])
def test_a_data_loader_reads_it_with_workers(root: Path, method: str, ending: str) -> None:
    if method == "fork" and sys.platform != "linux":
        pytest.skip("fork is Linux's")
    dataset = latentmill.load(root / f"vae-sd{ending}", root / f"images{ending}", posterior="mean")
    expected = [dataset[position] for position in range(COUNT)]  # opens the archive before the fork
    loader = DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context=method)
    batches = list(loader)
    assert [len(batch["key"]) for batch in batches] == [5, 5, 2]
    assert batches[0]["label"].dtype == torch.int64
    assert [key for batch in batches for key in batch["key"]] == [sample["key"] for sample in expected]
    for name in ("latent", "moments", "image"):
        assert torch.equal(torch.cat([batch[name] for batch in batches]), torch.stack([s[name] for s in expected]))


@pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's")
def test_a_forked_worker_moves_no_position_of_its_parent(root: Path) -> None:
    """An inherited handle shares its position with the parent: each would read where the other has gone."""
    path = root / "vae-sd.zip"
    dataset = latentmill.load(path)
    expected = [dataset[position]["moments"] for position in (9, 1)]  # opens the archive
    before = read_positions(path)
    assert len(before) <= 2  # one to read, one of what is mapped
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=lambda: results.put(torch.equal(dataset[9]["moments"], expected[0])))
    process.start()
    assert results.get(timeout=30)
    process.join()
    assert read_positions(path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's")
def test_workers_and_epochs_draw_differently(root: Path) -> None:
    dataset = latentmill.load(root / "vae-sd", normalize="none")
    torch.manual_seed(3)
    loader = DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context="fork")
    epochs = [torch.cat([batch["latent"] for batch in loader]) for _ in range(2)]
    mean, std = (torch.from_numpy(half) for half in np.split(moments_of(root), 2, axis=1))
    noise = [((epoch - mean) / std).flatten(1) for epoch in epochs]
    assert not torch.allclose(noise[0], noise[1], atol=1e-2)
    assert not torch.allclose(noise[0][0], noise[0][1], atol=1e-2)  # drawn by two workers
    torch.manual_seed(3)
    for epoch in epochs:
        assert torch.equal(torch.cat([batch["latent"] for batch in loader]), epoch)


# what is no pair, or no data set


def test_a_wrong_pair_is_refused(root: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "others", COUNT, seed=9)
    api.convert(tmp_path / "others", tmp_path / "others-images", num_workers=1, **CROP)
    with pytest.raises(SourceError, match="was made from other bytes than"):
        latentmill.load(root / "vae-sd", tmp_path / "others-images")
    api.convert(root / "photos", tmp_path / "fewer", num_workers=1, max_images=COUNT - 1, **CROP)
    with pytest.raises(SourceError, match=r"img-mean-std-00000011\.npy has no image"):
        latentmill.load(root / "vae-sd", tmp_path / "fewer")
    make_photos(tmp_path / "more", COUNT)
    make_photos(tmp_path / "more" / "z", 1)
    api.convert(tmp_path / "more", tmp_path / "more-images", num_workers=1, **CROP)
    with pytest.raises(SourceError, match=r"img00000012\.png has no latent"):
        latentmill.load(root / "vae-sd", tmp_path / "more-images")


def test_images_converted_apart_from_the_same_photos_are_a_pair(root: Path, tmp_path: Path) -> None:
    api.convert(root / "photos", tmp_path / "images", num_workers=1, **CROP)
    assert len(latentmill.load(root / "vae-sd", tmp_path / "images")) == COUNT


def test_swapped_arguments_are_refused(root: Path) -> None:
    with pytest.raises(SourceError, match="holds no latents"):
        latentmill.load(root / "images")
    with pytest.raises(SourceError, match="holds no images that latentmill made"):
        latentmill.load(root / "vae-sd", root / "mean")


def test_what_is_no_data_set_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty", root / "photos"):
        with pytest.raises(SourceError, match=f"{path} holds no latents"):
            latentmill.load(path)


@pytest.mark.parametrize("ending", ["", ".zip"])
def test_a_damaged_index_is_an_error_that_names_it(root: Path, tmp_path: Path, ending: str) -> None:
    copy = tmp_path / f"vae-sd{ending}"
    if ending:
        shutil.copy(root / "vae-sd.zip", copy)
        data = without_columns(copy).read_bytes()
        copy.write_bytes(data.replace(b'"index":7', b'"index":"', 1))
    else:
        without_columns(shutil.copytree(root / "vae-sd", copy))
        text = (copy / "latentmill-index.jsonl").read_text()
        (copy / "latentmill-index.jsonl").write_text(text[:-30])
    with pytest.raises(SourceError, match=r"latentmill-index\.jsonl in .* is damaged"):
        latentmill.load(copy)


def test_settings_that_do_not_exist_are_named(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"normalize must be factor, channel or none\. Found: 'scale'"):
        latentmill.load(root / "vae-sd", normalize="scale")
    with pytest.raises(ConfigError, match=r"posterior must be sample or mean\. Found: 'mode'"):
        latentmill.load(root / "vae-sd", posterior="mode")
