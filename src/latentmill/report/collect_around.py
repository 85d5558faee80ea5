"""What a dataset is shown with: the pixels and captions that belong to it, and the photos that it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentmill.config import SourceSettings
from latentmill.errors import ConfigError, SourceError
from latentmill.report.collect_captions import Captions, told_by_source
from latentmill.report.collect_crop import Cropping
from latentmill.report.collect_index import Line, Opened, spread, stored_at
from latentmill.report.collect_photos import Photos
from latentmill.report.collect_shown import Pixels
from latentmill.report.collect_spread import HEADERS, sizes_of_headers
from latentmill.report.facts import Caption, SizeFacts


@dataclass
class Around:
    """What goes with one dataset. photos: None where they are not at hand; notes say why."""

    dataset: Opened
    photos: Photos | None
    pixels: list[Pixels]
    captions: list[Captions]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, dataset: Opened, rows: Sequence[Line], others: Sequence[Opened], texts: list[Captions], source: Path | None
    ) -> Around:
        """What goes with these rows. others: datasets to look among. source: of the photos. Raises SourceError."""
        at = _pixels_of(dataset, others)
        notes: list[str] = []
        photos = None
        try:
            photos = Photos.at(source) if source is not None else _recorded_photos(dataset, at)
        except (SourceError, ConfigError) as error:
            if source is not None:
                raise
            notes.append(f"originals are not shown: {error}. --source names the folder, zip or table of the photos")
        captions = [text for text in texts if _belongs(text.dataset, dataset, photos)]
        return cls(dataset, photos, [Pixels.beside(each, rows) for each in at], captions, notes)

    def captions_of(self, rows: Sequence[Line]) -> dict[str, list[Caption]]:
        """The captions of these rows' images, by the rows' keys: as encoded, else as their source has them.

        Raises SourceError.
        """
        photo_of = {row["key"]: self._photo_key(row) for row in rows}
        found: dict[str, list[Caption]] = {}
        for text in self.captions:
            told = text.with_keys([*photo_of.values()])
            for key, photo in photo_of.items():
                if photo in told:
                    found.setdefault(key, []).append(told[photo])
        if found or self.dataset.kind == "text":
            return found
        source = self._source_of_photos()
        by_photo = {} if isinstance(source, str) else told_by_source(source, set(photo_of.values()))
        return {key: by_photo[photo] for key, photo in photo_of.items() if photo in by_photo}

    def _source_of_photos(self) -> SourceSettings | str:
        """The recipe that names the photos; or why there is none."""
        return _recipe_of_photos(self.dataset, [pixels.dataset for pixels in self.pixels])

    def _photo_key(self, row: Line) -> str:
        """The photo's key: of what was made from pixels, theirs."""
        for pixels in self.pixels:
            between = pixels.by_name.get(row["key"])
            if between is not None and between["digest"] == row["source"]:
                return str(between["key"])
        return str(row["key"])

    def partner(self) -> Path | None:
        """The pixels that these latents pair with, file by file, where there are any."""
        if self.dataset.kind != "latents" or self.dataset.metadata.buckets is not None:
            return None
        ours = self.dataset.metadata
        for pixels in self.pixels:
            theirs = pixels.dataset.metadata
            made_of = bool(pixels.by_name)
            same = theirs.source_digest == ours.source_digest and _cropped_alike(pixels.dataset, self.dataset)
            if (made_of or same) and theirs.counts.stored == ours.counts.stored:
                return pixels.dataset.path
        return None

    def sizes(self, stored: int) -> SizeFacts | None:
        """Sizes of the photos, of a spread sample, by their headers. Raises SourceError."""
        if self.photos is None:
            return None
        of = next((pixels.dataset for pixels in self.pixels if pixels.by_name), self.dataset)
        rows = stored_at(of, spread(of.metadata.counts.stored, HEADERS))
        keys = [row["key"] for _, row in sorted(rows.items())]
        return sizes_of_headers(self.photos, keys, Cropping.of(of.metadata).exif, stored)


def _belongs(text: Opened, dataset: Opened, photos: Photos | None) -> bool:
    """Whether captions are of a dataset's images: those of its folder are, and those of the same photos.

    Keys alone do not tell: other photos may have the same names.
    """
    if text.path.resolve().parent == dataset.path.resolve().parent:
        return True
    if photos is None or isinstance(text.recipe, str):
        return False
    try:
        return Photos.of(text.recipe).path.resolve() == photos.path.resolve()
    except (SourceError, ConfigError):
        return False


def _pixels_of(dataset: Opened, others: Sequence[Opened]) -> list[Opened]:
    """Datasets of pixels that may hold what this one was made of or with, the source of its own recipe first."""
    if dataset.kind not in ("latents", "vision") or dataset.metadata.buckets is not None:
        return []
    source = None if isinstance(dataset.recipe, str) else dataset.recipe.source.resolve()
    images = [each for each in others if each.kind == "images"]
    return sorted(images, key=lambda each: each.path.resolve() != source)


def _recorded_photos(dataset: Opened, pixels: Sequence[Opened]) -> Photos:
    """Those that the recipe names. Raises SourceError, ConfigError."""
    settings = _recipe_of_photos(dataset, pixels)
    if isinstance(settings, str):
        raise SourceError(f"no stored recipe tells where the photos are ({settings})")
    return Photos.of(settings)


def _recipe_of_photos(dataset: Opened, pixels: Sequence[Opened]) -> SourceSettings | str:
    """The dataset's own recipe; of what was made from pixels, theirs."""
    settings = dataset.recipe
    for each in pixels:
        if not isinstance(settings, str) and each.path.resolve() == settings.source.resolve():
            settings = each.recipe
    return settings


def _cropped_alike(first: Opened, second: Opened) -> bool:
    return Cropping.of(first.metadata).whole == Cropping.of(second.metadata).whole


def all_captions(datasets: Sequence[Opened]) -> Mapping[Path, Captions]:
    """The captions of every dataset of text features among these, by its place."""
    return {each.path: Captions.of(each) for each in datasets if each.kind == "text"}
