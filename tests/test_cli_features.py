"""The text-to-image commands as a person meets them: the whole way, help, summaries, exit codes and errors."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from torch.utils.data import DataLoader
from typer.testing import CliRunner, Result

import latentmill
from latentmill.cli import app
from latentmill.guard import guarded
from latentmill.outcome import Event
from latentmill.terminal import Display
from support import PHOTOS, cli

NAMES = {
    "animal/cat one.JPEG": "animal/chelsea.JPEG",
    "café/moon.PNG": "place/moon.png",
    "flower.jpg": "plant/flower.jpg",
    "b/x.jpg": "person/grace_hopper.jpg",
    "a/x.jpg": "place/china.jpg",
}
SMALL = ("--resolution", 128, "--multi-scale", "--buckets", "grid:32", "--threads", 1)
LATENTS = "img_sdxl_vae_features_128resolution_ms_new"


def run(*arguments: object) -> Result:
    """A command in this process."""
    handlers = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
    try:
        return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "100"})
    finally:
        for signum, handler in handlers:
            signal.signal(signum, handler)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stranger's folder: photos in folders, captions beside them, one photo without, one much too tall."""
    folder = tmp_path_factory.mktemp("my photos")
    for name, photo in NAMES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(PHOTOS / photo, folder / name)
        (folder / name).with_suffix(".txt").write_text(f"a picture of {Path(name).stem}\n")
    shutil.copy(PHOTOS / "shapes/edge_512x426.jpg", folder / "no caption.jpg")
    Image.new("RGB", (40, 400)).save(folder / "tall.png")
    (folder / "tall.txt").write_text("a tower")
    return folder


@pytest.fixture(scope="module")
def imported(captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    dest = tmp_path_factory.mktemp("place") / "data"
    return dest, run("import", captioned, dest)


@pytest.fixture(scope="module")
def made(imported: tuple[Path, Result]) -> tuple[Path, Result]:
    data = imported[0] / "InternData"
    mini = ("--vae", "mini", "--text-encoder", "mini")
    return data, run("pixart", "--data-info", data / "data_info.json", "--dest", data, *mini, *SMALL)


# the whole way


def test_from_a_folder_of_photos_to_a_training_batch(made: tuple[Path, Result]) -> None:
    data, _ = made
    for folder in (LATENTS, "caption_features_new"):
        checked = run("verify", data / folder)
        assert (checked.exit_code, checked.output[:5]) == (0, "sound")
    dataset = latentmill.load(data.parent, caption_dropout=0.1)
    sampler = latentmill.BucketSampler(dataset, 2, seed=3)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=latentmill.collate, num_workers=1)
    keys = []
    for batch in loader:
        keys += batch["key"]
        height, width = batch["bucket"][0].tolist()
        assert batch["latent"].shape == (len(batch["key"]), 4, height // 8, width // 8)
        assert torch.isfinite(batch["latent"]).all()
        features, mask = batch["text_features"]["prompt"], batch["text_mask"]["prompt"]
        assert features.shape == (*mask.shape, 64)
        for number, key in enumerate(batch["key"]):
            text = batch["captions"]["prompt"][number]
            assert text in ("", f"a picture of {Path(key).stem}")
            assert mask[number].sum() > (3 if text else 0)
    assert sorted(keys) == ["a/x.jpg", "animal/cat one.jpg", "b/x.jpg", "café/moon.png", "flower.jpg"]


def test_import_says_what_became_of_every_image(imported: tuple[Path, Result]) -> None:
    dest, result = imported
    assert result.exit_code == 3
    lines = result.output.splitlines()
    assert lines[0] == "import: 7 images; captions: prompt"
    assert f"import done: {dest}: 6 images with prompt; 6 put into place, 0 removed" in lines
    assert f"  1 rejected: {dest / 'InternData' / 'latentmill-rejects.jsonl'}" in lines
    assert f"  table: {dest / 'InternData' / 'data_info.json'}" in lines
    rejects = (dest / "InternData" / "latentmill-rejects.jsonl").read_text()
    assert json.loads(rejects) == {"key": "no caption.jpg", "stage": "list", "reason": "no caption prompt"}
    assert sorted(path.name for path in (dest / "InternImgs").iterdir()) == [
        "a", "animal", "b", "café", "flower.jpg", "tall.png"
    ]  # fmt: skip


def test_a_second_import_says_so_and_an_edited_table_is_safe(captioned: Path, tmp_path: Path) -> None:
    assert run("import", captioned, tmp_path / "d", "--link", "symlink").exit_code == 3
    assert (tmp_path / "d" / "InternImgs" / "flower.jpg").is_symlink()
    again = run("import", captioned, tmp_path / "d", "--link", "symlink")
    assert again.exit_code == 3
    assert f"already imported: {tmp_path / 'd'}: 6 images with prompt; 0 put into place" in again.output
    table = tmp_path / "d" / "InternData" / "data_info.json"
    whole = table.read_text()
    table.write_text("[]")
    refused = run("import", captioned, tmp_path / "d", "--link", "symlink")
    assert refused.exit_code == 2
    assert "was changed since it was made, and a rerun would undo that. --overwrite makes it anew" in refused.output
    assert table.read_text() == "[]"
    assert run("import", captioned, tmp_path / "d", "--link", "symlink", "--overwrite").exit_code == 3
    assert table.read_text() == whole


def test_import_takes_a_table_with_columns_of_any_name(captioned: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,short,long words\nflower.jpg,a flower,a flower in bloom\na/x.jpg,roofs,\n")
    arguments = (
        "--path-column",
        "file",
        "--caption-column",
        "prompt=short",
        "--caption-column",
        "sharegpt4v=long words",
    )
    result = run("import", tmp_path / "list.csv", tmp_path / "data", "--images", captioned, "--flatten", *arguments)
    assert result.exit_code == 0, result.output
    assert "2 images with prompt, sharegpt4v; 2 put into place, 0 removed" in result.output
    rows = json.loads((tmp_path / "data" / "InternData" / "data_info.json").read_text())
    assert [(row["path"], row["prompt"], row.get("sharegpt4v")) for row in rows] == [
        ("flower.jpg", "a flower", "a flower in bloom"),
        ("a_x.jpg", "roofs", None),
    ]


# what is said


def test_pixart_says_what_it_does_and_counts_captions_as_captions(made: tuple[Path, Result]) -> None:
    data, result = made
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].startswith("images: ")
    assert lines[0].endswith(", 1 left out")
    done = [line for line in lines if " done: " in line]
    assert done[0].startswith(f"images done: {data / LATENTS}: 5 stored; ")
    assert "  1 left out by the reader's rule: height/width over 4.5" in lines
    assert done[1].startswith(f"captions prompt done: {data / 'caption_features_new'}: 6 stored; 6 captions in ")
    text = "\n".join(line for line in lines if line.startswith("captions"))
    assert "image" not in text.replace(str(data), "")


def test_again_it_says_that_all_is_there(made: tuple[Path, Result]) -> None:
    data, _ = made
    result = run(
        "pixart", "--data-info", data / "data_info.json", "--dest", data, "--text-encoder", "mini", "--threads", 1
    )
    assert result.exit_code == 0
    assert f"already finished: {data / 'caption_features_new'} holds all 6 captions; nothing to do" in result.output


def test_what_truncation_cuts_and_what_is_rejected_is_told(tmp_path: Path) -> None:
    texts = ("one", "a", "a picture of a boat on a quiet lake", "")
    table = [{"path": f"{number}.png", "prompt": text} for number, text in enumerate(texts)]
    (tmp_path / "list.json").write_text(json.dumps(table))
    text = ("--data-info", tmp_path / "list.json", "--text-encoder", "mini", "--max-length", 5, "--threads", 1)
    result = run("pixart", "--dest", tmp_path, *text)
    assert result.exit_code == 3
    assert f"  1 rejected: {tmp_path / 'caption_features_new' / 'latentmill-rejects.jsonl'}" in result.output
    assert "  1 truncated (longer than --max-length tokens)" in result.output
    kept = run("pixart", "--dest", tmp_path / "other", *text, "--missing-caption", "empty")
    assert kept.exit_code == 0
    assert ": 4 stored; 4 captions in" in kept.output


def test_several_captions_are_several_jobs(captioned: Path, tmp_path: Path) -> None:
    table = [{"path": "a.png", "prompt": "one", "sharegpt4v": "longer"}, {"path": "b.png", "prompt": "two"}]
    (tmp_path / "list.json").write_text(json.dumps(table))
    labels = ("--caption-label", "prompt", "--caption-label", "sharegpt4v")
    result = run("pixart", "--data-info", tmp_path / "list.json", "--dest", tmp_path, "--text-encoder", "mini", *labels)
    assert result.exit_code == 3
    assert "captions prompt done: " in result.output
    assert ": 1 stored; 2 captions in" in result.output
    assert (tmp_path / "sharegpt4v_caption_features_new" / "latentmill-rejects.jsonl").exists()


def test_one_is_not_told_in_the_plural(captioned: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"path": "flower.jpg", "prompt": "a flower"}]))
    both = ("--vae", "fake", "--text-encoder", "mini", "--images", captioned)
    for said in (": 1 stored; 1 image in ", "holds all 1 image; nothing to do"):
        result = run("pixart", "--data-info", tmp_path / "list.json", "--dest", tmp_path / "out", *both, *SMALL)
        assert said in result.output, result.output
    assert "holds all 1 caption; " in result.output
    assert (
        ": 1 image with prompt; "
        in run("import", tmp_path / "list.json", tmp_path / "data", "--images", captioned).output
    )


def test_when_stopped_it_says_how_many_captions_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Display("captions prompt", "captions") as display:
        display.tell(Event("progress", total=1200, done=30, committed=20))
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "20 of 1,200 captions are committed\n"


def test_what_commits_nothing_does_not_say_so_when_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        with Display("report", "samples", commits=False) as display:
            display.tell(Event("progress", total=9, done=3))
            raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(typer.Exit) as stopped:
            guarded(work, commits=False)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stopped.value.exit_code == 130
    assert capsys.readouterr().err == "stopped. Nothing was written; the same command begins anew\n"


def test_buckets_shows_a_table_that_fits_a_terminal_and_writes_nothing(captioned: Path) -> None:
    before = sorted(captioned.rglob("*"))
    result = cli("buckets", captioned, "--resolution", 256, "--buckets", "auto:2", "--fit", "cover", COLUMNS="80")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["height", "x", "width", "ratio", "images", "cropped", "away", "distortion", "upscaled"]
    assert max(map(len, lines)) <= 80
    assert lines[-2].split()[:2] == ["all", "6"]
    assert lines[-1] == "2 of 2 buckets have images"
    assert result.stderr == "left out: tall.png: its ratio (height/width) is over 4.5\n"
    assert sorted(captioned.rglob("*")) == before
    stretched = run("buckets", captioned)
    assert " of 40 buckets have images" in stretched.output


# help and errors


@pytest.mark.parametrize("columns", [80, 120])
def test_help_shows_every_option_whole(columns: int) -> None:
    expected = {
        "pixart": "--data-info --dest --vae --resolution --multi-scale --text-encoder --caption-label --max-length "
        "--pad --reader --buckets --fit --batch-size --token-budget --tiling --device --dtype --save-dtype "
        "--channels-last --compile --missing-caption --caption-extension --caption-column --start-index --end-index "
        "--overwrite",
        "import": "--link --flatten --exif --missing-caption --images --multi-line --path-column --overwrite",
        "buckets": "--resolution --buckets --fit --images --path-column --exif",
    }
    for name, options in expected.items():
        result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": str(columns)})
        assert result.exit_code == 0
        assert [option for option in options.split() if f" {option} " not in result.output] == []
        assert f"\n   latentmill {name} " in result.output
        assert "…" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch-size", "many"), "batch-size must be a whole number from 1 on, or auto. Found: 'many'"),
        (("--batch-size", "0"), "batch-size must be a whole number from 1 on, or auto. Found: '0'"),
        (("--batch-size", "-3"), "batch-size must be a whole number from 1 on, or auto. Found: '-3'"),
        (("--multi-scale", "--resolution", 300), "resolution must be one of 256, 512, 1024, 2048, 2880 for"),
        (("--buckets", "auto:3"), "buckets are of multi-scale features (--multi-scale)"),
        (("--multi-scale", "--buckets", "some"), "buckets must be reference, grid, "),
        (("--multi-scale", "--pixel-range", "0,255"), "pixel-range must be -1,1 or 0,1"),
        (("--suffix", "a/b"), "suffix must be a part of a folder's name"),
        (("--data-info", "nowhere"), "the source does not exist: nowhere"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(
    imported: tuple[Path, Result], tmp_path: Path, arguments: tuple[Any, ...], said: str
) -> None:
    given = ("--data-info", imported[0], "--dest", tmp_path / "out", "--vae", "fake", *arguments)
    result = run("pixart", *given)
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {said}")
    assert result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_names_that_no_reader_finds_are_refused_before_any_work(captioned: Path, tmp_path: Path) -> None:
    result = run("pixart", "--data-info", captioned, "--dest", tmp_path / "out", "--text-encoder", "mini")
    assert result.exit_code == 2
    assert "café/moon.PNG" in result.output
    assert "`latentmill import` makes names that it can" in result.output
    assert not (tmp_path / "out").exists()


def test_a_caption_that_is_not_there_names_those_that_are(made: tuple[Path, Result], tmp_path: Path) -> None:
    info = made[0] / "data_info.json"
    wrong = ("--text-encoder", "mini", "--caption-label", "sharegpt4v")
    result = run("pixart", "--data-info", info, "--dest", tmp_path / "out", *wrong)
    assert result.exit_code == 2
    assert result.output.startswith(f"error: no caption of {info} is called 'sharegpt4v'. There are: prompt")


def test_nothing_is_made_before_both_jobs_are_checked(imported: tuple[Path, Result], tmp_path: Path) -> None:
    """A slip in the caption's name must not be told after a week of images."""
    both = ("--vae", "fake", "--text-encoder", "mini", "--caption-label", "promt")
    result = run("pixart", "--data-info", imported[0], "--dest", tmp_path / "out", *both, *SMALL)
    assert result.exit_code == 2
    assert "is called 'promt'. There are: prompt" in result.output
    assert not list(tmp_path.rglob("*.npy"))


def test_other_settings_are_refused_by_name(made: tuple[Path, Result]) -> None:
    data, _ = made
    text = ("--text-encoder", "mini", "--max-length", 77, "--threads", 1)
    result = run("pixart", "--data-info", data / "data_info.json", "--dest", data, *text)
    assert result.exit_code == 2
    assert "was made with other settings (max-length: was 300, now 77)" in result.output


def test_slips_of_the_pen_are_pointed_out() -> None:
    for arguments, said in (
        (("pixart", "--dest", "d"), "--data-info"),
        (("pixart", "--data-info", "a", "--dest", "d", "--fit", "strech"), "stretch"),
        (("import", "a"), "DEST"),
        (("import", "a", "b", "--link", "soft"), "symlink"),
        (("buckets",), "SRC"),
        (("bucket",), "buckets"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert said in result.output
        assert "Traceback" not in result.output


# what concerns a job that is not run, and a root of several results


def test_settings_of_a_job_that_is_not_run_are_told(imported: tuple[Path, Result], tmp_path: Path) -> None:
    table = imported[0] / "InternData" / "data_info.json"
    job = ("pixart", "--data-info", table, "--dest", tmp_path, "--vae", "fake", *SMALL)
    done = run(*job, "--caption-label", "other", "--max-length", 12)
    assert done.exit_code == 0, done.output
    assert "nothing is made that needs max-length, caption-label: see --text-encoder" in done.stderr
    assert "nothing is made" not in run(*job).stderr


def test_verify_of_a_root_looks_at_every_result(made: tuple[Path, Result], tmp_path: Path) -> None:
    root = tmp_path / "InternData"
    shutil.copytree(made[0], root)
    assert run("verify", root).exit_code == 0
    assert latentmill.verify(root).problems == []
    (root / "caption_features_new" / "latentmill.json").unlink()
    (root / "caption_features_new" / ".latentmill").mkdir()
    damaged = next((root / LATENTS).rglob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    done = run("verify", root)
    assert done.exit_code == 1
    assert "caption_features_new is not finished" in done.output
    assert "was changed: its bytes are not those made from" in done.output
    assert len(latentmill.verify(root).problems) == 2
