"""Images that go with latents: refused where they are not those that the latents were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latentmill.errors import SourceError
from latentmill.formats.columns import Columns
from latentmill.formats.layouts import layout_of_dataset
from latentmill.formats.metadata import Metadata
from latentmill.loaders_index import read_columns
from latentmill.loaders_variants import check_same_variant


def paired_columns(ours: Columns, latents: Metadata, images: Metadata, latents_at: Path, images_at: Path) -> Columns:
    """The images' columns, with a row for each of the latents, `ours`.

    They must have the same numbers, and both say what they were made from. Raises SourceError.
    """
    theirs = read_columns(images_at, images)
    count = min(len(ours), len(theirs))
    apart = _first(ours.number[:count] != theirs.number[:count], count)
    own = (ours.source[:apart] == theirs.digest[:apart]).all(axis=1)
    other = ~own & (ours.source[:apart] != theirs.source[:apart]).any(axis=1)
    wrong = _first(other, apart)
    if wrong < apart:
        latent, image = _name(ours, latents, wrong), _name(theirs, images, wrong)
        raise SourceError(f"{latent} was made from other bytes than {image} in {images_at}")
    if apart < len(ours) and (apart == len(theirs) or ours.number[apart] < theirs.number[apart]):
        raise SourceError(f"{_name(ours, latents, apart)} has no image in {images_at}")
    if apart < len(theirs):
        raise SourceError(f"{_name(theirs, images, apart)} has no latent in {latents_at}")
    if not own.all():  # made from the same photos, which both must show alike
        check_same_variant(latents, images, latents_at, images_at)
    theirs.release()
    return theirs


def _first(where: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], otherwise: int) -> int:
    return int(where.argmax()) if where.any() else otherwise


def _name(columns: Columns, metadata: Metadata, row: int) -> str:
    return layout_of_dataset(metadata).name(int(columns.number[row]), columns.keys[row])
