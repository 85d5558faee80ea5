"""A runner: units by any pool of `concurrent.futures`, here of processes; dask's, mpi4py's and others have its form."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed

from latentmill.errors import LatentmillError
from latentmill.records import Progress, ShardReport
from latentmill.worker import Emit, Task, Unit, run_units

_Events = list[tuple[int, Progress | ShardReport]]


def run_futures(task: Task, units: Sequence[Unit], workers: int, emit: Emit) -> None:
    """`[run] runner = "futures"`: returns when every unit is committed; raises the first failure.

    It has nothing to do with images: a unit reads, encodes and commits by itself wherever `run_units` is called, and
    what a run that was cut off has committed is not among the units of the next. A photo that kills a process ends the
    job here; `latentmill.runners.scheduler` would find and reject it.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            _run(pool, task.shared(workers), units, emit)
        except BrokenExecutor as error:
            raise LatentmillError(f"a worker process died: {error}. What is committed is kept: run again") from error


def _run(pool: Executor, task: Task, units: Sequence[Unit], emit: Emit) -> None:
    pending = [pool.submit(_events_of, task, unit) for unit in units]
    try:
        for future in as_completed(pending):
            for part, event in future.result():
                emit(part, event)
    finally:
        for future in pending:
            future.cancel()


def _events_of(task: Task, unit: Unit) -> _Events:
    """Where a worker is: the unit done, and what it told."""
    events: _Events = []
    run_units(task, [unit], lambda part, event: events.append((part, event)))
    return events
