"""The demo: everything that latentmill does, on a dozen real photos and the embedded model, without a download."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from latentmill import api
from latentmill.decoding import decode
from latentmill.demo_captions import captioned_half
from latentmill.drawing import INK, PAPER, SOFT, font, thumbnail
from latentmill.errors import DestinationError, LatentmillError, SettingsChangedError
from latentmill.files import write_errors
from latentmill.formats.metadata import index_rows
from latentmill.formats.payload import png_pixels
from latentmill.formats.reader import Reader
from latentmill.outcome import Result
from latentmill.registry import MINI
from latentmill.report.metrics import psnr
from latentmill.verification import verify

_RESOLUTION, _TRANSFORM = "256x256", "center-crop-dhariwal"
_CELL, _GAP, _MARGIN, _TITLE = 192, 6, 16, 22
_COLUMNS = ("original", "crop", "reconstruction")
_GROUPS = 2  # photos beside each other in the picture


def run(dest: Path, say: Callable[[str], None]) -> None:
    """Convert, encode with `mini`, decode, verify and load the packaged photos into `dest`, and draw what came of it.

    Raises LatentmillError, also when the result does not verify.
    """
    photos, images, latents, decoded = (dest / name for name in ("photos", "images", "vae-mini", "decoded"))
    _copy_photos(photos)
    say(f"[bold]1. convert[/]  {photos} → {images}")
    _made(api.convert, photos, images, resolution=_RESOLUTION, transform=_TRANSFORM)
    say(f"[bold]2. encode[/]   {images} → {latents} with mini, a small VAE for trying and testing only")
    _made(api.encode, images, latents, model_url=MINI)
    say(f"[bold]3. verify[/]   {latents} against {images}")
    report = verify(latents, images)
    if report.problems:
        raise LatentmillError(f"the demo's result does not verify: {report.problems[0]}")
    say(f"            sound: {report.files} files, {report.summary}")
    say(f"[bold]4. load[/]     {_load_line(latents, images)}")
    say(f"[bold]5. decode[/]   {latents} → {decoded}")
    _made(api.decode, latents, decoded)
    picture = dest / "demo.png"
    mean_psnr = _draw(photos, images, decoded, picture)
    say(f"            mean PSNR of the reconstructions: {mean_psnr:.1f} dB")
    say("\nThe same photos with captions, for a text-to-image trainer:")
    batch = dest / "batch.png"
    captioned_half(photos, dest / "pixart", batch, say)
    say(f"\nThe pictures: [bold]{picture}[/]   (original, what the model is fed, what comes back from the latents)")
    say(f"              [bold]{batch}[/]   (a batch of one bucket, as a trainer gets it, with its captions)")
    say(
        "\nOn your own photos, with the VAE that REPA, SiT and DiT use:\n"
        "  latentmill convert --source PHOTOS --dest data/images --resolution 256x256 "
        "--transform center-crop-dhariwal\n"
        "  latentmill encode --source data/images --dest data/vae-sd\n"
        "On captioned photos, with PixArt-Sigma's VAE and T5:\n"
        "  latentmill import PHOTOS data\n"
        "  latentmill pixart --data-info data/InternData/data_info.json --dest data/InternData --multi-scale"
    )


def _made(command: Callable[..., Result], source: Path, dest: Path, **settings: str) -> None:
    """Run a command; what an earlier version of a library or of `mini` made is made anew."""
    try:
        command(source, dest, **settings)
    except SettingsChangedError:
        command(source, dest, overwrite=True, **settings)


def _copy_photos(dest: Path) -> None:
    """The packaged photos, as a person's own folder would be."""
    if dest.exists() and not dest.is_dir():
        raise DestinationError(f"{dest} is not a folder")
    with as_file(files("latentmill") / "assets" / "photos") as source, write_errors(dest):
        for path in sorted(source.rglob("*")):
            if path.is_file():
                target = dest / path.relative_to(source)
                if not target.exists() or target.read_bytes() != path.read_bytes():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())


def _load_line(latents: Path, images: Path) -> str:
    from latentmill.loaders import load

    dataset = load(latents, images)
    sample = dataset[0]
    shapes = ", ".join(f"{name} {tuple(sample[name].shape)}" for name in ("moments", "latent", "image"))
    return f"{len(dataset)} samples of {shapes}, label {sample['label']}, key {sample['key']}"


def _draw(photos: Path, images: Path, decoded: Path, dest: Path) -> float:
    """Original, crop and reconstruction of every photo, side by side; gives the mean PSNR in dB."""
    rows = [row for row in index_rows(images) if "name" in row]
    title, label = font(16), font(12)
    group = len(_COLUMNS) * (_CELL + _GAP) + _MARGIN
    lines = -(-len(rows) // _GROUPS)
    size = (_MARGIN + _GROUPS * group, 2 * _MARGIN + _TITLE + lines * (_CELL + _TITLE))
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    for left in range(_GROUPS):
        for column, name in enumerate(_COLUMNS):
            pen.text((_MARGIN + left * group + column * (_CELL + _GAP), _MARGIN - 4), name, INK, title)
    psnrs = []
    source, result = Reader(images), Reader(decoded)
    for position, row in enumerate(rows):
        x = _MARGIN + (position % _GROUPS) * group
        y = _MARGIN + _TITLE + (position // _GROUPS) * (_CELL + _TITLE)
        original, _ = decode((photos / row["key"]).read_bytes())
        crop, back = (png_pixels(reader.read(row["name"])) for reader in (source, result))
        psnrs.append(psnr(crop, back))
        for column, pixels in enumerate((original, crop, back)):
            canvas.paste(thumbnail(pixels, _CELL), (x + column * (_CELL + _GAP), y))
        pen.text((x, y + _CELL + 2), f"{row['key']}   {psnrs[-1]:.1f} dB", SOFT, label)
    with write_errors(dest):
        canvas.save(dest)
    return float(np.mean(psnrs))
