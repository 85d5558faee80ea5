"""One image with its captions, as a captioned source tells it, and the policy for a caption that is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from latentmill.errors import SampleError

Missing = Literal["reject", "empty"]
PROMPT = "prompt"  # the name of an image's only caption
NOT_UTF8 = "not UTF-8 text"


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """key: path of the image relative to the images' root, `/` between parts, as the source says it.

    captions: raw texts by name; a name without a text is not there. faults: why a caption cannot be read, by name.
    size: (height, width), and ratio: height/width, as the source says; None where it does not.
    """

    key: str
    captions: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    ratio: float | None = None


def caption_of(row: CaptionedImage, name: str, missing: Missing) -> str:
    """One caption, stripped. missing: what to do without one, or with an empty one; "empty" gives the empty text.

    Raises SampleError (stage `list`): a caption that cannot be read, and with "reject" one that is missing or empty.
    """
    if name in row.faults:
        raise SampleError("list", f"caption {name}: {row.faults[name]}")
    caption = row.captions.get(name, "").strip()
    if not caption and missing == "reject":
        raise SampleError("list", f"caption {name} is empty" if name in row.captions else f"no caption {name}")
    return caption


def numbered(name: str, position: int) -> str:
    """The name of one of several captions: `prompt`, `prompt_2`, `prompt_3`, … for positions 0, 1, 2, …"""
    return f"{name}_{position + 1}" if position else name


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no half of a surrogate pair, and no byte that was escaped."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
