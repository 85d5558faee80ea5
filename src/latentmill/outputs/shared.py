"""What the outputs of one recipe have in common: the source is listed once, equal models are opened once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from latentmill.config import SourceSettings
from latentmill.config_types import FILES
from latentmill.errors import ConfigError, SourceError
from latentmill.files import printable
from latentmill.outcome import Event, Tell
from latentmill.outputs.trusted import trusted_listing
from latentmill.plugins import SOURCES, ListedSource, MakeSource, load, origin
from latentmill.records import Listing, SampleRef
from latentmill.sources.caption_files import TABLES
from latentmill.sources.excluding import Exclusion, read_exclusion, without
from latentmill.sources.folders import DATA_FOLDER, DATA_INFO, IMAGE_FOLDER
from latentmill.sources.images import ImageSource
from latentmill.stages import Source

if TYPE_CHECKING:
    from latentmill.sources.captioned import CaptionedSet
    from latentmill.sources.features import FeatureImages

Made = TypeVar("Made")


class Shared:
    """Listings and models by what they were asked for with. encoders: whether any output of images has an encoder."""

    def __init__(self, encoders: bool = True) -> None:
        self.encoders = encoders
        self._made: dict[tuple[Any, ...], Any] = {}
        self._specs: list[Any] = []

    def once(self, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
        """What is made, or was made before for this key: the weights of a model are read for their digest."""
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

    def numbered_images(self, chosen: SourceSettings, numbering: bool) -> tuple[Source, Listing]:
        """The images of a folder or zip, of a table, or of another package's source, for layouts that number them.

        Raises SourceError.
        """
        if chosen.source_kind != FILES:
            return self._of_package(chosen)
        if chosen.source.suffix.lower() in TABLES and not chosen.source.is_dir():
            return self.keyed_images(chosen)
        path = _images_within(chosen.source)
        if (trusted := self.trusted(chosen)) is not None:
            return ImageSource(path, numbering=numbering), trusted

        def listed() -> tuple[ImageSource, Listing]:
            images = ImageSource(path, numbering=numbering, exclude=self.exclusion(chosen))
            return images, images.listing(chosen.max_images)

        return self.once(("numbered", path, numbering, chosen.max_images, chosen.exclude), listed)

    def exclusion(self, chosen: SourceSettings) -> Exclusion | None:
        """What the list of keys to exclude says, if there is one. Raises SourceError."""
        return self.once(("exclusion", chosen.exclude), lambda: read_exclusion(chosen.exclude))

    def tell_excluded(self, chosen: SourceSettings, tell: Tell) -> None:
        """Say once how many keys a list leaves out; or, where the source is not listed, that it is not looked at.

        Raises SourceError.
        """
        if chosen.exclude is None or ("told", chosen.exclude) in self._made:
            return
        if self.trusted(chosen) is not None:
            self._made["told", chosen.exclude] = None
            told = f"trust-source takes what is there as it is: {printable(str(chosen.exclude))} is not looked at"
            tell(Event("plan", told))
            return
        exclusion = self._made["told", chosen.exclude] = self.exclusion(chosen)
        assert exclusion is not None
        tell(Event("plan", exclusion.summary))

    def trusted(self, chosen: SourceSettings) -> Listing | None:
        """What the ledger of an output that trusts its source lists; None where the source is to be listed."""
        return self.once(("trusted", repr(chosen)), lambda: trusted_listing(chosen))

    def _of_package(self, chosen: SourceSettings) -> tuple[Source, Listing]:
        if (trusted := self.trusted(chosen)) is not None:
            make_source: MakeSource = load(SOURCES, chosen.source_kind)
            return make_source(chosen.source, chosen.source_options), trusted

        def listed() -> tuple[ListedSource, Listing]:
            make: MakeSource = load(SOURCES, chosen.source_kind)
            images, exclusion = make(chosen.source, chosen.source_options), self.exclusion(chosen)
            listing = images.listing(chosen.max_images if exclusion is None else None)
            if exclusion is not None:
                listing = without(listing, exclusion, chosen.source, chosen.max_images)
            _check_order(listing, f"source kind {chosen.source_kind!r} of {origin(SOURCES, chosen.source_kind)}")
            return images, listing

        key = (chosen.source_kind, chosen.source, repr(chosen.source_options), chosen.max_images, chosen.exclude)
        return self.once(("of a package", *key), listed)

    def captioned(self, chosen: SourceSettings, *, of_images: bool) -> CaptionedSet:
        """What the source holds of images, or of captions. Raises SourceError, ConfigError."""
        from latentmill.sources.captioned import CaptionedSet, captioned, places

        if chosen.source_kind != FILES:
            raise ConfigError(
                f"a source of kind {chosen.source_kind!r} gives images by number alone: text, and layouts that name "
                f"files by the images' paths, need a folder or a table (kind {FILES!r})"
            )
        if self.trusted(chosen) is not None:
            return CaptionedSet(*places(chosen.source, chosen.images), [], [], [])
        columns = chosen.caption_columns
        of_table = (chosen.path_column, chosen.caption_extension, chosen.multi_line)
        key = (chosen.source, chosen.images, chosen.exclude, *of_table)
        return self.once(
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
                exclude=self.exclusion(chosen),
            ),
        )

    def keyed_images(self, chosen: SourceSettings) -> tuple[FeatureImages, Listing]:
        """The images of a folder or table with their sizes, for layouts that name them by their paths."""
        from latentmill.sources.features import FeatureImages

        found = self.captioned(chosen, of_images=True)
        limits = (chosen.start_index, chosen.rows_end, chosen.exif, chosen.max_pixels)
        if (trusted := self.trusted(chosen)) is not None:
            return FeatureImages(found, *limits), trusted

        def listed() -> tuple[FeatureImages, Listing]:
            images = FeatureImages(found, *limits)
            return images, images.listing()

        return self.once(("keyed", *limits, found.path, found.images, chosen.exclude), listed)


def _check_order(listing: Listing, told: str) -> None:
    """Raises SourceError where images are not in order of their keys, or two have one key or one index."""
    last: SampleRef | None = None
    for ref in listing.refs():
        if last is not None and not (last.key < ref.key and last.index < ref.index):
            raise SourceError(
                f"{told} must list its images in order of key and of index, each once. "
                f"Found: {ref.key!r} ({ref.index}) after {last.key!r} ({last.index})"
            )
        last = ref
    if last is None:
        raise SourceError(f"{told} lists no images")


def _images_within(path: Path) -> Path:
    """The images' folder of a PixArt dataset; any other source itself."""
    inner = path / IMAGE_FOLDER
    return inner if (path / DATA_FOLDER / DATA_INFO).is_file() and inner.is_dir() else path
