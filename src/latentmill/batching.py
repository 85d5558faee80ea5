"""How samples become batches, order-keeping prefetch with a bound, and a writer thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

from latentmill.records import SampleRef

_WAITING_PIXELS = 1 << 28  # 800 MB of pixels
_MAX_COPIES = 1024  # captions in a batch, equal ones included: a shard's outcomes are held
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ByCount:
    """Batches of `size` samples, in the order of the listing."""

    size: int
    sorts = False

    def cut(self, refs: Iterable[SampleRef]) -> Iterator[tuple[SampleRef, bool]]:
        for position, ref in enumerate(refs):
            yield ref, position % self.size == 0

    def cost(self, ref: SampleRef) -> float:
        return 1.0


@dataclass(frozen=True)
class ByBucket:
    """Batches of at most `size` samples of one bucket; `bucket_of` a source size, both (height, width).

    Batches come in the order in which the listing completes them, so that a pass in the listing's order holds few
    images that wait for company: at most `waiting` pixels of them; then the batch that began first is closed.
    """

    size: int
    bucket_of: Callable[[tuple[int, int]], tuple[int, int]]
    waiting: int = _WAITING_PIXELS
    sorts = True

    def _bucket(self, ref: SampleRef) -> tuple[int, int]:
        return self.bucket_of(ref.size) if ref.size and not (ref.fault or ref.skip) else (0, 0)

    def cut(self, refs: Iterable[SampleRef]) -> Iterator[tuple[SampleRef, bool]]:
        filling: dict[tuple[int, int], list[SampleRef]] = {}
        pixels = 0
        for ref in refs:
            bucket = self._bucket(ref)
            filling.setdefault(bucket, []).append(ref)
            pixels += bucket[0] * bucket[1]
            while len(filling.get(bucket, ())) == self.size or pixels > self.waiting:
                closed = bucket if len(filling.get(bucket, ())) == self.size else next(iter(filling))
                batch = filling.pop(closed)
                pixels -= len(batch) * closed[0] * closed[1]
                yield from ByCount(self.size).cut(batch)
        for batch in filling.values():
            yield from ByCount(self.size).cut(batch)

    def cost(self, ref: SampleRef) -> float:
        return 1.0


@dataclass(frozen=True)
class ByTokens:
    """Captions from long to short, equal ones side by side; a batch's distinct captions pad to at most `budget` tokens.

    overhead: tokens of every caption in a forward that are not stored, and do not count as its own.
    A caption longer than the budget is a batch of its own, and so is one with very many copies: those of one caption
    lie in several batches only where nothing else lies there, so that their features cannot differ.
    """

    budget: int
    overhead: int = 0
    sorts = True

    def cut(self, refs: Iterable[SampleRef]) -> Iterator[tuple[SampleRef, bool]]:
        longest = distinct = count = 0
        in_order = sorted(refs, key=lambda ref: (-ref.tokens, ref.caption or "", ref.index))
        for _, group in groupby(in_order, key=lambda ref: ref.caption):
            copies = list(group)
            full = count + len(copies) > _MAX_COPIES or (distinct + 1) * (longest + self.overhead) > self.budget
            if not count or full:
                longest, distinct, count = copies[0].tokens, 0, 0
            for position, ref in enumerate(copies):
                yield ref, (count + position) % _MAX_COPIES == 0
            distinct, count = distinct + 1, count + len(copies)

    def cost(self, ref: SampleRef) -> float:
        return float(ref.tokens + self.overhead)


def prefetched(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    leave: Callable[[], object] = lambda: None,
) -> Iterator[Result]:
    """`function` of each item, in order, computed by `threads` threads at most `ahead` items before it is asked for.

    With 0 threads nothing runs ahead. An exception comes out where its result would have; leaving the generator
    early waits only for what is already running. No result is held once the next one is asked for. leave: called
    before what is running is waited for.
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
            result = [waiting.popleft().result()]
            for item in islice(iterator, 1):
                waiting.append(pool.submit(function, item))
            yield result.pop()
    finally:
        leave()
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
