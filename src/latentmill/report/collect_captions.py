"""Captions of text features: their lengths before truncation, and for samples what was kept and what was cut off."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from latentmill.config import SourceSettings
from latentmill.config_types import FILES
from latentmill.encoders.text_settings import PLAIN
from latentmill.encoders.text_tokens import CaptionTokenizer
from latentmill.errors import ConfigError, ModelError, SourceError
from latentmill.formats.metadata import TextInfo
from latentmill.records import TRUNCATED
from latentmill.report.collect_decoding import cached_snapshot
from latentmill.report.collect_index import Line, Opened, Overview, spread, stored_at, stored_with
from latentmill.report.facts import Caption, CaptionFacts
from latentmill.sources.caption_files import TABLES
from latentmill.sources.captioned import captioned, captioned_image, places

COUNTED = 10_000  # captions whose tokens are counted
_MAX_TABLE_BYTES = 1 << 28  # of a table that is read for a few captions


def name_of(info: TextInfo) -> str:
    """Of a caption, and of its encoder where that is one of several: `prompt`, `prompt/clip-l`."""
    return f"{info.label}/{info.encoder}" if info.encoder else info.label


@dataclass
class Captions:
    """The captions of one dataset of text features. tokenizer: None where it is not at hand; notes say so."""

    dataset: Opened
    tokenizer: CaptionTokenizer | None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, dataset: Opened) -> Captions:
        try:
            return cls(dataset, _tokenizer(dataset))
        except (ModelError, ConfigError) as error:
            note = f"{error}: lengths are of the stored tokens, and what truncation cut off is not shown"
            return cls(dataset, None, [note])

    @property
    def info(self) -> TextInfo:
        assert self.dataset.metadata.text is not None
        return self.dataset.metadata.text

    def with_keys(self, keys: Sequence[str]) -> dict[str, Caption]:
        """The captions of the images with these keys, those that are stored. Raises SourceError."""
        return {key: self.caption(row) for key, row in stored_with(self.dataset, "key", keys).items()}

    def caption(self, row: Line) -> Caption:
        """One caption of the index."""
        text, label = row.get("caption") or "", name_of(self.info)
        if self.tokenizer is None:
            return Caption(label, text)
        return Caption(label, *self.tokenizer.divided(text))

    def facts(self, overview: Overview) -> CaptionFacts:
        """Lengths of all captions, or of a spread sample. Raises SourceError."""
        info, metadata = self.info, self.dataset.metadata
        at = spread(overview.stored, COUNTED)
        if self.tokenizer is None:
            lengths = overview.tokens[at] if len(overview.tokens) else np.zeros(0, np.int64)
        else:
            rows = stored_at(self.dataset, at)
            divided = (self.tokenizer.divided(rows[position].get("caption") or "") for position in at)
            lengths = np.array([tokens for _, _, tokens in divided], np.int64)
        model = metadata.text_model
        return CaptionFacts(
            label=name_of(info),
            encoder=info.encoder or (model.name if model is not None else ""),
            lengths=lengths,
            max_length=info.max_length,
            truncated=metadata.notes.get(TRUNCATED, 0),
            of=overview.stored,
        )

    def longest(self, overview: Overview, count: int) -> list[int]:
        """Positions of up to `count` captions that were cut, spread over them."""
        cut = np.flatnonzero(overview.cut)
        return [int(cut[at]) for at in spread(len(cut), count)]


def told_by_source(settings: SourceSettings, keys: Collection[str]) -> dict[str, list[Caption]]:
    """Captions by key, as the photos' own folder or table has them; {} where that has none, or is too large to read."""
    if settings.source_kind != FILES:
        return {}
    try:
        path, root = places(settings.source, settings.images)
        if path.is_dir():
            extension = "." + settings.caption_extension.removeprefix(".")
            rows = [captioned_image(root, key, extension, settings.multi_line) for key in keys]
        elif path.suffix.lower() in TABLES and path.stat().st_size <= _MAX_TABLE_BYTES:
            columns = {"path_column": settings.path_column, "caption_columns": settings.caption_columns}
            rows = captioned(path, images=settings.images, needs_images=False, **columns).rows  # type: ignore[arg-type]
        else:
            return {}
    except (SourceError, ConfigError, OSError):
        return {}
    return {
        row.key: [Caption(name, text) for name, text in row.captions.items()]
        for row in rows
        if row.captions and row.key in keys
    }


def _tokenizer(dataset: Opened) -> CaptionTokenizer:
    """Raises ModelError, ConfigError."""
    from latentmill.encoders.text_models import tokenizer_of

    text, info = dataset.metadata.text, dataset.metadata.text_model
    if text is None or info is None:
        raise ModelError(f"{dataset.path.name} does not tell its text encoder")
    snapshot = None if info.is_local else cached_snapshot(info.name, info.revision)
    return CaptionTokenizer(tokenizer_of(info, snapshot), PLAIN.changed(text.settings), text.max_length)
