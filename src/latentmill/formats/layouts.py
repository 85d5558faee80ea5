"""Layouts by the code that a plan and a `latentmill.json` hold."""

from __future__ import annotations

from latentmill.errors import ConfigError, SourceError
from latentmill.formats.metadata import METADATA_JSON, Metadata
from latentmill.formats.repa import ImageLayout, LatentLayout
from latentmill.plugins import FORMATS, MakeLayout, installed, load, origin
from latentmill.stages import Layout

REPA = "repa"  # as a recipe names it
_STATISTICS = ("moments", "mean", "sample")


def latent_layout(name: str, statistic: str) -> Layout:
    """Latents of one size: `repa`, or a layout that another package brings. Raises ConfigError."""
    return LatentLayout(statistic) if name == REPA else _of_package(name, statistic)


def _of_package(name: str, statistic: str) -> Layout:
    make: MakeLayout = load(FORMATS, name)
    layout = make(statistic)
    if layout.kind != "latents" or not (layout.code.startswith(f"{name}/") and layout.code.endswith(f"/{statistic}")):
        raise ConfigError(
            f"layout {name!r} of {origin(FORMATS, name)} must be of kind latents, with a code {name}/…/{statistic} or "
            f"{name}/{statistic}. Found: {layout.kind}, {layout.code!r}"
        )
    return layout


def layout_of(code: str) -> Layout:
    """The layout that a code describes. Raises SourceError for one that nothing here knows."""
    family, _, rest = code.partition("/")
    if code == ImageLayout.code:
        return ImageLayout()
    if family == "repa" and rest in ("latents/moments", "latents/mean", "latents/sample"):
        return LatentLayout(rest.rpartition("/")[2])
    from latentmill.formats import pixart, vision

    found: Layout | None = pixart.layout_of(code) or vision.layout_of(code)
    if found is None and family in installed(FORMATS) and rest.rpartition("/")[2] in _STATISTICS:
        found = _of_package(family, rest.rpartition("/")[2])
    if found is None or found.code != code:
        raise SourceError(
            f"{METADATA_JSON} names a layout that this version does not know: {code!r}; nor does any installed package"
        )
    return found


def layout_of_dataset(metadata: Metadata) -> Layout:
    """The layout of a finished dataset; the first version's metadata does not name it."""
    if metadata.layout:
        return layout_of(metadata.layout)
    return LatentLayout(metadata.latent.statistic) if metadata.latent is not None else ImageLayout()
