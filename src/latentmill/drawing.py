"""What the demo's pictures are drawn with."""

from __future__ import annotations

from PIL import Image, ImageFont

from latentmill.records import Array

INK, PAPER, SOFT = (32, 32, 36), (250, 250, 248), (110, 110, 116)


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own."""
    return ImageFont.load_default(size)


def thumbnail(pixels: Array, side: int) -> Image.Image:
    """The whole of uint8 HWC pixels on a square of paper."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
