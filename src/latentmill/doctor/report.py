"""How findings are shown: a table in groups for a person, names and values for a program."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.table import Table

from latentmill.doctor.findings import Finding, State, broken
from latentmill.terminal import counted, out, shown

VERSION = 1
_MARKS: dict[State, str] = {
    "ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "broken": "[red]broken[/]", "absent": "[dim]-[/]",
}  # fmt: skip


def show(findings: Sequence[Finding]) -> None:
    """Print a block for each group, then the verdict."""
    wide = max(len(finding.name) for finding in findings)
    for number, (group, each) in enumerate(groupby(findings, key=lambda finding: finding.group)):
        if number:
            out.print()
        out.print(f"[bold]{shown(group)}[/]")
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(width=7, no_wrap=True)
        table.add_column(width=min(wide, 30), overflow="fold")
        table.add_column(overflow="fold")
        for finding in each:
            value = shown(finding.value)
            if finding.advice:
                value += f"\n[bold]→[/] {shown(finding.advice)}"
            table.add_row(_MARKS[finding.state], shown(finding.name), value)
        out.print(table, soft_wrap=False)
    out.print(f"\n{_verdict(findings)}")


def _verdict(findings: Sequence[Finding]) -> str:
    wrong = sum(finding.state == "broken" for finding in findings)
    warned = sum(finding.state == "warning" for finding in findings)
    warnings = f", {counted(warned, 'warnings')}" if warned else ""
    if wrong:
        return f"[red]{counted(wrong, 'things')} broken[/]{warnings}"
    return f"[green]sound[/]{warnings}"


def as_table(findings: Sequence[Finding]) -> dict[str, Any]:
    """Everything, in groups. version: of this schema; names that are added are no new version."""
    groups: dict[str, Any] = {}
    for finding in findings:
        told = {"value": finding.value, "state": finding.state}
        if finding.advice:
            told["advice"] = finding.advice
        groups.setdefault(finding.group, {})[finding.name] = told
    warnings = sum(finding.state == "warning" for finding in findings)
    return {"version": VERSION, "sound": not broken(findings), "warnings": warnings, **groups}
