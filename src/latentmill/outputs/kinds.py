"""The kinds of output by name: what settings each has, and what makes its jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentmill.config import (
    BucketSettings,
    CaptionSettings,
    LatentSettings,
    OutputSettings,
    PixelSettings,
    VariantSettings,
    VisionSettings,
)
from latentmill.errors import ConfigError
from latentmill.plugins import FORMATS, choices, installed
from latentmill.transforms.variant import PLAIN, Variant, variants
from latentmill.wording import did_you_mean, hinted

if TYPE_CHECKING:
    from latentmill.outcome import Tell
    from latentmill.outputs.shared import Shared
    from latentmill.passes import Prepared


@dataclass(frozen=True)
class Kind:
    """A kind of output. layout: where the name alone does not tell it. home: module and function that make the jobs.

    extends: another package brings the layout; the rest is as of `repa`.
    """

    name: str
    layout: str
    settings: type[OutputSettings]
    home: str
    encodes_images: bool
    not_stored: frozenset[str] = frozenset()  # of its settings, those that nothing of the result depends on
    extends: bool = False

    @property
    def told(self) -> str:
        """As a person is told of it."""
        return f"kind {self.name}, layout {self.layout}" if self.layout else f"kind {self.name}"

    def prepare(self) -> Callable[[Any, Shared, Tell], list[Prepared]]:
        """What makes jobs of settings; imported when it is needed."""
        module, _, function = self.home.partition(":")
        found: Callable[..., list[Prepared]] = getattr(import_module(module), function)
        return partial(found, layout=self.layout) if self.extends else found


@dataclass(frozen=True)
class Chosen:
    """One output of a recipe, its settings validated. table: where those were told, which may be of several."""

    name: str
    kind: Kind
    settings: OutputSettings
    table: str

    @property
    def variants(self) -> list[Variant]:
        """The plain one first."""
        settings = self.settings
        return variants(settings.flip, settings.crops, 0) if isinstance(settings, VariantSettings) else [PLAIN]

    @property
    def names(self) -> list[str]:
        """Of its jobs, one for each variant."""
        return [self.name + variant.suffix for variant in self.variants]

    @property
    def places(self) -> list[Path]:
        """Every folder and zip that it writes."""
        dests = [self.settings.dest, *(p for p in (getattr(self.settings, "pixels", None),) if p is not None)]
        return [variant.beside(dest) for dest in dests for variant in self.variants]


_OF_CAPTIONS = frozenset({"caption_extension", "multi_line", "caption_columns", "missing_caption"})
_OF_MODELS = frozenset({"batch_size", "threads", "device"})
PIXELS = Kind("pixels", "", PixelSettings, "latentmill.outputs.pixels:prepare_pixels", False, _OF_CAPTIONS | _OF_MODELS)
LATENTS = Kind("latents", "repa", LatentSettings, "latentmill.outputs.latents:prepare_latents", True, _OF_CAPTIONS)
BUCKETS = Kind("latents", "pixart", BucketSettings, "latentmill.outputs.buckets:prepare_buckets", True, _OF_CAPTIONS)
VISION = Kind("vision", "", VisionSettings, "latentmill.outputs.vision:prepare_vision", True, _OF_CAPTIONS)
TEXT = Kind("text", "", CaptionSettings, "latentmill.outputs.captions:prepare_captions", False)
KINDS = (PIXELS, LATENTS, BUCKETS, VISION, TEXT)


def kind_of(name: object, layout: object = None) -> Kind:
    """A kind by name, and by layout where it has several (the first where none is told). Raises ConfigError.

    Of latents, other packages may bring more layouts.
    """
    named = [kind for kind in KINDS if kind.name == name]
    if not named:
        told = ", ".join(dict.fromkeys(kind.name for kind in KINDS))
        text = f"kind must be one of {told}. Found: {'none' if name is None else repr(name)}"
        raise ConfigError(hinted(text, did_you_mean(name, told.split(", "))))
    if layout is None:
        return named[0]
    found = next((kind for kind in named if kind.layout == layout), None)
    if found is None and name == LATENTS.name and layout in installed(FORMATS):
        return replace(LATENTS, layout=str(layout), extends=True)
    if found is None:
        built_in = [kind.layout for kind in named if kind.layout]
        known = choices(FORMATS, layout, built_in) if built_in else "left out"
        raise ConfigError(f"the layout of kind {name} must be {known}. Found: {layout!r}")
    return found
