"""What an import costs and promises: no heavy library before it is needed, every public name, types for the user."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files

import pytest

import latentmill
from latentmill.errors import LatentmillError
from support import cli

HEAVY = ("torch", "diffusers", "transformers", "ray", "huggingface_hub", "safetensors", "accelerate")
OF_OTHER_OUTPUTS = {
    f"latentmill.{name}"
    for name in ("formats.pixart", "formats.vision", "registry", "sources.captioned", "sources.features")
}
CONVERSION = """
import tempfile, pathlib, latentmill
from PIL import Image
with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    (root / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(root / "photos" / "a.png")
    assert latentmill.convert(root / "photos", root / "out", num_workers=1).stored == 1
"""


def modules_after(code: str) -> set[str]:
    """The modules that a new interpreter holds after running `code`."""
    code += "\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import latentmill",
        "import latentmill.cli",
        "import latentmill.dropin, latentmill.dropin_features",
        "import latentmill.features, latentmill.importing; latentmill.pixart, latentmill.import_captioned",
        "import latentmill; latentmill.convert, latentmill.encode, latentmill.decode, latentmill.verify",
        "import latentmill.encoders.vae, latentmill.encoders.text, latentmill.encoders.text_models",
    ],
)
def test_imports_bring_no_heavy_library(code: str) -> None:
    loaded = modules_after(code)
    assert "latentmill" in loaded
    assert not loaded & set(HEAVY)


def test_the_package_itself_imports_almost_nothing() -> None:
    added = modules_after("import latentmill") - modules_after("")
    assert not {name for name in added if name.split(".")[0] in ("numpy", "PIL", "pydantic", "rich", "typer")}


def test_a_conversion_needs_no_torch() -> None:
    """Workers are forked where no PyTorch is loaded, which takes milliseconds."""
    code = CONVERSION + '    assert not latentmill.verify(root / "out").problems\n'
    assert not modules_after(code) & set(HEAVY)


def test_a_conversion_imports_no_module_of_other_outputs() -> None:
    """A conversion of a few photos is mostly its start."""
    assert not modules_after(CONVERSION) & OF_OTHER_OUTPUTS


def test_every_public_name_is_there() -> None:
    for name in latentmill.__all__:
        assert getattr(latentmill, name) is not None
    assert latentmill.LatentmillError is LatentmillError
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        latentmill.lode  # noqa: B018


def test_no_module_takes_the_place_of_a_public_call() -> None:
    """A module `latentmill.decode` would do so as soon as anything imports it."""
    for module in pkgutil.walk_packages(latentmill.__path__, "latentmill."):
        importlib.import_module(module.name)
    for name in ("convert", "decode", "encode", "load", "verify"):
        assert callable(getattr(latentmill, name)), name


def test_the_version_is_the_packages() -> None:
    assert latentmill.__version__ == version("latentmill")
    assert cli("--version").stdout == f"latentmill {version('latentmill')}\n"


def test_types_are_shipped() -> None:
    assert (files("latentmill") / "py.typed").is_file()


def test_help_names_every_command_and_option() -> None:
    plain = {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}
    shown = cli("--help", **plain)
    assert shown.returncode == 0
    for command in ("convert", "encode", "decode", "verify", "models", "demo"):
        assert re.search(rf"\b{command}\b", shown.stdout)
    for command, options in {
        "convert": "--source --dest --resolution --transform --max-images --num-workers --batch-size --exif --alpha "
        "--max-failures --overwrite --max-pixels --check",
        "encode": "--source --dest --model-url --vae --revision --subfolder --max-images --batch-size --num-workers "
        "--threads --device --dtype --pixel-range --store --seed --save-dtype --overwrite --images --transform "
        "--resolution --max-failures",
        "decode": "--source --dest --max-images",
        "verify": "--images",
    }.items():
        shown = cli(command, "--help", **plain)
        assert shown.returncode == 0
        assert set(options.split()) <= set(re.findall(r"--[a-z-]+", shown.stdout))


def test_no_command_shows_the_help() -> None:
    shown = cli()
    assert "convert" in shown.stdout + shown.stderr


def test_an_unknown_option_is_exit_code_2() -> None:
    failed = cli("convert", "--sauce", "x")
    assert failed.returncode == 2
    assert "--sauce" in failed.stderr
    assert "Traceback" not in failed.stderr
