"""The cores and memory that this process may really use: affinity, control groups (v1 and v2), free memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_V1_UNLIMITED = 1 << 60  # v1 writes a huge number, rounded to pages, for "no limit"
_sharing = 1  # processes that take the machine's memory alike


def share_memory(processes: int) -> None:
    """Let `available_memory` give this process its share, where so many take the machine's memory alike."""
    global _sharing
    _sharing = max(1, processes)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _groups(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """This process's control-group folders for `controller`, innermost first; limits of outer ones hold too."""
    for line in _read(membership).splitlines():
        _, names, path = line.split(":", 2)
        if names == "":
            base = root
        elif controller in names.split(","):
            base = root / controller
        else:
            continue
        folder = base / path.lstrip("/")
        while True:
            if folder.is_dir():
                yield folder
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


def usable_cores(root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores by affinity, lowered to the tightest CPU quota of the control groups (at least 1)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        cores = os.cpu_count() or 1
    for group in _groups("cpu", root, membership):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def available_memory(
    root: Path = _CGROUP_ROOT,
    membership: Path = Path("/proc/self/cgroup"),
    meminfo: Path = Path("/proc/meminfo"),
) -> int | None:
    """Bytes that can still be used: the system's, or less where a control group allows less; None if unknown."""
    lines = _read(meminfo).splitlines()
    limits = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for group in _groups("memory", root, membership):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit() and int(limit) < _V1_UNLIMITED:
            cache = _reclaimable(group)
            limits.append(max(0, int(limit) - max(0, int(used) - cache)))
    return min(limits) // _sharing if limits else None


def _reclaimable(group: Path) -> int:
    """File cache that the kernel gives back under pressure; it counts as used in the group's figure."""
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
