"""An audit as a page: what was found by how bad it is, copies side by side, and all of it in tables to open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from markupsafe import Markup

from latentmill.auditing import kinds
from latentmill.auditing.findings import Audit, Finding
from latentmill.auditing.kinds import SEVERITIES, Kind, Severity
from latentmill.auditing.settings import AuditSettings, audit_settings
from latentmill.auditing.show import line_of
from latentmill.auditing.subject import Subject, subject_of
from latentmill.decoding import decode
from latentmill.errors import SampleError
from latentmill.files import counted, printable
from latentmill.report import shell
from latentmill.report.facts import Picture, Row
from latentmill.report.pictures import picture
from latentmill.terminal import clock

_ROWS = 200  # of a table
_GROUPS, _OF_GROUP, _SINGLE = 24, 6, 12  # copies and single images that are shown
_SIDE = 224  # pixels of a thumbnail
_COPIES = (kinds.TWO_CLASSES, kinds.SAME_BYTES, kinds.SAME_PIXELS, kinds.NEAR, kinds.TWO_CAPTIONS)
_PICTURED = (
    *(kinds.TINY, kinds.UPSCALED, kinds.EXTREME, kinds.EXIF_ROTATED, kinds.COLOUR_PROFILE, kinds.CMYK),
    *(kinds.TRANSPARENT, kinds.GREY, kinds.SIXTEEN_BIT, kinds.ANIMATED, kinds.WRONG_EXTENSION),
    *(kinds.OTHER_SIZE, kinds.MOJIBAKE, kinds.MARKUP, kinds.LONG_CAPTION, kinds.NO_CAPTION),
)


def page_of(found: Audit, settings: dict[str, Any]) -> str:
    """The whole page, as text. settings: that the audit was made with, by which the source is listed once more."""
    thumbnails = _Thumbnails(audit_settings({"source": found.source, **settings}))
    sections = [("found", "What was found", _summary(found))]
    for severity, heading in SEVERITIES.items():
        if each := list(_kinds(found, severity, thumbnails)):
            sections.append((severity, heading[0].upper() + heading[1:], shell.joined(*each)))
    if found.classes:
        sections.append(("classes", "Images per class", _classes(found)))
    body = shell.joined(*(shell.section(identity, heading, inner) for identity, heading, inner in sections))
    return shell.document(
        f"Audit of {printable(found.source.name)}",
        body,
        lead=f"{counted(found.images, 'images')} of {printable(str(found.source))}, before anything is made of them.",
        contents=[(identity, heading) for identity, heading, _ in sections],
        footer=f"Made by latentmill audit in {clock(found.seconds)}.",
    )


def _summary(found: Audit) -> Markup:
    unusable, broken = len(found.unusable), len(found.unusable_images)
    look = sum(count for _, count in found.kinds("look"))
    if unusable:
        verdict = shell.verdict(
            "bad",
            f"{counted(unusable, 'images')} cannot be used",
            _unusable(broken, unusable - broken),
        )
    elif look:
        verdict = shell.verdict("warning", "A run would take every image", "Some things are worth a look.")
    else:
        verdict = shell.verdict("good", "A run would take every image", "Nothing was found that is worth a look.")
    figures = [("images", f"{found.images:,}"), ("unusable", f"{unusable:,}"), ("findings worth a look", f"{look:,}")]
    figures += [(f"with caption {name}", f"{count:,}") for name, count in found.captions.items()]
    lines: list[list[str | int]] = [
        [kind.severity, kind.name, line_of(kind, count, found.of_kind(kind.name)), count]
        for kind, count in found.kinds()
    ]
    parts = [verdict, shell.key_figures(figures)]
    if lines:
        parts.append(shell.table(["How bad", "Kind", "What", "Count"], lines, caption="Everything, worst first"))
    parts.append(shell.properties([Row(*_named(note)) for note in found.notes]))
    parts += [shell.paragraph(f"Warning: {printable(warning)}") for warning in found.warnings]
    return shell.joined(*parts)


def _unusable(broken: int, without: int) -> str:
    """What becomes of images that are unusable themselves, and of those that only want a caption."""
    told = []
    if broken:
        told.append(f"{broken:,}: any run would reject them; the list of --list leaves them out.")
    if without:
        told.append(
            f"{without:,} for want of a caption: imports and text features would reject them, other runs take them; "
            "--list leaves them out with --list-also no-caption."
        )
    return " ".join(told)


def _named(note: str) -> tuple[str, str, str]:
    name, _, text = note.partition(": ")
    return name.capitalize(), text, ""


def _kinds(found: Audit, severity: Severity, thumbnails: _Thumbnails) -> Iterator[Markup]:
    for kind, count in found.kinds(severity):
        findings = found.of_kind(kind.name)
        parts = [shell.paragraph(kind.advice)]
        if kind.name in _COPIES:
            parts += _gallery(kind, thumbnails, [(_title(f), f.detail, f.keys) for f in findings[:_GROUPS]])
        elif kind.name in _PICTURED:
            parts += _gallery(kind, thumbnails, [(f.keys[0], f.detail, f.keys[:1]) for f in findings[:_SINGLE]])
        parts.append(shell.details(f"List: {counted(len(findings), 'findings')}", _table(kind, findings)))
        heading = line_of(kind, count, findings)
        yield shell.section(f"kind-{kind.name}", heading, shell.joined(*parts), level=3)


def _title(finding: Finding) -> str:
    return counted(len(finding.keys), "images")


def _gallery(kind: Kind, thumbnails: _Thumbnails, cards: Iterable[tuple[str, str, Sequence[str]]]) -> Iterator[Markup]:
    """Cards of (title, detail, keys), as far as their pictures can be had."""
    drawn = []
    for title, detail, keys in cards:
        views = [view for key in keys[:_OF_GROUP] if (view := thumbnails.view(key)) is not None]
        more = f" and {len(keys) - _OF_GROUP:,} more" if len(keys) > _OF_GROUP else ""
        if views:
            drawn.append(shell.Card(printable(title), tuple(views), detail=printable(detail) + more))
    if drawn:
        yield shell.gallery(f"Examples: {kind.name}", [shell.Group("", tuple(drawn))], level=4)


def _table(kind: Kind, findings: Sequence[Finding]) -> Markup:
    rows: list[list[str]] = [
        [", ".join(map(printable, f.keys)) or printable(f.detail), printable(f.detail)] for f in findings[:_ROWS]
    ]
    told = f"the first {_ROWS:,} of {len(findings):,}; --json-file has all" if len(findings) > _ROWS else "all"
    return shell.table(["Images", "What"], rows, caption=f"{kind.name}: {told}")


def _classes(found: Audit) -> Markup:
    rows: list[list[str | int]] = [
        [printable(name) or "(the source itself)", count] for name, count in found.classes.items()
    ]
    told = f"The first {_ROWS:,} of {len(rows):,} classes" if len(rows) > _ROWS else "All classes"
    table = shell.table(["Class", "Images"], rows[:_ROWS], caption=told)
    return shell.details(counted(len(rows), "classes"), table)


class _Thumbnails:
    """Small pictures of a source's images, each read when it is first shown."""

    def __init__(self, chosen: AuditSettings) -> None:
        self._chosen = chosen
        self._subject: Subject | None = None
        self._made: dict[str, Picture | None] = {}

    def view(self, key: str) -> shell.View | None:
        """The picture of a key with its name; None where there is none to be had."""
        if key not in self._made:
            self._made[key] = self._picture(key)
        found = self._made[key]
        return None if found is None else shell.View(printable(key), found)

    def _picture(self, key: str) -> Picture | None:
        if self._subject is None:
            self._subject = subject_of(self._chosen)
            self._refs = {ref.key: ref for ref in self._subject.refs}
        with suppress(SampleError):
            data = self._subject.source.read(self._refs[key])
            pixels, _ = decode(data, exif="apply", alpha="white", max_pixels=self._chosen.max_pixels)
            return picture(pixels, printable(key), _SIDE, quality=75)
        return None
