"""The device that models run on, and PyTorch's settings while they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentmill.devices import encoder_device
from latentmill.encoders import heap
from latentmill.errors import ModelError

if TYPE_CHECKING:
    import torch

_before: list[tuple[int, bool, bool, bool, bool]] = []


def prepare_device(name: str, threads: int) -> torch.device:
    """The device, set up so that the same input gives the same bytes. Raises ModelError where it is not there."""
    import torch

    _before.append(
        (
            torch.get_num_threads(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        )
    )
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("device cuda is not there: PyTorch sees no GPU. Use --device cpu, or a CUDA build of PyTorch")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device mps is not there. Use --device cpu")
    return torch.device(name)


def own_threads(threads: int) -> None:
    """Let forwards of this thread use so many of PyTorch's threads, of which it may have another number."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def restore_torch() -> None:
    """Give back PyTorch's settings as they were before `prepare_device`: they are the whole process's. Memory too."""
    heap.give_back()
    if not _before:
        return
    import torch

    while _before:
        threads, benchmark, deterministic, cudnn_tf32, matmul_tf32 = _before.pop()
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.allow_tf32 = cudnn_tf32
        torch.backends.cuda.matmul.allow_tf32 = matmul_tf32


def choose_device(name: str) -> str:
    """`auto` becomes cuda, mps or cpu, whichever this machine has first; `cpu:2`, cpu. See `latentmill.devices`."""
    if name != "auto":
        return encoder_device(name)
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
