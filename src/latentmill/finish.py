"""What closes a job: labels, index, metadata, and the files for a person, made from the ledger in one pass."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from latentmill.errors import DestinationError
from latentmill.files import digest, digest_lines, replace_bytes, replace_text, write_errors
from latentmill.formats.columns_writer import ColumnsWriter, Row, write_columns
from latentmill.formats.labels import LabelsWriter
from latentmill.formats.metadata import (
    DATASET_JSON,
    INDEX_COLUMNS,
    INDEX_JSONL,
    METADATA_JSON,
    RECIPE_TOML,
    REJECTS_JSONL,
    REPORT_JSON,
    BucketInfo,
    Counts,
    LatentInfo,
    Metadata,
    ModelInfo,
    Statistics,
    TextInfo,
    TextModelInfo,
    Value,
    VisionInfo,
    VisionModelInfo,
    row_json,
)
from latentmill.formats.payload import ARRAY_ERRORS
from latentmill.manifest import Plan
from latentmill.records import NOTES, Outcome
from latentmill.versions import installed_version
from latentmill.worker import Output

if TYPE_CHECKING:
    from latentmill.transforms.bucket_report import BucketReport

_FIXED_POINT_BITS = 80  # sums of floats as integers: the same total in whatever order they are added


@dataclass(frozen=True)
class Description:
    """What an output's metadata says beyond its counts.

    empty_caption: of text features, computes the file that belongs to them as a whole.
    """

    fingerprint: dict[str, Value]
    image_size: tuple[int, int] | None = None
    buckets: BucketInfo | None = None
    latent: LatentInfo | None = None
    model: ModelInfo | None = None
    text: TextInfo | None = None
    text_model: TextModelInfo | None = None
    vision: VisionInfo | None = None
    vision_model: VisionModelInfo | None = None
    empty_caption: Callable[[], bytes] | None = None


@dataclass
class Tally:
    """What the whole ledger adds up to."""

    listed: int = 0
    stored: int = 0
    rejected: int = 0
    skipped: int = 0
    bytes: int = 0
    notes: dict[str, list[str]] = field(default_factory=dict)
    skipped_keys: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    buckets: BucketReport | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    sums: list[int] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.listed += 1
        for note in outcome.notes:
            self.notes.setdefault(note, []).append(outcome.ref.key)
        if outcome.stage:
            self.rejected += 1
            self.reasons[f"{outcome.stage}: {outcome.reason}"] += 1
        elif outcome.skipped:
            self.skipped += 1
            self.skipped_keys.append(outcome.ref.key)
            if self.buckets is not None:
                self.buckets.leave_out(outcome.ref.key, outcome.reason)
            self.left_out[outcome.reason or "by the transform's rule"] += 1
        else:
            self.stored += 1
            self.bytes += sum(file.size for file in outcome.files.values())
            if outcome.geometry is not None and self.buckets is not None:
                self.buckets.add(outcome.geometry)
            if outcome.sums:
                fixed = [int(math.ldexp(value, _FIXED_POINT_BITS)) for value in outcome.sums]
                self.sums = [a + b for a, b in zip(self.sums or [0] * len(fixed), fixed, strict=True)]

    def statistics(self) -> Statistics | None:
        """Per channel, from each latent's mean, mean square and mean variance over its positions."""
        if not self.sums:
            return None
        values = [math.ldexp(value, -_FIXED_POINT_BITS) / self.stored for value in self.sums]
        count = len(values) // 3
        mean, square, variance = values[:count], values[count : 2 * count], values[2 * count :]
        spread = [max(0.0, s - m * m) for s, m in zip(square, mean, strict=True)]
        sampled = [math.sqrt(s + v) for s, v in zip(spread, variance, strict=True)]
        return Statistics(mean=mean, std=[math.sqrt(s) for s in spread], std_sampled=sampled)


def _bucket_report(described: Iterable[Description]) -> BucketReport | None:
    """An empty report of the buckets that the outputs share; None where there are none."""
    table = next((each.buckets.table for each in described if each.buckets is not None), None)
    if table is None:
        return None
    from latentmill.transforms.bucket import BucketTable
    from latentmill.transforms.bucket_report import BucketReport

    return BucketReport(BucketTable.from_text(table))


def finish(
    plan: Plan,
    work: Path,
    outputs: Iterable[Output],
    describe: dict[str, Description],
    report: dict[str, object],
    recipe: str = "",
) -> Tally:
    """Write every output's metadata and put it in place; `latentmill.json`, which makes a dataset whole, comes last.

    recipe: is stored beside the first output.
    """
    outputs = list(outputs)
    tally = Tally(buckets=_bucket_report(describe.values()))
    with write_errors(work), ExitStack() as stack:
        folders = {o.name: o.container.work / "finish" for o in outputs}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        index = {n: stack.enter_context((f / INDEX_JSONL).open("w", newline="\n")) for n, f in folders.items()}
        columns = {o.name: ColumnsWriter(folders[o.name], o.container.is_zip) for o in outputs}
        labels = {o.name: LabelsWriter(folders[o.name] / DATASET_JSON) for o in outputs if o.layout.labelled}
        rejects = stack.enter_context((work / "rejects").open("w", newline="\n"))
        for outcome in plan.outcomes():
            tally.add(outcome)
            if outcome.stage:
                rejects.write(_reject_json(outcome) + "\n")
            for name in folders:
                index[name].write(row_json(outcome, name) + "\n")
                if name in outcome.files:
                    columns[name].add(Row.of(outcome, name))
                if name in outcome.files and name in labels:
                    labels[name].add(outcome.files[name].name, outcome.ref.label)
        for label_table in labels.values():
            label_table.close()
    if tally.listed != plan.listed:
        raise DestinationError(f"the ledger holds {tally.listed:,} images of {plan.listed:,}; --overwrite starts anew")
    for output in reversed(outputs):  # the first output tells that the whole job is done
        members = _metadata_files(
            output, describe[output.name], plan, tally, folders[output.name], columns.pop(output.name)
        )
        with write_errors(output.container.path):
            _side_files(output, tally, report, work / "rejects")
            if recipe and output is outputs[0]:
                replace_text(folders[output.name] / RECIPE_TOML, recipe)
                (folders[output.name] / RECIPE_TOML).replace(output.container.side_file(RECIPE_TOML))
        output.container.finish(members, (o.files[output.name] for o in plan.outcomes() if output.name in o.files))
    return tally


def _metadata_files(
    output: Output, description: Description, plan: Plan, tally: Tally, folder: Path, columns: ColumnsWriter
) -> dict[str, Path]:
    """The files that lie beside the data, made in `folder`, by name."""
    names = [INDEX_JSONL, INDEX_COLUMNS]
    if output.layout.labelled:
        names.append(DATASET_JSON)
    if description.text is not None:
        assert description.empty_caption is not None
        empty = _empty_caption(output, description.text.empty, description.empty_caption)
        replace_bytes(folder / description.text.empty, empty)
        names.append(description.text.empty)
        text = description.text.model_copy(update={"empty_digest": digest(empty)})
        description = dataclasses.replace(description, text=text)
    metadata = _metadata(output, description, plan, tally, folder / INDEX_JSONL)
    write_columns(folder / INDEX_COLUMNS, columns, metadata.index_digest)
    replace_text(folder / METADATA_JSON, metadata.to_json())
    return {name: folder / name for name in (*names, METADATA_JSON)}


def _empty_caption(output: Output, name: str, compute: Callable[[], bytes]) -> bytes:
    """The empty caption's features: those that lie there are of the same settings."""
    file = output.container.path / name
    if file.is_file():
        with suppress(*ARRAY_ERRORS):
            output.layout.from_bytes(file.read_bytes())
            return file.read_bytes()
    return compute()


def _reject_json(outcome: Outcome) -> str:
    return json.dumps({"key": outcome.ref.key, "stage": outcome.stage, "reason": outcome.reason})


def _metadata(output: Output, description: Description, plan: Plan, tally: Tally, index: Path) -> Metadata:
    with index.open(newline="\n") as lines:
        index_digest = digest_lines(lines)
    return Metadata(
        kind=output.layout.kind,
        layout=output.layout.code,
        counts=Counts(listed=tally.listed, stored=tally.stored, rejected=tally.rejected, skipped=tally.skipped),
        image_size=description.image_size,
        buckets=description.buckets,
        latent=description.latent,
        model=description.model,
        text=description.text,
        text_model=description.text_model,
        vision=description.vision,
        vision_model=description.vision_model,
        statistics=tally.statistics() if description.latent else None,
        classes=plan.classes,
        notes={note: len(keys) for note, keys in sorted(tally.notes.items())},
        source_digest=plan.source_digest,
        index_digest=index_digest,
        fingerprint=description.fingerprint,
        software=software(),
    )


def _side_files(output: Output, tally: Tally, report: dict[str, object], rejects: Path) -> None:
    """The rejects (only where there are any) and the report: for a person, no part of the data."""
    folder = output.container.work / "finish"  # so that a kill leaves nothing half-written beside the data
    if tally.rejected:
        replace_text(folder / REJECTS_JSONL, rejects.read_text())
        (folder / REJECTS_JSONL).replace(output.container.side_file(REJECTS_JSONL))
    else:
        output.container.side_file(REJECTS_JSONL).unlink(missing_ok=True)
    listed = {note: tally.notes.get(note, []) for note in NOTES}
    others = {note: keys for note, keys in tally.notes.items() if note not in listed}
    text = json.dumps(
        {
            "counts": {name: getattr(tally, name) for name in ("listed", "stored", "rejected", "skipped")},
            "bytes": tally.bytes,
            "rejects_by_reason": dict(tally.reasons.most_common()),
            "skipped_by_reason": dict(tally.left_out.most_common()),
            "images": {**listed, **others, "skipped": tally.skipped_keys},
            **({"buckets": tally.buckets.as_json()} if tally.buckets is not None else {}),
            **report,
        },
        indent=1,
    )
    replace_text(folder / REPORT_JSON, text + "\n")
    (folder / REPORT_JSON).replace(output.container.side_file(REPORT_JSON))


def software() -> dict[str, str]:
    """Versions of what can change a result's bytes, and of Python."""
    names = ("latentmill", "pillow", "simplejpeg", "numpy", "torch", "diffusers", "transformers")
    found = {name: installed_version(name) for name in names}
    return {"python": platform.python_version()} | {name: told for name, told in found.items() if told is not None}
