"""Both of PixArt's jobs against the reference's own files, and as its trainer's readers find them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentmill import features
from latentmill.features import image_features, text_features
from latentmill.formats.metadata import index_rows
from latentmill.outcome import Result
from pixart_reader import (
    GOLDEN,
    NESTED,
    TINY_T5,
    TrainerReader,
    check_sample,
    distance,
    golden_root,
    in_process,
    nested_root,
)
from support import TINY_VAE

LABELS = ("prompt", "sharegpt4v")
FOLDERS = {"prompt": "caption_features_new", "sharegpt4v": "sharegpt4v_caption_features_new"}
VAE: dict[str, Any] = {"vae": str(TINY_VAE), "threads": 1}
TEXT: dict[str, Any] = {"text_encoder": str(TINY_T5), "threads": 1, "missing_caption": "empty"}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_root(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def data_info(golden: Path) -> Path:
    return golden / "InternData" / "data_info.json"


def check_golden_latents(made: Path, folder: str) -> None:
    expected = {path.name: np.load(path) for path in (GOLDEN / folder).glob("*.npy")}
    assert len(expected) == 8
    assert {path.name for path in made.glob("*.npy")} == expected.keys()
    for name, latent in expected.items():
        found = np.load(made / name)
        assert found.dtype == np.float32
        assert found.shape == latent.shape
        assert np.abs(found - latent).max() <= 1e-4, name


# the reference's own files


def test_multi_scale_latents_are_the_references(golden: Path, data_info: Path) -> None:
    result = image_features(data_info, golden / "InternData", multi_scale=True, **VAE)
    assert (result.stored, result.rejected, result.skipped) == (8, 0, 0)
    check_golden_latents(result.dest, "img_sdxl_vae_features_512resolution_ms_new")


def test_single_scale_latents_are_the_references(golden: Path, data_info: Path) -> None:
    result = image_features(data_info, golden / "InternData", resolution=256, **VAE)
    check_golden_latents(result.dest, "img_sdxl_vae_features_256resolution_new")


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("label", LABELS)
def test_text_features_are_the_references(tmp_path: Path, data_info: Path, label: str, pad: bool) -> None:
    made = text_features(data_info, tmp_path, label=label, pad=pad, **TEXT).dest
    assert made.name == FOLDERS[label]
    golden_files = sorted((GOLDEN / FOLDERS[label]).glob("*.npz"))
    assert sorted(path.name for path in made.glob("0*.npz")) == [path.name for path in golden_files]
    for golden_file in golden_files:
        with np.load(golden_file) as theirs, np.load(made / golden_file.name) as ours:
            mask = theirs["attention_mask"]
            real = int(mask.sum())
            stored = 300 if pad else real
            assert ours["caption_feature"].dtype == theirs["caption_feature"].dtype == np.float16
            assert ours["attention_mask"].dtype == mask.dtype == np.int16
            assert ours["caption_feature"].shape == (1, stored, 64)
            np.testing.assert_array_equal(ours["attention_mask"], mask[:, :stored])
            assert distance(ours["caption_feature"][:, :real], theirs["caption_feature"][:, :real]) <= 2e-3


# as the trainer reads them


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both jobs by one command, trimmed: multi-scale latents and both captions of nested names."""
    root = nested_root(tmp_path_factory.mktemp("nested"))
    done = in_process(
        *("pixart", "--data-info", root / "InternData" / "data_info.json", "--dest", root / "InternData"),
        *("--vae", TINY_VAE, "--multi-scale", "--text-encoder", TINY_T5, "--threads", 1),
        *("--caption-label", "prompt", "--caption-label", "sharegpt4v"),
    )
    assert done.exit_code == 0, done.output
    return root


def test_the_multi_scale_reader_reads_all_of_nested_trimmed_features(nested: Path) -> None:
    reader = TrainerReader(nested, multi_scale=True, resolution=512, labels=LABELS)
    samples = reader.all()
    assert [sample["row"]["path"] for sample in samples] == [name for name in NESTED if name != "tall.png"]
    for sample in samples[:3]:
        check_sample(sample, nested / "InternImgs" / sample["row"]["path"], reader)
    files = {path.relative_to(nested).as_posix() for path in nested.glob("InternData/img_*/**/*.npy")}
    assert len(files) == len(samples)


def test_the_multi_scale_reader_reads_padded_features_alike(nested: Path) -> None:
    """In the place of the trimmed ones, which another setting refuses."""
    reader = TrainerReader(nested, multi_scale=True, resolution=512, labels=LABELS)
    trimmed = reader.all()
    text_features(reader.data / "data_info.json", reader.data, pad=True, overwrite=True, **TEXT)
    for ours, theirs in zip(reader.all(), trimmed, strict=True):
        assert ours["mask"]["prompt"].tolist() == theirs["mask"]["prompt"].tolist()
        assert distance(ours["features"]["prompt"], theirs["features"]["prompt"]) <= 2e-3
        file = reader.data / FOLDERS["prompt"] / reader.opened(ours["row"]["path"], ".npz")
        with np.load(file) as stored:
            assert stored["caption_feature"].shape[1] == 300


@pytest.mark.parametrize("pad", [False, True])
def test_the_single_scale_reader_reads_base_names(tmp_path: Path, pad: bool) -> None:
    names = {name: photo for name, photo in NESTED.items() if name.endswith(".png") and name != "b/x.png"}
    root = nested_root(tmp_path, names)
    made = features.pixart(
        root / "InternData" / "data_info.json", root / "InternData",
        resolution=256, reader="single", pad=pad, caption_label=LABELS, **{**VAE, **TEXT},
    )  # fmt: skip
    assert made.images is not None
    assert (made.images.stored, made.images.skipped) == (3, 1)
    assert [result.stored for result in made.text.values()] == [4, 4]
    reader = TrainerReader(root, multi_scale=False, resolution=256, labels=LABELS)
    samples = reader.all()
    assert len(samples) == 3
    for sample in samples:
        check_sample(sample, root / "InternImgs" / sample["row"]["path"], reader)
    texts = {path.name for path in (root / "InternData" / "caption_features_new").glob("*.npz")}
    assert texts == {"x.npz", "e.v2.npz", "ünï 猫.code.npz", "tall.npz", "latentmill-empty.npz"}


def test_jobs_that_share_a_root_do_not_mind_each_other(golden: Path, data_info: Path) -> None:
    """Each has its own settings and is finished for itself; both readers read what they made."""
    data = golden / "InternData"

    def run() -> list[Result]:
        return [
            image_features(data_info, data, multi_scale=True, **VAE),
            image_features(data_info, data, resolution=256, **VAE),
            image_features(data_info, data, vae="fake", resolution=256, suffix="other", threads=1),
            text_features(data_info, data, **TEXT),
            text_features(data_info, data, label="sharegpt4v", pad=True, dtype="bfloat16", **TEXT),
            text_features(data_info, data, suffix="short", max_length=20, **TEXT),
        ]

    assert len({result.dest for result in run()}) == 6
    assert all(result.already_done for result in run())
    for multi_scale, resolution in ((True, 512), (False, 256)):
        reader = TrainerReader(golden, multi_scale=multi_scale, resolution=resolution, labels=LABELS)
        samples = reader.all()
        assert len(samples) == 8
        trimmed = replace(reader, labels=("prompt",))
        for sample in samples[::4]:
            check_sample(sample, golden / "InternImgs" / sample["row"]["path"], trimmed)


# straight from other sources


def stored_keys(folder: Path) -> list[str]:
    return [row["key"] for row in index_rows(folder) if "name" in row]


@pytest.mark.parametrize("kind", ["folder", "jsonl", "csv"])
def test_other_captioned_sources_need_no_import(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "photos"
    captions = {"sub/one.jpg": "the first, with a comma", "two.png": 'the "second"'}
    for number, name in enumerate(captions):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60 + 40 * number, 70), (200 * number, 30, 60)).save(source / name)
    options: tuple[object, ...] = ()
    given = source
    if kind == "folder":
        for name, caption in captions.items():
            (source / name).with_suffix(".caption").write_text(caption + "\n", encoding="utf-8")
        options = ("--caption-extension", "caption")
    elif kind == "jsonl":
        given = source / "table.jsonl"
        given.write_text("".join(json.dumps({"image": n, "words": c}) + "\n" for n, c in captions.items()))
        options = ("--caption-column", "prompt=words")
    else:
        given = tmp_path / "table.csv"
        given.write_text('picture,caption\nsub/one.jpg,"the first, with a comma"\ntwo.png,"the ""second"""\n')
        options = ("--path-column", "picture", "--images", source)
    done = in_process(
        *("pixart", "--data-info", given, "--dest", tmp_path / "out", "--vae", "fake", "--multi-scale"),
        *("--text-encoder", TINY_T5, "--threads", 1, *options),
    )
    assert done.exit_code == 0, done.output
    latents, texts = (
        tmp_path / "out" / "img_sdxl_vae_features_512resolution_ms_new",
        tmp_path / "out" / FOLDERS["prompt"],
    )
    assert stored_keys(latents) == stored_keys(texts) == ["sub/one.jpg", "two.png"]
    assert [row["caption"] for row in index_rows(texts)] == list(captions.values())
    assert np.load(latents / "sub_one.npy")[0].mean() < np.load(latents / "two.npy")[0].mean()
