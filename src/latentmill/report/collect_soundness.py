"""Whether a dataset is what was made, and what became of the images that were rejected, with what is left of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from latentmill.errors import SourceError
from latentmill.outcome import Tell
from latentmill.report.collect_index import Line, Opened, Overview
from latentmill.report.collect_photos import Photos, whatever_is_left
from latentmill.report.facts import Reject, Soundness
from latentmill.report.pictures import picture
from latentmill.verification import verify
from latentmill.wording import printable

VerifyHow = Literal["auto", "full", "sample", "none"]
_SMALL_BYTES, _SMALL_FILES = 1 << 30, 20_000  # of a dataset that is read as a whole unasked
_SAMPLE = 1000  # files of a larger one
_SHOWN_PROBLEMS = 100
_REASONS, _REJECTS = 50, 24  # that are shown
_REJECT_SIDE = 160


def soundness(
    dataset: Opened, seen: Overview, how: VerifyHow, images: Path | None, photos: Photos | None, tell: Tell
) -> Soundness:
    """verify's verdict, and rejects. images: the pixels that latents must pair with, where all is read."""
    problems, checked = _verified(dataset, seen, how, images, tell)
    counts = dataset.metadata.counts
    return Soundness(
        problems=tuple(problems),
        checked=checked,
        listed=counts.listed,
        stored=counts.stored,
        rejected=counts.rejected,
        skipped=counts.skipped,
        by_reason=tuple(seen.reasons.most_common(_REASONS)),
        some=tuple(_reject(row, photos) for row in _some(seen.rejects)),
        notes=tuple(sorted(dataset.metadata.notes.items())),
    )


def _verified(
    dataset: Opened, seen: Overview, how: VerifyHow, images: Path | None, tell: Tell
) -> tuple[list[str], str]:
    """Problems, and how much was read, in words."""
    if how == "none":
        return [], ""
    small = seen.bytes <= _SMALL_BYTES and seen.stored <= _SMALL_FILES
    whole = how == "full" or (how == "auto" and small) or seen.stored <= _SAMPLE
    try:
        report = verify(dataset.path, images if whole else None, tell, None if whole else _SAMPLE)
    except SourceError as error:
        return [str(error)], "what could be read"
    problems = [str(problem) for problem in report.problems[:_SHOWN_PROBLEMS]]
    if len(report.problems) > _SHOWN_PROBLEMS:
        problems.append(f"and {len(report.problems) - _SHOWN_PROBLEMS:,} more: latentmill verify {dataset.path}")
    if whole:
        return problems, f"everything{', and that it pairs with ' + images.name if images is not None else ''}"
    step = -(-seen.stored // _SAMPLE)
    count = -(-seen.stored // step)
    return problems, f"the whole index, every name, and the bytes of {count:,} of {seen.stored:,} files (one in {step})"


def _some(rejects: Sequence[Line]) -> list[Line]:
    """A few rejects: of every reason one, then seconds, and so on."""
    turns: dict[tuple[str, str], int] = {}
    ranked: list[tuple[int, int, Line]] = []
    for row in rejects:
        stage, reason = row["reject"]
        turns[stage, reason] = turns.get((stage, reason), 0) + 1
        ranked.append((turns[stage, reason], len(ranked), row))
    return [row for _, _, row in sorted(ranked, key=lambda each: each[:2])[:_REJECTS]]


def _reject(row: Line, photos: Photos | None) -> Reject:
    stage, reason = row["reject"]
    pixels = None if photos is None else whatever_is_left(photos, row, _REJECT_SIDE)
    seen = None if pixels is None else picture(pixels, f"what can be decoded of {printable(row['key'])}", _REJECT_SIDE)
    return Reject(printable(row["key"]), stage, reason, seen)
