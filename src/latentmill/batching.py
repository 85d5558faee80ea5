"""Order-keeping prefetch with a bound, and fixed-size batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items in order; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def prefetched(function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """`function` of each item, in order, computed by `threads` threads at most `ahead` items before it is asked for.

    With 0 threads nothing runs ahead. An exception comes out where its result would have; leaving the generator
    early waits only for what is already running.
    """
    if threads == 0:
        yield from map(function, items)
        return
    iterator = iter(items)
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="load")
    try:
        for item in islice(iterator, ahead):
            waiting.append(pool.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in islice(iterator, 1):
                waiting.append(pool.submit(function, item))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Background:
    """One thread that runs jobs in order, at most `ahead` of them waiting.

    A failure comes out at the next call; the jobs queued behind it are dropped, never run.
    """

    def __init__(self, ahead: int) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: deque[Future[None]] = deque()
        self._ahead = ahead
        self._failed = False

    def _run(self, job: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            job()
        except BaseException:
            self._failed = True
            raise

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; waits while too many are queued. Raises what an earlier job raised."""
        while self._waiting and (len(self._waiting) > self._ahead or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._run, job))

    def drain(self) -> None:
        """Wait for every job. Raises the first failure."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Stop after what is queued; behind a job that failed, nothing more is run."""
        self._pool.shutdown(wait=True)
