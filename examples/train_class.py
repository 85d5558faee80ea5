"""Train a small SiT on class-conditional latents, and draw what it makes of every class.

    python examples/train_class.py --data latentmill-demo/vae-mini

learns the demo's dozen photos by heart, on two CPU cores in under two minutes. A real run (SiT-B/2) is the same program
with `--patch 2 --width 768 --depth 12 --batch 256 --lr 1e-4 --ema 0.9999 --steps 400000 --workers 8`.

SiT: arXiv 2401.08740. Its blocks are DiT's, 2212.09748; guidance by a dropped label is of 2207.12598.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pixel_shuffle, pixel_unshuffle, silu
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, RandomSampler

import latentmill
from latentmill.loaders import LatentDataset

HEAD_WIDTH, FREQUENCIES = 64, 256
LABEL_DROPOUT, LOG_EVERY = 0.1, 50
ROWS, COLUMNS = 8, 4  # of the picture: classes, and samples of each


def sinusoids(values: Tensor, width: int) -> Tensor:
    """(...) -> (..., width): cosines and sines, in periods from 2 pi to 20,000 pi."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=values.device) / (width // 2))
    angles = values[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class Block(nn.Module):
    """Attention and MLP; the condition shifts and scales what goes in, and gates what comes out (adaLN)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)[:, None].chunk(6, -1)
        inner = self.norm(x) * (1 + scale) + shift
        x = x + gate * self.attention(inner, inner, inner, need_weights=False)[0]
        return x + mlp_gate * self.mlp(self.norm(x) * (1 + mlp_scale) + mlp_shift)


class SiT(nn.Module):
    """(N, C, h, w) at times (N,) with labels (N,) -> velocities (N, C, h, w). Label `no_class` stands for none."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, depth: int, patch: int) -> None:
        super().__init__()
        self.no_class, self.patch, self.grid = classes, patch, (shape[1] // patch, shape[2] // patch)
        self.embed = nn.Linear(shape[0] * patch * patch, width)
        places = torch.cartesian_prod(*(torch.arange(side) for side in self.grid))
        self.register_buffer("positions", sinusoids(places, width // 2).flatten(1), persistent=False)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation, self.last = nn.Linear(width, 2 * width), nn.Linear(width, shape[0] * patch * patch)
        nn.init.normal_(self.label.weight, std=0.02)
        # Zero: every gate is shut at first, so that a block is the identity. Deep models do not train well without.
        for layer in (*(block.modulation for block in self.blocks), self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        condition = silu(self.time(sinusoids(1000 * times, FREQUENCIES)) + self.label(labels))
        x = self.embed(pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        x = self.last(self.norm(x) * (1 + scale) + shift)
        return pixel_shuffle(x.transpose(1, 2).unflatten(2, self.grid), self.patch)


def velocity_loss(model: SiT, latents: Tensor, labels: Tensor) -> Tensor:
    """The linear interpolant x_t = (1 - t) x + t noise moves at dx_t/dt = noise - x: that is what the model predicts.

    Straight paths need few steps to follow; and the target is of one size at every t, so that the loss needs no
    weights, where predicting the noise is trivial at t = 1 and predicting x at t = 0.
    """
    times, noise = torch.rand(len(latents), device=latents.device), torch.randn_like(latents)
    t = times.view(-1, 1, 1, 1)
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
        predicted = model((1 - t) * latents + t * noise, times, labels)
    return mse_loss(predicted.float(), noise - latents)  # in float32: bfloat16 has three digits


@torch.no_grad()
def generate(model: SiT, noise: Tensor, labels: Tensor, steps: int, guidance: float) -> Tensor:
    """From noise at t = 1 to latents at t = 0 by Heun's method, two velocities a step."""

    def velocity(x: Tensor, t: float) -> Tensor:
        times = x.new_full((len(x),), t)
        free = model(x, times, torch.full_like(labels, model.no_class))
        return free + guidance * (model(x, times, labels) - free)

    x = noise
    for now, then in pairwise(torch.linspace(1, 0, steps + 1).tolist()):
        slope = velocity(x, now)
        x = x + (then - now) * (slope + velocity(x + (then - now) * slope, then)) / 2
    return x


def train(model: SiT, dataset: LatentDataset, args: argparse.Namespace) -> SiT:
    """Train in place; gives the running average of the weights, which samples better than the last ones."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema))
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.0, fused=True)
    # One pass of many permutations: no epochs, only full batches, and workers that live as long as the run. Its own
    # generator gives every model the same order; it also seeds the workers, which draw from the posteriors.
    order = torch.Generator().manual_seed(args.seed)
    sampler = RandomSampler(dataset, num_samples=args.steps * args.batch, generator=order)
    loader = DataLoader(dataset, args.batch, sampler=sampler, num_workers=args.workers, generator=order)
    losses: list[Tensor] = []
    for step, batch in enumerate(loader, 1):
        latents, labels = batch["latent"].to(args.device), batch["label"].to(args.device)
        # What has lost its label teaches the unconditional model, away from which guidance pushes.
        dropped = (torch.rand(len(labels), device=args.device) < LABEL_DROPOUT) | (labels < 0)
        loss = velocity_loss(model, latents, labels.masked_fill(dropped, model.no_class))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        average.update_parameters(model)
        losses.append(loss.detach())  # stays on the device: to read it at every step would be to wait for the GPU
        if step % LOG_EVERY == 0 or step == args.steps:
            print(f"step {step:6d}   loss {torch.stack(losses).mean():.4f}", flush=True)
            losses.clear()
    return average.module


def draw(model: SiT, dataset: LatentDataset, args: argparse.Namespace) -> None:
    """A line for each class: a training image as the VAE gives it back, the best to hope for, then the samples."""
    present, firsts = (found[:ROWS] for found in np.unique(dataset.labels, return_index=True))
    real = torch.stack([dataset[int(first)]["latent"] for first in firsts])
    labels = torch.from_numpy(np.where(present < 0, model.no_class, present)).repeat(COLUMNS)
    noise = torch.randn(len(labels), *real.shape[1:], generator=torch.Generator().manual_seed(args.seed))
    made = generate(model, noise.to(args.device), labels.to(args.device), args.sampling_steps, args.guidance)
    pixels = dataset.decode(torch.cat([real, made.cpu()]), args.device)  # by the VAE that made the dataset
    columns = [np.concatenate(pixels[start : start + len(real)]) for start in range(0, len(pixels), len(real))]
    Image.fromarray(np.concatenate(columns, axis=1)).save(args.out / "samples.png")
    names = [*(dataset.metadata.classes or range(model.no_class)), "no class"]
    print("lines of samples.png:", ", ".join(str(names[label]) for label in present))


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, default=argparse.SUPPRESS, help="latents: latentmill's folder or zip")
    add("--out", type=Path, default=Path("sit"), help="folder for samples.png and ema.safetensors")
    add("--steps", type=int, default=500, help="batches to train on")
    add("--batch", type=int, default=12, help="samples in a batch")
    add("--lr", type=float, default=2e-3, help="learning rate")
    add("--ema", type=float, default=0.99, help="decay of the average of the weights")
    add("--width", type=int, default=256, help=f"of a token; a multiple of {HEAD_WIDTH}")
    add("--depth", type=int, default=3, help="blocks")
    add("--patch", type=int, default=4, help="latent positions of a token's side")
    add("--sampling-steps", type=int, default=20, help="steps of Heun's method")
    add("--guidance", type=float, default=2.0, help="1 is none")
    add("--workers", type=int, default=0, help="processes that load")
    add("--seed", type=int, default=0, help="of weights, order and noise")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of PyTorch")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    # "factor" brings latents to about the noise's deviation of 1: else t would mean another share of noise.
    dataset = latentmill.load(args.data, normalize="factor", posterior="sample")
    shape, classes = dataset[0]["latent"].shape, int(dataset.labels.max()) + 1
    print(f"{len(dataset):,} latents {tuple(shape)}, {classes:,} classes", flush=True)
    model = SiT(shape, classes, args.width, args.depth, args.patch).to(args.device)
    average = train(model, dataset, args)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(average.state_dict(), args.out / "ema.safetensors")
    draw(average, dataset, args)


if __name__ == "__main__":
    main()
