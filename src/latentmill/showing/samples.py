"""A sample as a person looks at it: its pictures and figures, in a notebook, as one picture, or as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from latentmill.drawing import INK, PAPER, SOFT, font
from latentmill.errors import ConfigError, LatentmillError
from latentmill.formats.metadata import READ_ERRORS
from latentmill.records import Array
from latentmill.report.pictures import picture
from latentmill.showing.colours import Colours, directions
from latentmill.showing.display import displayed
from latentmill.showing.page import Figure, facts, grid, page
from latentmill.wording import printable

if TYPE_CHECKING:
    from latentmill.loaders_sample import Sample

_SIDE = 256  # CSS pixels of a picture's width
_ENCODED = 512  # pixels of a picture's longest side, at most
_GAP, _MARGIN, _LINE, _CHARACTER = 10, 14, 18, 7.2
_SIZES = ("size", "bucket")
_LONGEST_VALUE = 100  # characters, in text
_UNREADABLE = (*READ_ERRORS, LatentmillError, KeyError, ValueError)


class View(NamedTuple):
    """One picture of a sample. pixels: uint8 HWC. small: a latent's, which is enlarged without blurring."""

    title: str
    pixels: Array
    small: bool = False


def views(sample: Sample, decode: bool = False, device: str = "auto") -> list[View]:
    """The image, the latent's channels as colours, and what the VAE makes of it where asked. Raises as `show`."""
    found = []
    if "image" in sample:
        found.append(View("image", np.moveaxis(sample["image"].numpy(), 0, -1)))
    found.append(latent_view(sample))
    if decode:
        if sample.origin is None:
            raise ConfigError("decode=True is for samples that a dataset gave. Found: a Sample made by hand")
        found.append(View("decoded", sample.origin.decode(sample["latent"][None], device)[0]))
    return found


def latent_view(sample: Sample) -> View:
    """The latent with its channels as colours; where the dataset cannot be read any more, by itself alone."""
    origin, latent = sample.origin, sample["latent"].detach().cpu().float()
    z = latent if origin is None else origin.affine.undo(latent)
    colours: Colours | None = None
    if origin is not None:
        try:
            colours = origin.colours
        except _UNREADABLE:
            colours = None
    colours = colours or directions([z.numpy()])
    return View(f"latent {_sides(z.shape)}: {colours.how}", colours.pixels(z.numpy()), small=True)


def show(sample: Sample, decode: bool, device: str) -> Image.Image | None:
    """See `Sample.show`."""
    if "latent" not in sample:
        raise ConfigError(f"a sample is shown by its latent. Found: {', '.join(sample) or 'nothing'}")
    found = views(sample, decode, device)
    return None if displayed(_html(sample, found)) else _drawn(sample, found)


def sample_html(sample: Sample) -> str:
    """The sample as a notebook displays it."""
    return _html(sample, views(sample) if "latent" in sample else [])


def sample_text(sample: Sample) -> str:
    """Names and what they hold, a line each."""
    rows = list(_values(sample))
    wide = max((len(name) for name, _ in rows), default=0)
    return "\n".join([f"Sample{_from(sample)}", *(f"  {name:<{wide}}  {value}" for name, value in rows)])


def _html(sample: Sample, found: list[View]) -> str:
    key = str(sample.get("key", ""))
    shown = {name: value for name, value in _values(sample, cut=False) if name != "key"}
    return page("Sample", f"{key}{_from(sample)}", grid(figure_of(view, key, _SIDE) for view in found), facts(shown))


def figure_of(view: View, of: str, width: int, caption: str | None = None) -> Figure:
    """A view in a grid. of: what it shows, for who cannot see it."""
    alt = f"{view.title.partition(':')[0]} of {of}"
    encoded = picture(view.pixels, alt, None, media="image/png") if view.small else picture(view.pixels, alt, 2 * width)
    shown = width if view.small else min(width, max(encoded.width, 48))
    return Figure(encoded, view.title if caption is None else caption, shown, view.small)


def _from(sample: Sample) -> str:
    return f" of {sample.origin.latents.name}" if sample.origin is not None else ""


def _values(sample: Sample, cut: bool = True) -> Iterator[tuple[str, str]]:
    for name, value in sample.items():
        if name == "label" and isinstance(value, int):
            called = sample.origin.label_name(value) if sample.origin is not None else ""
            yield name, f"{value}" + (f" ({printable(called)})" if called not in ("", str(value)) else "")
        elif name in _SIZES and isinstance(value, torch.Tensor) and value.shape == (2,):
            yield name, f"{value[0]} x {value[1]} (height x width)"
        elif name == "crop" and isinstance(value, torch.Tensor) and value.shape == (4,):
            yield name, "top {}, left {}, bottom {}, right {} of the scaled image".format(*value.tolist())
        elif isinstance(value, Mapping):
            for inner, one in value.items():
                yield f"{name}[{inner!r}]", _told(one, cut)
        else:
            yield name, _told(value, cut)


def _told(value: Any, cut: bool) -> str:
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    told = printable(str(value))
    return textwrap.shorten(told, _LONGEST_VALUE, placeholder=" …") if cut else told


def _tensor(value: torch.Tensor) -> str:
    """Short ones whole; of others the dtype and shape, and how numbers are spread."""
    if value.ndim <= 1 and value.numel() <= 8 and not value.is_floating_point():
        return ", ".join(map(str, value.tolist()))
    told = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if value.is_floating_point() and value.numel() > 1:
        told += f", mean {value.float().mean():.3g}, deviation {value.float().std():.3g}"
    return told


def _sides(shape: torch.Size) -> str:
    return "x".join(map(str, shape))


def drawn(titled: list[tuple[list[str], View]], side: int, columns: int) -> Image.Image:
    """Views beside and below each other, with lines of text under each, on paper."""
    wide = int(side / _CHARACTER)
    texts = [[part for line in lines for part in textwrap.wrap(line, wide) or [""]][:6] for lines, _ in titled]
    cells = [_cell(view, side) for _, view in titled]
    columns = min(columns, len(cells))
    rows = [range(start, min(start + columns, len(cells))) for start in range(0, len(cells), columns)]
    heights = [max(cells[i].height + _LINE * len(texts[i]) for i in row) + _GAP for row in rows]
    canvas = Image.new("RGB", (2 * _MARGIN + columns * (side + _GAP) - _GAP, 2 * _MARGIN + sum(heights)), PAPER)
    pen, top = ImageDraw.Draw(canvas), _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = _MARGIN + column * (side + _GAP)
            canvas.paste(cells[i], (left, top))
            for number, line in enumerate(texts[i]):
                pen.text((left, top + cells[i].height + 3 + number * _LINE), line, SOFT if number else INK, font(12))
        top += height
    return canvas


def _cell(view: View, side: int) -> Image.Image:
    image = Image.fromarray(view.pixels)
    scale = side / max(image.size)
    how = Image.Resampling.NEAREST if view.small else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)


def _drawn(sample: Sample, found: list[View]) -> Image.Image:
    """The views in a row, and below them the sample's figures."""
    row = drawn([([view.title], view) for view in found], _SIDE, len(found))
    wide = int((row.width - 2 * _MARGIN) / _CHARACTER)
    lines = [part for name, value in _values(sample) for part in textwrap.wrap(f"{name}: {value}", max(wide, 20))]
    canvas = Image.new("RGB", (row.width, row.height + len(lines) * _LINE + _MARGIN), PAPER)
    canvas.paste(row, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, row.height + number * _LINE), line, INK, font(12))
    return canvas
