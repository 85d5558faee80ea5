"""What an audit found, on one screen: worst first, the commonest first, with an example or two of each."""

from __future__ import annotations

from latentmill.auditing.findings import Audit, Finding
from latentmill.auditing.kinds import SEVERITIES, Kind, Severity
from latentmill.terminal import clock, counted, out, shown

_COLOURS: dict[Severity, str] = {"unusable": "red", "look": "yellow", "info": "cyan"}
_EXAMPLES = 2
_LONGEST = 100  # characters of an example


def show(found: Audit) -> None:
    """Print the summary."""
    rate = f"{found.images / found.seconds:,.0f}/s" if found.seconds else ""
    classes = f", {_counted(len(found.classes), 'classes')}" if found.classes else ""
    captions = "".join(f", {count:,} with caption {shown(name)}" for name, count in found.captions.items())
    took = f"{clock(found.seconds)}, {rate}"
    out.print(f"[bold]{shown(found.source)}[/]: {counted(found.images, 'images')}{classes}{captions} ({took})")
    for severity, heading in SEVERITIES.items():
        kinds = found.kinds(severity)
        if not kinds:
            continue
        out.print(f"[bold {_COLOURS[severity]}]{heading}[/]")
        for kind, count in kinds:
            _show(kind, count, found.of_kind(kind.name))
    if not found.findings:
        out.print("[green]nothing was found that a run would reject, or that one may not expect[/]")
    elif not found.unusable:
        out.print("[green]a run would take every image[/]")
    for note in found.notes:
        out.print(f"[dim]{shown(note)}[/]")


def _show(kind: Kind, count: int, findings: list[Finding]) -> None:
    out.print(f"  {line_of(kind, count, findings)}")
    for finding in findings[:_EXAMPLES]:
        out.print(f"      [dim]{shown(_cut(example_of(finding)))}[/]")


def line_of(kind: Kind, count: int, findings: list[Finding]) -> str:
    """What was found of a kind: `12 images: grey`, `2 groups (5 images): the same file, byte for byte`."""
    images = len({key for finding in findings for key in finding.keys})
    of = "" if kind.unit in ("images", "files") or not images else f" ({counted(images, 'images')})"
    return f"{_counted(count, kind.unit)}{of}: {kind.told}"


def _counted(count: int, unit: str) -> str:
    return f"{count:,} class" if (count, unit) == (1, "classes") else counted(count, unit)


def example_of(finding: Finding) -> str:
    """One finding on a line."""
    keys = ", ".join(finding.keys[:3]) + (f" and {len(finding.keys) - 3:,} more" if len(finding.keys) > 3 else "")
    return ": ".join(filter(None, (keys, finding.detail)))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
