"""One thing that was found, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentmill.auditing.kinds import ALSO, GROUPS_OF_COPIES, KINDS, NEAR, NO_CAPTION, SEVERITIES, Kind, Severity
from latentmill.errors import ConfigError
from latentmill.wording import did_you_mean

JSON_VERSION = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding. kind: of `kinds.KINDS`. keys: of the images that it is about, of copies the one to keep first.

    detail: what is to be said of these; of a class, its name.
    """

    kind: str
    keys: tuple[str, ...]
    detail: str = ""


@dataclass(frozen=True)
class Audit:
    """What was found in a source. seconds: that it took. classes: images by class, in the classes' order.

    captions: names of the captions, and how many images have each. notes: what was judged by what.
    """

    source: Path
    images: int
    findings: list[Finding]
    seconds: float
    classes: dict[str, int] = field(default_factory=dict)
    captions: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> list[Finding]:
        """The findings of one kind, in order."""
        return [finding for finding in self.findings if finding.kind == kind]

    def kinds(self, severity: Severity | None = None) -> list[tuple[Kind, int]]:
        """Kinds that something was found of, with how many findings: worst first, then the commonest first."""
        counts = dict.fromkeys(KINDS, 0)
        for finding in self.findings:
            counts[finding.kind] += 1
        order = list(SEVERITIES)
        found = [(KINDS[name], count) for name, count in counts.items() if count]
        found = [each for each in found if severity in (None, each[0].severity)]
        return sorted(found, key=lambda each: (order.index(each[0].severity), -each[1]))

    @property
    def unusable(self) -> dict[str, str]:
        """The images that a run would reject, and why; for want of a caption, a run that needs one."""
        found = self.unusable_images
        for finding in self.of_kind(NO_CAPTION):
            found.setdefault(finding.keys[0], finding.detail)
        return found

    @property
    def unusable_images(self) -> dict[str, str]:
        """The images that any run would reject, and why: what is wrong with them is not their captions."""
        found: dict[str, str] = {}
        for finding in self.findings:
            if KINDS[finding.kind].severity == "unusable" and finding.kind != NO_CAPTION:
                found.setdefault(finding.keys[0], finding.detail)
        return found

    def exclusions(self, also: list[str] | tuple[str, ...] = ()) -> dict[str, str]:
        """Keys to leave out, with the reason: images that no run takes, and all but one of each group of equal images.

        An image without a caption is none of them, since runs that need no caption take it. also: further kinds, by
        name, or `near` (all but one), `captions` (no-caption among them), `shapes`. Raises ConfigError.
        """
        wanted = {*GROUPS_OF_COPIES, *(name for told in also for name in kinds_of(told))}
        found = self.unusable if NO_CAPTION in wanted else self.unusable_images
        for finding in sorted(self.findings, key=lambda each: each.kind not in GROUPS_OF_COPIES):
            if finding.kind in wanted:
                copies = finding.kind in (*GROUPS_OF_COPIES, NEAR)
                kept = finding.keys[0] if copies else ""
                reason = f"{finding.kind} as {kept}" if copies else f"{finding.kind}: {finding.detail}".rstrip(": ")
                for key in finding.keys[copies:]:
                    found.setdefault(key, reason)
        return dict(sorted(found.items()))

    def as_table(self) -> dict[str, Any]:
        """All of it, in plain values, for a program."""
        return {
            "version": JSON_VERSION,
            "source": str(self.source),
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "classes": self.classes,
            "captions": self.captions,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "counts": {kind.name: count for kind, count in self.kinds()},
            "findings": {
                kind.name: {
                    "severity": kind.severity,
                    "told": kind.told,
                    "advice": kind.advice,
                    "unit": kind.unit,
                    "found": [{"keys": list(f.keys), "detail": f.detail} for f in self.of_kind(kind.name)],
                }
                for kind, _ in self.kinds()
            },
        }


def kinds_of(told: str) -> tuple[str, ...]:
    """The kinds that a name of --list-also stands for. Raises ConfigError."""
    if told in ALSO:
        return ALSO[told]
    if told in KINDS:
        return (told,)
    known = [*ALSO, *(name for name in KINDS if name not in ALSO)]
    raise ConfigError(f"list-also must be of {', '.join(known)}. Found: {told!r}.{did_you_mean(told, known)}")
