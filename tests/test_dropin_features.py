"""The drop-in `tools/extract_features.py`: its options, and files that the reference trainer's readers find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from filelock import FileLock

from latentmill import dropin_features
from latentmill.features import image_features
from latentmill.formats.metadata import index_rows
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
from support import TINY_VAE, contents

SCRIPT = Path(__file__).parents[1] / "tools" / "extract_features.py"
MS_512 = "img_sdxl_vae_features_512resolution_ms_new"
REFERENCE = {
    "--run_vae_feature_extract": False,
    "--multi_scale": False,
    "--img_size": 512,
    "--dataset_root": None,
    "--vae_json_file": None,
    "--vae_models_dir": "madebyollin/sdxl-vae-fp16-fix",
    "--vae_save_root": None,
    "--run_t5_feature_extract": False,
    "--max_length": 300,
    "--t5_json_path": None,
    "--t5_models_dir": "PixArt-alpha/PixArt-XL-2-1024-MS",
    "--caption_label": "prompt",
    "--t5_save_root": None,
    "--start_index": 0,
    "--end_index": 50_000_000,
    "--save_path_suffix": "",
}


def script(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def drop_in(*arguments: object) -> Any:
    return in_process(*arguments, app=dropin_features.app)


def vae_job(root: Path, vae: object = "fake") -> tuple[object, ...]:
    data = root / "InternData"
    return (
        *("--run_vae_feature_extract", "--multi_scale", "--img_size=512", f"--dataset_root={data}"),
        *("--vae_json_file=data_info.json", f"--vae_models_dir={vae}", f"--vae_save_root={data}"),
    )


def t5_job(root: Path, label: str = "prompt") -> tuple[object, ...]:
    data = root / "InternData"
    return (
        *("--run_t5_feature_extract", "--max_length=300", f"--t5_json_path={data / 'data_info.json'}"),
        *(f"--t5_models_dir={TINY_T5}", f"--caption_label={label}", f"--t5_save_root={data}"),
    )


def test_it_has_exactly_the_options_and_defaults_of_the_reference() -> None:
    parameters = [p for p in typer.main.get_command(dropin_features.app).params if p.name != "help"]
    assert {option: parameter.default for parameter in parameters for option in parameter.opts} == REFERENCE
    assert all(not parameter.secondary_opts for parameter in parameters)


def test_its_files_are_the_references(tmp_path: Path) -> None:
    """The guide's own commands, both in one, in a process, with paths relative to where it runs."""
    golden_root(tmp_path / "toy")
    done = subprocess.run(
        script(*vae_job(Path("toy"), TINY_VAE), *t5_job(Path("toy"))),
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "captions prompt done" in done.stdout and "images done" in done.stdout
    reader = TrainerReader(tmp_path / "toy", multi_scale=True, resolution=512)
    samples = reader.all()
    assert len(samples) == 8
    for sample in samples:
        number = Path(sample["row"]["path"]).stem
        assert np.abs(sample["moments"] - np.load(GOLDEN / MS_512 / f"{number}.npy")).max() <= 1e-4
        with np.load(GOLDEN / "caption_features_new" / f"{number}.npz") as theirs:
            mask = theirs["attention_mask"]
            np.testing.assert_array_equal(sample["mask"]["prompt"], mask)
            real = int(mask.sum())
            ours = sample["features"]["prompt"][:, :real]
            assert distance(ours, theirs["caption_feature"][:, :real]) <= 2e-3
        with np.load(reader.data / "caption_features_new" / f"{number}.npz") as stored:
            assert stored["caption_feature"].shape == (1, 300, 64)


def test_nested_names_are_found_by_the_multi_scale_reader(tmp_path: Path) -> None:
    root = nested_root(tmp_path)
    for label in ("prompt", "sharegpt4v"):
        done = drop_in(*t5_job(root, label))
        assert done.exit_code == 0, done.output
    done = drop_in(*vae_job(root, TINY_VAE))
    assert done.exit_code == 0, done.output
    reader = TrainerReader(root, multi_scale=True, resolution=512, labels=("prompt", "sharegpt4v"))
    samples = reader.all()
    assert len(samples) == len(NESTED) - 1
    for sample in samples[1:4]:
        check_sample(sample, root / "InternImgs" / sample["row"]["path"], reader)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return nested_root(tmp_path / "set")


def change(root: Path, **more: list[Any]) -> None:
    """Give rows other values, one for each; None takes the column away."""
    path = root / "InternData" / "data_info.json"
    rows = json.loads(path.read_text())
    for name, values in more.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
            if value is None:
                del row[name]
    path.write_text(json.dumps(rows))


def test_a_missing_caption_is_the_empty_one(root: Path) -> None:
    change(root, prompt=["a cat", "", None, "  ", "b", "c"])
    done = drop_in(*t5_job(root))
    assert done.exit_code == 0, done.output
    folder = root / "InternData" / "caption_features_new"
    captions = [row["caption"] for row in sorted(index_rows(folder), key=lambda row: list(NESTED).index(row["key"]))]
    assert captions == ["a cat", "", "", "", "b", "c"]
    assert (folder / "b_x.npz").read_bytes() == (folder / "latentmill-empty.npz").read_bytes()


def test_any_column_can_be_the_caption(root: Path) -> None:
    change(root, blip2=[f"words {number}" for number in range(6)])
    done = drop_in(*t5_job(root, "blip2"), "--save_path_suffix", "v1")
    assert done.exit_code == 0, done.output
    rows = list(index_rows(root / "InternData" / "blip2_caption_features_new_v1"))
    assert {row["caption"] for row in rows} == {f"words {number}" for number in range(6)}


def without_recipe(folder: Path) -> dict[str, bytes]:
    """What lies there; the recipe tells where the source lies from there, and what was told of its images."""
    return {name: data for name, data in contents(folder).items() if name != "latentmill-recipe.toml"}


def test_slices_go_into_one_folder(root: Path, tmp_path: Path) -> None:
    for start, end in ((0, 2), (2, 4), (4, 50)):
        done = drop_in(*vae_job(root), "--start_index", start, "--end_index", end)
        assert done.exit_code == 0, done.output
    again = drop_in(*vae_job(root), "--start_index", 2, "--end_index", 4)
    assert "already finished" in again.output
    whole = image_features(root / "InternData" / "data_info.json", tmp_path / "whole", vae="fake", multi_scale=True)
    assert without_recipe(root / "InternData" / MS_512) == without_recipe(whole.dest)


def test_two_processes_wait_for_each_other_and_add_their_slices(root: Path, tmp_path: Path) -> None:
    """Both are held up until both have begun, so that they do meet."""
    folder = root / "InternData" / MS_512
    (folder / ".latentmill").mkdir(parents=True)
    with FileLock(folder / ".latentmill" / "lock"):
        running = [
            subprocess.Popen(
                script(*vae_job(root), f"--start_index={start}", f"--end_index={start + 3}"),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            for start in (0, 3)
        ]  # fmt: skip
        for process in running:
            assert process.stdout is not None
            lines = []
            while not any("output about" in line for line in lines):  # the last one before the lock
                lines.append(process.stdout.readline())
                assert lines[-1], lines
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    whole = image_features(root / "InternData" / "data_info.json", tmp_path / "whole", vae="fake", multi_scale=True)
    assert without_recipe(folder) == without_recipe(whole.dest)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to do: give --run_vae_feature_extract, --run_t5_feature_extract or both"),
        (("--run_vae_feature_extract",), "needs --dataset_root"),
        (("--run_vae_feature_extract", "--dataset_root=x"), "needs --vae_json_file"),
        (
            ("--run_vae_feature_extract", "--img_size=1024", "--dataset_root=x"),
            "without --multi_scale must be one of 256, 512. Found: 1024",
        ),
        (
            ("--run_vae_feature_extract", "--multi_scale", "--img_size=256", "--dataset_root=x"),
            "512, 1024, 2048, 2880. Found: 256",
        ),
        (("--run_t5_feature_extract",), "needs --t5_json_path"),
        (("--run_t5_feature_extract", "--t5_json_path=gone.json", "--t5_save_root=x"), "gone.json"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = drop_in(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("second", ["no options", "equal base names", "no such model"])
def test_a_fault_of_the_second_job_is_told_before_the_first_begins(root: Path, second: str) -> None:
    jobs = {
        "no options": ("--run_vae_feature_extract",),
        "equal base names": tuple(argument for argument in vae_job(root) if argument != "--multi_scale"),
        "no such model": vae_job(root, root / "gone"),
    }
    done = drop_in(*t5_job(root), *jobs[second])
    assert done.exit_code == 2, done.output
    assert [path.name for path in (root / "InternData").iterdir()] == ["data_info.json"]


@pytest.mark.parametrize("also", ["drop-in", "pixart"])
def test_captions_made_with_single_scale_images_are_named_for_their_reader(tmp_path: Path, also: str) -> None:
    root = nested_root(tmp_path, {name: NESTED[name] for name in ("a/x.png", "c/d/e.v2.png", "tall.png")})
    data = root / "InternData"
    if also == "drop-in":
        done = drop_in(*(argument for argument in vae_job(root) if argument != "--multi_scale"), *t5_job(root))
    else:
        done = in_process(
            *("pixart", "--data-info", data / "data_info.json", "--dest", data, "--vae", "fake"),
            *("--text-encoder", TINY_T5),
        )
    assert done.exit_code == 0, done.output
    samples = TrainerReader(root, multi_scale=False, resolution=512).all()
    assert [sample["row"]["path"] for sample in samples] == ["a/x.png", "c/d/e.v2.png"]
    if also == "drop-in":  # alone, it goes on as it was begun
        assert "already finished" in drop_in(*t5_job(root)).output
        done = drop_in(*vae_job(root), *t5_job(root))  # images for the other reader, who would find no captions there
        assert done.exit_code == 2
        assert "was begun with names for the single-scale reader" in done.stderr
        assert not (data / "img_sdxl_vae_features_512resolution_ms_new").exists()


def test_flat_names_serve_both_readers(tmp_path: Path) -> None:
    root = nested_root(tmp_path, {"x.png": NESTED["a/x.png"]})
    single = [argument for argument in vae_job(root) if argument != "--multi_scale"]
    assert drop_in(*single, *t5_job(root)).exit_code == 0
    done = drop_in(*vae_job(root), *t5_job(root))
    assert done.exit_code == 0, done.output
    assert "already finished" in done.output


def test_many_missing_images_are_rejects_and_no_end_of_the_job(root: Path) -> None:
    """The reference's options have no limit to raise."""
    for name in list(NESTED)[1:]:
        (root / "InternImgs" / name).unlink()
    done = drop_in(*vae_job(root))
    assert done.exit_code == 3, done.output
    assert "1 stored" in done.output


def test_an_error_says_where_the_options_are_that_it_names(root: Path) -> None:
    assert drop_in(*t5_job(root)).exit_code == 0
    done = drop_in(*t5_job(root), "--max_length", 12)
    assert done.exit_code == 2
    assert "max-length: was 300, now 12" in done.stderr
    assert "--overwrite" in done.stderr and "`latentmill pixart`" in done.stderr


def test_an_unmapped_name_is_refused_before_any_work(root: Path) -> None:
    change(root, path=[*list(NESTED)[:-1], "x.bmp"])
    for job in (vae_job(root), t5_job(root)):
        done = drop_in(*job)
        assert done.exit_code == 2
        assert "x.bmp (the multi-scale reader maps" in done.stderr
    assert [path.name for path in (root / "InternData").iterdir()] == ["data_info.json"]


def test_single_scale_refuses_equal_base_names(root: Path) -> None:
    data = root / "InternData"
    job = [argument for argument in vae_job(root) if argument != "--multi_scale"]
    done = drop_in(*job)
    assert done.exit_code == 2
    assert "b/x.png and a/x.png (both are x.npy)" in done.stderr
    assert [path.name for path in data.iterdir()] == ["data_info.json"]
