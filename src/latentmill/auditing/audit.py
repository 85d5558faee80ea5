"""The audit: every file of a source is read once, by processes side by side, then what was seen is put together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from latentmill.auditing import kinds
from latentmill.auditing.captions import LONG_CHARACTERS, caption_findings, shortened, too_long
from latentmill.auditing.copies import Seen, copy_findings
from latentmill.auditing.findings import Audit, Finding
from latentmill.auditing.looking import Look, look_at
from latentmill.auditing.names import name_findings
from latentmill.auditing.near import HASH_BITS
from latentmill.auditing.settings import AuditSettings, audit_settings, need_audit
from latentmill.auditing.subject import Subject, subject_of
from latentmill.outcome import Event, Tell, quiet
from latentmill.records import SampleRef
from latentmill.runners.tasks import in_processes
from latentmill.sources.caption_rows import CaptionedImage
from latentmill.system import usable_cores

TINY_SIDE = 64  # pixels: no latent of the usual models has more than 8 x 8 positions of it
_TINY_SCALE = 2  # of an asked resolution: what would be enlarged by more
EXTREME_RATIO = 4.0  # of the long side to the short one: the reference tables of buckets end there
_FEW, _FEW_PART = 10, 0.1  # images of a class, and part of the median class, below which it is told
_STEP = 64  # images between two events of progress


def audit(source: str | Path, *, tell: Tell = quiet, **settings: Any) -> Audit:
    """Look through a folder, zip, table or PixArt dataset before anything is made of it; nothing is written.

    settings: the fields of `auditing.settings.AuditSettings`: resolution ("256x256"), max_duplicate_distance, model
    (for lengths in tokens), num_workers, and those of a source (images, caption_extension, multi_line, path_column,
    caption_columns, missing_caption, exclude, max_images, max_pixels). Shapes are judged as they are stored. Raises
    LatentmillError, also where the extra `audit` is not installed.
    """
    need_audit()
    chosen = audit_settings({"source": source, **settings})
    started = time.monotonic()
    subject = subject_of(chosen)
    for warning in subject.warnings:
        tell(Event("warning", warning))
    tell(Event("plan", f"{len(subject.refs):,} images; captions: {', '.join(subject.names) or 'none'}"))
    seen = Seen.of(len(subject.refs))
    findings = list(_images(chosen, subject, seen, tell))
    tell(Event("plan", "comparing"))
    findings += _captions(chosen, subject)
    findings += _copies(chosen, subject, seen, findings)
    findings += name_findings(ref.key for ref in subject.refs)
    findings += [Finding(kinds.NOT_LISTED, (key,)) for key in subject.unlisted]
    classes = _classes(subject)
    findings += _few(classes)
    rows = (subject.rows or {}).values()
    return Audit(
        chosen.source,
        len(subject.refs),
        findings,
        time.monotonic() - started,
        classes,
        {name: sum(bool(row.captions.get(name, "").strip()) for row in rows) for name in subject.names},
        tuple(_notes(chosen, subject)),
        tuple(subject.warnings),
    )


def _images(chosen: AuditSettings, subject: Subject, seen: Seen, tell: Tell) -> Iterator[Finding]:
    """Everything that each image alone tells; `seen` gets what copies are found by."""
    look = partial(look_at, subject.source, max_pixels=chosen.max_pixels)
    workers = min(chosen.num_workers or usable_cores(), max(1, len(subject.refs) // _STEP))
    rejected = 0
    for place, found in enumerate(in_processes(look, subject.refs, workers, _lost)):
        ref = subject.refs[place]
        seen.take(place, found)
        of_this = list(_of_image(ref, found, chosen))
        rejected += any(kinds.KINDS[each.kind].severity == "unusable" for each in of_this)
        yield from of_this
        if place % _STEP == 0 or place + 1 == len(subject.refs):
            tell(Event("progress", total=len(subject.refs), done=place + 1, committed=place + 1, rejected=rejected))


def _lost(ref: SampleRef) -> Look:
    return Look("worker", "the process that read it died")


def _of_image(ref: SampleRef, look: Look, chosen: AuditSettings) -> Iterator[Finding]:
    if look.stage:
        yield Finding(kinds.unusable_kind(look.reason), (ref.key,), f"{look.stage}: {look.reason}")
        return
    (height, width), told = look.size, f"{look.size[1]}x{look.size[0]}"
    if ref.size is not None and ref.size != look.size:
        yield Finding(kinds.OTHER_SIZE, (ref.key,), f"is {told}, its row says {ref.size[1]}x{ref.size[0]}")
    for kind, detail in look.found:
        yield Finding(kind, (ref.key,), detail)
    least = chosen.resolution or (TINY_SIDE, TINY_SIDE)
    scale = max(least[0] / width, least[1] / height)
    if scale > (_TINY_SCALE if chosen.resolution else 1):
        yield Finding(kinds.TINY, (ref.key,), told)
    elif chosen.resolution and scale > 1:
        yield Finding(kinds.UPSCALED, (ref.key,), f"{told}, by {scale:.2f}")
    if max(width, height) > EXTREME_RATIO * min(width, height):
        yield Finding(kinds.EXTREME, (ref.key,), told)


def _captions(chosen: AuditSettings, subject: Subject) -> Iterator[Finding]:
    if subject.rows is None:
        return
    rows = [_row(subject.rows, ref) for ref in subject.refs]
    lengths, limit = (None, 0) if chosen.model is None else too_long(chosen.model, rows)
    yield from caption_findings(rows, subject.names, chosen.missing_caption, lengths, limit)


def _row(rows: Mapping[str, CaptionedImage], ref: SampleRef) -> CaptionedImage:
    return rows.get(ref.key) or CaptionedImage(ref.key)


def _copies(chosen: AuditSettings, subject: Subject, seen: Seen, findings: list[Finding]) -> Iterator[Finding]:
    rows, classes, refs = subject.rows or {}, subject.classes, subject.refs
    unusable = {each.keys[0] for each in findings if kinds.KINDS[each.kind].severity == "unusable"}
    last = [place for place, ref in enumerate(refs) if ref.key in unusable]

    def class_of(place: int) -> str:
        label = refs[place].label
        return "" if label is None else classes[label] or "(the source itself)" if classes else str(label)

    def caption_of(place: int) -> str:
        row = rows.get(refs[place].key)
        return shortened(next(filter(None, row.captions.values()), "")) if row is not None else ""

    return copy_findings(seen, refs, chosen.max_duplicate_distance, class_of, caption_of, last)


def _classes(subject: Subject) -> dict[str, int]:
    counts = Counter(ref.label for ref in subject.refs if ref.label is not None)
    names = subject.classes
    return {names[label] if names else str(label): counts[label] for label in sorted(counts)}


def _few(classes: Mapping[str, int]) -> Iterator[Finding]:
    counts = sorted(classes.values())
    least = max(_FEW, counts[len(counts) // 2] * _FEW_PART) if counts else 0
    for name, count in sorted(classes.items(), key=lambda each: each[1]):
        if count < least:
            yield Finding(kinds.FEW_IMAGES, (), f"{name or '(the source itself)'}: {count:,}")


def _notes(chosen: AuditSettings, subject: Subject) -> Iterator[str]:
    """By what it was judged."""
    at_most = f"at most {chosen.max_duplicate_distance} of {HASH_BITS} bits"
    yield f"near duplicates: perceptual hashes (pHash) that differ in {at_most}"
    if chosen.resolution is None:
        yield f"tiny: a side under {TINY_SIDE} pixels; --resolution names the size that images are wanted in"
    else:
        width, height = chosen.resolution
        yield f"tiny: would be enlarged to more than {_TINY_SCALE} times their size for {width}x{height}"
    if subject.rows is not None:
        by = (
            f"tokens of {chosen.model}"
            if chosen.model
            else f"over {LONG_CHARACTERS:,} characters; --model counts tokens"
        )
        yield f"long captions: {by}"
