"""Whether latents pair with their images: the same numbers, and for each the bytes that the latent was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentmill.errors import SourceError
from latentmill.files import digest
from latentmill.formats.metadata import METADATA_JSON, Metadata, index_rows
from latentmill.formats.payload import ARRAY_ERRORS
from latentmill.formats.reader import Reader
from latentmill.formats.repa import ImageLayout
from latentmill.loaders_variants import check_same_variant
from latentmill.outcome import Event, Tell

_TELL_EVERY = 256


def pair_problems(
    rows: list[dict[str, Any]], metadata: Metadata, latents: Path, images: Path, tell: Tell
) -> Iterator[tuple[str, str]]:
    """Where latents and images do not pair, and why. rows: of the latents' index. Raises SourceError."""
    theirs = Metadata.read_beside(images)
    if theirs is None or theirs.kind != "images":
        raise SourceError(f"{images} holds no images that latentmill made (no {METADATA_JSON} of that kind)")
    if theirs.source_digest == metadata.source_digest:
        try:
            check_same_variant(metadata, theirs, latents, images)
        except SourceError as error:
            yield METADATA_JSON, str(error)
    layout, reader = ImageLayout(), Reader(images)
    image_rows = {row["index"]: row for row in index_rows(images) if "name" in row}
    stored = {row["index"]: row for row in rows if "name" in row}
    present = {name for name in reader.names() if ImageLayout.member.fullmatch(name)}
    for number in sorted(image_rows.keys() - stored.keys()):
        yield layout.name(number), "has no latent"
    for name in sorted(present - {row["name"] for row in image_rows.values()}):
        yield name, "is a stray image: its dataset's index does not know it"
    for position, (number, row) in enumerate(sorted(stored.items())):
        if position % _TELL_EVERY == 0:
            tell(Event("progress", "", len(stored), position))
        if problem := _pair_problem(row, image_rows.get(number), reader):
            yield row["name"], problem


def _pair_problem(latent: dict[str, Any], image: dict[str, Any] | None, reader: Reader) -> str:
    if image is None:
        return f"has no image {ImageLayout().name(latent['index'])}"
    try:
        found = digest(reader.read(image["name"]))
    except ARRAY_ERRORS:
        return f"its image {image['name']} is missing or cannot be read"
    if found != image["digest"]:
        return f"its image {image['name']} was changed after it was made"
    from_image = latent["key"] == image["name"] and latent["source"] == found
    from_same_photo = latent["key"] == image["key"] and latent["source"] == image["source"]
    if not (from_image or from_same_photo):
        return f"was made from other bytes than its image {image['name']} (of {image['key']})"
    if latent["label"] != image["label"]:
        return f"has label {latent['label']}, its image {image['label']}"
    return ""
