"""Augmented variants of an image: mirrored, or cropped elsewhere than in the centre. Each is an output of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Place = tuple[float, float]  # of a crop, from top and left: shares in [0, 1) of where it may lie


@dataclass(frozen=True)
class Variant:
    """One variant. flip: mirrored left to right. crop: 0 is the transform's own; others lie where `seed` draws them."""

    flip: bool = False
    crop: int = 0
    seed: int = 0

    @classmethod
    def of(cls, fingerprint: Mapping[str, object]) -> Variant:
        """The variant that an output's fingerprint tells of."""
        flip, crop, seed = (fingerprint.get(name) for name in ("flip", "crop", "crop_seed"))
        return cls(bool(flip), crop if isinstance(crop, int) else 0, seed if isinstance(seed, int) else 0)

    @property
    def suffix(self) -> str:
        """What tells this variant's folder from the plain one's."""
        return (f"-crop{self.crop}" if self.crop else "") + ("-flip" if self.flip else "")

    def beside(self, dest: Path) -> Path:
        """Where this variant of an output lies: `DEST-crop1-flip`, `DEST-flip.zip`."""
        if not self.suffix:
            return dest
        if dest.suffix.lower() == ".zip":
            return dest.with_name(f"{dest.stem}{self.suffix}{dest.suffix}")
        return dest.with_name(dest.name + self.suffix)

    def fingerprint(self) -> dict[str, bool | int]:
        """What of it changes an output's bytes; nothing of the plain one."""
        told: dict[str, bool | int] = {"flip": True} if self.flip else {}
        return told | ({"crop": self.crop, "crop_seed": self.seed} if self.crop else {})

    def place(self, key: str) -> Place | None:
        """Where the crop of the image at `key` lies; None is the centre. The same on every machine."""
        if not self.crop:
            return None
        told = f"{self.seed} {self.crop} {key}".encode("utf-8", "surrogateescape")
        drawn = hashlib.blake2b(told, digest_size=8).digest()
        return int.from_bytes(drawn[:4], "big") / 2**32, int.from_bytes(drawn[4:], "big") / 2**32


PLAIN = Variant()


def offset(free: int, share: float) -> int:
    """Where a window starts that may start at 0 to `free`: each of these gets an equal part of the shares in [0, 1)."""
    return math.floor(share * (free + 1))


def variants(flip: str, crops: int, seed: int) -> list[Variant]:
    """The variants that settings ask for, the plain one first."""
    flips = (False, True) if flip == "both" else (False,)
    return [Variant(flipped, crop, seed) for crop in range(crops) for flipped in flips]
