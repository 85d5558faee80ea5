"""What a command and its workers use of the machine while they run: a share of the cores, a GPU's memory and time.

Without a thread, without touching a GPU that this process does not use already, and at most once a second.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from latentmill.system import usable_cores

_PROC = Path("/proc")
_SECONDS = 1.0  # between looks


@dataclass(frozen=True)
class GpuUse:
    """One GPU. memory: bytes used (by anybody) and in all. utilization: of its time, 0..1; None where not known."""

    memory_used: int
    memory_total: int
    utilization: float | None = None


@dataclass(frozen=True)
class Use:
    """cpu_share: of the usable cores, 0..1, since the last look; None where not known."""

    cpu_share: float | None = None
    gpus: tuple[GpuUse, ...] = ()

    @property
    def words(self) -> str:
        """As a person reads it: `CPU 93%, GPU 71% 12.3/24 GB`; empty where nothing is known."""
        told = [] if self.cpu_share is None else [f"CPU {self.cpu_share:.0%}"]
        for gpu in self.gpus:
            busy = "" if gpu.utilization is None else f" {gpu.utilization:.0%}"
            told.append(f"GPU{busy} {gpu.memory_used / 1e9:.1f}/{gpu.memory_total / 1e9:.0f} GB")
        return ", ".join(told)


class Meter:
    """Looks at what this process and its workers use. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._cores = clock, usable_cores()
        self._before: dict[int, float] = processor_seconds()
        self._looked = clock()
        self._use = Use()

    def look(self) -> Use:
        """What is used now; the last look's answer within a second of it."""
        now = self._clock()
        elapsed = now - self._looked
        if elapsed < _SECONDS:
            return self._use
        seconds = processor_seconds()
        spent = sum(value - self._before.get(pid, 0.0) for pid, value in seconds.items())
        known = sys.platform == "linux" or len(seconds) > 1
        share = min(1.0, spent / elapsed / self._cores) if known else None
        self._before, self._looked, self._use = seconds, now, Use(share, _gpus())
        return self._use


def processor_seconds(proc: Path = _PROC) -> dict[int, float]:
    """Seconds of processor time by process, of this one and those below it; of this one alone where /proc is none."""
    found = {os.getpid(): time.process_time()}
    for pid in _below(os.getpid(), proc):
        with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
            found[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _below(pid: int, proc: Path) -> Iterator[int]:
    """The processes below one, children first, as the kernel lists them; none where it does not."""
    for task in proc.glob(f"{pid}/task/*/children"):
        children: list[int] = []
        with suppress(OSError, ValueError):
            children = [int(child) for child in task.read_text().split()]
        for child in children:
            yield child
            yield from _below(child, proc)


def _gpus() -> tuple[GpuUse, ...]:
    """The GPUs that this process computes on; to ask of any other would take memory on it, and break forking."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(index):
            free, total = torch.cuda.mem_get_info(index)
            found.append(GpuUse(total - free, total, _busy(torch, index)))
    return tuple(found)


def _busy(torch: Any, index: int) -> float | None:
    """The share of a GPU's time, which PyTorch can tell where nvidia-ml-py is and may ask; None where not known."""
    try:
        library: Any = import_module("pynvml")
    except ImportError:
        return None
    with suppress(RuntimeError, OSError, library.NVMLError):  # parts of a GPU, as some clouds lend them, have no share
        return float(torch.cuda.utilization(index)) / 100
    return None
