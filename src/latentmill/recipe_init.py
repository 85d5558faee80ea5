"""A first recipe for a source: what lies there is looked at, and a recipe with comments written, to be edited."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from latentmill.config import PixelSettings, validated
from latentmill.decoding import image_header
from latentmill.errors import DestinationError, SampleError, SourceError
from latentmill.estimate import probe_sizes
from latentmill.files import counted, printable, replace_text, write_errors
from latentmill.formats.pixart import ReaderKind, check_names, latents_folder, text_folder
from latentmill.outputs.shared import Shared
from latentmill.recipe_file import to_toml
from latentmill.recipe_init_text import AS_STORED, CAPTIONS, CLASSES, HEAD, MISSING, NO_NAMES, UPRIGHT
from latentmill.records import Listing
from latentmill.sources.caption_files import TABLES
from latentmill.sources.captioned import CaptionedSet, captioned
from latentmill.sources.folders import DATA_FOLDER
from latentmill.stages import Source

_READERS: tuple[ReaderKind, ...] = ("multi", "single")
_HEADERS = 64  # of images, at least, that are looked at for their orientation


@dataclass(frozen=True)
class Look:
    """What was seen of a source. sizes: (width, height) of a few images. captions: by name, how many rows have them.

    reader: whose file names tell all images apart; None where neither of PixArt's does, and `why`. turned: how many
    of how many that were looked at are to be turned by their EXIF orientation.
    """

    images: int
    classes: int
    sizes: list[tuple[int, int]]
    captions: dict[str, int] = field(default_factory=dict)
    reader: ReaderKind | None = "multi"
    why: str = ""
    turned: tuple[int, int] = (0, 0)

    @property
    def shape(self) -> str:
        """For a person."""
        if not self.sizes:
            return "of sizes that cannot be read"
        low, high = (f"{width}x{height}" for width, height in (min(self.sizes, key=_area), max(self.sizes, key=_area)))
        looked = f" (of {len(self.sizes)} looked at)" if len(self.sizes) < self.images else ""
        return f"of {low}{looked}" if low == high else f"from {low} to {high}{looked}"

    @property
    def side(self) -> int:
        """The largest of the usual resolutions that most of the images looked at have pixels for; 256 at least."""
        shorter = sorted(min(size) for size in self.sizes) or [256]
        middle = shorter[len(shorter) // 2]
        return max([side for side in (256, 512, 1024) if side <= middle], default=256)

    @property
    def label(self) -> str:
        """The caption that most rows have."""
        return max(self.captions, key=lambda name: self.captions[name], default="prompt")

    def lines(self) -> Iterator[str]:
        """What a person is told."""
        yield f"{counted(self.images, 'images')} {self.shape}"
        if self.classes:
            yield f"{self.classes:,} classes"
        for name, count in self.captions.items():
            yield f"captions {name!r}: {count:,} of {self.images:,}"
        if self.turned[0]:
            yield f'{self.turned[0]:,} of {self.turned[1]:,} looked at are turned by their camera: exif = "apply"'
        if self.captions and self.reader is None:
            yield f"text features, and latents named as the images are, would be refused: {self.why}"


def write_recipe(source: Path, dest: Path, exclude: Path | None = None) -> list[str]:
    """Write a recipe; gives what was seen, a line each. Raises SourceError; DestinationError where `dest` exists.

    exclude: a list of keys to leave out, which the recipe then names.
    """
    if dest.exists() or dest.is_symlink():
        raise DestinationError(f"{dest} is there already: give another file (--out), or remove it")
    look = look_at(source, exclude)
    with write_errors(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
    replace_text(dest, recipe_text(source, dest, look, exclude))
    first, *others = look.lines()
    return [f"{source}: {first}", *others]


def look_at(source: Path, exclude: Path | None = None) -> Look:
    """See what a source holds, without what a list excludes. Raises SourceError."""
    try:
        f"{source}{exclude or ''}".encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"TOML is UTF-8 text, and this path is not: {printable(str(source))}. Rename it") from error
    shared, chosen = Shared(), validated(PixelSettings, {"source": source, "dest": source, "exclude": exclude})
    images, listing = shared.numbered_images(chosen, numbering=False)
    seen = (listing.count, len(listing.classes or ()), probe_sizes(images, listing))
    turned = _turned(images, listing)
    if not source.is_dir() and source.suffix.lower() not in TABLES:
        return Look(*seen, turned=turned)
    found = captioned(source, exclude=shared.exclusion(chosen))
    counts: Counter[str] = Counter(name for row in found.rows for name in row.captions)
    faults = Counter(name for row in found.rows for name in row.faults)
    captions = {name: counts[name] - faults[name] for name in found.names if counts[name]}
    return Look(*seen, captions, *_reader(found), turned)


def _turned(images: Source, listing: Listing) -> tuple[int, int]:
    """How many images are to be turned by their EXIF orientation, of how many that could be looked at."""
    found = []
    for ref in listing.spread(_HEADERS):
        try:
            found.append(image_header(io.BufferedReader(io.BytesIO(images.read(ref))))[1] != 1)
        except SampleError:
            continue
    return sum(found), len(found)


def _reader(found: CaptionedSet) -> tuple[ReaderKind | None, str]:
    """The first of PixArt's readers whose names tell all images apart; else None, and why."""
    why = ""
    for reader in _READERS:
        try:
            check_names((row.key for row in found.rows), reader, ".npz")
        except SourceError as error:
            why = why or str(error)
        else:
            return reader, ""
    return None, why


def recipe_text(source: Path, dest: Path, look: Look, exclude: Path | None = None) -> str:
    """The recipe: pixels and latents, or latents in buckets and text features; the other of the two as comments."""
    parts = [
        HEAD.format(
            images=f"{counted(look.images, 'images')} {look.shape}",
            dest=_toml("dest", _free_folder(source, dest)),
            path=_toml("path", _from(source, dest)),
            found=(_toml("exclude", _from(exclude, dest)) + "\n" if exclude is not None else "") + _missing(look),
            turned=UPRIGHT.format(count=look.turned[0], looked=look.turned[1]) if look.turned[0] else AS_STORED,
        )
    ]
    numbered, named = CLASSES.format(side=look.side), _captioned(look)
    if not look.captions:
        parts.append(numbered)
    elif look.reader is None:
        parts += [NO_NAMES.format(why=printable(look.why)), numbered]
    else:
        parts += [named, "# Or of one size and by number, as trainers of classes read them:\n", _as_comment(numbered)]
    return "\n".join(parts)


def _toml(name: str, value: str) -> str:
    return to_toml({name: value}).rstrip("\n")


def _from(source: Path, dest: Path) -> str:
    """The source's path from the recipe's folder; absolute where it was given so, or no relative one leads there."""
    if not source.is_absolute():
        path = os.path.relpath(source, dest.parent)
        if Path(dest.parent, path).resolve() == source.resolve():
            return path
    return os.path.abspath(source)  # noqa: PTH100 - links are kept as they are


def _free_folder(source: Path, dest: Path) -> str:
    """A folder for the outputs that is new, and not inside the source: seen from the recipe's folder."""
    inside = source.is_dir() and dest.parent.resolve().is_relative_to(source.resolve())
    stem = source.resolve().stem
    names = ["data", f"{stem}-data", *(f"{stem}-data-{number}" for number in range(2, 1000))]
    start = Path(os.path.relpath(source.resolve().parent, dest.parent.resolve())) if inside else Path()
    return str(next(start / name for name in names if not (dest.parent / start / name).exists()))


def _missing(look: Look) -> str:
    count = look.images - look.captions.get(look.label, look.images)
    return MISSING.format(images=counted(count, "images")) if count > 0 and look.reader is not None else ""


def _captioned(look: Look) -> str:
    others = [printable(name) for name in look.captions if name != look.label]
    return CAPTIONS.format(
        side=look.side,
        reader="" if look.reader == "multi" else '\nreader = "single"                  # file names as its base name',
        label=_toml("label", look.label),
        others=f"    # there are also: {', '.join(others)}" if others else "",
        latents=latents_folder(look.side, look.reader != "single", ""),
        text=text_folder(look.label),
        data=DATA_FOLDER,
    )


def _as_comment(text: str) -> str:
    return "".join(f"# {line}\n" if line else "#\n" for line in text.splitlines())


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
