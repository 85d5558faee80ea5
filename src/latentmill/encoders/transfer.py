"""Batches to the device and results back: at once on a CPU; on a GPU by streams of their own, beside the forwards.

Where the transfer is streamed, `upload` and `download` only queue copies. The GPU waits for an upload before it
computes with it, and for a result before it copies it back; the host waits in the call that `download` gives, which
runs in another thread. Host buffers are pinned; PyTorch's allocators use one again only after the copies that were
queued for it (its host allocator records them; device memory is told of the stream that reads it by `hold`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from latentmill.errors import ModelError
from latentmill.records import Array

if TYPE_CHECKING:
    import torch

Wait = Callable[[], Array]  # waits for a result, and gives it; may be called again, and in any thread


class Transfer(Protocol):
    """upload: arrays of one shape and dtype to one tensor on the device, stacked. download: a tensor's values."""

    def upload(self, arrays: Sequence[Array]) -> torch.Tensor: ...
    def download(self, tensor: torch.Tensor) -> Wait: ...


class Direct:
    """Copies that are done when the call returns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def upload(self, arrays: Sequence[Array]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.stack(arrays)).to(self._device)

    def download(self, tensor: torch.Tensor) -> Wait:
        array: Array = tensor.cpu().numpy()
        return lambda: array


class Cuda:
    """The few operations of a GPU that `Streamed` is made of. Streams and events are PyTorch's."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._cuda: Any = torch.cuda

    def stream(self) -> Any:
        return self._cuda.Stream(self._device)

    def current(self) -> Any:
        """The stream that forwards of this thread are queued in."""
        return self._cuda.current_stream(self._device)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True, device="cpu")

    def to_device(self, host: torch.Tensor, stream: Any) -> torch.Tensor:
        with self._cuda.stream(stream):
            return host.to(self._device, non_blocking=True)

    def to_host(self, host: torch.Tensor, tensor: torch.Tensor, stream: Any) -> None:
        with self._cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)

    def wait(self, stream: Any, other: Any) -> None:
        """Let what is queued in a stream from now on come after what is queued in the other."""
        stream.wait_stream(other)

    def hold(self, tensor: torch.Tensor, stream: Any) -> None:
        """Let a tensor's memory not be used again before what is queued in the stream is done."""
        tensor.record_stream(stream)

    def event(self, stream: Any) -> Any:
        """Happens when what is queued in the stream is done. Waiting for it takes no processor time."""
        event = self._cuda.Event(blocking=True)
        event.record(stream)
        return event


class Streamed:
    """Copies that are queued in streams of their own, one for each way."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._up, self._down = cuda.stream(), cuda.stream()

    def upload(self, arrays: Sequence[Array]) -> torch.Tensor:
        import torch

        first = arrays[0]
        host = self._cuda.pinned((len(arrays), *first.shape), torch.from_numpy(first[:0]).dtype)
        np.stack(arrays, out=host.numpy())
        tensor = self._cuda.to_device(host, self._up)
        forwards = self._cuda.current()
        self._cuda.wait(forwards, self._up)
        self._cuda.hold(tensor, forwards)
        return tensor

    def download(self, tensor: torch.Tensor) -> Wait:
        self._cuda.wait(self._down, self._cuda.current())
        host = self._cuda.pinned(tensor.shape, tensor.dtype)
        self._cuda.to_host(host, tensor, self._down)
        self._cuda.hold(tensor, self._down)
        copied = self._cuda.event(self._down)

        def wait() -> Array:
            try:
                copied.synchronize()
            except RuntimeError as error:  # of any kernel before it: a GPU tells of failures late
                told = str(error).strip().partition("\n")[0]
                raise ModelError(f"the GPU failed ({told}). Run the same command again to go on") from error
            array: Array = host.numpy()
            return array

        return wait


def transfer_for(device: torch.device) -> Transfer:
    """How batches and results go to and from this device."""
    return Streamed(Cuda(device)) if device.type == "cuda" else Direct(device)
