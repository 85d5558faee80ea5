"""Train a small text-to-image DiT on bucketed latents and text features, and draw what it makes of captions.

    python examples/train_t2i.py --data latentmill-demo/pixart

learns the demo's dozen photos by heart, on two CPU cores in under two minutes. The same program trains in earnest with
`--patch 2 --width 1152 --depth 28 --batch 64 --lr 1e-4 --ema 0.9999 --steps 500000 --workers 8`. The model is PixArt's
(arXiv 2310.00426), its flow matching that of Stable Diffusion 3 (2403.03206).
"""

from __future__ import annotations

import argparse
import math
from itertools import islice, pairwise
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pixel_shuffle, pixel_unshuffle, silu
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import latentmill
from latentmill.loaders import LatentDataset

HEAD_WIDTH, FREQUENCIES = 64, 256
CAPTION_DROPOUT, SAMPLING_STEPS, LOG_EVERY = 0.1, 40, 50
ROWS, COLUMNS, STRIP = 4, 4, 48  # of the picture: buckets, samples of each, pixels for a caption
Text = tuple[Tensor, Tensor]  # features (N, L, D), and where they are padding (N, L)


def sinusoids(values: Tensor, width: int) -> Tensor:
    """(...) -> (..., width): cosines and sines, in periods from 2 pi to 20,000 pi."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=values.device) / (width // 2))
    angles = values[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class Block(nn.Module):
    """Attention to the image, then to the text, then an MLP. Time shifts, scales and gates (adaLN-single)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.image, self.text = (nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True) for _ in "12")
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.table = nn.Parameter(torch.zeros(6, width))  # what a block adds to the modulation that all share

    def forward(self, x: Tensor, text: Tensor, padding: Tensor, shared: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (self.table + shared).chunk(6, 1)
        inner = self.norm(x) * (1 + scale) + shift
        x = x + gate * self.image(inner, inner, inner, need_weights=False)[0]
        # Padding is masked: else what a caption means would depend on how long the others of its batch are.
        x = x + self.text(x, text, text, key_padding_mask=padding, need_weights=False)[0]
        return x + mlp_gate * self.mlp(self.norm(x) * (1 + mlp_scale) + mlp_shift)


class DiT(nn.Module):
    """(N, C, h, w) of any bucket, times (N,), text (N, L, D) and its padding (N, L) -> velocities (N, C, h, w)."""

    def __init__(self, channels: int, text_width: int, width: int, depth: int, patch: int) -> None:
        super().__init__()
        self.patch, self.embed = patch, nn.Linear(channels * patch * patch, width)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))  # features have any size
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.modulation, self.norm = nn.Linear(width, 6 * width), nn.LayerNorm(width)
        self.last = nn.Linear(width, channels * patch * patch)
        # Zero: at first a block is almost the identity, and text is not heard. Deep models do not train well without.
        for layer in (*(block.text.out_proj for block in self.blocks), self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, times: Tensor, text: Tensor, padding: Tensor) -> Tensor:
        shared = self.modulation(silu(self.time(sinusoids(1000 * times, FREQUENCIES)))).unflatten(-1, (6, -1))
        text, x = self.text(text), pixel_unshuffle(x, self.patch)
        grid, x = x.shape[2:], self.embed(x.flatten(2).transpose(1, 2))
        sides = (torch.arange(side, device=x.device) - (side - 1) / 2 for side in grid)  # 0: the middle, in all buckets
        x = x + sinusoids(torch.cartesian_prod(*sides), x.shape[-1] // 2).flatten(1)
        for block in self.blocks:
            x = block(x, text, padding, shared)
        return pixel_shuffle(self.last(self.norm(x)).transpose(1, 2).unflatten(2, grid), self.patch)


def velocity_loss(model: DiT, latents: Tensor, text: Text, shift: float) -> Tensor:
    """Flow matching: x_t = (1 - t) x + t noise, whose dx_t/dt = noise - x is predicted.

    Times are logit-normal: near both ends the best guess is a mean, so the middle gets most of the work.
    """
    # More pixels show through the same noise. SD3's shift for that, s t / (1 + (s - 1) t), adds log(s) to the logit.
    times = (torch.randn(len(latents), device=latents.device) + math.log(shift)).sigmoid()
    t, noise = times.view(-1, 1, 1, 1), torch.randn_like(latents)
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
        predicted = model((1 - t) * latents + t * noise, times, *text)
    return mse_loss(predicted.float(), noise - latents)  # in float32: bfloat16 has three digits


@torch.no_grad()
def generate(model: DiT, x: Tensor, text: Text, empty: Text, args: argparse.Namespace) -> Tensor:
    """From noise at t = 1 to latents at t = 0 by Euler's method, away from what the empty caption would give."""
    steps = (torch.linspace(1, 0, SAMPLING_STEPS + 1).logit() + math.log(args.shift)).sigmoid()
    for now, then in pairwise(steps.tolist()):
        times = x.new_full((len(x),), now)
        free = model(x, times, *empty)
        x = x + (then - now) * (free + args.guidance * (model(x, times, *text) - free))
    return x


def text_of(batch: dict[str, dict[str, Tensor]], args: argparse.Namespace) -> Text:
    features, mask = (batch[part][args.caption].to(args.device) for part in ("text_features", "text_mask"))
    return features.float(), mask == 0


def train(model: DiT, dataset: LatentDataset, args: argparse.Namespace) -> DiT:
    """Train in place; gives the running average of the weights, which samples better than the last ones."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema))
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.01, fused=True)
    sampler = latentmill.BucketSampler(dataset, args.batch, seed=args.seed)  # a batch is of one bucket
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=latentmill.collate, num_workers=args.workers)
    step, losses = 0, []
    while step < args.steps:
        sampler.set_epoch(step // len(sampler))
        for batch in islice(loader, args.steps - step):
            step += 1
            loss = velocity_loss(model, batch["latent"].to(args.device), text_of(batch, args), args.shift)
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


def draw(model: DiT, dataset: LatentDataset, args: argparse.Namespace) -> None:
    """A line for each bucket: training images as the VAE gives them back, below them samples of their captions."""
    shown, empty = (latentmill.load(args.data, caption_dropout=share, posterior="mean") for share in (0.0, 1.0))
    buckets = np.unique(dataset.buckets, axis=0)[:ROWS]
    tops = [0, *np.cumsum(2 * buckets[:, 0] + STRIP).tolist()]
    picture = Image.new("RGB", (COLUMNS * int(buckets[:, 1].max()), tops[-1]), "white")
    for top, bucket in zip(tops, buckets.tolist(), strict=False):
        places = np.flatnonzero((dataset.buckets == bucket).all(axis=1))[:COLUMNS].tolist()
        batch, free = (latentmill.collate([each[place] for place in places]) for each in (shown, empty))
        noise = torch.randn(batch["latent"].shape, generator=torch.Generator().manual_seed(args.seed))
        made = generate(model, noise.to(args.device), text_of(batch, args), text_of(free, args), args)
        pixels = dataset.decode(torch.cat([batch["latent"], made.cpu()]), args.device)  # by the VAE that made it
        for column, caption in enumerate(batch["captions"][args.caption]):
            pair, left = np.concatenate(pixels[column :: len(places)]), column * bucket[1]
            picture.paste(Image.fromarray(pair), (left, top))
            ImageDraw.Draw(picture).text((left + 4, top + len(pair)), fill(caption, bucket[1] // 6), "black")
    picture.save(args.out / "samples.png")


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, default=argparse.SUPPRESS, help="a PixArt root: latents and text features")
    add("--caption", help="which of several captions or encoders; None is the first")
    add("--out", type=Path, default=Path("t2i"), help="folder for samples.png and ema.safetensors")
    add("--steps", type=int, default=1000, help="batches to train on")
    add("--batch", type=int, default=6, help="samples in a batch")
    add("--lr", type=float, default=2e-3, help="learning rate")
    add("--ema", type=float, default=0.99, help="decay of the average of the weights")
    add("--shift", type=float, default=1.0, help="of times towards noise; SD3 has 3 at 1024 pixels a side")
    add("--width", type=int, default=256, help=f"of a token; a multiple of {HEAD_WIDTH}")
    add("--depth", type=int, default=3, help="blocks")
    add("--patch", type=int, default=4, help="latent positions of a token's side")
    add("--guidance", type=float, default=2.0, help="1 is none")
    add("--workers", type=int, default=0, help="processes that load")
    add("--seed", type=int, default=0, help="of weights, order and noise")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of PyTorch")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    # New each time (seeded, in workers too): a draw from the posterior, now and then the empty caption, for guidance.
    dataset = latentmill.load(args.data, caption_dropout=CAPTION_DROPOUT)
    sample = dataset[0]
    args.caption = args.caption or next(iter(sample["text_features"]))
    channels, text_width = len(sample["latent"]), sample["text_features"][args.caption].shape[1]
    average = train(DiT(channels, text_width, args.width, args.depth, args.patch).to(args.device), dataset, args)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(average.state_dict(), args.out / "ema.safetensors")
    draw(average, dataset, args)


if __name__ == "__main__":
    main()
