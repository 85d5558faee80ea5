"""What latentmill costs against what it replaces, as ratios in one run, equality checked before time.

    python benchmarks/speed.py [--photos 1000] [--rounds 5] [--only convert|mini|sd]

convert: whole processes, in turn, against the sequential Pillow loop over the same photos. encode: from the first
batch to the last commit, against the bare forwards of the same model over the same pixels, already in memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from photos import make_photos
from PIL import Image

import latentmill
from latentmill.encoders.vae import to_input

HERE = Path(__file__).parent
# The shape of sd-vae-ft-mse: 84 million parameters. Random weights cost the same time.
SD_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
}


def in_turn(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each, taken in turn, so that a machine that slows down slows both."""
    firsts, seconds = [], []
    for _ in range(rounds):
        firsts.append(first())
        seconds.append(second())
    return firsts, seconds


def line(name: str, ours: list[float], theirs: list[float]) -> None:
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    print(
        f"{name}: ours {statistics.median(ours):.2f} s, theirs {statistics.median(theirs):.2f} s, "
        f"theirs/ours {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} rounds)",
        flush=True,
    )


def process(*command: object) -> float:
    start = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def convert_against_loop(photos: Path, work: Path, rounds: int) -> None:
    def ours(name: str = "ours") -> float:
        return process(
            *(
                sys.executable,
                "-m",
                "latentmill.cli",
                "convert",
                "--overwrite",
                "--source",
                photos,
                "--dest",
                work / name,
            ),
            *("--resolution=256x256", "--transform=center-crop-dhariwal"),
        )

    def theirs() -> float:
        return process(sys.executable, HERE / "pillow_loop.py", photos, work / "theirs", 256)

    ours(), theirs()
    for path in sorted((work / "theirs").rglob("*.png")):
        other = work / "ours" / path.relative_to(work / "theirs")
        if not np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(other))):
            sys.exit(f"not the same pixels: {path.name}")
    print("pixels are the same")
    line("convert, whole process, against a sequential Pillow loop", *in_turn(ours, theirs, rounds))


def encode_against_forwards(name: str, model: str, images: Path, work: Path, count: int, rounds: int) -> None:
    from latentmill.encoders.models import resolve
    from latentmill.encoders.vae import load_vae

    files = sorted((images).rglob("*.png"))[:count]
    pixels = np.stack([np.asarray(Image.open(path)) for path in files])
    batches = [to_input(pixels[start : start + 8], (-1.0, 1.0)) for start in range(0, count, 8)]
    vae = load_vae(resolve(model), torch.device("cpu"), torch.float32)
    torch.set_num_threads(os.cpu_count() or 1)

    def forwards() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                vae.encode(batch).latent_dist.parameters  # noqa: B018
        return time.perf_counter() - start

    def ours() -> float:
        result = latentmill.encode(images, work / f"latents-{name}", model_url=model, max_images=count, overwrite=True)
        return result.running_seconds

    ours()
    with torch.inference_mode():
        expected = vae.encode(batches[0]).latent_dist
        expected = torch.cat([expected.mean, expected.std], dim=1).numpy()
    stored = [np.load(path) for path in sorted((work / f"latents-{name}").rglob("*.npy"))[:8]]
    print(f"largest difference from the bare forward: {np.abs(np.stack(stored) - expected).max():.1e}")
    bare, whole = in_turn(forwards, ours, rounds)
    line(f"encode with {name}, bare forwards as ours, latentmill as theirs", bare, whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("convert", "mini", "sd"), help="only this one; sd takes minutes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_photos(work / "photos", args.photos)
        if args.only in (None, "convert"):
            convert_against_loop(work / "photos", work, args.rounds)
        images = work / "images"
        latentmill.convert(work / "photos", images, resolution="256x256", transform="center-crop-dhariwal")
        if args.only in (None, "mini"):
            encode_against_forwards("mini", "mini", images, work, min(args.photos, 160), args.rounds)
        if args.only in (None, "sd"):
            torch.manual_seed(0)
            AutoencoderKL(**SD_VAE).save_pretrained(work / "sd")
            encode_against_forwards("SD-sized", str(work / "sd"), images, work, 16, min(args.rounds, 3))


if __name__ == "__main__":
    main()
