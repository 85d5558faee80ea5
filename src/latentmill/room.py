"""A bound on the memory of threads that load photos: what they decode, and what waits to be taken."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from latentmill.batching import prefetched

_LEAST = 32 << 20  # bytes; so that small photos never wait
Item = TypeVar("Item")
Result = TypeVar("Result")


def bounded(
    function: Callable[[Item, Share], Result], items: Iterable[Item], room: Room, ahead: int
) -> Iterator[Result]:
    """As `prefetched`, by the threads that share `room`; `function` is given each item's share of it."""
    shares: deque[Share] = deque()

    def shared(numbered: tuple[int, Item]) -> tuple[Share, Item]:
        shares.append(Share(room, numbered[0]))
        return shares[-1], numbered[1]

    def run(given: tuple[Share, Item]) -> list[Result]:
        return [function(given[1], given[0])]

    results = prefetched(run, map(shared, enumerate(items)), room.threads, ahead, room.close)
    try:
        for result in results:
            room.ask_for(None)
            shares.popleft().set(0)
            yield result.pop()
            room.ask_for(shares[0].number if shares else None)
    finally:
        results.close()  # type: ignore[attr-defined]


class Room:
    """Memory that loading threads share: what they decode, and what waits, is no more than they could decode at once.

    That is for each thread as much as any item has begun with so far, or `least` bytes. The item that is being waited
    for is never held up: it may have the room of the batch that it belongs to.
    """

    def __init__(self, threads: int, least: int = _LEAST) -> None:
        self.threads, self._least = threads, least
        self._changed = threading.Condition()
        self._held = self._largest = 0
        self._next: int | None = 0
        self._waiting: set[int] = set()
        self._closed = False

    def ask_for(self, number: int | None) -> None:
        """The item that is being waited for."""
        with self._changed:
            self._next = number
            self._changed.notify_all()

    def add(self, share: Share, size: int) -> None:
        """See `Share.add`."""
        with self._changed:
            if not share.begun:
                share.begun, self._largest = True, max(self._largest, size)
                self._changed.notify_all()  # there may be more room now
            self._waiting.add(share.number)
            self._changed.wait_for(lambda: self._may(share.number, size))
            self._waiting.remove(share.number)
            if self._fits(size):
                self._held += size
                share.held += size
            self._changed.notify_all()

    def _may(self, number: int, size: int) -> bool:
        return self._closed or number == self._next or (number == min(self._waiting) and self._fits(size))

    def _fits(self, size: int) -> bool:
        return self._held + size <= max(self._least, self.threads * self._largest)

    def set(self, share: Share, size: int) -> None:
        """See `Share.set`."""
        with self._changed:
            self._held += size - share.held
            share.held = size
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is held up any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Share:
    """One item's share of a room. held: bytes of it that count. begun: whether it has asked for any."""

    def __init__(self, room: Room, number: int) -> None:
        self._room, self.number, self.held, self.begun = room, number, 0, False

    def add(self, size: int) -> None:
        """Before so many bytes more are taken: waits until there is room, and no earlier item waits."""
        self._room.add(self, size)

    def set(self, size: int) -> None:
        """How many bytes are held now, of those that were taken."""
        self._room.set(self, size)
