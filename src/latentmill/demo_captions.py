"""The demo's second half: captioned photos through import, buckets, `mini` VAE and text encoder, to a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from latentmill.decoding import decode
from latentmill.drawing import INK, PAPER, SOFT, font, thumbnail
from latentmill.errors import LatentmillError, SettingsChangedError
from latentmill.features import Features, pixart
from latentmill.files import write_errors
from latentmill.importing import import_captioned
from latentmill.records import Array
from latentmill.registry import MINI
from latentmill.report.pictures import Box, shaded
from latentmill.sources.folders import DATA_FOLDER, DATA_INFO, IMAGE_FOLDER
from latentmill.verification import verify

_RESOLUTION, _BUCKETS, _FIT = 256, "auto:3:32", "cover"
_LABEL = "prompt"
_BATCH_SIZE, _SEED = 4, 3
_CELL, _GAP, _MARGIN, _TITLE, _LINE = 240, 8, 16, 24, 15
_CAPTION_WIDTH, _CAPTION_LINES = 52, 3


def captioned_half(photos: Path, dest: Path, picture: Path, say: Callable[[str], None]) -> None:
    """Import, encode, verify, load and batch the photos and their captions in `dest`; draw one batch.

    Raises LatentmillError, also when a result does not verify.
    """
    data = dest / DATA_FOLDER
    say(f"[bold]6. import[/]   {photos} → {dest}")
    imported = import_captioned(photos, dest, link="copy")
    say(f"            {imported.stored} images with captions named {', '.join(imported.names)}")
    say(f"[bold]7. pixart[/]   {data / DATA_INFO}: 3 buckets fitted to the photos; mini's VAE, and a text encoder")
    say("            with random weights, which knows nothing and is for trying and testing only")
    made = _made(data)
    assert made.images is not None
    say(f"[bold]8. verify[/]   {made.images.dest} and {made.text[_LABEL].dest}")
    for folder in (made.images.dest, made.text[_LABEL].dest):
        report = verify(folder)
        if report.problems:
            raise LatentmillError(f"the demo's result does not verify: {report.problems[0]}")
        say(f"            sound: {report.kind}, {report.files} files")
    dataset, batch, count = _batch(made)
    shapes = f"latent {tuple(batch['latent'].shape)}, text {tuple(batch['text_features'][_LABEL].shape)}"
    say(f"[bold]9. batch[/]    one of {count} that BucketSampler makes of {len(dataset)} samples: {shapes}")
    _draw(dest / IMAGE_FOLDER, batch, np.stack(dataset.decode(batch["latent"], "cpu")), picture)


def _made(data: Path) -> Features:
    """Both jobs; what an earlier version of a library or of `mini` made is made anew."""
    run = partial(
        pixart, data / DATA_INFO, data, vae=MINI, text_encoder=MINI, resolution=_RESOLUTION, multi_scale=True,
        buckets=_BUCKETS, fit=_FIT, caption_label=_LABEL,
    )  # fmt: skip
    try:
        return run()
    except SettingsChangedError:
        return run(overwrite=True)


def _batch(made: Features) -> tuple[Any, dict[str, Any], int]:
    """The dataset, one of the batches that a sampler draws from it, and how many there are."""
    from torch.utils.data import DataLoader

    from latentmill.loaders import collate, load
    from latentmill.sampling import BucketSampler

    assert made.images is not None
    dataset = load(made.images.dest, text=made.text[_LABEL].dest, posterior="mean")
    sampler = BucketSampler(dataset, _BATCH_SIZE, seed=_SEED)
    batches = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate))
    return dataset, max(batches, key=_telling), len(batches)


def _telling(batch: dict[str, Any]) -> tuple[int, bool]:
    """A full batch shows most, and of a bucket that is no square."""
    height, width = batch["bucket"][0].tolist()
    return len(batch["key"]), height != width


def _draw(images: Path, batch: dict[str, Any], decoded: Array, dest: Path) -> None:
    """One line a sample: the original with what is cropped away shaded, what the latents hold, the caption."""
    text_x = _MARGIN + 2 * (_CELL + _GAP) + _GAP
    height = _MARGIN + _TITLE + len(decoded) * (_CELL + _GAP) + _MARGIN
    canvas = Image.new("RGB", (text_x + 420, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, name in enumerate(("original, cut-away shaded", "from the latents")):
        pen.text((_MARGIN + column * (_CELL + _GAP), _MARGIN - 6), name, INK, font(15))
    pen.text((text_x, _MARGIN - 6), "caption", INK, font(15))
    for row, pixels in enumerate(decoded):
        y = _MARGIN + _TITLE + row * (_CELL + _GAP)
        original, _ = decode((images / batch["key"][row]).read_bytes())
        box = _shown(original, batch["crop"][row].tolist(), batch["bucket"][row].tolist())
        canvas.paste(thumbnail(shaded(original, box), _CELL), (_MARGIN, y))
        canvas.paste(thumbnail(pixels, _CELL), (_MARGIN + _CELL + _GAP, y))
        lines = wrap(batch["captions"][_LABEL][row], _CAPTION_WIDTH)[:_CAPTION_LINES]
        tokens, (high, wide), size = (
            int(batch["text_mask"][_LABEL][row].sum()), batch["bucket"][row].tolist(), batch["size"][row].tolist(),
        )  # fmt: skip
        facts = [f"{batch['key'][row]}", f"{size[1]}x{size[0]} to bucket {wide}x{high}, {tokens} tokens"]
        for number, line in enumerate(lines):
            pen.text((text_x, y + 80 + number * (_LINE + 4)), line, INK, font(14))
        for number, line in enumerate(facts):
            pen.text((text_x, y + 88 + len(lines) * (_LINE + 4) + number * _LINE), line, SOFT, font(12))
    with write_errors(dest):
        canvas.save(dest)


def _shown(pixels: Array, crop: list[int], bucket: list[int]) -> Box:
    """The part of the photo that the crop (of the photo scaled to cover the bucket) keeps."""
    height, width = pixels.shape[:2]
    scale = max(bucket[0] / height, bucket[1] / width)
    top, left, bottom, right = (round(side / scale) for side in crop)
    return top, left, bottom, right
