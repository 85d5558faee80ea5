"""Small images encoded one by one on a CPU, two side by side, each by a thread that has half of PyTorch's threads.

Where all threads share every operation of a batch they wait for each other after each one, and all of them for one that
loading or writing holds up; two that compute images of their own do not. And the numbers of an image do not depend on
the others in its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from traceback import clear_frames
from typing import Generic, TypeVar

from latentmill.encoders.device import own_threads

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 2  # more was not measured, and Python's part of a forward holds the interpreter's lock
# glibc serves other threads than the first from heaps of 64 MB, whatever `heap.keep_buffers` asks for: a larger tensor
# is mapped anew each time; with less than this there is room for what an operation makes of one
LARGEST_TENSOR = 48 << 20


class SideBySide(Generic[Result]):
    """Threads that compute while others load and write, and that end with it. threads: PyTorch's, of all together."""

    def __init__(self, threads: int) -> None:
        count = min(AT_ONCE, threads)
        self._each = threads // count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="encode")
        self._begun: list[Future[Result]] = []

    @staticmethod
    def divides(threads: int) -> bool:
        """Whether no thread would be left over."""
        return threads == 1 or threads % AT_ONCE == 0

    def begin(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Callable[[], Result]]:
        """Begin the function of each item; returns once those are done that were begun before.

        What it gives waits for a result each, and raises what the function raised.
        """

        def run(item: Item) -> Result:
            own_threads(self._each)
            try:
                return function(item)
            except BaseException as error:
                clear_frames(error.__traceback__)  # it is kept, and would keep the tensors of what failed
                raise

        begun = [self._pool.submit(run, item) for item in items]
        self.rest()
        self._begun = begun
        return [future.result for future in begun]

    def rest(self) -> None:
        """Wait until nothing is computed any more."""
        wait(self._begun)
        self._begun = []
