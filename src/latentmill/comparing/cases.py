"""The worst cases: which photos they are, and the part of each where the VAEs err most, 1:1."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from latentmill.comparing.contender import Contender
from latentmill.comparing.result import PSNR, Candidate, Case
from latentmill.records import Array

HARDEST, DIFFERENT = "lowest PSNR over all VAEs", "the VAEs differ most in PSNR"
SIDE = 384  # pixels of a side that are shown
AMPLIFIED = 4  # how much larger a difference is drawn
_EACH = 4


class Restored:
    """Pictures of every VAE and photo, on the disk while they may be needed: 64 of 1024x1024 are 200 MB a VAE."""

    def __enter__(self) -> Restored:
        self._folder = tempfile.TemporaryDirectory(prefix="latentmill-compare-")
        self._places: dict[tuple[str, int], Path] = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def keep(self, vae: str, number: int, picture: Array) -> None:
        place = Path(self._folder.name) / f"{len(self._places)}.npy"
        np.save(place, picture)
        self._places[vae, number] = place

    def get(self, vae: str, number: int) -> Array | None:
        place = self._places.get((vae, number))
        if place is None:
            return None
        found: Array = np.load(place, mmap_mode="r")
        return found


def worst_cases(
    candidates: Sequence[Candidate], crops: Sequence[Array], restored: Restored, contenders: Mapping[str, Contender]
) -> tuple[Case, ...]:
    """A few photos that are hardest for all, then a few on which the VAEs differ most, none twice."""
    return tuple(
        _case(number, why, crops[number], [each.name for each in candidates], restored, contenders)
        for number, why in chosen(np.stack([each.scores[PSNR.name] for each in candidates]))
    )


def chosen(scores: Array, each: int = _EACH) -> list[tuple[int, str]]:
    """(number, why) of images by PSNR, (VAEs, N); images that a VAE failed on are left out. Ties: the earlier image."""
    whole = np.flatnonzero(~np.isnan(scores).any(axis=0))
    capped = np.minimum(scores[:, whole], 200.0)  # equal pictures have an infinite one
    hardest = [(int(number), HARDEST) for number in whole[np.argsort(capped.mean(axis=0), kind="stable")][:each]]
    if len(scores) < 2:
        return hardest
    known = {number for number, _ in hardest}
    by_range = whole[np.argsort(-np.ptp(capped, axis=0), kind="stable")]
    return hardest + [(int(number), DIFFERENT) for number in by_range if int(number) not in known][:each]


def _case(
    number: int, why: str, crop: Array, names: Sequence[str], restored: Restored, contenders: Mapping[str, Contender]
) -> Case:
    pictures = {name: found for name in names if (found := restored.get(name, number)) is not None}
    pictures = {name: _placed(picture, crop) for name, picture in pictures.items()}
    error = np.mean([np.abs(picture.astype(np.int16) - crop).sum(axis=2) for picture in pictures.values()], axis=0)
    top, left = _where(error, SIDE)
    window = np.s_[top : top + SIDE, left : left + SIDE]
    return Case(number, why, (top, left), crop[window].copy(), {name: each[window] for name, each in pictures.items()})


def _placed(picture: Array, crop: Array) -> Array:
    """The picture at its place in the crop: where the VAE was given the centre alone, the rest is the crop itself."""
    if picture.shape == crop.shape:
        return np.array(picture)
    top, left = ((whole - part) // 2 for whole, part in zip(crop.shape[:2], picture.shape[:2], strict=True))
    found: Array = crop.copy()
    found[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return found


def _where(error: Array, side: int) -> tuple[int, int]:
    """(top, left) of the square of the largest sum; (0, 0) where all of it fits."""
    height, width = min(side, error.shape[0]), min(side, error.shape[1])
    sums = np.zeros((error.shape[0] + 1, error.shape[1] + 1))
    sums[1:, 1:] = error.cumsum(0).cumsum(1)
    window = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(window.argmax()), window.shape)
    return int(top), int(left)


def difference(crop: Array, picture: Array) -> Array:
    """uint8 HWC: the absolute difference, AMPLIFIED times, cut at white; black where the two are equal."""
    found: Array = np.minimum(np.abs(picture.astype(np.int16) - crop) * AMPLIFIED, 255).astype(np.uint8)
    return found
