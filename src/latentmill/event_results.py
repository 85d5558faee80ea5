"""The `result` events of commands: what each came to, as names and numbers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentmill.events import emit, listening

if TYPE_CHECKING:
    from latentmill.importing import ImportResult
    from latentmill.outcome import Result
    from latentmill.recipe_plan import RecipePlan
    from latentmill.transforms.bucket_report import BucketReport
    from latentmill.verification import VerifyReport


def emit_job(job: str, result: Result) -> None:
    """The rejects of a job, one by one, and what it came to."""
    _emit_rejects(job, result.rejects)
    emit(
        "result", job=job, dest=result.dest, stored=result.stored, rejected=result.rejected, skipped=result.skipped,
        computed=result.computed, bytes=result.bytes, seconds=round(result.seconds, 3), notes=result.notes,
        report=result.report, rejects=result.rejects, already_done=result.already_done,
    )  # fmt: skip


def emit_import(result: ImportResult) -> None:
    """The rejects of an import, and what it came to."""
    _emit_rejects("import", result.rejects)
    emit("result", job="import", **(vars(result) | {"seconds": round(result.seconds, 3)}))


def _emit_rejects(job: str, file: Path | None) -> None:
    if file is None or not listening():
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            emit("reject", job=job, **json.loads(line))


def emit_verified(dataset: Path, report: VerifyReport) -> None:
    """What `verify` found of one dataset."""
    emit(
        "result", dataset=dataset, sound=not report.problems, kind=report.kind, files=report.files,
        summary=report.summary, problems=list(report.problems),
    )  # fmt: skip


def emit_buckets(source: Path, report: BucketReport) -> None:
    """What a bucket table would do: `bucket` is [height, width]; shares and means are 0..1."""
    emit("result", source=source, **_buckets(report))


def _buckets(report: BucketReport) -> dict[str, Any]:
    left_out = [asdict(each) for each in report.left_out]
    return {"buckets": report.as_json(), "totals": asdict(report.totals()), "left_out": left_out}


def emit_plan(plan: RecipePlan) -> None:
    """What a recipe would do. bytes and seconds: null where they are not known."""
    outputs = [
        {
            "name": each.name, "kind": each.kind, "dest": each.dest, "samples": each.samples, "bytes": each.bytes,
            "seconds": each.seconds, "state": each.standing.word, "why": each.standing.why, "told": list(each.told),
        }
        for each in plan.outputs
    ]  # fmt: skip
    emit(
        "result", source=plan.source, images=plan.images, dest=plan.root, outputs=outputs, seconds=plan.seconds,
        reading_seconds=plan.reading, rejects=plan.rejects, looked=plan.looked, recipe=plan.recipe,
        buckets={name: _buckets(report) for name, report in plan.buckets.items()},
    )  # fmt: skip


def emit_models() -> None:
    """Every short name, by what it is a name of."""
    from latentmill.registry import MODELS, TEXT_MODELS, TEXT_SETS, VISION_MODELS

    emit(
        "result",
        vae=[asdict(entry) for entry in MODELS.values()],
        text=[asdict(entry) for entry in TEXT_MODELS.values()],
        text_sets={name: {each.name: each.entry.name for each in members} for name, members in TEXT_SETS.items()},
        vision=[asdict(entry) for entry in VISION_MODELS.values()],
    )
