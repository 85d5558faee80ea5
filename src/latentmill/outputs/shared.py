"""What the outputs of one recipe have in common: the source is listed once, equal models are opened once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from latentmill.config import SourceSettings
from latentmill.records import Listing
from latentmill.sources.caption_files import TABLES
from latentmill.sources.captioned import DATA_FOLDER, DATA_INFO, IMAGE_FOLDER, CaptionedSet, captioned
from latentmill.sources.features import FeatureImages
from latentmill.sources.images import ImageSource

Made = TypeVar("Made")


class Shared:
    """Listings and models by what they were asked for with. encoders: whether any output of images has an encoder."""

    def __init__(self, encoders: bool = True) -> None:
        self.encoders = encoders
        self._made: dict[tuple[Any, ...], Any] = {}
        self._specs: list[Any] = []

    def _once(self, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found

    def one(self, spec: Made) -> Made:
        """This encoder, or an equal one that another output has."""
        for known in self._specs:
            if known == spec:
                found: Made = known
                return found
        self._specs.append(spec)
        return spec

    def numbered_images(self, chosen: SourceSettings, numbering: bool) -> tuple[ImageSource | FeatureImages, Listing]:
        """The images of a folder or zip, or of a table, for layouts that number them. Raises SourceError."""
        if chosen.source.suffix.lower() in TABLES and not chosen.source.is_dir():
            return self.keyed_images(chosen)
        path = _images_within(chosen.source)

        def listed() -> tuple[ImageSource, Listing]:
            images = ImageSource(path, numbering=numbering)
            return images, images.listing(chosen.max_images)

        return self._once(("numbered", path, numbering, chosen.max_images), listed)

    def captioned(self, chosen: SourceSettings, *, of_images: bool) -> CaptionedSet:
        """What the source holds of images, or of captions. Raises SourceError, ConfigError."""
        columns = chosen.caption_columns
        key = (chosen.source, chosen.images, chosen.path_column, chosen.caption_extension, chosen.multi_line)
        return self._once(
            ("captioned", of_images, *key, repr(columns)),
            lambda: captioned(
                chosen.source,
                images=chosen.images,
                caption_extension=chosen.caption_extension,
                multi_line=chosen.multi_line,
                path_column=chosen.path_column,
                caption_columns=columns,
                needs_images=of_images,
                with_captions=not of_images,
            ),
        )

    def keyed_images(self, chosen: SourceSettings) -> tuple[FeatureImages, Listing]:
        """The images of a folder or table with their sizes, for layouts that name them by their paths."""
        found = self.captioned(chosen, of_images=True)
        limits = (chosen.start_index, chosen.rows_end, chosen.exif, chosen.max_pixels)

        def listed() -> tuple[FeatureImages, Listing]:
            images = FeatureImages(found, *limits)
            return images, images.listing()

        return self._once(("keyed", *limits, found.path, found.images), listed)


def _images_within(path: Path) -> Path:
    """The images' folder of a PixArt dataset; any other source itself."""
    inner = path / IMAGE_FOLDER
    return inner if (path / DATA_FOLDER / DATA_INFO).is_file() and inner.is_dir() else path
