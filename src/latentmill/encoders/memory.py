"""A batch that does not fit in the device's memory is computed in halves, and later batches begin at what fitted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from latentmill.errors import ModelError

T = TypeVar("T")
R = TypeVar("R")

_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class Halving(Generic[T]):
    """How large a batch may be, learnt from those that did not fit.

    what: one item, as a person calls it. cost: what a batch takes, an integer that no further item lowers; by
    default their number. limit: the largest cost that is still tried; None while everything fitted.
    """

    def __init__(self, what: str, cost: Callable[[Sequence[T]], int] = len) -> None:
        self.limit: int | None = None
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
            found = unless_out_of_memory(partial(run, batch))
            if found is None and len(batch) > 1:
                self.limit = (self._cost(batch) + 1) // 2
                told(self.limit)
            elif found is None:
                results.append(self._alone(batch[0], last_resort))
            else:
                results += found
        return results

    def _fitting(self, items: Sequence[T]) -> int:
        """How many of the items, from the first, stay within the limit; at least one is tried."""
        if self.limit is None:
            return len(items)
        within = bisect_right(range(1, len(items) + 1), self.limit, key=lambda count: self._cost(items[:count]))
        return max(1, within)

    def _alone(self, item: T, last_resort: Callable[[T], R] | None) -> R:
        found = None if last_resort is None else unless_out_of_memory(partial(last_resort, item))
        if found is None:
            raise ModelError(
                f"not even one {self._what} fits in the device's memory: use --dtype bfloat16, or --device cpu"
            )
        return found


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory ran out; PyTorch has no one error for it."""
    import torch

    return isinstance(error, torch.cuda.OutOfMemoryError) or any(text in str(error) for text in _TEXTS)


def unless_out_of_memory(run: Callable[[], R]) -> R | None:
    """The result; None where the memory ran out, and then what the failed run held is free again."""
    try:
        return run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # only here: the error's traceback holds the tensors of the frames that it went through
    _empty_cache()
    return None


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
