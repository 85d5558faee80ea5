"""A first recipe for a source: what lies there is looked at, and a recipe with comments written, to be edited."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentmill.config import PixelSettings, validated
from latentmill.errors import DestinationError
from latentmill.estimate import probe_sizes
from latentmill.files import counted, replace_text
from latentmill.outputs.shared import Shared
from latentmill.sources.caption_files import TABLES
from latentmill.sources.captioned import CaptionedSet, captioned

_PROBE_ROWS = 2000


@dataclass(frozen=True)
class Look:
    """What was seen of a source. sizes: (width, height) of a few images. captions: by name, how many rows have them."""

    images: int
    classes: int
    sizes: list[tuple[int, int]]
    captions: dict[str, int]

    @property
    def shape(self) -> str:
        """For a person."""
        if not self.sizes:
            return "of sizes that cannot be read"
        low, high = min(self.sizes, key=_area), max(self.sizes, key=_area)
        if low == high:
            return f"of {low[0]}x{low[1]}"
        return f"from {low[0]}x{low[1]} to {high[0]}x{high[1]} (of {len(self.sizes)} looked at)"

    @property
    def side(self) -> int:
        """The largest of the usual resolutions that most of the images looked at have pixels for; 256 at least."""
        shorter = sorted(min(size) for size in self.sizes) or [256]
        middle = shorter[len(shorter) // 2]
        return max([side for side in (256, 512, 1024) if side <= middle], default=256)


def write_recipe(source: Path, dest: Path) -> list[str]:
    """Write a recipe; gives what was seen, a line each. Raises SourceError; DestinationError where `dest` exists."""
    if dest.exists():
        raise DestinationError(f"{dest} is there already: give another file (--out), or remove it")
    look = look_at(source)
    replace_text(dest, recipe_text(source, dest, look))
    lines = [f"{source}: {counted(look.images, 'images')} {look.shape}"]
    if look.classes:
        lines.append(f"{look.classes:,} classes")
    lines += [f"captions {name!r}: {count:,} of {look.images:,}" for name, count in look.captions.items()]
    return lines


def look_at(source: Path) -> Look:
    """See what a source holds. Raises SourceError."""
    shared, chosen = Shared(), validated(PixelSettings, {"source": source, "dest": source})
    images, listing = shared.numbered_images(chosen, numbering=False)
    return Look(listing.count, len(listing.classes or ()), probe_sizes(images, listing), _captions(source))


def _captions(source: Path) -> dict[str, int]:
    if not source.is_dir() and source.suffix.lower() not in TABLES:
        return {}
    found: CaptionedSet = captioned(source, needs_images=False)
    seen: Counter[str] = Counter(name for row in found.rows for name in row.captions)
    return {name: seen[name] for name in found.names if seen[name]}


def recipe_text(source: Path, dest: Path, look: Look) -> str:
    """The recipe: outputs of pixels and latents, of text features where there are captions; others as comments."""
    path = os.path.relpath(source, dest.parent) if not source.is_absolute() else str(source)
    parts = [_HEAD.format(shape=look.shape, images=f"{look.images:,}", path=json.dumps(path, ensure_ascii=False))]
    side = look.side
    parts.append(_captioned(look, side) if look.captions else _CLASSES.format(side=side))
    return "\n".join(parts)


def _captioned(look: Look, side: int) -> str:
    label = next(iter(look.captions))
    others = [name for name in look.captions if name != label]
    missing = look.images - look.captions[label]
    return _CAPTIONS.format(
        side=side,
        label=json.dumps(label, ensure_ascii=False),
        others=f"    # there are also: {', '.join(others)}" if others else "",
        missing=(
            f"# {missing:,} images have no caption, and would be rejects of the text. To give them the empty one, add\n"
            '# to [source]: missing_caption = "empty"\n'
            if missing
            else ""
        ),
    )


def _area(size: Sequence[int]) -> int:
    return size[0] * size[1]


_HEAD = """\
# {images} images {shape}.
# `latentmill plan` shows what this recipe would do, `latentmill run` does it. Paths are relative to this file.

dest = "data"                      # every output becomes a folder here, of its name or `path`

[source]
path = {path}
# exif = "apply"                   # turn photos upright that their camera says are turned; default: as stored
# alpha = "white"                  # what lies behind transparent pixels; default: transparency is dropped
# max_images = 100                 # a trial

[run]
# device = "cuda"                  # default: the GPU where there is one
# max_failures = "10%"             # stop when more images than this cannot be used
"""

_CLASSES = """\
# Cropped pixels, as EDM2 and REPA trainers read them.
[outputs.images]
kind = "pixels"
transform = "center-crop-dhariwal" # the crop of ADM and DiT
resolution = "{side}x{side}"

# Latents of a VAE, in the same pass: mean and deviation, of which a trainer draws a fresh sample every time.
[outputs.vae-sd]
kind = "latents"
model = "sd-vae-ft-mse"            # `latentmill models` lists others; "mini" needs no download, for trying only
transform = "center-crop-dhariwal"
resolution = "{side}x{side}"
# flip = "both"                    # the mirrored images too, in vae-sd-flip
# dtype = "bfloat16"               # on a GPU

# Features of a vision encoder, for REPA's alignment loss.
# [outputs.dinov2]
# kind = "vision"
# model = "dinov2-vitb14"
# input = "repa"                   # resized as REPA does, so that patches lie where the latents' do
# save_dtype = "float16"
# transform = "center-crop-dhariwal"
# resolution = "{side}x{side}"
"""

_CAPTIONS = """\
# Latents in aspect buckets, named by the images' paths, as PixArt-Sigma reads them.
[outputs.latents]
kind = "latents"
layout = "pixart"
model = "sdxl-vae-fp16-fix"        # `latentmill models` lists others; "mini" needs no download, for trying only
resolution = {side}
multi_scale = true                 # aspect buckets; without it, squares
buckets = "grid"                   # or "reference" (PixArt's own), "auto:12" (fitted to these images)
fit = "cover"                      # scaled to cover the bucket and cropped; PixArt's own is "stretch"
# flip = "both"                    # the mirrored images too, in latents-flip
# dtype = "bfloat16"               # on a GPU

{missing}# Text features of the captions, trimmed to their real tokens, and of the empty caption.
[outputs.text]
kind = "text"
model = "pixart-sigma-t5"          # or a set, an output for each of its encoders: "sd3", "flux.1", "sana", "qwen-image"
label = {label}{others}
"""
