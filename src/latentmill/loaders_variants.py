"""Augmented variants of a dataset: found beside it by name, and refused where they are not of the same making."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from latentmill.errors import ConfigError, SourceError
from latentmill.formats.metadata import METADATA_JSON, WORK_FOLDER, Metadata
from latentmill.nearby import result_near
from latentmill.transforms.variant import Variant
from latentmill.wording import hinted

_SUFFIX = re.compile(r"(?:-crop([1-9]\d*))?(-flip)?")
_OWN = frozenset({"flip", "crop", "crop_seed"})
_ALIKE = frozenset({"threads", "batch_size", "device", "images"})  # change the last bits of a latent at most


def found_variants(root: Path, plain: Metadata) -> list[tuple[Variant, Path]]:
    """The plain dataset at `root`, and those of its variants that lie beside it, by crop and flip.

    Every name that is a variant's counts. Raises ConfigError where `root` is not plain, SourceError where there is no
    variant, or one that is not finished, of another source, or made with other settings.
    """
    own = Variant.of(plain.fingerprint)
    if own.suffix:
        raise ConfigError(f"variants=True takes the plain dataset, beside which they lie. Found: {root}, a variant")
    named = _named_as_variants(root)
    if not named:
        raise SourceError(f"variants=True, and {root} has none beside it: make it with flip='both' or crops=2 and more")
    found = [(_checked(variant.beside(root), variant, root, plain), variant.beside(root)) for variant in named]
    return [(own, root), *found]


def partners(root: Path, variants: Sequence[Variant]) -> list[Path]:
    """Of another output (pixels, vision features), what goes with each of these variants. Raises SourceError.

    root: of its plain variant, the first of `variants`.
    """
    plain = Metadata.read_beside(root) if root.exists() else None
    if plain is None:
        raise SourceError(hinted(f"{root} holds nothing that latentmill made (no {METADATA_JSON})", result_near(root)))
    if Variant.of(plain.fingerprint).suffix:
        raise SourceError(f"variants=True takes the plain one, beside which its variants lie. Found: {root}, a variant")
    for variant in variants:
        place = variant.beside(root)
        if not place.exists():
            raise SourceError(f"{root} has no {place.name} beside it, which goes with the latents' variant: make it")
        found = _checked(place, variant, root, plain)
        if found.fingerprint() != variant.fingerprint():
            raise SourceError(
                f"{place} must be cropped as the latents are, with crop_seed {variant.seed}. Found: {found.seed}"
            )
    return [variant.beside(root) for variant in variants]


def check_same_variant(ours: Metadata, theirs: Metadata, latents: Path, other: Path) -> None:
    """Refuse another output that shows the images otherwise than the latents. Raises SourceError."""
    variants = [Variant.of(metadata.fingerprint) for metadata in (ours, theirs)]
    if variants[0].fingerprint() != variants[1].fingerprint():
        told = [f"{path} is {told_variant(variant)}" for path, variant in zip((latents, other), variants, strict=True)]
        raise SourceError(f"latents and what goes with them must be of one variant. Found: {' and '.join(told)}")


def told_variant(variant: Variant) -> str:
    """For a person: `plain`, `mirrored`, `crop 2 of seed 0, mirrored`."""
    told = [f"crop {variant.crop} of seed {variant.seed}"] if variant.crop else []
    return ", ".join([*told, *(["mirrored"] if variant.flip else [])]) or "plain"


def _named_as_variants(root: Path) -> list[Variant]:
    """Every name beside `root` that a variant of it would have; of a zip that is being made, its work folder's too."""
    path = Path(os.path.abspath(root))  # noqa: PTH100 - without following links
    ending = path.suffix if path.suffix.lower() == ".zip" else ""
    stem, found = path.name.removesuffix(ending), set()
    for entry in path.parent.iterdir():
        name = entry.name.removesuffix(WORK_FOLDER) if ending else entry.name
        if name.startswith(stem) and name.endswith(ending) and len(name) > len(stem) + len(ending):
            match = _SUFFIX.fullmatch(name.removesuffix(ending)[len(stem) :])
            if match:
                found.add((int(match[1] or 0), bool(match[2])))
    return [Variant(flip, crop) for crop, flip in sorted(found)]


def _checked(place: Path, named: Variant, root: Path, plain: Metadata) -> Variant:
    """The variant that lies at `place`, with its seed."""
    metadata = Metadata.read_beside(place)
    if metadata is None:
        raise SourceError(f"{place} is not finished: run its command again, or move it away")
    found = Variant.of(metadata.fingerprint)
    if (metadata.kind, found.flip, found.crop) != (plain.kind, named.flip, named.crop):
        raise SourceError(
            f"{place} is named as a variant of {root} ({told_variant(named)}) and is none. Found: "
            f"{metadata.kind}, {told_variant(found)}. Move it away, or name it otherwise"
        )
    if metadata.source_digest != plain.source_digest:
        raise SourceError(f"{place} and {root} were made of different states of the source: run their command again")
    settings = (metadata.fingerprint.keys() | plain.fingerprint.keys()) - _OWN - _ALIKE
    for name in sorted(settings):
        ours, theirs = plain.fingerprint.get(name), metadata.fingerprint.get(name)
        if ours != theirs:
            raise SourceError(
                f"{place} and {root} were made with different settings ({name.replace('_', '-')}: {theirs}, there "
                f"{ours}): make the variant anew, or move it away"
            )
    return found
