"""Memory that loading threads share: bounded, in order, and nobody is left waiting."""

from __future__ import annotations

import threading
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmill.batching import prefetched
from latentmill.room import Room, Share, bounded
from support import wait_until


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 3), st.integers(1, 5))
def test_what_shares_a_room_comes_in_order(sizes: list[int], threads: int, ahead: int) -> None:
    def load(size: int, share: Share) -> int:
        share.add(size)
        share.add(size)
        share.set(size)
        return size

    assert list(bounded(load, sizes, Room(threads, least=1), ahead)) == sizes


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_what_is_decoded_and_what_waits_is_bounded(threads: int) -> None:
    """Photos of 100 bytes become results of 70; beside what the threads may decode, there is one result at most."""
    lock = threading.Lock()
    held = most = 0

    def hold(size: int) -> None:
        nonlocal held, most
        with lock:
            held += size
            most = max(most, held)

    def load(number: int, share: Share) -> int:
        share.add(100)
        hold(100)
        time.sleep(0.0005 * (number % 3))
        share.add(70)
        hold(70)
        share.set(70)
        hold(-100)
        return number

    for number in bounded(load, range(40), Room(threads, least=1), 20):
        time.sleep(0.0005 * (number % 4))
        hold(-70)
    assert held == 0
    assert 100 < most <= 100 * threads + 70


def test_small_results_are_loaded_as_far_ahead_as_asked() -> None:
    started: list[int] = []

    def load(number: int, share: Share) -> int:
        share.add(1000)
        started.append(number)
        return number

    results = bounded(load, range(50), Room(2), 8)
    assert next(results) == 0
    assert wait_until(lambda: len(started) == 9, 10)
    results.close()  # type: ignore[attr-defined]


def test_what_waits_for_room_ends_when_nobody_asks_any_more() -> None:
    def load(number: int, share: Share) -> int:
        share.add(100)
        share.set(100)
        return number

    results = bounded(load, range(20), Room(3, least=1), 10)
    assert [next(results), next(results)] == [0, 1]
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load")]


def test_a_failure_while_others_wait_for_room_comes_in_its_place() -> None:
    def load(number: int, share: Share) -> float:
        share.add(100)
        return 1 / (2 - number)

    results = bounded(load, range(20), Room(2, least=1), 10)
    assert [next(results), next(results)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("threads", [0, 2])
def test_no_result_is_held_once_the_next_is_asked_for(threads: int) -> None:
    class Thing:
        pass

    alive: weakref.WeakSet[Thing] = weakref.WeakSet()

    def make(number: int, share: Share | None = None) -> Thing:
        thing = Thing()
        alive.add(thing)
        return thing

    results = bounded(make, range(5), Room(threads), 1) if threads else prefetched(make, range(5), 0, 0)
    for _ in range(4):
        assert next(results) is not None
        assert wait_until(lambda: len(alive) <= (1 if threads else 0), 10)
    results.close()  # type: ignore[attr-defined]


def test_who_has_room_since_a_larger_item_came_is_told() -> None:
    room = Room(2, least=1)
    first, second = Share(room, 1), Share(room, 2)
    first.add(10)
    threads = [threading.Thread(target=share.add, args=(size,)) for share, size in ((first, 50), (second, 100))]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    try:
        assert wait_until(lambda: (first.held, second.held) == (60, 100), 10)
    finally:
        room.close()
        for thread in threads:
            thread.join()
