"""`latentmill doctor`: whether everything works on this machine, what is in use, and what will hurt."""

from __future__ import annotations

from pathlib import Path

from latentmill.doctor.findings import Finding, broken


def examine(dest: Path | None = None, quick: bool = False) -> list[Finding]:
    """Everything that is looked at, in the order in which it is shown.

    dest: where the disk's speed is measured; None: the temporary folder. quick: without measuring, and without asking
    the hub.
    """
    from latentmill.doctor import devices, disk, hub, machine, models, pictures, software

    found: list[Finding] = []
    for group in (software, pictures, machine):
        found += group.findings()
    if not quick or dest is not None:
        found += disk.findings(dest)
    for group in (devices, models):
        found += group.findings()
    return found if quick else found + hub.findings()


__all__ = ["Finding", "broken", "examine"]
