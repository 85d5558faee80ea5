"""Encoding, from the first batch to the last commit, against bare forwards of the same model over ready tensors.

The forwards run twice: as PyTorch has them by itself, and with the allocator's buffers kept as latentmill keeps them.
The goal is against the latter, so that what the allocator gains hides nothing of what latentmill costs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from converting import SETTINGS, SIDE, fresh, source_photos
from harness import (
    DifferentError,
    Section,
    Setting,
    Took,
    check_same_numbers,
    cpus,
    in_turn,
    inside,
    judged,
    process,
    ratios,
    spread,
    times,
    walls,
)
from reference_loops import photos as jpegs

from latentmill.encoders import heap

BATCH = 8
LARGE_COUNT = 16
SAME = 1e-5  # of the largest value
GOALS = {"SD-VAE": 1.02, "mini": 1.10}  # of the time of bare forwards with buffers kept
START_SECONDS = 3  # from the call to the first batch
BARE, KEPT, OURS = "bare forwards", "bare forwards, buffers kept", "latentmill"
# The shape of sd-vae-ft-mse: 84 million parameters. Random weights cost the same time.
SD_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
}


@dataclass(frozen=True)
class Bare:
    """A model with its batches, as tensors that are ready."""

    vae: Any
    batches: list[Any]

    def forwards(self) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            found = [self.vae.encode(batch).latent_dist for batch in self.batches]
            return [torch.cat([each.mean, each.std], dim=1).numpy() for each in found]

    def kept(self) -> Took:
        """The forwards' time with the allocator set as latentmill sets it, which is undone afterwards."""
        heap.keep_buffers()
        try:
            return inside(self.forwards)
        finally:
            heap.give_back()


def run(setting: Setting) -> list[Section]:
    import torch

    torch.set_num_threads(setting.workers)
    models = {"mini": ("mini", setting.count(160, 32), ("photos", "converted pixels"))}
    if not setting.quick:
        models["SD-VAE"] = (str(sd_model(setting.folder("models"))), LARGE_COUNT, ("photos",))
    section = Section(
        f"Encode at {SIDE}x{SIDE}, float32 on the CPU, {setting.workers} threads, batches of {BATCH}",
        f"latents differ from those of the bare forwards by at most {SAME:.0e} of the largest value",
        ("model", "source", "images", "program", "seconds", "time over buffers kept", "CPU over buffers kept", "goal"),
    )
    starts = starting_section()
    for name, (model, count, kinds) in models.items():
        photos, images = sources(setting, count)
        bare = bare_model(model, images)
        for kind in kinds:
            took = against(setting, bare, model, photos if kind == "photos" else images, kind)
            tell(section, (name, kind, f"{count}"), took, GOALS[name])
        del bare
        started(starts, setting, name, model, images)
    section.notes.append("SD-VAE: the architecture of sd-vae-ft-mse with random weights")
    section.notes.append("bare forwards over buffers kept: the allocator's gain, which latentmill has too")
    section.notes.append("latentmill's CPU counts decoding and cropping too, which the bare forwards do not do")
    return [section, starts]


def tell(section: Section, about: tuple[str, str, str], took: dict[str, list[Took]], most: float) -> None:
    kept = took[KEPT]
    for program, each in took.items():
        over = ratios(walls(each), walls(kept))
        goal = judged(over, most) if program == OURS else ""
        cpu = times(ratios(cpus(each), cpus(kept)))
        section.add(*about, program, spread(walls(each)), times(over), cpu, goal)


def starting_section() -> Section:
    section = Section(
        "From the call of encode to its first batch, in processes of their own",
        "the job stores a latent of every image",
        ("model", "imports, s", "model's load and all else before the first batch, s", "first batch to its commit, s",
         "goal"),
    )  # fmt: skip
    section.notes.append("before the first batch: listing, the model's load and digest; with the report at the end")
    return section


START = """
import json, sys, time
from pathlib import Path
begin = time.perf_counter()
import torch, latentmill
from diffusers import AutoencoderKL
imported = time.perf_counter() - begin
source, dest, model, batch, threads = sys.argv[1:]
some = {"batch_size": int(batch), "max_images": int(batch), "threads": int(threads)}
found = latentmill.encode(source, dest, model_url=model, **some)
told = [imported, found.seconds - found.running_seconds, found.running_seconds, found.stored]
Path(dest + ".json").write_text(json.dumps(told))
"""


def started(section: Section, setting: Setting, name: str, model: str, images: Path) -> None:
    """A job of one batch, with what PyTorch and diffusers take to import told apart."""
    dest, found = setting.folder("started") / "latents", []
    for _ in range(rounds := setting.count(3, 1)):
        process(sys.executable, "-c", START, images, fresh(dest), model, BATCH, setting.workers)
        found.append(json.loads(dest.with_name("latents.json").read_text()))
        if found[-1][-1] != BATCH:
            raise DifferentError(f"a job of {BATCH} images stored {found[-1][-1]}")
    section.rounds.add(rounds)
    imports, before, batch, _ = zip(*found, strict=True)
    section.add(name, spread(imports), spread(before), spread(batch), judged(before, START_SECONDS, " s"))


def sd_model(folder: Path) -> Path:
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(**SD_VAE).save_pretrained(folder / "sd")
    return folder / "sd"


def sources(setting: Setting, count: int) -> tuple[Path, Path]:
    """The first `count` photos, and what they are converted to."""
    import latentmill

    whole, _ = source_photos(setting)
    photos, images = setting.work / f"photos-{count}", setting.work / f"images-{count}"
    for number, path in enumerate(jpegs(whole)[:count]):
        target = photos / f"{number:06d}.jpg"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    latentmill.convert(photos, images, resolution=f"{SIDE}x{SIDE}", transform="center-crop-dhariwal")
    return photos, images


def bare_model(model: str, images: Path) -> Bare:
    import torch
    from PIL import Image

    from latentmill.encoders.models import resolve
    from latentmill.encoders.vae import load_vae, to_input

    files = sorted(images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in files])
    batches = [to_input(pixels[start : start + BATCH], (-1.0, 1.0)) for start in range(0, len(files), BATCH)]
    return Bare(load_vae(resolve(model), torch.device("cpu"), torch.float32), batches)


def against(setting: Setting, bare: Bare, model: str, source: Path, name: str) -> dict[str, list[Took]]:
    out = setting.folder("encoded") / "latents"
    more = {} if name != "photos" else dict(zip(("resolution", "transform"), _values(SETTINGS), strict=True))

    def ours() -> Took:
        return encode(source, out, model, setting.workers, more)

    ours()
    stored = np.stack([np.load(path) for path in sorted(out.rglob("*.npy"))])
    check_same_numbers(stored, np.concatenate(bare.forwards()), SAME, f"latents of {model} from {name}")
    programs: dict[str, Callable[[], Took]] = {BARE: lambda: inside(bare.forwards), KEPT: bare.kept, OURS: ours}
    return in_turn(programs, setting.rounds)


def _values(options: tuple[str, ...]) -> list[str]:
    return [option.partition("=")[2] for option in options]


def encode(source: Path, dest: Path, model: str, workers: int, more: dict[str, Any]) -> Took:
    """Wall from the first batch to the last commit; CPU of the same time, as far as progress tells it."""
    import time

    import latentmill
    from latentmill.outcome import Event

    ran: list[float] = []

    def tell(event: Event) -> None:
        if event.kind == "progress":
            ran.append(time.process_time())

    result = latentmill.encode(
        source, fresh(dest), model_url=model, batch_size=BATCH, threads=workers, tell=tell, **more
    )
    return Took(result.running_seconds, ran[-1] - ran[0])
