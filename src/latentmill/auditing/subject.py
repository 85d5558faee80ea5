"""What an audit looks at: the images that a run would list, their captions and classes, and what it would pass over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from latentmill.auditing.settings import AuditSettings
from latentmill.config_types import FILES
from latentmill.errors import ConfigError, SourceError
from latentmill.outputs.shared import Shared
from latentmill.records import SampleRef
from latentmill.sources.caption_files import TABLES
from latentmill.sources.caption_rows import CaptionedImage
from latentmill.sources.captioned import captioned, places
from latentmill.sources.features import FeatureImages, told_of_file
from latentmill.sources.folders import OTHER_PICTURES, is_image, walk
from latentmill.stages import Source


@dataclass(frozen=True)
class Subject:
    """A source. refs: of the images, in order of key. rows: captions by key, None where it has none.

    names: of the captions. classes: by label. unlisted: pictures of formats that nothing here reads.
    """

    source: Source
    refs: list[SampleRef]
    rows: dict[str, CaptionedImage] | None
    names: list[str]
    classes: list[str] | None
    unlisted: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def subject_of(chosen: AuditSettings) -> Subject:
    """List a folder, zip, table or PixArt dataset as runs do. Raises SourceError, ConfigError."""
    if chosen.source_kind != FILES:
        raise ConfigError(f"an audit reads folders, zips and tables. Found: source kind {chosen.source_kind!r}")
    path, _ = places(chosen.source, chosen.images)
    if not path.is_dir() and path.suffix.lower() in TABLES:
        return _of_table(chosen)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise SourceError(
            f"expected a folder or .zip of images, or a table ({', '.join(TABLES)}). Found a file: {path}"
        )
    shared = Shared()
    images, listing = shared.numbered_images(chosen, numbering=False)
    found = Subject(images, list(listing.refs()), None, [], listing.classes, [], listing.warnings)
    if not path.is_dir():
        return found
    found = replace(found, unlisted=_unlisted(path))
    captions = captioned(
        path, caption_extension=chosen.caption_extension, multi_line=chosen.multi_line, exclude=shared.exclusion(chosen)
    )
    if not captions.names:
        return found
    rows = {row.key: row for row in captions.rows}
    warnings = dict.fromkeys([*found.warnings, *captions.warnings])
    return replace(found, rows=rows, names=captions.names, warnings=list(warnings))


def _of_table(chosen: AuditSettings) -> Subject:
    found = captioned(
        chosen.source,
        images=chosen.images,
        path_column=chosen.path_column,
        caption_columns=chosen.caption_columns,
        exclude=Shared().exclusion(chosen),
    )
    rows = sorted(islice(found.rows, chosen.max_images), key=lambda row: row.key)
    images = RowImages(found.images)
    refs = [SampleRef(number, row.key, "", size=row.size) for number, row in enumerate(rows)]
    named = {row.key: row for row in rows} if found.names else None
    return Subject(images, refs, named, found.names, None, [], found.warnings)


class RowImages(FeatureImages):
    """The images of a table's rows, looked at when they are read. Picklable."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, ref: SampleRef) -> bytes:
        """The bytes of one image. Raises SampleError."""
        _, fault = told_of_file(self.root / ref.key)
        return super().read(replace(ref, fault=fault))


def _unlisted(root: Path) -> list[str]:
    """Pictures below a folder that are not listed, since nothing here reads their format."""
    return sorted(
        files.below + name
        for files in walk(str(root), [])
        for name in files.names
        if os.path.splitext(name)[1].lower() in OTHER_PICTURES and not is_image(name)  # noqa: PTH122
    )


def by_extension(keys: Iterable[str]) -> str:
    """`3 .heic, 1 .dng`, the commonest first."""
    counts = Counter(PurePosixPath(key).suffix.lower() for key in keys)
    return ", ".join(f"{count:,} {extension}" for extension, count in counts.most_common())
