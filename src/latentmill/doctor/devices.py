"""The devices that models can run on, each tried with a small product; or why there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from latentmill.doctor.findings import Finding, one_line
from latentmill.estimate import human

GROUP = "devices"
_DRIVER = Path("/proc/driver/nvidia/version")
_ANY_GPU = (Path("/dev/nvidia0"), Path("/dev/dxg"))
_COMPILERS = ("c++", "g++", "clang++")
_SIDE = 64  # of the matrices that are multiplied


def findings() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Finding(GROUP, "cpu", f"PyTorch cannot be loaded: {one_line(error)}", "broken", "pip install torch")]
    found = [_tried(torch, "cpu", f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")]
    found += _cuda(torch)
    if torch.backends.mps.is_available():
        found.append(_tried(torch, "mps", "Apple's GPU"))
    if not any(shutil.which(name) for name in _COMPILERS):
        found.append(Finding(GROUP, "C++ compiler", "none", "absent", "--compile needs one on the CPU: install g++"))
    return found


def _tried(torch: Any, device: str, value: str) -> Finding:
    """A device, on which ones times ones must give the number of ones in a row."""
    try:
        ones = torch.ones(_SIDE, _SIDE, device=device)
        right = bool((ones @ ones == _SIDE).all())
    except (RuntimeError, AssertionError) as error:
        return Finding(GROUP, device, f"{value}: does not compute: {one_line(error)}", "broken", "update its driver")
    if not right:
        return Finding(GROUP, device, f"{value}: gives wrong numbers", "broken", "do not use it")
    return Finding(GROUP, device, value)


def _cuda(torch: Any) -> list[Finding]:
    if not torch.cuda.is_available():
        return [_no_cuda(torch)]
    found = []
    for number in range(torch.cuda.device_count()):
        shown = torch.cuda.get_device_properties(number)
        value = f"{shown.name}, {human(shown.total_memory)}, compute {shown.major}.{shown.minor}"
        found.append(_tried(torch, f"cuda:{number}", value))
    return [*found, Finding(GROUP, "CUDA", f"{torch.version.cuda}, driver {driver_version() or 'unknown'}")]


def driver_version(file: Path = _DRIVER) -> str:
    """Of NVIDIA's kernel driver; "" without one."""
    try:
        words = file.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    numbers = [word for word in words if word[0].isdigit() and "." in word]
    return numbers[0] if numbers else ""


def _no_cuda(torch: Any) -> Finding:
    """Why there is none: no GPU, one that is hidden, or a PyTorch that cannot use it."""
    there = bool(driver_version()) or any(path.exists() for path in _ANY_GPU)
    if not there:
        return Finding(GROUP, "cuda", "none: the system has no NVIDIA GPU", "absent")
    if torch.version.cuda is None:
        advice = "install a CUDA build: https://pytorch.org/get-started/locally"
        return Finding(GROUP, "cuda", "a GPU is there, but this PyTorch is built without CUDA", "warning", advice)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        return Finding(GROUP, "cuda", f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}", "warning", "unset it")
    advice = f"a driver that is too old for CUDA {torch.version.cuda}, or a container without --gpus all"
    return Finding(GROUP, "cuda", "a GPU is there, but PyTorch cannot use it", "warning", advice)
