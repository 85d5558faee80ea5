"""Builds wheel and sdist, looks into both, installs each where there is nothing else, and uses it there.

`make check-dist`, or with extras: `python tools/check_dist.py --extras ray,report` (`all`: every one).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
TOOLS = ("build", "twine", "check-wheel-contents", "abi3audit", "setuptools>=77", "setuptools-scm")
WHEEL_TAG = "cp311-abi3-"
OF_BOTH = ("native/resample.h", "tests/support.py", "constraints.txt", "Makefile", "examples/plugins/pyproject.toml")


def main() -> None:
    arguments = _arguments()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        tools = _environment(root / "tools", *TOOLS)
        with _told("build"):
            sdist, wheel = _built(tools, root / "dist")
        with _told("contents"):
            _check_tools(tools, sdist, wheel)
            _check_sdist(sdist)
            _check_wheel(wheel)
        with _told("sdist without git"):
            _check_rebuilt(tools, sdist, wheel, root)
        for extras in ("", *arguments.extras):
            with _told(f"fresh install of latentmill{f'[{extras}]' if extras else ''}"):
                _check_installed(root / f"fresh-{extras}", wheel, extras)
        shutil.copytree(root / "dist", ROOT / "dist", dirs_exist_ok=True)
    print(f"dist/{wheel.name}, dist/{sdist.name}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    known = [*tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]]
    parser.add_argument("--extras", default="", help=f"installed in turn, with commas between: all, {', '.join(known)}")
    arguments = parser.parse_args()
    arguments.extras = known if arguments.extras == "all" else list(filter(None, arguments.extras.split(",")))
    if unknown := set(arguments.extras) - set(known):
        parser.error(f"extras must be of {', '.join(known)}. Found: {', '.join(sorted(unknown))}")
    return arguments


@contextmanager
def _told(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"{what}: in order ({time.monotonic() - start:.0f} s)", flush=True)


def _run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints. A failure ends the check, with all of it."""
    line = [str(part) for part in command]
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"failed with {done.returncode}: {' '.join(line)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _environment(folder: Path, *packages: object) -> Path:
    """A new virtual environment with these packages; gives its folder of programs."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    _run(programs / "python", "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS, *packages)
    return programs


def _built(tools: Path, dest: Path) -> tuple[Path, Path]:
    """sdist and wheel, the wheel from the sdist. A warning of the build is a failure."""
    said = _run(tools / "python", "-m", "build", "--outdir", dest, PYTHONDONTWRITEBYTECODE="")
    if warnings := [line for line in said.splitlines() if "warning" in line.lower() or "deprecat" in line.lower()]:
        raise SystemExit("the build warns:\n" + "\n".join(warnings))
    (sdist,), (wheel,) = dest.glob("*.tar.gz"), dest.glob("*.whl")
    return sdist, wheel


def _check_tools(tools: Path, sdist: Path, wheel: Path) -> None:
    _run(tools / "twine", "check", "--strict", sdist, wheel)
    _run(tools / "check-wheel-contents", wheel)
    if WHEEL_TAG in wheel.name:
        _run(tools / "abi3audit", "--strict", wheel)


def _check_sdist(sdist: Path) -> None:
    """Every file that git knows, and what the version is told by where there is no git."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    _all_held("the sdist", {*_run("git", "ls-files").splitlines(), *OF_BOTH, "PKG-INFO"}, held)


def _check_wheel(wheel: Path) -> None:
    """Every module and asset of the package, the resampler for every Python from 3.11 on, and nothing beside."""
    if WHEEL_TAG not in wheel.name:
        raise SystemExit(f"the wheel must be {WHEEL_TAG}*: was there a C compiler? Found: {wheel.name}")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {name.removeprefix("src/") for name in _run("git", "ls-files", "src").splitlines()}
    built = {name for name in held - source if name.startswith("latentmill/transforms/_resample.")}
    _all_held("the wheel", source, held)
    if held - source != built or len(built) != 1:
        raise SystemExit(f"the wheel must hold the source and the resampler alone. Found too: {sorted(held - source)}")


def _all_held(what: str, wanted: Iterable[str], held: set[str]) -> None:
    if missing := sorted(name for name in set(wanted) - held if (ROOT / name).exists() or what == "the wheel"):
        raise SystemExit(f"{what} lacks {len(missing)} files: {', '.join(missing[:20])}")


def _check_rebuilt(tools: Path, sdist: Path, wheel: Path, root: Path) -> None:
    """From the unpacked sdist, without git: the same version, and the same files."""
    with tarfile.open(sdist) as archive:
        archive.extractall(root / "unpacked", filter="data")
    (unpacked,) = (root / "unpacked").iterdir()
    here = ("--wheel", "--no-isolation", "--outdir", root / "again")  # the first build was isolated
    _run(tools / "python", "-m", "build", *here, cwd=unpacked, PATH=str(tools))
    (again,) = (root / "again").glob("*.whl")
    if again.name.split("-")[1] != wheel.name.split("-")[1]:
        raise SystemExit(f"the sdist must build the version {wheel.name} without git. Found: {again.name}")


def _check_installed(folder: Path, wheel: Path, extras: str) -> None:
    """The wheel alone in a new environment, used from a folder that holds no source."""
    programs = _environment(folder, f"{wheel}[{extras}]" if extras else wheel)
    latentmill, version = programs / "latentmill", wheel.name.split("-")[1]
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    told = _run(latentmill, "--version", cwd=elsewhere).strip()
    if told != f"latentmill {version}":
        raise SystemExit(f"--version must tell latentmill {version}. Found: {told}")
    _run(programs / "python", "-m", "pip", "check")
    _run(latentmill, "doctor", cwd=elsewhere)
    _run(latentmill, "demo", "--out", elsewhere / "demo", cwd=elsewhere)
    _run(latentmill, "verify", elsewhere / "demo", cwd=elsewhere)
    if extras == "report":
        _run(latentmill, "report", elsewhere / "demo", "--out", elsewhere / "report.html", cwd=elsewhere)
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
