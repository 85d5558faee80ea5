"""Runs what the documentation tells a reader to type: commands in this process, programs too, in a folder of a page."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny_text
import tiny_vision
from support import DATA, TINY_VAE
from tiny_vaes import saved_vae

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)(?P<more>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_TITLE = re.compile(r'title="([^"]+)"')
_OPERATORS = ("&&", "||", "|", ";")
_COMMIT = "0" * 40


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. title: the file that it is to be saved as; "" where it is none."""

    page: str
    language: str
    text: str
    title: str = ""

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, those that go on in the next one as one; none that is a comment."""
        lines = (" ".join(line.split()) for line in self.text.replace("\\\n", " ").splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def blocks_of(page: str, text: str) -> list[Block]:
    """Every fenced block that has a language, in order."""
    found = []
    for match in _FENCE.finditer(text):
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines(keepends=True)]
        title = _TITLE.search(match["more"])
        found.append(Block(page, match["language"], "".join(lines), title[1] if title else ""))
    return found


def hub_cache(folder: Path) -> Path:
    """A cache in the hub's own form, with a small model in the place of each that the documentation names."""
    small = folder / "small"
    clip = tiny_text.clip_tokenizer()
    t5 = (tiny_text.tiny_t5(), tiny_text.TINY_T5 / "tokenizer")
    models = {
        "stabilityai/sd-vae-ft-mse": TINY_VAE,
        "madebyollin/sdxl-vae-fp16-fix": saved_vae("sdxl", small / "sdxl"),
        "black-forest-labs/FLUX.1-dev": saved_vae("flux.1", small / "flux.1" / "vae").parent,
        "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers": DATA / "models" / "tiny-t5",
        "facebook/dinov2-base": tiny_vision.saved(small / "dino", "dinov2", patch_size=14),
    }
    tiny_text.saved(small / "flux.1", [(tiny_text.clip(clip, projection=None), clip), t5])
    for name, source in models.items():
        place = folder / "cache" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(_COMMIT)
        shutil.copytree(source, place / "snapshots" / _COMMIT)
    return folder / "cache"


def prepare(folder: Path) -> None:
    """What pages take to be there: photos with captions, in classes too, and the repository's own programs."""
    photos = ROOT / "src" / "latentmill" / "assets" / "photos"
    for photo in ("animal/chelsea", "object/coffee", "object/coins", "person/astronaut", "place/rocket"):
        (folder / "photos" / photo).parent.mkdir(parents=True, exist_ok=True)
        for extension in (".jpg", ".txt"):
            shutil.copy2(photos / f"{photo}{extension}", folder / "photos" / f"{photo}{extension}")
    for name in ("train", "ILSVRC/Data/CLS-LOC/train"):
        shutil.copytree(folder / "photos", folder / name, ignore=shutil.ignore_patterns("*.txt"))
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dataset_tools.py", folder)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """A command sets handlers of its own, which a test must not keep."""
    kept = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _collected() -> Iterator[None]:
    """A program lets the garbage collector rest at first, and for ever where it only shows its help."""
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _exit_code(program: Any) -> int:
    try:
        program()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a line of a shell block. What is neither latentmill nor a program of ours is the shell's."""
    from latentmill import __main__ as entry
    from latentmill import cli

    parts = shlex.split(command, comments=True)
    if not set(parts) & set(_OPERATORS) and parts[0] == "latentmill":
        monkeypatch.setattr(sys, "argv", parts)
        with _signals():
            return _exit_code(cli.main)
    if parts[0] == "python":
        monkeypatch.setattr(sys, "argv", parts[1:])
        monkeypatch.setattr(entry, "_leave", lambda code: None)  # this process stays
        with _signals(), _collected():
            return _exit_code(lambda: runpy.run_path(parts[1], run_name="__main__"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PATH": path}, timeout=120, check=False
    ).returncode
