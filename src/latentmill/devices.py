"""Devices as `--device` names them, and the processes that run on them: one for each, or N on the CPU."""

from __future__ import annotations

import os
import re

from latentmill.errors import ModelError

DEVICE = re.compile(r"auto|mps|cpu(:[1-9]\d*)?|cuda(:\d+(,\d+)*)?")


def is_device(name: str) -> bool:
    """Whether it names devices, each once."""
    numbers = gpus(name)
    return bool(DEVICE.fullmatch(name)) and len(numbers) == len(set(numbers))


def gpus(name: str) -> list[int]:
    """The GPUs that a name lists: of `cuda:0,2`, 0 and 2; of any other, none."""
    kind, _, told = name.partition(":")
    return [int(number) for number in told.split(",")] if kind == "cuda" and DEVICE.fullmatch(name) and told else []


def cpu_processes(name: str) -> int:
    """Of `cpu:N`, N; else 1."""
    kind, _, told = name.partition(":")
    return int(told) if kind == "cpu" and told else 1


def encoder_device(name: str) -> str:
    """What one encoder is told: `cpu` of `cpu:2`, `cuda` of `cuda:0,1`. Its process is then shown its GPU alone."""
    return name if len(gpus(name)) == 1 else name.partition(":")[0]


def each_device(name: str, chosen: str) -> tuple[str, ...]:
    """The device of each process. chosen: what `auto` stands for here. Raises ModelError where a GPU is not there.

    `cuda` is every GPU that PyTorch sees. Of several, this process takes the first, to measure by.
    """
    if chosen.startswith("cuda") and (name in ("auto", "cuda") or len(gpus(name)) > 1):
        return _several_gpus(name)
    return (chosen,) * cpu_processes(name)


def _several_gpus(name: str) -> tuple[str, ...]:
    import torch

    count = torch.cuda.device_count()
    wanted = gpus(name) or list(range(count))
    if missing := [number for number in wanted if number >= count]:
        raise ModelError(
            f"device cuda:{missing[0]} is not there: PyTorch sees {count} GPUs, counted from 0. Found: --device {name}"
        )
    if len(wanted) == 1:
        return ("cuda",)
    from latentmill.encoders.device import stand_on

    stand_on(wanted[0])
    return tuple(f"cuda:{number}" for number in wanted)


def show_only(device: str) -> None:
    """Let this process see one GPU alone, before it uses any: whatever runs in it takes that one for `cuda`."""
    kind, _, told = device.partition(":")
    if kind != "cuda" or not told:
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[int(told)].strip() if seen else told
