"""Reading: samples a second of `load()` against loops of Pillow and numpy, and opening a dataset of ImageNet's size.

    python benchmarks/reading.py [--rounds 9] [--samples 400] [--rows 1281167]

The first loop is the bare one: `np.asarray(Image.open(...))` and `np.load(...)`, from a zip by `zipfile`. The second
does what a sample of `load()` is too: planes, a draw from the moments, its normalisation. Samples are more than the
processor's caches hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import reading_scale
import torch
from harness import Section, Setting, check_same, check_same_numbers, cpus, in_turn, inside, ratios, spread, times
from PIL import Image

import latentmill

HERE = Path(__file__).resolve().parent
SIDE = reading_scale.SIDE
GOAL = "5x the bare loop"
SAME = 1e-6  # of the largest value
Open = Callable[[str], str | IO[bytes]]


def run(setting: Setting) -> list[Section]:
    """Samples a second, then opening and memory."""
    rows = setting.count(reading_scale.IMAGENET, 100_000)
    return [speed(setting, setting.count(400, 100)), *([] if setting.quick else [opening(setting, rows)])]


def make_dataset(root: Path, samples: int) -> None:
    """`images` and `latents`, moments (8, 32, 32) beside pictures of 256x256, as folders and zips."""
    noise = np.random.default_rng(0)
    photos = root / "photos"
    photos.mkdir()
    for number in range(samples):
        coarse = Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(photos / f"{number:05d}.png")
    for ending in ("", ".zip"):
        latentmill.encode(
            photos, root / f"latents{ending}", images=root / f"images{ending}", model_url="fake",
            transform="center-crop", resolution=f"{SIDE}x{SIDE}", batch_size=20,
        )  # fmt: skip


def names_of(number: int) -> tuple[str, str]:
    return f"00000/img{number:08d}.png", f"00000/img-mean-std-{number:08d}.npy"


def loop(samples: int, images: Open, latents: Open, scale: float) -> None:
    """The bare loop; with a scale, what else a sample needs."""
    for number in range(samples):
        picture, latent = names_of(number)
        pixels = np.asarray(Image.open(images(picture)))
        moments = np.load(latents(latent))
        if scale:
            torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()
            mean, std = torch.from_numpy(moments).chunk(2)
            (mean + std * torch.randn_like(std)) * scale


def speed(setting: Setting, samples: int) -> Section:
    """CPU microseconds a sample, in turn, in one thread."""
    torch.set_num_threads(1)
    make_dataset(setting.work, samples)
    section = Section(
        f"Reading {SIDE}x{SIDE} pictures and moments (8, 32, 32), {samples} samples, one thread, CPU time",
        "pictures and moments of `load()` are those of Pillow and numpy; its means are theirs, its draws "
        "mean + std * z, with z computed anew in float64 from the generator's key, all normalised",
        ("from", "posterior", "latentmill, us", "bare loop, us", "over ours", "loop with planes and draw, us",
         "over ours"),
    )  # fmt: skip
    for ending in ("", ".zip"):
        with ExitStack() as stack:
            images, latents = (opener(setting.work / f"{name}{ending}", stack) for name in ("images", "latents"))
            check(setting.work, ending, samples, images, latents)
            for posterior in ("sample", "mean"):
                _add(section, setting, ending, samples, images, latents, posterior)
    section.notes.append(f"goal: {GOAL}, which draws nothing")
    return section


def _add(
    section: Section, setting: Setting, ending: str, samples: int, images: Open,
    latents: Open, posterior: str,
) -> None:  # fmt: skip
    dataset = latentmill.load(
        setting.work / f"latents{ending}",
        setting.work / f"images{ending}",
        posterior=posterior,  # type: ignore[arg-type]
    )
    programs = {
        "ours": partial(inside, lambda: read_all(dataset, samples)),
        "bare": partial(inside, lambda: loop(samples, images, latents, 0)),
        "whole": partial(inside, lambda: loop(samples, images, latents, 0.18215)),
    }
    for program in programs.values():
        program()
    rounds = in_turn(programs, setting.rounds)
    took = {name: [1e6 * seconds / samples for seconds in cpus(each)] for name, each in rounds.items()}
    section.add(
        ending.removeprefix(".") or "folder", posterior, spread(took["ours"], "", 0), spread(took["bare"], "", 0),
        times(ratios(took["bare"], took["ours"])), spread(took["whole"], "", 0),
        times(ratios(took["whole"], took["ours"])),
    )  # fmt: skip


def read_all(dataset: latentmill.LatentDataset, samples: int) -> None:
    for number in range(samples):
        dataset[number]


def opener(path: Path, stack: ExitStack) -> Open:
    """What Pillow and numpy take to read a member: a path, or of a zip an open file."""
    if path.is_dir():
        root = str(path)
        return lambda name: f"{root}/{name}"
    return stack.enter_context(zipfile.ZipFile(path)).open


def check(work: Path, ending: str, samples: int, images: Open, latents: Open) -> None:
    """Raises DifferentError."""
    dataset = latentmill.load(work / f"latents{ending}", work / f"images{ending}", posterior="mean")
    for number in range(samples):
        picture, latent = names_of(number)
        with Image.open(images(picture)) as image:
            check_same(dataset[number]["image"].numpy(), np.asarray(image).transpose(2, 0, 1), picture)
        moments = np.load(latents(latent))
        check_same(dataset[number]["moments"].numpy(), moments, latent)
        mean = dataset.denormalize(dataset[number]["latent"])
        if not np.allclose(mean.numpy(), moments[: len(moments) // 2], atol=1e-6):
            check_same(mean.numpy(), moments[: len(moments) // 2], f"normalised {latent}")
    check_draws(latentmill.load(work / f"latents{ending}", posterior="sample"), samples, latents)


def check_draws(dataset: latentmill.LatentDataset, samples: int, latents: Open) -> None:
    """Raises DifferentError unless a draw is that of the key that PyTorch's generator gives, normalised."""
    for number in range(samples):
        _, name = names_of(number)
        torch.manual_seed(number)
        found = dataset.denormalize(dataset[number]["latent"])
        torch.manual_seed(number)
        key = int(torch.empty((), dtype=torch.int64).random_())
        mean, std = np.split(np.load(latents(name)).astype(np.float64), 2)
        expected = mean + std * normals(key, mean.size).reshape(mean.shape)
        check_same_numbers(found.numpy(), expected, SAME, f"a draw of {name}")


def normals(key: int, count: int) -> np.ndarray:
    """Box-Muller of Philox 4x32-10 as `latentmill.normals` describes it, by the exact functions in float64."""
    a = np.arange(64 * -(-count // 256), dtype=np.uint64)
    b, c, d = (np.zeros_like(a) for _ in range(3))
    low, half = np.uint64(2**32 - 1), np.uint64(32)
    for step in range(10):
        keys = [np.uint64((word + step * weyl) % 2**32) for word, weyl in
                ((key % 2**32, 0x9E3779B9), (key >> 32, 0xBB67AE85))]  # fmt: skip
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = q >> half ^ b ^ keys[0], q & low, p >> half ^ d ^ keys[1], p & low
    found = []
    for first, second in ((a, b), (c, d)):
        u = ((first + 0.5).astype(np.float32) / 2**32).astype(np.float64)
        angle = np.pi * ((second % 2**31 - 2.0**30) / 2**31 + (second >> np.uint64(31)))
        found += [np.sqrt(-2 * np.log(u)) * along for along in (np.cos(angle), np.sin(angle))]
    return np.stack(found).reshape(4, -1, 64).transpose(1, 0, 2).reshape(-1)[:count]


def opening(setting: Setting, rows: int) -> Section:
    """Each in processes of their own: seconds to open, and memory of a DataLoader's worker that has read samples."""
    places = reading_scale.make(setting.folder("scale"), rows)
    earlier = reading_scale.make(setting.folder("earlier"), rows, real=10, columns=False, only=("latents",))
    section = Section(
        f"Opening a synthetic dataset of {rows:,} samples",
        f"it has {rows:,} samples, and 3,000 at random positions are read by two workers",
        ("what", "opening, s", "CPU s", "with the loaders' import, s", "worker's RSS, MB", "its share (PSS), MB",
         "its own, MB", "of which PyTorch's import, RSS MB"),
    )  # fmt: skip
    for ending in ("", ".zip"):
        where = ending.removeprefix(".") or "folder"
        latents = places[f"latents{ending}"]
        with_images = ["--images", places[f"images{ending}"]]
        _opened(section, setting, f"{where}, latents", rows, latents)
        _opened(section, setting, f"{where}, with images", rows, latents, *with_images)
        text = ["--text", places["text"]]
        _opened(section, setting, f"{where}, with images and text", rows, latents, *with_images, *text)
    _opened(section, setting, "folder, made by an earlier version", rows, earlier["latents"], "--read", 0)
    return section


def _opened(section: Section, setting: Setting, what: str, rows: int, *arguments: object) -> None:
    command = [sys.executable, str(HERE / "reading_scale.py"), *map(str, arguments)]
    found = []
    for _ in range(min(setting.rounds, 2)):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    section.rounds.add(len(found))
    if any(each["samples"] != rows for each in found):
        raise RuntimeError(f"{what}: not {rows} samples")
    last = found[-1]
    worker = last["worker"] or last["opened"]
    section.add(
        what, *(spread([each[name] for each in found]) for name in ("seconds", "cpu")),
        spread([each["seconds"] + each["import_seconds"] for each in found]),
        *(f"{worker[name] / 1e6:.0f}" for name in ("rss", "pss", "own")), f"{last['after_torch']['rss'] / 1e6:.0f}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rows", type=int, default=reading_scale.IMAGENET, help="0: do not measure opening")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        setting = Setting(Path(name), options.rounds, False, 1)
        print(speed(setting, options.samples).markdown())
        if options.rows:
            print(opening(setting, options.rows).markdown())


if __name__ == "__main__":
    main()
