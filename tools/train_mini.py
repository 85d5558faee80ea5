"""Train `mini`, the small f8c4 AutoencoderKL that latentmill ships for trying and testing.

    python tools/train_mini.py train --photos PHOTOS --check CHECK --work WORK [--steps N]
    python tools/train_mini.py export --check CHECK --work WORK --out src/latentmill/assets/mini

`train` keeps a checkpoint in WORK and goes on from it; a smaller `--steps` ends the learning-rate
schedule sooner. `export` writes the averaged weights as float16 safetensors in diffusers' own form,
with the scaling factor 1/std of the training photos' latents and the check photos' PSNR beside them.
The photos are any folder of freely licensed pictures; training_record.json tells which were used.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

WIDTHS = (16, 32, 64, 96)
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
EMA_DECAY = 0.999
KL_WEIGHT = 1e-6  # enough to keep the latents near unit scale; the posterior stays near-deterministic
INITIAL_LOG_VARIANCE = -8.0
# (share of the steps, crop side, batch): small crops first, since a step costs by its pixels
PHASES = ((0.35, 32, 16), (0.80, 64, 10), (1.0, 128, 4))


def build() -> AutoencoderKL:
    """The network: four levels, one residual layer each, no attention."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=256,
    )
    with torch.no_grad():
        vae.quant_conv.weight[4:].mul_(0.1)
        vae.quant_conv.bias[4:].fill_(INITIAL_LOG_VARIANCE)
    return vae


def load_photos(folder: Path, shorter_side: tuple[int, ...]) -> list[Image.Image]:
    """Every picture at each of the sizes; alpha is kept, to be laid over another picture."""
    photos = []
    for path in sorted(folder.iterdir()):
        image = Image.open(path)
        image = image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB")
        for side in shorter_side:
            scale = side / min(image.size)
            if scale <= 1.0:
                size = (max(128, round(image.width * scale)), max(128, round(image.height * scale)))
                photos.append(image.resize(size, Image.Resampling.BICUBIC))
            elif side == shorter_side[0]:
                photos.append(image.resize((max(128, image.width), max(128, image.height))))
    return photos


class Crops:
    """Random crops, flipped and with light colour changes: float32 NCHW -1..1."""

    def __init__(self, photos: list[Image.Image], seed: int) -> None:
        self.backgrounds = [np.asarray(p) for p in photos if p.mode == "RGB"]
        self.cutouts = [np.asarray(p) for p in photos if p.mode == "RGBA"]
        self.random = random.Random(seed)

    def _window(self, array: np.ndarray, side: int) -> np.ndarray:
        y = self.random.randrange(array.shape[0] - side + 1)
        x = self.random.randrange(array.shape[1] - side + 1)
        return array[y : y + side, x : x + side]

    def crop(self, side: int) -> np.ndarray:
        pick = self.random
        out = self._window(pick.choice(self.backgrounds), side).astype(np.float32)
        if self.cutouts and pick.random() < 0.3:
            over = self._window(pick.choice(self.cutouts), side).astype(np.float32)
            alpha = over[..., 3:] / 255
            out = over[..., :3] * alpha + out * (1 - alpha)
        if pick.random() < 0.5:
            out = out[:, ::-1]
        if pick.random() < 0.2:
            out = out.transpose(1, 0, 2)
        if pick.random() < 0.5:  # saturation, contrast and brightness
            grey = out.mean(axis=2, keepdims=True)
            out = grey + (out - grey) * pick.uniform(0.2, 1.3)
            out = 127 + (out - 127) * pick.uniform(0.7, 1.2) + pick.uniform(-25, 25)
        if pick.random() < 0.15:
            out = out[..., pick.sample(range(3), 3)]
        return np.clip(out, 0, 255)

    def batch(self, side: int, count: int) -> torch.Tensor:
        stack = np.stack([self.crop(side) for _ in range(count)])
        return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def square(path: Path, side: int = 256) -> torch.Tensor:
    """The centre of a picture, shorter side to `side`: float32 (3, side, side) -1..1."""
    image = Image.open(path).convert("RGB")
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    array = np.asarray(image.crop((left, top, left + side, top + side)))
    return torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous() / 127.5 - 1


@torch.no_grad()
def psnr(vae: AutoencoderKL, paths: list[Path]) -> dict[str, float]:
    """Per picture: PSNR in dB of decode(mean) at 256x256, rounded to 8 bits, against the 8-bit input."""
    result = {}
    for path in paths:
        pixels = square(path)[None]
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        decoded = ((decoded.clamp(-1, 1) + 1) * 127.5).round()
        error = (decoded - (pixels + 1) * 127.5).square().mean().item()
        result[path.name] = round(10 * math.log10(255**2 / max(error, 1e-3)), 2)
    return result


def learning_rate(step: int, steps: int) -> float:
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    return PEAK_LEARNING_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def loss_of(vae: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Root of each crop's squared error (mean PSNR weighs pictures by ratio, not by error), and KL."""
    posterior = vae.encode(pixels).latent_dist
    decoded = vae.decode(posterior.sample()).sample.float()
    squared = (decoded - pixels).square().mean(dim=(1, 2, 3))
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return (squared + 1e-4).sqrt().mean() + KL_WEIGHT * divergence, squared.mean().item()


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vae, average = build(), build()
    average.load_state_dict(vae.state_dict())
    optimizer = torch.optim.Adam(vae.parameters(), betas=(0.9, 0.99))
    step, seconds = 0, 0.0
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["vae"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    crops = Crops(load_photos(args.photos, (256, 400)), args.seed + step)
    checks = sorted(args.check.iterdir())
    print(f"{len(crops.backgrounds)} pictures, {len(crops.cutouts)} cut-outs, from step {step}", flush=True)
    start, squared_sum, since = time.monotonic(), 0.0, 0
    while step < args.steps:
        side, count = next((s, n) for share, s, n in PHASES if step < share * args.steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, squared = loss_of(vae, crops.batch(side, count))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, squared_sum, since = step + 1, squared_sum + squared, since + 1
        with torch.no_grad():
            decay = min(EMA_DECAY, (step + 1) / (step + 20))
            for kept, new in zip(average.parameters(), vae.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        if step % args.every == 0 or step == args.steps:
            elapsed = seconds + time.monotonic() - start
            state = {"vae": vae.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step, "seconds": elapsed}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            scores = psnr(average, checks)
            training = 10 * math.log10(4 / (squared_sum / since))
            mean = sum(scores.values()) / len(scores)
            print(f"step {step} {elapsed:.0f}s train {training:.2f} dB check {mean:.2f} dB", flush=True)
            squared_sum, since = 0.0, 0


def export(args: argparse.Namespace) -> None:
    state = torch.load(args.work / "checkpoint.pt", weights_only=True)
    vae = build()
    vae.load_state_dict(state["average"])
    with torch.no_grad():
        latents = [vae.encode(square(p)[None]).latent_dist.mean for p in sorted(args.photos.iterdir())]
    factor = round(1 / torch.cat(latents).std().item(), 4)
    vae.register_to_config(scaling_factor=factor)
    vae.half().save_pretrained(args.out)
    shipped = AutoencoderKL.from_pretrained(args.out, torch_dtype=torch.float32)
    scores = psnr(shipped, sorted(args.check.iterdir()))
    record = {
        "steps": state["step"],
        "hours": round(state["seconds"] / 3600, 2),
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "phases_share_side_batch": PHASES,
        "scaling_factor": factor,
        "check_psnr_db_mean": round(sum(scores.values()) / len(scores), 2),
        "check_psnr_db": scores,
        "trained_on": sorted(p.name for p in args.photos.iterdir()),
    }
    (args.out / "training_record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: record[k] for k in ("steps", "scaling_factor", "check_psnr_db_mean")}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("train", "export"))
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--check", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("src/latentmill/assets/mini"))
    parser.add_argument("--steps", type=int, default=30000)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"train": train, "export": export}[args.job](args)


if __name__ == "__main__":
    main()
