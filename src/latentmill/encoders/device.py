"""The device that models run on, and PyTorch's settings while they do."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from latentmill.devices import encoder_device
from latentmill.encoders import heap
from latentmill.errors import ModelError

if TYPE_CHECKING:
    import torch

# of torch.backends: each has a float32 precision of its own, in PyTorch 2.9 and later
_PRECISIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv")


@dataclass(frozen=True)
class _Settings:
    """PyTorch's, of the whole process.

    matmul: its one word for products of matrices; None where those differ. cudnn_tf32: its flag; None where
    convolutions have another precision. precisions: of `_PRECISIONS`; None where PyTorch has none but those two.
    """

    threads: int
    benchmark: bool
    deterministic: bool
    matmul: str | None
    cudnn_tf32: bool | None
    precisions: tuple[str, ...] | None

    @classmethod
    def now(cls) -> _Settings:
        import torch

        cudnn = torch.backends.cudnn
        try:
            matmul = torch.get_float32_matmul_precision()
        except RuntimeError:
            matmul = None
        try:
            tf32 = bool(cudnn.allow_tf32)
        except RuntimeError:
            tf32 = None
        try:
            precisions = tuple(place.fp32_precision for place in _places())
        except AttributeError:
            precisions = None
        return cls(torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic, matmul, tf32, precisions)

    def set(self) -> None:
        import torch

        cudnn = torch.backends.cudnn
        torch.set_num_threads(self.threads)
        cudnn.benchmark, cudnn.deterministic = self.benchmark, self.deterministic
        if self.matmul is not None:  # these two first: they set some of the others too
            torch.set_float32_matmul_precision(self.matmul)
        if self.cudnn_tf32 is not None:
            cudnn.allow_tf32 = self.cudnn_tf32
        if self.precisions is not None:
            for place, precision in zip(_places(), self.precisions, strict=True):
                place.fp32_precision = precision


_before: list[_Settings] = []
_first: list[int] = []  # the GPU that is `cuda` in this process, where others run on others


def _places() -> list[Any]:
    import torch

    return [attrgetter(name)(torch.backends) for name in _PRECISIONS]


def stand_on(gpu: int) -> None:
    """Take a GPU for `cuda`, until `restore_torch`: what measures for several must run on one of those asked for."""
    _first[:] = [gpu]


def prepare_device(name: str, threads: int) -> torch.device:
    """The device, set up so that the same input gives the same bytes. Raises ModelError where it is not there."""
    import torch

    _before.append(now := _Settings.now())
    exact = ("ieee",) * len(_PRECISIONS)
    _Settings(threads, False, True, "highest", False, None if now.precisions is None else exact).set()
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("device cuda is not there: PyTorch sees no GPU. Use --device cpu, or a CUDA build of PyTorch")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device mps is not there. Use --device cpu")
    return torch.device("cuda", _first[0]) if name == "cuda" and _first else torch.device(name)


def own_threads(threads: int) -> None:
    """Let forwards of this thread use so many of PyTorch's threads, of which it may have another number."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def restore_torch() -> None:
    """Give back PyTorch's settings as they were before `prepare_device`: they are the whole process's. Memory too."""
    heap.give_back()
    _first.clear()
    while _before:
        _before.pop().set()


def choose_device(name: str) -> str:
    """`auto` becomes cuda, mps or cpu, whichever this machine has first; `cpu:2`, cpu. See `latentmill.devices`."""
    if name != "auto":
        return encoder_device(name)
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
