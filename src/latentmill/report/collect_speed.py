"""How fast a dataset was made, from what its own report file tells, and what limited it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentmill.report.collect_index import Opened
from latentmill.report.facts import SpeedFacts

_FORWARD = ("load", "warm-up", "encode")  # one after the other in a worker's first thread
_BEHIND = ("results", "write", "commit")  # beside these, in its second
_SHORT_SECONDS = 10.0  # of a run, which tells nothing of a long one
_CLEAR = 0.5  # of a thread's time, from which a stage is what limits


def speed_facts(dataset: Opened) -> SpeedFacts | None:
    """None where nothing tells of it: a result without its report file, or one whose last run had nothing to do."""
    report = dataset.report
    stages, running = report.get("seconds_by_stage"), report.get("seconds_running")
    if not isinstance(stages, dict) or not isinstance(running, int | float) or running <= 0:
        return None
    timeline = _timeline(report.get("timeline"))
    workers = int(report.get("workers", 1))
    counts = dataset.metadata.counts
    told = {str(stage): float(value) for stage, value in stages.items()}
    return SpeedFacts(
        seconds=float(running),
        images=int(timeline[-1, 1]) if len(timeline) else counts.listed,
        workers=workers,
        stages=tuple((_name(stage, dataset), told[stage]) for stage in (*_FORWARD, *_BEHIND) if stage in told),
        timeline=timeline,
        bottleneck=_bottleneck(told, dataset.kind, float(running)),
    )


def _name(stage: str, dataset: Opened) -> str:
    """As a person knows it: pixels that have a model were decoded by it."""
    decoded = dataset.kind == "images" and dataset.metadata.model is not None
    return "decode" if decoded and stage == "encode" else stage


def _timeline(told: Any) -> Any:
    """float64 (N, 2); (0, 2) where there is none."""
    if not isinstance(told, list) or not all(isinstance(row, list) and len(row) == 2 for row in told):
        return np.zeros((0, 2))
    return np.array(told, np.float64).reshape(-1, 2)


def _bottleneck(stages: Mapping[str, float], kind: str, running: float) -> str:
    """In a sentence. Of the two threads of a worker, the busier one sets the pace; in it, the longest stage."""
    threads = {thread: sum(stages.get(stage, 0.0) for stage in thread) for thread in (_FORWARD, _BEHIND)}
    thread = max(threads, key=lambda each: threads[each])
    total = threads[thread]
    if total <= 0:
        return "The stages took too little time to tell what limited them."
    stage = max(thread, key=lambda each: stages.get(each, 0.0))
    share = stages.get(stage, 0.0) / total
    told = f"{share:.0%} of the busier thread of a worker went into {_WORDS[stage]}"
    if running < _SHORT_SECONDS:
        return f"A run of {running:.1f} seconds tells little: {told}, where starting counts too."
    if share < _CLEAR:
        return f"Nothing alone limited it: {told}, more than into anything else."
    advice = _ADVICE | _OF_PIXELS if kind == "images" else _ADVICE
    return f"{told}: {advice[stage]}"


_WORDS = {
    "load": "waiting for samples to be read, decoded and cropped",
    "warm-up": "preparing the model for each shape",
    "encode": "the model",
    "results": "waiting for the model's results",
    "write": "writing files",
    "commit": "flushing shards to the disk",
}
_ADVICE = {
    "load": "reading and decoding limited it. More loading threads or a faster disk for the source would help.",
    "warm-up": "the run was short, or compiling took most of it. A longer run is faster.",
    **dict.fromkeys(
        ("encode", "results"),
        "the model limited it. A faster or another device, or a lower precision, would help; more loading threads "
        "would not.",
    ),
    "write": "writing limited it. A faster disk for the result would help.",
    "commit": "the result's disk limited it. A faster one would help.",
}
_OF_PIXELS = {"load": "decoding and resizing limited it, as is usual. More cores would help, or --resize fast."}
