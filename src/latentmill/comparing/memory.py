"""The peak of memory that a model takes, where it can be told: on a CUDA device, and on Linux of this process."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from latentmill.encoders import heap

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets VmHWM to what is resident now


class Peak:
    """Counted from when it is made. device: as of VaeSpec."""

    def __init__(self, device: str) -> None:
        heap.trim()
        self._device, self._before = device, 0
        if device.startswith("cuda"):
            import torch

            gc.collect()  # a model that hangs in a cycle; on a CPU that costs more than it tells
            torch.cuda.empty_cache()
            self._before = torch.cuda.memory_allocated(torch.device(device))
            torch.cuda.reset_peak_memory_stats(torch.device(device))
        elif self._of_process():
            try:
                _CLEAR.write_text(_RESET_PEAK)
            except OSError:  # not allowed in this container: then the peak is not told
                self._device = ""
                return
            self._before = _kilobytes("VmRSS")

    def _of_process(self) -> bool:
        return self._device.startswith("cpu") and sys.platform == "linux" and os.access(_CLEAR, os.W_OK)

    def bytes(self) -> int | None:
        """The most that was held beyond what was held before: on CUDA of tensors, on a CPU of all this process."""
        if self._device.startswith("cuda"):
            import torch

            return int(torch.cuda.max_memory_allocated(torch.device(self._device))) - self._before
        if not self._of_process():
            return None
        return max(0, _kilobytes("VmHWM") - self._before) * 1024


def _kilobytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    return 0
