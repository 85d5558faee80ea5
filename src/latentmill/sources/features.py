"""What PixArt's two jobs read of a captioned source: images with their sizes, and captions with their lengths.

Samples are ordered by key, whatever the order of the rows, so that a row more does not renumber the others' company.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from stat import S_ISREG

from latentmill.batching import prefetched
from latentmill.decoding import DEFAULT_MAX_PIXELS
from latentmill.errors import SampleError, SourceError
from latentmill.files import digest
from latentmill.formats.pixart import MAX_RATIO
from latentmill.records import Listing, SampleRef
from latentmill.sources.caption_rows import CaptionedImage, Missing, caption_of
from latentmill.sources.captioned import CaptionedSet
from latentmill.sources.headers import HeaderFault, read_header

_THREADS = 8
_ROWS_A_TASK = 64
_TOO_TALL = f"its ratio (height/width) is over {MAX_RATIO}"


class FeatureImages:
    """The images of a captioned source. `read` may be called from many threads and processes. Picklable.

    start, end: of the rows that no rule leaves out, in the source's order, those wanted. exif: `apply` where pictures
    are turned upright, whose sizes are then meant.
    """

    def __init__(
        self,
        found: CaptionedSet,
        start: int = 0,
        end: int | None = None,
        exif: str = "ignore",
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self.root = found.images
        self._found, self._start, self._end = found, start, end
        self._exif, self._max_pixels = exif, max_pixels

    def __getstate__(self) -> dict[str, Path]:
        return {"root": self.root}

    def read(self, ref: SampleRef) -> bytes:
        """The bytes of one image. Raises SampleError (stage `list` for what listing found, else `read`)."""
        if ref.fault:
            raise SampleError("list", ref.fault)
        try:
            with open(self.root / ref.key, "rb") as file:  # noqa: PTH123
                return file.read()
        except OSError as error:
            raise SampleError("read", error.strerror or str(error)) from error

    def listing(self) -> Listing:
        """Every image, with its size as the table says it, or else as its header does."""
        if not self._found.rows:
            raise SourceError(f"the source holds no rows: {self._found.path}")
        looked = [ref for refs in _in_parallel(self._look, self._found.rows) for ref in refs]
        wanted = _slice([not ref.skip for ref in looked], self._start, self._end)
        return _listing(looked, wanted, self._found.warnings)

    def _look(self, rows: Sequence[CaptionedImage]) -> list[SampleRef]:
        return [self._ref(row) for row in rows]

    def _ref(self, row: CaptionedImage) -> SampleRef:
        """One row. The ratio's rule comes before all else: slices count what it leaves."""
        told, fault = told_of_file(self.root / row.key)
        size = row.size
        if not fault and (size is None or self._exif == "apply"):  # a table may tell a turned photo's size either way
            header = read_header(self.root, row.key, self._max_pixels)
            if isinstance(header, HeaderFault):
                fault = header.reason if header.stage == "decode" else ""  # a failed read may be mended: not listed
            elif size in (None, header.size, header.upright):
                size = header.upright if self._exif == "apply" else header.size
        ratio = row.ratio if row.ratio is not None else size[0] / size[1] if size else 0.0
        if ratio > MAX_RATIO:
            return SampleRef(0, row.key, told, skip=_TOO_TALL, size=size)
        return SampleRef(0, row.key, told, fault=fault, size=size)


def told_of_file(path: Path) -> tuple[str, str]:
    """What changes when an image's bytes do, and why it cannot be used, else ""."""
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError as error:
        return "", error.strerror or str(error)
    return f"{stat.st_size}-{stat.st_mtime_ns}", "" if S_ISREG(stat.st_mode) else "not a file"


class Captions:
    """One caption of every row, as text for an encoder. Picklable.

    lengths: how many tokens each of many captions is encoded to. start, end: of the rows, those wanted.
    """

    root = None

    def __init__(
        self,
        found: CaptionedSet,
        label: str,
        missing: Missing,
        lengths: Callable[[Sequence[str]], list[int]],
        start: int = 0,
        end: int | None = None,
    ) -> None:
        self._found, self._label, self._missing, self._lengths = found, label, missing, lengths
        self._start, self._end = start, end

    def __getstate__(self) -> dict[str, object]:
        return {}

    def read(self, ref: SampleRef) -> bytes:
        """The caption in UTF-8. Raises SampleError (stage `list`) where there is none that can be used."""
        if ref.fault or ref.caption is None:
            raise SampleError("list", ref.fault)
        return ref.caption.encode()

    def listing(self) -> Listing:
        """Every row's caption; one that cannot be used has a fault. Raises SourceError where none has this name."""
        if not self._found.rows:
            raise SourceError(f"the source holds no rows: {self._found.path}")
        if self._label not in self._found.names and (self._found.names or self._missing == "reject"):
            raise SourceError(
                f"no caption of {self._found.path} is called {self._label!r}. There are: "
                f"{', '.join(self._found.names) or 'none'}; a table's other columns can be named (--caption-column)"
            )
        texts = [self._text(row) for row in self._found.rows]
        captions = list({text: None for text, fault in texts if not fault})
        tokens = dict(zip(captions, self._lengths(captions), strict=True))
        refs = [
            SampleRef(0, row.key, "", fault=fault)
            if fault
            else SampleRef(0, row.key, digest(text.encode()), caption=text, tokens=tokens[text])
            for row, (text, fault) in zip(self._found.rows, texts, strict=True)
        ]
        return _listing(refs, _slice([True] * len(refs), self._start, self._end), self._found.warnings)

    def _text(self, row: CaptionedImage) -> tuple[str, str]:
        try:
            return caption_of(row, self._label, self._missing), ""
        except SampleError as error:
            return "", error.reason


def _in_parallel(
    function: Callable[[Sequence[CaptionedImage]], list[SampleRef]], rows: list[CaptionedImage]
) -> Iterator[list[SampleRef]]:
    starts = range(0, len(rows), _ROWS_A_TASK)
    return prefetched(lambda start: function(rows[start : start + _ROWS_A_TASK]), starts, _THREADS, 4 * _THREADS)


def _slice(counted: list[bool], start: int, end: int | None) -> list[bool]:
    """Which rows are wanted: of those that count, [start, end); all that do not (they are told, not made)."""
    wanted, position = [], 0
    for counts in counted:
        wanted.append(not counts or (start <= position and (end is None or position < end)))
        position += counts
    return wanted


def _listing(refs: list[SampleRef], wanted: list[bool], warnings: list[str]) -> Listing:
    order = sorted(range(len(refs)), key=lambda position: refs[position].key)
    chosen = {refs[position].key for position in order if wanted[position]}

    def numbered() -> Iterator[SampleRef]:
        for index, position in enumerate(order):
            yield replace(refs[position], index=index)

    return Listing(len(refs), None, warnings, False, numbered, lambda ref: ref.key in chosen)
