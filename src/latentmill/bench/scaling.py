"""What several cores do together against one alone: processes as `convert` has them, threads as `encode` has them."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from latentmill.formats.repa import ImageLayout
from latentmill.records import SampleRef
from latentmill.stages import Load
from latentmill.throughput import company_of

_STARTING = 0.3  # seconds before all begin together
_SCHEDULED = Path("/proc/thread-self/schedstat")
_SPAWNING = 3.0  # where processes import everything anew


@dataclass(frozen=True)
class Scaling:
    """alone, together: images a second of one worker, and of `workers` at once in all.

    Time in which other programs had the core is not counted, where the system tells it (Linux): what is left is what
    workers cost each other, by caches, memory, shared cores and Python's lock.
    """

    workers: int
    alone: float
    together: float

    @property
    def company(self) -> float:
        return company_of(self.alone, self.together, self.workers)


def measure_scaling(data: list[bytes], load: Load, workers: int, seconds: float, *, threads: bool) -> Scaling:
    """Load photos (decode, crop; processes also pack PNGs) for `seconds` with one worker, and with all at once."""
    task = partial(_work, data, load, not threads, seconds / 3)
    if workers < 2:
        alone = task(time.time())
        return Scaling(1, alone, alone)
    if threads:
        with ThreadPoolExecutor(workers) as pool:
            return _both(pool, task, workers, _STARTING)
    forked = sys.platform == "linux" and "torch" not in sys.modules
    context = multiprocessing.get_context("fork" if forked else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return _both(pool, task, workers, _STARTING if forked else _SPAWNING)


def _both(
    pool: ProcessPoolExecutor | ThreadPoolExecutor, task: Callable[[float], float], workers: int, starting: float
) -> Scaling:
    """One worker between two halves of all of them: a machine that slows down slows both."""
    sums = []
    alone = 0.0
    for number in range(3):
        count = 1 if number == 1 else workers
        begin = time.time() + starting
        rate = sum(future.result() for future in [pool.submit(task, begin) for _ in range(count)])
        if number == 1:
            alone = rate
        else:
            sums.append(rate)
    return Scaling(workers, alone, sum(sums) / len(sums))


def _work(data: list[bytes], load: Load, pack: bool, seconds: float, begin: float) -> float:
    """Images a second of this worker, from `begin` (of the clock) on."""
    layout, ref = ImageLayout(), SampleRef(0, "", "")
    time.sleep(max(0.0, begin - time.time()))
    done, start, waited = 0, time.perf_counter(), run_delay()
    while time.perf_counter() - start < seconds:
        sample = load(ref, load.decode(data[done % len(data)]))
        if pack and sample is not None:
            layout.to_bytes(sample.array)
        done += 1
    wall = time.perf_counter() - start
    return done / max(wall - (run_delay() - waited), wall / 100)


def run_delay(file: Path = _SCHEDULED) -> float:
    """Seconds that this thread could have run, but another had the core; 0 where the system does not tell.

    The second figure of the kernel's schedstat, in nanoseconds (Documentation/scheduler/sched-stats.rst).
    """
    try:
        return int(file.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
