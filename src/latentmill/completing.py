"""What a shell offers for an option's unfinished value, where that is known without looking far."""

from __future__ import annotations

from collections.abc import Iterator


def vaes(incomplete: str) -> Iterator[tuple[str, str]]:
    """Short names of VAEs, with who uses them."""
    from latentmill.registry import MINI, MODELS

    yield from _named({entry.name: entry.note for entry in MODELS.values()} | {MINI: "trying only"}, incomplete)


def text_encoders(incomplete: str) -> Iterator[tuple[str, str]]:
    """Short names of text encoders, with who uses them."""
    from latentmill.registry import MINI, TEXT_MODELS

    yield from _named({entry.name: entry.note for entry in TEXT_MODELS.values()} | {MINI: "trying only"}, incomplete)


def transforms(incomplete: str) -> Iterator[tuple[str, str]]:
    """The package's own transforms."""
    from latentmill.options import Transform

    yield from _named({str(each): "" for each in Transform}, incomplete)


def resolutions(incomplete: str) -> Iterator[tuple[str, str]]:
    """The usual sizes."""
    yield from _named({f"{side}x{side}": "" for side in (256, 512, 1024)}, incomplete)


def devices(incomplete: str) -> Iterator[tuple[str, str]]:
    """Kinds of devices."""
    yield from _named({"auto": "", "cpu": "", "cuda": "every GPU", "mps": "Apple"}, incomplete)


def runners(incomplete: str) -> Iterator[tuple[str, str]]:
    """Where work is done."""
    yield from _named({"local": "this machine", "ray": "a Ray cluster"}, incomplete)


def buckets(incomplete: str) -> Iterator[tuple[str, str]]:
    """Kinds of bucket tables."""
    yield from _named({"reference": "PixArt's", "grid": "any resolution", "auto:": "fitted to the images"}, incomplete)


def pixel_ranges(incomplete: str) -> Iterator[tuple[str, str]]:
    """Ranges of a VAE's input."""
    yield from _named({"-1,1": "REPA, SiT, DiT", "0,1": "EDM2"}, incomplete)


def percentages(incomplete: str) -> Iterator[tuple[str, str]]:
    """Limits of failures."""
    yield from _named({"0": "none", "10%": "", "100%": "any"}, incomplete)


def batch_sizes(incomplete: str) -> Iterator[tuple[str, str]]:
    """The usual sizes of a batch."""
    yield from _named(dict.fromkeys(("auto", "8", "16", "32"), ""), incomplete)


def _named(names: dict[str, str], incomplete: str) -> Iterator[tuple[str, str]]:
    yield from ((name, note) for name, note in names.items() if name.startswith(incomplete))
