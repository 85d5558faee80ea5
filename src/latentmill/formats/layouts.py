"""Layouts by the code that a plan and a `latentmill.json` hold."""

from __future__ import annotations

from latentmill.errors import SourceError
from latentmill.formats import pixart, vision
from latentmill.formats.metadata import METADATA_JSON, Metadata
from latentmill.formats.repa import ImageLayout, LatentLayout
from latentmill.stages import Layout


def layout_of(code: str) -> Layout:
    """The layout that a code describes. Raises SourceError for one that this version does not know."""
    family, _, rest = code.partition("/")
    if code == ImageLayout.code:
        return ImageLayout()
    if family == "repa" and rest in ("latents/moments", "latents/mean", "latents/sample"):
        return LatentLayout(rest.rpartition("/")[2])
    found = pixart.layout_of(code) or vision.layout_of(code)
    if found is None:
        raise SourceError(f"{METADATA_JSON} names a layout that this version does not know: {code!r}")
    return found


def layout_of_dataset(metadata: Metadata) -> Layout:
    """The layout of a finished dataset; the first version's metadata does not name it."""
    if metadata.layout:
        return layout_of(metadata.layout)
    return LatentLayout(metadata.latent.statistic) if metadata.latent is not None else ImageLayout()
