"""The package in examples/plugins, installed by pip and used by the command line, as CONTRIBUTING.md tells."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import latentmill
from support import cli, make_photos

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugins"
SMALL = "defaults.resolution=32x32"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where pip has put the package, on `sys.path`."""
    copy, folder = tmp_path_factory.mktemp("example") / "plugins", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    offline = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(folder), str(copy)]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert installed.returncode == 0, installed.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "mill_extras"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos of two classes, the smallest of which is smaller than what is asked for, as `tar` packs `.`."""
    root = tmp_path_factory.mktemp("photos")
    make_photos(root / "photos", 5, side=48)
    make_photos(root / "small" / "c1", 1, side=20)
    (root / "small/c1/c0/photo00000.jpg").rename(root / "photos/c1/tiny.jpg")
    with tarfile.open(root / "photos.tar", "w") as packed:
        packed.add(root / "photos", ".")
    return root / "photos.tar"


@pytest.fixture(scope="module")
def made(site: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's recipe, run by the command line."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(EXAMPLE / "recipe.toml", folder)
    sets = [part for value in (SMALL, f"source.path={archive}") for part in ("--set", value)]
    done = cli("run", folder / "recipe.toml", *sets, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert "5 stored" in done.stdout
    return folder / "data"


def rows(dataset: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (dataset / "latentmill-index.jsonl").read_text().splitlines()]


def test_the_source_lists_the_archive_by_class(made: Path, archive: Path) -> None:
    found = rows(made / "images")
    names = [f"c0/photo{n:05d}.jpg" for n in range(3)] + [f"c1/photo{n:05d}.jpg" for n in (3, 4)] + ["c1/tiny.jpg"]
    assert [row["key"] for row in found] == names
    assert [row["label"] for row in found[:5]] == [0, 0, 0, 1, 1]
    assert "skipped" in found[5], "the transform enlarges nothing"


def test_images_of_the_archive_are_letterboxed(made: Path, archive: Path) -> None:
    with Image.open(made / "images" / "00000" / "img00000000.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (32, 32, 3)
    assert (pixels[[*range(4), *range(-4, 0)]] == 128).all()  # 64 x 48 becomes 32 x 24
    assert not (pixels[4:-4] == 128).all(axis=(1, 2)).any()


def test_the_image_comes_back_from_the_models_latents_in_the_formats_files(made: Path) -> None:
    from mill_extras.encoder import image_of

    dataset = latentmill.load(made / "haar", made / "images", posterior="mean")
    assert len(dataset) == 5
    for number in range(5):
        sample = dataset[number]
        assert (made / "haar" / f"{sample['key']}.safetensors").is_file()
        assert sample["latent"].shape == (192, 4, 4)
        with Image.open(made / "images" / "00000" / f"img{number:08d}.png") as image:
            pixels = np.asarray(image, np.float32)
        back = (image_of(sample["latent"].numpy()).transpose(1, 2, 0) + 1) * 127.5
        assert np.abs(back - pixels).max() < 0.01


def test_the_result_verifies_and_is_finished(made: Path, site: Path) -> None:
    for result in ("images", "haar"):
        assert not latentmill.verify(made / result).problems
    again = cli("run", made / "latentmill-recipe.toml", PYTHONPATH=str(site))
    assert again.stdout.count("already finished") == 2, again.stderr


def test_the_runner_gives_the_bytes_of_the_built_in_one(made: Path, archive: Path, site: Path, tmp_path: Path) -> None:
    recipe = latentmill.Recipe.read(made / "latentmill-recipe.toml", ["run.runner=local", f"dest={tmp_path}"])
    recipe.run()
    for path in sorted((made / "haar").rglob("*.safetensors")):
        assert (tmp_path / "haar" / path.relative_to(made / "haar")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("source.options.labels=caption", "a tar's options must be labels = one of none, class"),
        ("source.path=/dev/null/none.tar", "the source must be an uncompressed tar archive. Found: /dev/null/none.tar"),
        ("outputs.haar.store=moments", "store must be mean"),
    ],
)
def test_what_the_package_refuses_is_one_line(
    archive: Path, site: Path, tmp_path: Path, change: str, said: str
) -> None:
    shutil.copy(EXAMPLE / "recipe.toml", tmp_path)
    sets = ("--set", f"source.path={archive}", "--set", SMALL, "--set", change)
    done = cli("run", tmp_path / "recipe.toml", *sets, PYTHONPATH=str(site))
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
