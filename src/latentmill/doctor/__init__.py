"""`latentmill doctor`: whether everything works on this machine, what is in use, and what will hurt."""

from __future__ import annotations

from latentmill.doctor.findings import Finding, broken


def examine() -> list[Finding]:
    """Everything that is looked at, in the order in which it is shown."""
    from latentmill.doctor import devices, machine, models, pictures, software

    found: list[Finding] = []
    for group in (software, pictures, machine, devices, models):
        found += group.findings()
    return found


__all__ = ["Finding", "broken", "examine"]
