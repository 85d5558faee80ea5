"""A batch that does not fit in the device's memory is computed in halves, and later batches begin at what fitted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from latentmill.errors import ModelError, SampleError

T = TypeVar("T")
R = TypeVar("R")

_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "MPS backend out of memory",
    "CUDA out of memory",  # also where a compiler tells of it
    "CUDA error: out of memory",
    # what these two libraries tell where there is no room for themselves, or for what they work with
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "ALLOCATION_FAILED",
    "unable to find an engine",
)
_LONGEST_TEXT = 200


class DeviceFullError(ModelError):
    """A model does not fit in the device's memory, or not what it computes of one item."""


class Halving(Generic[T]):
    """How large a batch may be, learnt from those that did not fit.

    what: one item, as a person calls it. cost: what a batch takes, an integer that no further item lowers; by
    default their number. limit: the largest cost that is still tried; None while everything fitted. heard: what the
    device told, when it last had no memory left.
    """

    def __init__(self, what: str, cost: Callable[[Sequence[T]], int] = len) -> None:
        self.limit: int | None = None
        self.heard = ""
        self._what = what
        self._cost = cost

    def in_halves(
        self,
        run: Callable[[Sequence[T]], list[R]],
        items: Sequence[T],
        told: Callable[[int], None],
        last_resort: Callable[[T], R] | None = None,
    ) -> list[R]:
        """`run` of the items, one result each and in order, in as many batches as the memory asks for.

        told: is called with each new limit. last_resort: computes an item that does not fit even alone; without it
        such an item raises ModelError.
        """
        results: list[R] = []
        while len(results) < len(items):
            rest = items[len(results) :]
            batch = rest[: self._fitting(rest)]
            found = self.tried(partial(run, batch))
            if found is None and len(batch) > 1:
                self.limit = (self._cost(batch) + 1) // 2
                told(self.limit)
            elif found is None:
                results.append(self._alone(batch[0], last_resort))
            else:
                results += found
        return results

    def tried(self, run: Callable[[], R]) -> R | None:
        """As `unless_out_of_memory`, and keeps what the device told."""

        def hear(text: str) -> None:
            self.heard = text

        return unless_out_of_memory(run, hear)

    def _fitting(self, items: Sequence[T]) -> int:
        """How many of the items, from the first, stay within the limit; at least one is tried."""
        if self.limit is None:
            return len(items)
        within = bisect_right(range(1, len(items) + 1), self.limit, key=lambda count: self._cost(items[:count]))
        return max(1, within)

    def _alone(self, item: T, last_resort: Callable[[T], R] | None) -> R:
        found = None if last_resort is None else self.tried(partial(last_resort, item))
        if found is None:
            raise DeviceFullError(
                f"not even one {self._what} fits in the device's memory: use --dtype bfloat16, or --device cpu. Found: "
                f"{self.heard}"
            )
        return found


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory ran out; PyTorch has no one error for it."""
    import torch

    return isinstance(error, torch.cuda.OutOfMemoryError) or any(text in str(error) for text in _TEXTS)


def _to_nobody(text: str) -> None:
    """Nobody listens."""


def unless_out_of_memory(run: Callable[[], R], hear: Callable[[str], None] = _to_nobody) -> R | None:
    """The result; None where the memory ran out, and then what the failed run held is free again.

    hear: is told what the device said then.
    """
    try:
        return run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        hear(" ".join(str(error).split())[:_LONGEST_TEXT])
    # only here: the error's traceback holds the tensors of the frames that it went through
    _empty_cache()
    return None


def unless_full(load: Callable[[], R]) -> R | None:
    """What is loaded or computed; None where it does not fit in the device's memory, and then that is free again."""
    try:
        return load()
    except DeviceFullError:
        pass
    _empty_cache()
    return None


def no_room_for_float32() -> SampleError:
    """What becomes of a sample that overflowed where the model has no room in float32."""
    return SampleError(
        "memory",
        "the result is not finite in half precision, and the model in float32 does not fit in the device's memory "
        "beside it: use --dtype float32, or --device cpu",
    )


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
