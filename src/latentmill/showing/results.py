"""What jobs and checks came to, as a person looks at it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latentmill.estimate import human
from latentmill.screen import clock
from latentmill.showing.page import Html, facts, folded, line, page, share, table
from latentmill.wording import counted

if TYPE_CHECKING:
    from latentmill.outcome import Result
    from latentmill.planning import Changes
    from latentmill.verification import VerifyReport

_SHOWN = 20  # reasons or problems
_SHOWN_AS_TEXT = 5


def result_text(result: Result) -> str:
    """One line."""
    return f"Result({str(result.dest)!r}: {_done(result)}; {_took(result)})"


def result_html(result: Result) -> str:
    """One result as a notebook displays it."""
    return page("Result", result.dest, *_parts(result))


def results_text(results: Mapping[str, Result]) -> str:
    """A line for each output."""
    return "\n".join(f"{name}: {result_text(result)}" for name, result in results.items()) or "{}"


def results_html(results: Mapping[str, Result]) -> str:
    """Those of a recipe as a notebook displays them: a table, and what is to be told of each."""
    headings = ("output", "where", "stored", "rejected", "left out", "done now", "bytes", "time")
    rows = [
        (name, each.dest, f"{each.stored:,}", f"{each.rejected:,}", f"{each.skipped:,}", f"{each.computed:,}",
         human(each.bytes), clock(each.seconds)) for name, each in results.items()
    ]  # fmt: skip
    told = [folded(name, *_parts(each)) for name, each in results.items()]
    return page("Results", counted(len(results), "outputs"), table(headings, rows, headings[2:]), *told)


def verify_text(report: VerifyReport) -> str:
    """The verdict, and the first problems."""
    lines = [f"VerifyReport({_verdict(report)})"]
    lines += [f"  {problem}" for problem in report.problems[:_SHOWN_AS_TEXT]]
    more = len(report.problems) - _SHOWN_AS_TEXT
    return "\n".join([*lines, f"  … and {more:,} more"] if more > 0 else lines)


def verify_html(report: VerifyReport) -> str:
    """The verdict, and what is wrong where, as a notebook displays it."""
    if not report.problems:
        return page("Verified", report.kind, line(_verdict(report), "good"))
    rows = [(problem.where, problem.what) for problem in report.problems[:_SHOWN]]
    more = len(report.problems) - len(rows)
    rest = [line(f"and {more:,} more")] if more else []
    return page("Verified", report.kind, line(_verdict(report), "bad"), table(("where", "what is wrong"), rows), *rest)


def _verdict(report: VerifyReport) -> str:
    files = counted(report.files, "files")
    if report.problems:
        return f"{report.kind}: {counted(len(report.problems), 'problems')} in {files}"
    return f"{report.kind}: sound, {files}, {report.summary}"


def _done(result: Result) -> str:
    told = [f"{result.stored:,} of {result.listed:,} stored"]
    told += [f"{result.rejected:,} rejected"] if result.rejected else []
    told += [f"{result.skipped:,} left out by rule"] if result.skipped else []
    told += ["finished before"] if result.already_done else [f"{result.computed:,} done now"]
    return ", ".join(told)


def _took(result: Result) -> str:
    told = f"{human(result.bytes)}, {clock(result.seconds)}"
    if result.computed and result.running_seconds:
        told += f" ({result.computed / result.running_seconds:,.1f} a second)"
    return told


def _parts(result: Result) -> list[Html]:
    changes = result.changes
    rows = {
        "done": _done(result),
        "took": _took(result),
        "update": _update(changes) if changes is not None else "",
        "notes": ", ".join(f"{count:,} {note}" for note, count in result.notes.items()),
        "report": result.report,
        "rejects": result.rejects or "",
    }
    told = _report(result)
    reasons = _by_reason(told.get("rejects_by_reason"), "rejected")
    rules = _by_reason(told.get("skipped_by_reason"), "left out")
    return [facts(rows), *reasons, *rules, *_by_stage(told.get("seconds_by_stage"))]


def _short(seconds: float) -> str:
    return clock(seconds) if seconds >= 1 else f"{seconds:.3f} s"


def _update(changes: Changes) -> str:
    return f"{changes.compute:,} made, {changes.keep:,} kept, {changes.rename:,} renamed, {changes.drop:,} removed"


def _report(result: Result) -> dict[str, Any]:
    """`latentmill-report.json`; nothing where it is not there any more."""
    try:
        told = json.loads(result.report.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _by_reason(found: object, what: str) -> list[Html]:
    if not isinstance(found, dict) or not found:
        return []
    rows = [(reason, f"{count:,}") for reason, count in list(found.items())[:_SHOWN]]
    return [table((f"why {what}", "images"), rows, ("images",))]


def _by_stage(found: object) -> list[Html]:
    """Seconds of the run, summed over workers."""
    if not isinstance(found, dict) or not any(found.values()):
        return []
    most = max(found.values())
    rows = [(stage, _short(seconds), share(seconds, most, clock(seconds))) for stage, seconds in found.items()]
    return [folded("time by stage, summed over workers", table(("stage", "time", ""), rows, ("time",)))]
