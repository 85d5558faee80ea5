"""Encoding, from the first batch to the last commit, against bare forwards of the same model over ready tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from converting import SETTINGS, SIDE, fresh, source_photos
from harness import Section, Setting, Took, check_same_numbers, cpus, in_turn, inside, ratios, spread, times, walls

BATCH = 8
MOST_ROUNDS = 3  # of the large model, which takes minutes
SAME = 1e-5  # of the largest value
GOALS = {"SD-VAE": "at most 1.02x", "mini": "at most 1.10x"}
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


def run(setting: Setting) -> Section:
    import torch

    torch.set_num_threads(setting.workers)
    models = {"mini": ("mini", setting.count(160, 32))}
    if not setting.quick:
        models["SD-VAE"] = (str(sd_model(setting.folder("models"))), 16)
    section = Section(
        f"Encode at {SIDE}x{SIDE}, float32 on the CPU, {setting.workers} threads, batches of {BATCH}",
        f"latents differ from those of the bare forwards by at most {SAME:.0e} of the largest value",
        ("model", "source", "images", "bare forwards, s", "latentmill, s", "time over bare", "CPU over bare", "goal"),
    )
    for name, (model, count) in models.items():
        photos, images = sources(setting, count)
        bare = bare_model(model, images)
        for source in ("photos", "converted pixels"):
            took = against(setting, bare, model, photos if source == "photos" else images, source)
            mine, theirs = took["ours"], took["bare"]
            section.add(
                name, source, f"{count}", spread(walls(theirs)), spread(walls(mine)),
                times(ratios(walls(mine), walls(theirs))), times(ratios(cpus(mine), cpus(theirs))), GOALS[name],
            )  # fmt: skip
    section.notes.append("SD-VAE: the architecture of sd-vae-ft-mse with random weights")
    section.notes.append("CPU over bare counts decoding and cropping too, which the bare forwards do not do")
    return section


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
    for number, path in enumerate(sorted(whole.rglob("*.jpg"))[:count]):
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
    programs: dict[str, Callable[[], Took]] = {"bare": lambda: inside(bare.forwards), "ours": ours}
    return in_turn(programs, min(setting.rounds, MOST_ROUNDS) if model != "mini" else setting.rounds)


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
