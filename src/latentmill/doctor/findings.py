"""What the doctor finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "broken", "absent"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. advice: what to do, where that is not nothing.

    state: `ok`; `warning`, works and will hurt; `broken`, does not work; `absent`, optional and not there.
    """

    group: str
    name: str
    value: str
    state: State = "ok"
    advice: str = ""


def broken(findings: Iterable[Finding]) -> bool:
    """Whether anything does not work."""
    return any(finding.state == "broken" for finding in findings)


def one_line(error: Exception) -> str:
    """An error of another package, as it is shown."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
