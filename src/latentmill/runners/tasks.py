"""Small tasks in worker processes, their results in order: for commands that look at images and make nothing.

A process that dies is replaced; the tasks that were under way are done again one by one in a process of their own, and
the one that kills it again gives what `lost` makes of it. Processes die with their parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from latentmill.runners import local
from latentmill.supervising import die_with

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 4  # chunks that wait, for each process


def in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    lost: Callable[[Item], Result],
    chunk: int = 16,
) -> Iterator[Result]:
    """`function` of each item, in order. function, items and results: picklable. workers: 1 runs all in this process.

    lost: in place of the result of an item that kills its process. An exception of `function` comes out here.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    chunks = _chunks(items, chunk)
    pool = _Pool(workers)
    waiting: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    try:
        while True:
            for some in islice(chunks, workers * _AHEAD - len(waiting)):
                waiting.append((some, pool.submit(function, some)))
            if not waiting:
                return
            some, future = waiting.popleft()
            try:
                yield from future.result()
            except BrokenProcessPool:
                pool.close()
                yield from _one_by_one(function, some, lost)
                pool = _Pool(workers)
                waiting = deque((others, pool.submit(function, others)) for others, _ in waiting)
    finally:
        pool.close()


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def _one_by_one(
    function: Callable[[Item], Result], items: Sequence[Item], lost: Callable[[Item], Result]
) -> Iterator[Result]:
    pool = _Pool(1)
    try:
        for item in items:
            try:
                yield from pool.submit(function, [item]).result()
            except BrokenProcessPool:
                pool.close()
                yield lost(item)
                pool = _Pool(1)
    finally:
        pool.close()


class _Pool:
    """Processes started as those of jobs are."""

    def __init__(self, workers: int) -> None:
        context: Any = multiprocessing.get_context(local._start_method())
        self._own = ProcessPoolExecutor(workers, context, _begin, (os.getpid(),))

    def submit(self, function: Callable[[Item], Result], items: list[Item]) -> Future[list[Result]]:
        with local._without_main():  # processes are started by what is submitted
            return self._own.submit(_all, function, items)

    def close(self) -> None:
        self._own.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)


def _all(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]
