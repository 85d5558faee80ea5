"""Samples as a person looks at them: original, model input, reconstruction and captions of one image, side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from latentmill.errors import ConfigError, ModelError, SampleError
from latentmill.files import digest
from latentmill.formats.metadata import row_geometry
from latentmill.formats.payload import ARRAY_ERRORS, png_pixels
from latentmill.loading import Decoded
from latentmill.records import Array, Geometry
from latentmill.report.collect_crop import Cropping, as_compared, cut_away
from latentmill.report.collect_decoding import Decoding
from latentmill.report.collect_index import Line, Opened, stored_with
from latentmill.report.collect_photos import CHANGED, MISSING, Photos
from latentmill.report.facts import Caption, Picture, Quality, Shown
from latentmill.report.metrics import psnr, ssim
from latentmill.report.pictures import kept_box, picture, shaded
from latentmill.transforms.fit import distortion
from latentmill.transforms.variant import PLAIN
from latentmill.wording import printable

SIDE = 320  # of a picture's longest side
_SMALL_SIDE = 192  # of those beyond the samples that were asked for
_QUALITY = 82

_AS_IT_IS = Cropping("none", None, PLAIN, exif="apply", alpha="white", max_pixels=1 << 27, fast=False)

Captions = Mapping[str, Sequence[Caption]]  # by key


@dataclass
class Pixels:
    """A dataset of pixels that goes with another one: its rows by its files' names, and by its photos' keys."""

    dataset: Opened
    by_name: dict[str, Line]
    by_key: dict[str, Line]

    @classmethod
    def beside(cls, dataset: Opened, rows: Sequence[Line]) -> Pixels:
        """What goes with these rows of another dataset. Raises SourceError."""
        keys = {row["key"] for row in rows}
        return cls(dataset, stored_with(dataset, "name", keys), stored_with(dataset, "key", keys))


@dataclass
class Gallery:
    """Makes what is shown of one dataset's rows. photos: None where they are not at hand.

    pixels: datasets that may hold the model's input. problems: what could not be shown, by why; for notes.
    """

    dataset: Opened
    photos: Photos | None
    pixels: Sequence[Pixels] = ()
    decoding: Decoding | None = None
    measured: bool = True
    captions: Captions = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._cropping = Cropping.of(self.dataset.metadata) if self.dataset.kind != "text" else None

    def shown(self, row: Line, decode: bool = True) -> Shown:
        """One sample. decode: whether its latent is brought back to pixels; else pictures are smaller."""
        chain = self._chain(row)
        whole = None if chain is None else self._photo(chain)
        fed = self._fed(row, whole)
        back = self._reconstruction(row) if decode and self.decoding is not None else None
        how = self._geometry(row, chain, whole)
        side = SIDE if decode else _SMALL_SIDE
        return Shown(
            name=printable(row["name"]),
            key=printable(row["key"] if chain is None else chain.row["key"]),
            label=self._label(row),
            size=how.size if how is not None else None if whole is None else whole.size,
            bucket=self._bucket(row, fed),
            original=None if whole is None else _original(whole, how, row["key"], side),
            model_input=_picture(fed, f"what the model is fed of {printable(row['key'])}", side),
            reconstruction=_picture(back, f"what comes back from the latents of {printable(row['key'])}", side),
            quality=None if fed is None or back is None else self._quality(fed, back),
            cut_away=None if how is None else cut_away(how),
            captions=tuple(self.captions.get(row["key"], ())),
            stretched=None if how is None else distortion(how),
        )

    def _chain(self, row: Line) -> _Chain | None:
        """The photo's own row and how it was cropped: of pixels in between, theirs."""
        if self._cropping is None:
            return _Chain(row, None)
        for pixels in self.pixels:
            found = pixels.by_name.get(row["key"])
            if found is not None and found["digest"] == row["source"]:
                return _Chain(found, Cropping.of(pixels.dataset.metadata))
        return _Chain(row, self._cropping)

    def _photo(self, chain: _Chain) -> Decoded | None:
        if self.photos is None:
            return None
        expected = chain.row["source"] if chain.cropping is not None else ""
        try:
            data = self.photos.read(chain.row["key"], expected)
            return (chain.cropping or _AS_IT_IS).decoded(data)
        except SampleError as error:
            if error.reason not in (MISSING, CHANGED):  # these are counted there
                self.problems[f"originals that cannot be decoded ({error.reason})"] += 1
            return None

    def _geometry(self, row: Line, chain: _Chain | None, whole: Decoded | None) -> Geometry | None:
        recorded = row_geometry(row)
        if recorded is not None or chain is None or chain.cropping is None or whole is None:
            return recorded
        return chain.cropping.geometry(chain.row, whole.size)

    def _fed(self, row: Line, whole: Decoded | None) -> Array | None:
        """uint8 HWC that the model is fed: as stored in pixels that go with it, else cropped again."""
        if self.dataset.kind == "images":
            return self._stored_pixels(self.dataset, row)
        if self._cropping is None:
            return None
        for pixels in self.pixels:
            between, same = pixels.by_name.get(row["key"]), pixels.by_key.get(row["key"])
            if between is not None and between["digest"] == row["source"]:
                stored = self._stored_pixels(pixels.dataset, between)
                return None if stored is None else self._cropped(row, Decoded(stored, ()))
            theirs = Cropping.of(pixels.dataset.metadata)
            if same is not None and same["source"] == row["source"] and theirs.whole == self._cropping.whole:
                return self._stored_pixels(pixels.dataset, same)
        return None if whole is None else self._cropped(row, whole)

    def _cropped(self, row: Line, whole: Decoded) -> Array | None:
        assert self._cropping is not None
        try:
            return self._cropping.pixels(row, whole)
        except (SampleError, ConfigError) as error:
            self.problems[f"images that cannot be cropped again ({error})"] += 1
            return None

    def _stored_pixels(self, dataset: Opened, row: Line) -> Array | None:
        try:
            data = dataset.reader.read(row["name"])
            if digest(data) != row["digest"]:
                self.problems[f"files of {dataset.path.name} that changed since they were made"] += 1
                return None
            return png_pixels(data)
        except ARRAY_ERRORS:
            self.problems[f"files of {dataset.path.name} that cannot be read"] += 1
            return None

    def _reconstruction(self, row: Line) -> Array | None:
        assert self.decoding is not None
        if self.decoding.is_spent:
            return None
        try:
            return self.decoding(self.dataset.array(row))
        except ARRAY_ERRORS:
            self.problems[f"files of {self.dataset.path.name} that cannot be read"] += 1
        except ModelError as error:
            self.problems[f"latents that cannot be decoded ({error})"] += 1
        return None

    def _quality(self, fed: Array, back: Array) -> Quality | None:
        try:
            pair = as_compared(fed, back)
            return Quality(psnr(*pair), ssim(*pair)) if self.measured else None
        except ConfigError as error:
            self.problems[f"reconstructions that cannot be measured ({error})"] += 1
            return None

    def _label(self, row: Line) -> str:
        label, classes = row["label"], self.dataset.metadata.classes
        if label is None:
            return ""
        return classes[label] if classes and 0 <= label < len(classes) else str(label)

    def _bucket(self, row: Line, fed: Array | None) -> tuple[int, int] | None:
        recorded = row_geometry(row)
        if recorded is not None:
            return recorded.bucket
        if fed is not None:
            return fed.shape[0], fed.shape[1]
        size = self.dataset.metadata.image_size
        return None if size is None else (size[1], size[0])


@dataclass(frozen=True)
class _Chain:
    """The row that names the photo, and how it was cropped; None where it only belongs to a caption."""

    row: Line
    cropping: Cropping | None


def _original(whole: Decoded, how: Geometry | None, key: str, side: int) -> Picture:
    """The photo, shrunk first where it is large, with what the crop leaves out shaded."""
    pixels, what = whole.pixels, f"the original {printable(key)}"
    if how is not None:
        height, width = pixels.shape[:2]
        scale = height / how.size[0], width / how.size[1]  # of a JPEG that was decoded at reduced scale
        top, left, bottom, right = kept_box(how)
        box = round(top * scale[0]), round(left * scale[1]), round(bottom * scale[0]), round(right * scale[1])
        if box != (0, 0, height, width):
            pixels, what = shaded(pixels, box), f"{what}, the part that is cut away shaded"
    return picture(pixels, what, side, _QUALITY)


def _picture(pixels: Array | None, alt: str, side: int) -> Picture | None:
    return None if pixels is None else picture(pixels, alt, side, _QUALITY)


def ranked(shown: Sequence[Shown]) -> list[Shown]:
    """Those that were measured, the best reconstruction first: by PSNR, then SSIM."""
    measured = [each for each in shown if each.quality is not None]
    return sorted(measured, key=_rank, reverse=True)


def _rank(each: Shown) -> tuple[float, float]:
    return (each.quality.psnr, each.quality.ssim) if each.quality is not None else (-math.inf, -math.inf)


def counted_notes(problems: Counter[str], photos: Photos | None) -> list[str]:
    """What could not be shown, for a person."""
    notes = [f"{count:,} {what}" for what, count in problems.most_common()]
    if photos is not None:
        notes += [
            f"{count:,} originals in {photos.path} are {what}, and are not shown"
            for what, count in photos.lost.most_common()
        ]
    return notes
