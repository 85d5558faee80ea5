"""Batches hold what may be computed together and no more, the same ones whatever order the rows came in."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmill import batching
from latentmill.batching import Background, ByBucket, ByCount, ByTokens, prefetched
from latentmill.records import SampleRef
from latentmill.stages import Batching

MAX_COPIES = 5
CAPTIONS = st.lists(st.one_of(st.none(), st.text("ab ", max_size=9)), max_size=40)


def cut(how: Batching, refs: Iterable[SampleRef]) -> list[list[SampleRef]]:
    """The batches, as a plan makes them."""
    batches: list[list[SampleRef]] = []
    for ref, first in how.cut(refs):
        if first:
            batches.append([])
        batches[-1].append(ref)
    return batches


def captions(texts: list[str | None]) -> list[SampleRef]:
    """A listing of captions, each as many tokens as it has characters and one; None cannot be used."""
    return [
        SampleRef(number, f"{number:03d}.png", "", fault="no caption prompt")
        if text is None
        else SampleRef(number, f"{number:03d}.png", text, caption=text, tokens=len(text) + 1)
        for number, text in enumerate(texts)
    ]


@pytest.fixture(autouse=True)
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_MAX_COPIES", MAX_COPIES)


@given(CAPTIONS, st.integers(1, 40))
def test_a_batch_of_captions_is_within_its_budget_unless_one_caption_is_alone(
    texts: list[str | None], budget: int
) -> None:
    refs = captions(texts)
    batches = cut(ByTokens(budget), refs)
    assert sorted(ref.index for batch in batches for ref in batch) == list(range(len(refs)))
    for batch in batches:
        distinct = {ref.caption for ref in batch}
        assert len(distinct) == 1 or len(distinct) * max(ref.tokens for ref in batch) <= budget
        assert len(batch) <= MAX_COPIES


@given(CAPTIONS, st.integers(1, 40))
def test_copies_of_a_caption_have_no_different_company(texts: list[str | None], budget: int) -> None:
    batches = cut(ByTokens(budget), captions(texts))
    for text in {text for text in texts if text is not None}:
        holding = [{ref.caption for ref in batch} for batch in batches if any(ref.caption == text for ref in batch)]
        assert len(holding) == 1 or all(company == {text} for company in holding)


@given(CAPTIONS, st.integers(1, 40))
def test_a_batch_of_captions_is_as_full_as_it_may_be(texts: list[str | None], budget: int) -> None:
    batches = cut(ByTokens(budget), captions(texts))
    for one, next_one in pairwise(batches):
        group = [ref for ref in next_one if ref.caption == next_one[0].caption]
        more = len({ref.caption for ref in one} | {next_one[0].caption})
        split = {ref.caption for ref in one} == {next_one[0].caption}
        assert split or len(one) + len(group) > MAX_COPIES or more * one[0].tokens > budget


@given(CAPTIONS, st.integers(1, 40), st.randoms())
def test_the_order_of_the_rows_does_not_matter(texts: list[str | None], budget: int, order: random.Random) -> None:
    refs = captions(texts)
    shuffled = order.sample(refs, len(refs))
    assert cut(ByTokens(budget), shuffled) == cut(ByTokens(budget), refs)


def test_three_thousand_copies_make_few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    batches = cut(ByTokens(4096), captions(["another"] + 3000 * ["a copy"] + 5 * ["one more"]))
    assert [len(batch) for batch in batches] == [6, 1024, 1024, 952]


def bucket_of(size: tuple[int, int]) -> tuple[int, int]:
    return (64, 64) if size[0] == size[1] else (32, 128) if size[0] < size[1] else (128, 32)


SIZES = st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 3)))


@given(st.lists(st.tuples(SIZES, st.sampled_from(["", "fault", "skip"])), max_size=40), st.integers(1, 7))
def test_a_batch_holds_one_bucket(images: list[tuple[tuple[int, int] | None, str]], size: int) -> None:
    refs = [
        SampleRef(number, str(number), "", size=pair, **({why: "because"} if why else {}))  # type: ignore[arg-type]
        for number, (pair, why) in enumerate(images)
    ]
    batches = cut(ByBucket(size, bucket_of), refs)
    assert sorted(ref.index for batch in batches for ref in batch) == list(range(len(refs)))
    shapes = [
        {bucket_of(ref.size) if ref.size and not (ref.fault or ref.skip) else None for ref in batch}
        for batch in batches
    ]
    assert all(len(shape) == 1 for shape in shapes)
    for number, (batch, shape) in enumerate(zip(batches, shapes, strict=True)):
        assert len(batch) == size or (len(batch) < size and shape not in shapes[number + 1 :])
        assert [ref.index for ref in batch] == sorted(ref.index for ref in batch)


def test_few_images_wait_for_company_and_batches_come_as_they_are_completed() -> None:
    sizes = [(1, 1), (1, 2), (1, 1), (2, 1), (1, 1), (1, 2), (1, 2)]
    refs = [SampleRef(number, str(number), "", size=pair) for number, pair in enumerate(sizes)]
    assert [[ref.index for ref in batch] for batch in cut(ByBucket(3, bucket_of), refs)] == [[0, 2, 4], [1, 5, 6], [3]]
    few = ByBucket(3, bucket_of, waiting=2 * 64 * 64)
    assert [[ref.index for ref in batch] for batch in cut(few, refs)] == [[0, 2], [1], [3], [4], [5, 6]]


@given(st.integers(0, 30), st.integers(1, 9))
def test_batches_by_count_keep_the_order(count: int, size: int) -> None:
    batches = cut(ByCount(size), [SampleRef(number, str(number), "") for number in range(count)])
    assert [ref.index for batch in batches for ref in batch] == list(range(count))
    assert all(len(batch) == size for batch in batches[:-1])


# what runs ahead and behind


@given(st.lists(st.integers(), max_size=20), st.integers(0, 3), st.integers(1, 5))
def test_what_is_loaded_ahead_comes_in_order(items: list[int], threads: int, ahead: int) -> None:
    assert list(prefetched(lambda item: -item, items, threads, ahead)) == [-item for item in items]


def test_nothing_is_loaded_further_ahead_than_asked() -> None:
    taken: list[int] = []

    def items() -> Iterable[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = prefetched(str, items(), 2, 3)
    for number in range(5):
        assert next(results) == str(number)
        assert len(taken) <= number + 1 + 3
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 8


@pytest.mark.parametrize("threads", [0, 2])
def test_a_failure_while_loading_comes_in_its_place(threads: int) -> None:
    results = prefetched(lambda item: 1 // item, [1, 2, 0, 3], threads, 4)
    assert [next(results), next(results)] == [1, 0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_behind_a_failed_job_nothing_is_run() -> None:
    done: list[str] = []
    gate = threading.Event()
    behind = Background(2)

    def fail() -> None:
        gate.wait(10)
        raise ValueError("no")

    behind.submit(fail)
    behind.submit(lambda: done.append("after"))
    gate.set()
    with pytest.raises(ValueError, match="no"):
        behind.drain()
    behind.close()
    assert done == []


def test_few_jobs_wait_behind() -> None:
    behind, gate = Background(2), threading.Event()
    states: list[Any] = []
    for _ in range(3):
        behind.submit(lambda: gate.wait(10))
    late = threading.Thread(target=lambda: (behind.submit(lambda: None), states.append("queued")))
    late.start()
    late.join(0.1)
    assert states == []
    gate.set()
    late.join(10)
    assert states == ["queued"]
    behind.drain()
    behind.close()
