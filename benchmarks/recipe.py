"""A recipe of pixels, two VAEs and a vision encoder, against its models' bare forwards and one decoding pass.

    python benchmarks/recipe.py [--photos 48] [--rounds 5] [--side 128] [--threads 2]

Both in one process, in turn, with the same threads: the recipe from its first batch to its last commit; the forwards
over the same batches as tensors that are ready, with the allocator's buffers kept as the recipe keeps them, and
reading and decoding each photo once. The forwards with PyTorch's own allocator are told too. Random weights of the real
sizes cost the time of real ones: an SD-sized VAE, the packaged mini VAE, and a DINOv2 of small width. What the recipe
stores is compared with the forwards, and with what a recipe of each output alone makes: a difference ends the run.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from encoding import BARE, KEPT, OURS, SAME, SD_VAE
from harness import (
    DifferentError,
    Section,
    Setting,
    Took,
    check_same_numbers,
    in_turn,
    inside,
    judged,
    ratios,
    spread,
    times,
    walls,
)
from photos import make_photos
from reference_loops import photos as jpegs
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from latentmill.decoding import decode
from latentmill.encoders import heap
from latentmill.encoders.vae import to_input
from latentmill.outcome import Result
from latentmill.recipe import Recipe
from latentmill.system import usable_cores
from latentmill.transforms.crop import CROPS

CROP = "center-crop-dhariwal"
BATCH = 8
MOST_ROUNDS = 2  # in `make bench`
GOAL = 1.10  # of the time of decoding and the forwards with buffers kept
DINO = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "patch_size": 14, "image_size": 224}


def make_models(folder: Path) -> None:
    """An SD-sized VAE and a small DINOv2 with the processor of the real one, in the hub's form."""
    torch.manual_seed(0)
    AutoencoderKL(**SD_VAE).save_pretrained(folder / "sd")
    Dinov2Model(Dinov2Config(**DINO)).save_pretrained(folder / "dino")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    size, crop = {"shortest_edge": 256}, {"height": 224, "width": 224}
    BitImageProcessorPil(size=size, crop_size=crop, image_mean=mean, image_std=std).save_pretrained(folder / "dino")


def outputs(work: Path, side: int) -> dict[str, dict[str, Any]]:
    images = {"transform": CROP, "resolution": f"{side}x{side}"}
    encoded = {**images, "batch_size": BATCH}
    return {
        "images": {"kind": "pixels", **images},
        "sd": {"kind": "latents", "model": str(work / "sd"), **encoded},
        "mini": {"kind": "latents", "model": "mini", **encoded},
        "dino": {"kind": "vision", "model": str(work / "dino"), **encoded},
    }


@dataclass(frozen=True)
class Bare:
    """Forwards of one output over tensors that are ready. forward: one batch of them to an array (B, ...)."""

    batches: list[torch.Tensor]
    forward: Callable[[torch.Tensor], torch.Tensor]

    def results(self) -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([self.forward(batch) for batch in self.batches]).numpy()


def bare_forwards(work: Path, files: list[Path], side: int, threads: int) -> dict[str, Bare]:
    """Each model, opened as the recipe opens it, with its inputs."""
    from latentmill.encoders.models import resolve
    from latentmill.encoders.vae import load_vae
    from latentmill.encoders.vision import vision_spec

    photos = [CROPS[CROP](decode(file.read_bytes())[0], side, side) for file in files]
    pixels = np.stack([photo for photo in photos if photo is not None])
    starts = range(0, len(pixels), BATCH)
    found = {}
    for name, model in (("sd", str(work / "sd")), ("mini", "mini")):
        vae = load_vae(resolve(model), torch.device("cpu"), torch.float32)
        inputs = [to_input(pixels[start : start + BATCH], (-1.0, 1.0)) for start in starts]
        found[name] = Bare(inputs, lambda batch, vae=vae: moments(vae, batch))
    spec, _ = vision_spec(
        str(work / "dino"), None, None, device="cpu", dtype="float32", tokens="patch", input="processor",
        save_dtype="float32", threads=threads,
    )  # fmt: skip
    resized = np.stack([spec.resize(photo) for photo in pixels])
    dino = spec.open().model
    inputs = [spec.rule.tensor(resized[start : start + BATCH], torch.device("cpu")) for start in starts]
    found["dino"] = Bare(inputs, lambda batch: dino(pixel_values=batch).last_hidden_state[:, 1:])
    return found


def moments(vae: Any, batch: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation, (B, 2C, h, w)."""
    posterior = vae.encode(batch).latent_dist
    return torch.cat([posterior.mean, posterior.std], dim=1)


def decoding_pass(files: list[Path]) -> None:
    """Read and decode each photo once, in as many threads as the recipe loads with."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(lambda file: decode(file.read_bytes())[0].shape, files):
            pass


def forwards(bare: dict[str, Bare], files: list[Path], kept: bool) -> Took:
    """Each model's forwards in turn, and the decoding pass. kept: with the allocator set as latentmill sets it."""

    def work() -> None:
        for each in bare.values():
            each.results()
        decoding_pass(files)

    if kept:
        heap.keep_buffers()
    try:
        return inside(work)
    finally:
        heap.give_back()


def make(photos: Path, dest: Path, chosen: dict[str, dict[str, Any]], threads: int) -> dict[str, Result]:
    return Recipe(photos, chosen, dest, {"overwrite": True, "threads": threads}).run()


def check_equal(work: Path, chosen: dict[str, dict[str, Any]], bare: dict[str, Bare], threads: int) -> None:
    """Raises DifferentError where stored numbers are not the forwards', or an output alone has other bytes."""
    for name, output in chosen.items():
        make(work / "photos", work / "alone", {name: output}, threads)
        if digests(work / "out" / name) != digests(work / "alone" / name):
            raise DifferentError(f"{name}: not the bytes that it has when it is made alone")
    for name, each in bare.items():
        stored = np.stack([np.load(file) for file in sorted((work / "out" / name).rglob("*.npy"))])
        check_same_numbers(stored, each.results(), SAME, name)


def digests(folder: Path) -> dict[str, str]:
    """Of every file but the report."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.endswith("report.json")]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def measured(work: Path, photos: int, side: int, threads: int, rounds: int) -> Section:
    make_photos(work / "photos", photos, grain=True)
    make_models(work)
    chosen, files = outputs(work, side), jpegs(work / "photos")
    make(work / "photos", work / "out", chosen, threads)
    torch.set_num_threads(threads)
    bare = bare_forwards(work, files, side, threads)
    check_equal(work, chosen, bare, threads)

    def ours() -> Took:
        seconds: list[float] = []

        def run() -> None:
            seconds.append(make(work / "photos", work / "out", chosen, threads)["sd"].running_seconds)

        cpu = inside(run).cpu
        torch.set_num_threads(threads)
        return Took(seconds[0], cpu)

    programs = {BARE: lambda: forwards(bare, files, False), KEPT: lambda: forwards(bare, files, True), OURS: ours}
    section = Section(
        f"Recipe of pixels, two VAEs and a vision encoder: {photos} photos at {side}x{side}, {threads} threads",
        f"every output has the bytes that it has alone, and differs from the forwards by at most {SAME:.0e} of the "
        "largest value",
        ("program", "seconds", "time over buffers kept", "goal"),
    )
    took = in_turn(programs, rounds)
    for name, each in took.items():
        over = ratios(walls(each), walls(took[KEPT]))
        goal = judged(over, GOAL) if name == OURS else ""
        section.add(name if name == OURS else f"decoding and {name}", spread(walls(each)), times(over), goal)
    section.notes.append("the recipe: from its first batch to its last commit; crops, PNGs and writing are in it")
    return section


def run(setting: Setting) -> Section:
    photos, rounds = setting.count(16, 8), min(setting.rounds, MOST_ROUNDS)
    return measured(setting.folder("recipe"), photos, 128, setting.workers, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=128, help="pixels of the crops")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of a forward")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        section = measured(Path(name), options.photos, options.side, options.threads, options.rounds)
        print(section.markdown())


if __name__ == "__main__":
    main()
