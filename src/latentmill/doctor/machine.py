"""The cores, memory and disk that can really be used, and the limits that a job may run into."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from latentmill.doctor.findings import Finding
from latentmill.estimate import human
from latentmill.system import available_memory, usable_cores

GROUP = "machine"
_LITTLE_MEMORY, _LITTLE_DISK, _LITTLE_SHARED = 2_000_000_000, 5_000_000_000, 1_000_000_000
_FEW_FILES = 1024
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "9p", "ceph", "lustre")
_CPU_INFO, _MOUNTS, _SHARED_MEMORY = Path("/proc/cpuinfo"), Path("/proc/self/mounts"), Path("/dev/shm")


def findings() -> list[Finding]:
    found = [_processor(), _cores(), _memory(), _disk(Path.cwd()), _temporary(), _shared_memory(), _open_files()]
    return [finding for finding in found if finding is not None]


def processor_name() -> str:
    """The CPU's model, as far as the system tells."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _processor() -> Finding:
    return Finding(GROUP, "processor", f"{processor_name()} ({platform.machine()})")


def _cores() -> Finding:
    usable, there = usable_cores(), os.cpu_count() or 1
    value = f"{usable} usable" if usable == there else f"{usable} usable of {there} (affinity, control groups)"
    return Finding(GROUP, "cores", value)


def _memory() -> Finding:
    free = available_memory()
    if free is None:
        return Finding(GROUP, "memory", "unknown on this system")
    if free >= _LITTLE_MEMORY:
        return Finding(GROUP, "memory", f"{human(free)} available")
    advice = "little: use fewer --num-workers, a smaller --batch-size"
    return Finding(GROUP, "memory", f"{human(free)} available", "warning", advice)


def file_system(folder: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system on which a folder lies; "" where the system does not tell."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    found, kind = "", ""
    for line in lines:
        _, place, its_kind, *_ = line.split(" ")
        point = place.encode().decode("unicode_escape")  # as the kernel escapes blanks in names
        above = point.rstrip("/") + "/"
        if f"{folder}/".startswith(above) and len(point) >= len(found):
            found, kind = point, its_kind
    return kind


def _disk(folder: Path) -> Finding:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(GROUP, "disk here", f"cannot be looked at: {error.strerror}", "warning")
    kind = file_system(folder)
    value = f"{human(free)} free" + (f", {kind}" if kind else "")
    if free < _LITTLE_DISK:
        return Finding(GROUP, "disk here", value, "warning", "little: a million PNGs of 256x256 take 200 GB")
    if kind in NETWORK:
        return Finding(GROUP, "disk here", value, "warning", "a network's: many small files are slow; prefer a .zip")
    return Finding(GROUP, "disk here", value)


def _temporary() -> Finding | None:
    try:
        with tempfile.TemporaryFile():
            return None
    except OSError as error:
        return Finding(GROUP, "temporary folder", f"cannot be written: {error.strerror}", "broken", "set TMPDIR")


def _shared_memory() -> Finding | None:
    if not _SHARED_MEMORY.is_dir():
        return None
    size = shutil.disk_usage(_SHARED_MEMORY).total
    if size >= _LITTLE_SHARED:
        return Finding(GROUP, "shared memory", human(size))
    advice = "small: a DataLoader's workers pass batches through it; give the container --shm-size 8g"
    return Finding(GROUP, "shared memory", human(size), "warning", advice)


def _open_files() -> Finding | None:
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or limit >= _FEW_FILES:
        return None
    return Finding(GROUP, "open files", f"at most {limit}", "warning", "few: ulimit -n 4096")
