"""The loader over bucketed latents and text: what a text-to-image training loop gets, and what is refused."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import latentmill
from latentmill.errors import ConfigError, SourceError
from latentmill.formats.pixart import feature_name
from latentmill.formats.reader import Reader
from latentmill.transforms.bucket import grid_table
from latentmill.transforms.fit import geometry

KEYS = ["a/x.png", "b/x.png", "c/d/e.v2.png", "two words.jpg", "größe.png", "broken.png",
        *[f"n{number}.jpg" for number in range(7)]]  # fmt: skip
BROKEN = "broken.png"  # no latent
LACKING = ["b/x.png", "n4.jpg"]  # no sharegpt4v
SIZES = [(96, 96), (90, 150), (170, 100)]  # height, width
LATENTS, PROMPT = "img_sdxl_vae_features_128resolution_ms_new", "caption_features_new"
LONG = "sharegpt4v_caption_features_new"
BUCKETS: dict[str, Any] = {"resolution": 128, "multi_scale": True, "buckets": "grid:32"}


def caption(key: str, label: str) -> str:
    return f"{label} of {key}" + " and some more words" * (KEYS.index(key) % 5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`InternImgs` and `InternData` with latents (`fake`) and both captions' features (`mini`), trimmed."""
    root = tmp_path_factory.mktemp("root")
    rows, numbers = [], np.random.default_rng(0)
    for number, key in enumerate(KEYS):
        height, width = SIZES[number % 3]
        file = root / "InternImgs" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = numbers.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file)
        captions = {label: caption(key, label) for label in ("prompt", "sharegpt4v")}
        if key in LACKING:
            captions["sharegpt4v"] = ""
        rows.append({"width": width, "height": height, "ratio": height / width, "path": key, **captions})
    (root / "InternImgs" / BROKEN).write_bytes(b"no picture")
    random.Random(0).shuffle(rows)
    data = root / "InternData"
    data.mkdir()
    (data / "data_info.json").write_text(json.dumps(rows))
    made = latentmill.pixart(
        data / "data_info.json",
        data,
        vae="fake",
        text_encoder="mini",
        caption_label=["prompt", "sharegpt4v"],
        threads=1,
        **BUCKETS,
    )
    assert made.images is not None
    assert (made.images.rejected, made.text["prompt"].rejected, made.text["sharegpt4v"].rejected) == (1, 0, 2)
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    return root / "InternData"


def stored_text(folder: Path, key: str) -> np.ndarray:
    """The real tokens of a file, read as the reference's reader does."""
    with np.load(folder / feature_name(key, "multi", ".npz")) as file:
        return file["caption_feature"][0, : int(file["attention_mask"].sum())]


def by_key(dataset: Any) -> dict[str, dict[str, Any]]:
    return {sample["key"]: sample for sample in (dataset[position] for position in range(len(dataset)))}


# what a sample holds


def test_captions_and_features_are_those_of_the_samples_own_path(data: Path) -> None:
    """Rows are in no order, names repeat in folders, and each side lacks other rows."""
    found = by_key(latentmill.load(data, missing_text="drop", posterior="mean", normalize="none"))
    assert set(found) == {key for key in KEYS if key not in (*LACKING, BROKEN)}
    for key, sample in found.items():
        assert set(sample) == {"moments", "latent", "label", "key", "size", "crop", "bucket", "captions",
                               "text_features", "text_mask"}  # fmt: skip
        assert sample["captions"] == {label: caption(key, label) for label in ("prompt", "sharegpt4v")}
        assert np.array_equal(sample["moments"].numpy(), np.load(data / LATENTS / feature_name(key, "multi", ".npy")))
        for label, folder in (("prompt", PROMPT), ("sharegpt4v", LONG)):
            features, mask = sample["text_features"][label], sample["text_mask"][label]
            assert features.dtype == torch.float16
            assert np.array_equal(features.numpy(), stored_text(data / folder, key))
            assert mask.tolist() == [1] * len(features)
            assert mask.dtype == torch.int64
    lengths = {len(sample["text_features"]["prompt"]) for sample in found.values()}
    assert len(lengths) > 3  # so what is compared differs


def test_size_crop_and_bucket_tell_how_the_picture_was_made(root: Path, tmp_path: Path) -> None:
    latentmill.pixart(root / "InternData" / "data_info.json", tmp_path, vae="fake", fit="cover", **BUCKETS)
    dataset = latentmill.load(tmp_path)
    table = grid_table(128, 32)
    cropped = 0
    for position in range(len(dataset)):
        sample = dataset[position]
        with Image.open(root / "InternImgs" / sample["key"]) as image:
            size = image.height, image.width
        how = geometry("cover", size, table.nearest(*size).size)
        found = {name: tuple(sample[name].tolist()) for name in ("size", "crop", "bucket")}
        assert found == {"size": size, "crop": how.crop, "bucket": how.bucket}
        assert sample["size"].dtype == sample["crop"].dtype == sample["bucket"].dtype == torch.int64
        assert tuple(dataset.buckets[position]) == how.bucket
        assert sample["latent"].shape == (4, how.bucket[0] // 8, how.bucket[1] // 8)
        cropped += how.crop != (0, 0, *how.scaled)
    assert cropped
    assert dataset.buckets.dtype == np.int64
    assert dataset.buckets.shape == (12, 2)


def test_normalised_by_channel_every_image_counts_the_same(data: Path) -> None:
    """Whatever its bucket's size; so the pooled statistics of all positions would be others."""
    dataset = latentmill.load(data / LATENTS, normalize="channel", posterior="mean")
    latents = [dataset[position]["latent"] for position in range(len(dataset))]
    mean = torch.stack([latent.mean(dim=(1, 2)) for latent in latents]).mean(dim=0)
    square = torch.stack([latent.square().mean(dim=(1, 2)) for latent in latents]).mean(dim=0)
    assert torch.allclose(mean, torch.zeros(4), atol=1e-4)
    assert torch.allclose(square, torch.ones(4), atol=1e-3)
    drawn = latentmill.load(data / LATENTS, normalize="channel")
    torch.manual_seed(0)
    square = torch.stack([drawn[n % 12]["latent"].square().mean(dim=(1, 2)) for n in range(240)]).mean(dim=0)
    assert torch.allclose(square, torch.ones(4), atol=0.03)


@pytest.mark.parametrize("normalize", ["factor", "channel", "none"])
def test_denormalize_is_the_inverse_for_batches_of_any_bucket(data: Path, normalize: str) -> None:
    dataset = latentmill.load(data / LATENTS, normalize=normalize, posterior="mean")
    for batch in DataLoader(dataset, batch_sampler=latentmill.BucketSampler(dataset, 3)):
        assert torch.allclose(dataset.denormalize(batch["latent"]), batch["moments"][:, :4], atol=1e-5)


def test_positions_count_from_the_end_too_and_end(data: Path) -> None:
    dataset = latentmill.load(data, missing_text="drop", posterior="mean")
    count = len(dataset)
    assert dataset[-1]["captions"] == dataset[count - 1]["captions"]
    assert torch.equal(dataset[-count]["text_features"]["prompt"], dataset[0]["text_features"]["prompt"])
    assert dataset.key(-1) == dataset[-1]["key"] == dataset[count - 1]["key"]
    for position in (count, -count - 1):
        with pytest.raises(IndexError):
            dataset[position]
        with pytest.raises(IndexError):
            dataset.key(position)


# captions that are missing


def test_a_missing_caption_is_an_error_that_names_its_images(data: Path) -> None:
    with pytest.raises(SourceError) as error:
        latentmill.load(data)
    assert str(error.value).startswith(
        "2 of 12 images have no features of prompt and sharegpt4v (b/x.png, n4.jpg): make them"
    )


def test_dropped_images_are_named_and_the_others_stay_paired(data: Path) -> None:
    dataset = latentmill.load(data, missing_text="drop", posterior="mean")
    assert dataset.left_out == LACKING
    assert len(dataset) == len(dataset.buckets) == len(dataset.labels) == 10
    whole = by_key(latentmill.load(data / LATENTS, posterior="mean"))
    for position in range(10):
        sample = dataset[position]
        assert torch.equal(sample["latent"], whole[sample["key"]]["latent"])
        assert tuple(sample["bucket"]) == tuple(dataset.buckets[position])
        assert sample["captions"]["sharegpt4v"] == caption(sample["key"], "sharegpt4v")


def test_a_missing_caption_can_be_the_empty_one(data: Path) -> None:
    dataset = latentmill.load(data, missing_text="empty")
    found = by_key(dataset)
    assert dataset.left_out == []
    assert set(found) == set(KEYS) - {BROKEN}
    empty = stored_text(data / LONG, "latentmill-empty.png")
    for key, sample in found.items():
        assert sample["captions"]["prompt"] == caption(key, "prompt")
        features = sample["text_features"]["sharegpt4v"].numpy()
        if key in LACKING:
            assert sample["captions"]["sharegpt4v"] == ""
            assert np.array_equal(features, empty)
        else:
            assert not np.array_equal(features[: len(empty)], empty)


def test_only_captions_that_may_be_chosen_are_needed(data: Path) -> None:
    dataset = latentmill.load(data, captions={"prompt": 1, "sharegpt4v": 0})
    assert len(dataset) == 12
    assert {sample["captions"]["caption"] for sample in by_key(dataset).values()} == {
        caption(key, "prompt") for key in KEYS if key != BROKEN
    }
    with pytest.raises(SourceError, match=r"2 of 12 images have no features of prompt and sharegpt4v"):
        latentmill.load(data, captions={"prompt": 1, "sharegpt4v": 1})


def test_features_of_another_dataset_are_refused(data: Path, tmp_path: Path) -> None:
    """With the empty caption for what is missing, a training would go on without any text at all."""
    rows = [{"path": "other.png", "prompt": "of another"}]
    (tmp_path / "data_info.json").write_text(json.dumps(rows))
    latentmill.pixart(tmp_path / "data_info.json", tmp_path, text_encoder="mini", threads=1)
    for missing in ("error", "drop", "empty"):
        with pytest.raises(SourceError, match=rf"{PROMPT} holds features of none of the 12 images \(a/x.png, …\)"):
            latentmill.load(data / LATENTS, text=tmp_path / PROMPT, missing_text=missing)


# choice and dropout


def test_a_caption_is_chosen_by_weights_and_no_other_file_is_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = latentmill.load(data, captions={"prompt": 3, "sharegpt4v": 1}, missing_text="drop")
    read: list[str] = []
    for method in ("read", "fill"):
        original = getattr(Reader, method)

        def spy(self: Reader, name: str, *rest: Any, original: Any = original) -> Any:
            read.append(f"{self.path.name}/{name}")
            return original(self, name, *rest)

        monkeypatch.setattr(Reader, method, spy)
    torch.manual_seed(0)
    names = Counter()
    for turn in range(600):
        del read[:]
        sample = dataset[turn % 10]
        name = sample["caption_name"]
        names[name] += 1
        key = sample["key"]
        assert sample["captions"] == {"caption": caption(key, name)}
        folder = {"prompt": PROMPT, "sharegpt4v": LONG}[name]
        assert read == [
            f"{LATENTS}/{feature_name(key, 'multi', '.npy')}",
            f"{folder}/{feature_name(key, 'multi', '.npz')}",
        ]
        assert np.array_equal(sample["text_features"]["caption"].numpy(), stored_text(data / folder, key))
    assert 410 < names["prompt"] < 490  # 450 expected, standard deviation 10.6


def test_dropout_gives_the_stored_features_of_the_empty_caption(data: Path) -> None:
    dataset = latentmill.load(data, caption_dropout=0.25, missing_text="drop")
    empty = {label: stored_text(data / folder, "latentmill-empty.png") for label, folder in
             (("prompt", PROMPT), ("sharegpt4v", LONG))}  # fmt: skip
    torch.manual_seed(0)
    dropped = 0
    for turn in range(600):
        sample = dataset[turn % 10]
        is_empty = [text == "" for text in sample["captions"].values()]
        assert all(is_empty) or not any(is_empty)  # all captions of a sample, for a model that takes several
        if is_empty[0]:
            dropped += 1
            for label, features in sample["text_features"].items():
                assert np.array_equal(features.numpy(), empty[label])
    assert 110 < dropped < 190  # 150 expected, standard deviation 10.6
    always = latentmill.load(data, caption_dropout=1, captions={"prompt": 1})
    assert {always[n]["captions"]["caption"] for n in range(12)} == {""}


def test_batches_are_the_same_whatever_the_default_device(data: Path) -> None:
    chosen = {"captions": {"prompt": 1, "sharegpt4v": 1}, "caption_dropout": 0.3, "missing_text": "drop"}
    runs = []
    for device in ("cpu", "meta"):
        torch.manual_seed(4)
        with torch.device(device):
            dataset = latentmill.load(data, normalize="channel", **chosen)
            batches = list(latentmill.BucketSampler(dataset, 3))
            runs.append([latentmill.collate([dataset[position] for position in batch]) for batch in batches])
    assert len({name for batch in runs[0] for name in batch["caption_name"]}) == 2
    for first, second in zip(*runs, strict=True):
        assert (first["key"], first["caption_name"]) == (second["key"], second["caption_name"])
        assert first["captions"] == second["captions"]
        assert torch.equal(first["latent"], second["latent"])
        for name in ("text_features", "text_mask"):
            assert torch.equal(first[name]["caption"], second[name]["caption"])


# storage, and batches


def test_padded_and_trimmed_features_give_the_same_samples(data: Path, tmp_path: Path) -> None:
    latentmill.pixart(data / "data_info.json", tmp_path, text_encoder="mini", pad=True, max_length=40, threads=1)
    with np.load(tmp_path / PROMPT / "n0.npz") as file:
        assert file["caption_feature"].shape[1] == 40
    padded = by_key(latentmill.load(data / LATENTS, text=tmp_path / PROMPT))
    trimmed = by_key(latentmill.load(data / LATENTS, text=[data / PROMPT]))
    assert set(padded) == set(trimmed)
    for key, sample in padded.items():
        assert torch.equal(sample["text_features"]["prompt"], trimmed[key]["text_features"]["prompt"])
        assert sample["captions"] == trimmed[key]["captions"]
    empties = [latentmill.load(data / LATENTS, text=where / PROMPT, caption_dropout=1)[0]["text_features"]["prompt"]
               for where in (tmp_path, data)]  # fmt: skip
    assert torch.equal(*empties)


def test_a_batch_is_padded_to_its_longest_or_to_a_length(data: Path) -> None:
    dataset = latentmill.load(data, missing_text="drop")
    same = [n for n in range(len(dataset)) if tuple(dataset.buckets[n]) == tuple(dataset.buckets[0])]
    samples = [dataset[position] for position in same]
    lengths = [len(sample["text_features"]["prompt"]) for sample in samples]
    assert len(set(lengths)) > 1
    for max_length in (None, max(lengths) + 5, min(lengths)):
        batch = latentmill.collate(samples, max_length)
        features, mask = batch["text_features"]["prompt"], batch["text_mask"]["prompt"]
        length = max_length or max(lengths)
        assert features.shape == (len(samples), length, 64)
        assert mask.shape == (len(samples), length)
        assert mask.dtype == torch.int64
        for number, sample in enumerate(samples):
            real = min(length, lengths[number])
            assert torch.equal(features[number, :real], sample["text_features"]["prompt"][:real])
            assert not features[number, real:].any()
            assert mask[number].tolist() == [1] * real + [0] * (length - real)
    assert batch["latent"].shape[0] == len(samples)
    assert batch["label"].tolist() == [-1] * len(samples)
    assert batch["label"].dtype == torch.int64
    assert batch["key"] == [sample["key"] for sample in samples]
    assert batch["captions"]["sharegpt4v"] == [sample["captions"]["sharegpt4v"] for sample in samples]
    assert batch["size"].tolist() == [sample["size"].tolist() for sample in samples]


def test_a_batch_of_several_buckets_names_the_way_out(data: Path) -> None:
    dataset = latentmill.load(data, missing_text="drop")
    with pytest.raises(
        ConfigError, match=r"a batch must hold samples of one bucket\. Found: moments of .*BucketSampler"
    ):
        latentmill.collate([dataset[position] for position in range(len(dataset))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_every_sample_once_in_batches_of_one_bucket(data: Path, method: str) -> None:
    if method == "fork" and sys.platform != "linux":
        pytest.skip("fork is Linux's")
    dataset = latentmill.load(data, captions={"prompt": 1, "sharegpt4v": 1}, missing_text="drop", posterior="mean")
    expected = by_key(dataset)
    sampler = latentmill.BucketSampler(dataset, 3, seed=1)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=partial(latentmill.collate, max_length=30),
        num_workers=2,
        multiprocessing_context=method,
    )
    seen: list[str] = []
    for batch in loader:
        count = len(batch["key"])
        assert len({tuple(bucket) for bucket in batch["bucket"].tolist()}) == 1
        assert batch["text_features"]["caption"].shape == (count, 30, 64)
        for number, key in enumerate(batch["key"]):
            assert torch.equal(batch["latent"][number], expected[key]["latent"])
            name = batch["caption_name"][number]
            assert batch["captions"]["caption"][number] == caption(key, name)
            real = int(batch["text_mask"]["caption"][number].sum())
            stored = stored_text(data / (PROMPT if name == "prompt" else LONG), key)
            assert np.array_equal(batch["text_features"]["caption"][number, :real].numpy(), stored[:30])
        seen += batch["key"]
        assert sampler.state_dict()["consumed"] > 0
    assert sorted(seen) == sorted(expected)


def test_four_ranks_share_the_dataset(data: Path) -> None:
    dataset = latentmill.load(data, missing_text="empty")
    batches = [
        batch
        for rank in range(4)
        for batch in DataLoader(
            dataset,
            batch_sampler=latentmill.BucketSampler(dataset, pixels=2 * 128 * 128, rank=rank, world_size=4),
            collate_fn=latentmill.collate,
        )
    ]
    assert sorted(key for batch in batches for key in batch["key"]) == sorted(set(KEYS) - {BROKEN})
    assert len(batches) % 4 == 0


def test_a_dataset_can_be_pickled(data: Path) -> None:
    dataset = latentmill.load(data, missing_text="drop", posterior="mean", caption_dropout=0.5)
    dataset[0]
    again = pickle.loads(pickle.dumps(dataset))
    for position in range(len(dataset)):
        torch.manual_seed(position)
        one = dataset[position]
        torch.manual_seed(position)
        other = again[position]
        assert one["captions"] == other["captions"]
        assert torch.equal(one["text_features"]["prompt"], other["text_features"]["prompt"])
    assert again.left_out == LACKING


# which folders


def test_a_pixart_root_is_found_from_both_its_folders(root: Path) -> None:
    for place in (root, root / "InternData", str(root)):
        assert sorted(latentmill.load(place, missing_text="drop").text) == ["prompt", "sharegpt4v"]
    assert latentmill.load(root, text=root / "InternData" / PROMPT).text.keys() == {"prompt"}
    alone = latentmill.load(root / "InternData" / LATENTS)
    assert alone.text == {}
    assert "captions" not in alone[0]


def test_folders_that_cannot_be_told_apart_are_refused(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "InternData"
    shutil.copytree(root / "InternData", copy)
    shutil.copytree(copy / PROMPT, copy / f"{PROMPT}_again")
    with pytest.raises(SourceError, match=rf"{PROMPT} and .*{PROMPT}_again both hold features of 'prompt'"):
        latentmill.load(copy)
    assert len(latentmill.load(copy, text=copy / f"{PROMPT}_again")) == 12
    shutil.copytree(copy / LATENTS, copy / "img_other")
    with pytest.raises(SourceError, match=rf"several folders of latents: img_other, {LATENTS}"):
        latentmill.load(copy)


def test_features_that_are_not_finished_are_not_left_out_in_silence(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "InternData"
    shutil.copytree(root / "InternData", copy)
    (copy / LONG / "latentmill.json").unlink()
    (copy / LONG / ".latentmill").mkdir()
    with pytest.warns(UserWarning, match=f"left out, since not finished: {LONG}"):
        assert latentmill.load(copy).text.keys() == {"prompt"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"captions": {"promt": 1}}, "captions must be of prompt, sharegpt4v. Found: promt"),
        ({"captions": {}}, "captions must have weights of 0 or more, not all 0"),
        ({"captions": {"prompt": -1.0, "sharegpt4v": 2}}, "captions must have weights of 0 or more"),
        ({"captions": {"prompt": float("nan")}}, "captions must have weights of 0 or more"),
        (
            {"captions": {"prompt": 1}, "text": []},
            r"captions must be of text features \(text=...\), and there are none",
        ),
        ({"caption_dropout": 10}, "caption_dropout must be between 0 and 1. Found: 10"),
        ({"caption_dropout": 0.1, "text": []}, "caption_dropout needs text features"),
        ({"missing_text": "skip"}, "missing_text must be error, drop or empty. Found: 'skip'"),
    ],
)
def test_settings_that_cannot_be_are_refused(data: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        latentmill.load(data, **settings)


def test_features_of_two_widths_are_not_mixed(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / LONG, tmp_path / LONG)
    file = tmp_path / LONG / "latentmill.json"
    table = json.loads(file.read_text())
    table["text"]["width"] = 4096
    file.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"features of one width\. Found: {'prompt': 64, 'sharegpt4v': 4096}"):
        latentmill.load(data / LATENTS, text=[data / PROMPT, tmp_path / LONG], captions={"prompt": 1, "sharegpt4v": 1})


def test_what_holds_no_text_features_is_named(data: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", data / LATENTS):
        with pytest.raises(SourceError, match=f"{place} holds no text features that latentmill made"):
            latentmill.load(data / LATENTS, text=place)
