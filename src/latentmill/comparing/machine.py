"""What a comparison ran on, in a line."""

from __future__ import annotations

import platform
from pathlib import Path

from latentmill.system import available_memory, usable_cores

_CPUINFO = Path("/proc/cpuinfo")


def machine_line(device: str) -> str:
    """The GPU's name, or the processor's, with the cores and memory that this process may use."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(torch.device(device)))
    memory = available_memory()
    told = f"{_processor()}, {usable_cores()} cores"
    return told + (f", {memory / 2**30:.0f} GiB of memory available" if memory else "")


def _processor() -> str:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
