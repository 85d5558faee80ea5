"""A plan: the same batches in shards of any size, a ledger that reads in order, and the pairing of old with new."""

from __future__ import annotations

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import latentmill
from latentmill import manifest
from latentmill.batching import ByBucket, ByCount, ByTokens
from latentmill.errors import DestinationError
from latentmill.files import digest_lines
from latentmill.manifest import Kept, Plan, current_plan
from latentmill.matching import match_by_digest, match_by_key
from latentmill.planning import ShardSize, Update, cut_shards, listing_digest, write_plan
from latentmill.records import Geometry, Listing, Outcome, SampleRef, ShardReport, StoredFile
from latentmill.stages import Batching
from support import contents, make_photos

REFS = [
    SampleRef(0, "a.png", "12-5", size=(3, 4)),
    SampleRef(1, "b/\udcff é.png", "1-2", 7, (1, 2), "abc", ""),
    SampleRef(2, "c.png", "", fault="no such file", size=(5, 6)),
    SampleRef(3, "d.png", "9-9", skip="too tall", size=(100, 2)),
    SampleRef(4, "e.png", "x", caption="two words ☺\n", tokens=3),
    SampleRef(5, "f.png", "y", caption="", tokens=1),
]


def listing_of(refs: list[SampleRef], **more: Any) -> Listing:
    return Listing(len(refs), more.pop("classes", None), [], False, lambda: iter(refs), **more)


def written(work: Path, listing: Listing, batching: Batching, size: ShardSize, update: Update | None = None) -> Plan:
    plan, _ = write_plan(
        work, listing, batching, lambda: size, fingerprint={}, layouts={}, asked_digest="asked", update=update
    )
    assert plan is not None
    return plan


def captions(count: int, seed: int = 0) -> list[SampleRef]:
    words = random.Random(seed)
    texts = [" ".join(words.choices("abc", k=words.randint(0, 5))) for _ in range(count)]
    return [SampleRef(n, f"{n:03d}.png", t, caption=t, tokens=len(t.split()) + 1) for n, t in enumerate(texts)]


def commit(plan: Plan, shard: int) -> None:
    files = {"text": StoredFile("x.npz", 1, "d", 2)}
    outcomes = [Outcome(ref, "source", files=files) for batch in plan.batches(shard) for ref in batch]
    plan.commit(ShardReport(shard, len(outcomes), len(outcomes), 0, 0, {}), outcomes)


def test_a_plan_gives_back_what_was_listed(tmp_path: Path) -> None:
    for batching in (ByCount(2), ByBucket(2, lambda size: size)):
        written(tmp_path, listing_of(REFS), batching, ShardSize(3))
        plan = current_plan(tmp_path)
        assert plan is not None
        found = [ref for shard in range(len(plan.shards)) for ref in plan.refs(shard)]
        assert sorted(found, key=lambda ref: ref.index) == REFS
        assert plan.images == plan.listed == len(REFS)


@settings(max_examples=10)
@given(st.integers(1, 40), st.floats(0.5, 60), st.integers(5, 30), st.integers(0, 5))
def test_batches_do_not_depend_on_the_shards(images: int, cost: float, budget: int, seed: int) -> None:
    refs = captions(30, seed)
    sized = [SampleRef(n, f"{n:03d}", "", size=(1 + n % 3, 2)) for n in range(30)]
    cases: list[tuple[list[SampleRef], Batching]] = [
        (refs, ByTokens(budget)), (sized, ByBucket(4, lambda size: size)), (sized, ByCount(4)),
    ]  # fmt: skip
    for listed, batching in cases:
        with TemporaryDirectory() as folder:
            plan = written(Path(folder), listing_of(listed), batching, ShardSize(images, cost))
            found = [plan.batches(shard) for shard in range(len(plan.shards))]
            whole = written(Path(folder), listing_of(listed), batching, ShardSize(1000))
            assert [batch for batches in found for batch in batches] == whole.batches(0)
            for batches in found:
                assert batches[:-1] == [] or sum(map(len, batches[:-1])) < images
                assert sum(batching.cost(ref) for batch in batches[:-1] for ref in batch) < cost or len(batches) == 1


@pytest.mark.parametrize("at_once", [1, 2, 3, 256])
def test_the_ledger_reads_in_order_of_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(manifest, "_MERGED_FILES", at_once)
    refs = captions(40)
    plan = written(tmp_path, listing_of(refs), ByTokens(9), ShardSize(1))
    assert len(plan.shards) > 8
    shards = list(range(len(plan.shards)))
    random.Random(1).shuffle(shards)
    for shard in shards[:-2]:
        commit(plan, shard)
    left = {ref.index for shard in shards[-2:] for ref in plan.refs(shard)}
    expected = [index for index in range(40) if index not in left]
    for _ in range(2):  # the second time over what the first may have left
        assert [outcome.ref.index for outcome in plan.computed()] == expected
    assert [outcome.ref.caption for outcome in plan.outcomes()] == [refs[index].caption for index in expected]
    assert [item.outcome.ref.index for item in plan.results(shifted=False)] == expected
    for shard in shards[-2:]:
        commit(plan, shard)
    assert [outcome.ref for outcome in plan.computed()] == refs
    assert plan.done() == sorted(shards)


@given(st.integers(1, 400), st.integers(1, 90), st.integers(1, 7), st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_the_last_shards_of_several_workers_are_small(count: int, images: int, batch: int, workers: int) -> None:
    refs = [SampleRef(number, f"{number:03d}.png", "x") for number in range(count)]
    with TemporaryDirectory() as folder:
        size = ShardSize(images, workers=workers)
        plan = written(Path(folder), listing_of(refs), ByCount(batch), size)
        assert [ref for shard in range(len(plan.shards)) for ref in plan.refs(shard)] == refs
    done = 0
    for _, samples in plan.shards:
        assert samples < min(images, (count - done) / (2 * workers) + 1) + batch
        done += samples
    assert plan.shards[-1][1] <= batch


def batches_of(size: int, count: int) -> list[tuple[int, int, float]]:
    return [(start, min(size, count - start), 1.0) for start in range(0, count, size)]


@pytest.mark.parametrize(("count", "workers", "sizes"), [(9999, 4, (16, 64)), (9999, 2, (32, 64)), (999, 3, (8, 8))])
def test_shards_of_jobs_whose_batches_differ_begin_at_the_same_samples(
    count: int, workers: int, sizes: tuple[int, int]
) -> None:
    step = max(sizes)
    first, second = (
        cut_shards(batches_of(size, count), count, ShardSize(1024, workers=workers, step=step)) for size in sizes
    )
    assert first == second
    assert max(samples for _, samples in first) < count / (2 * workers) + 1 + step
    assert first[-1][1] <= step


def test_a_shard_ends_by_what_it_costs() -> None:
    batches = [(number, 2, cost) for number, cost in enumerate((5.0, 5.0, 1.0, 1.0, 20.0, 1.0))]
    assert cut_shards(batches, 12, ShardSize(100, cost=8)) == [(0, 4), (2, 6), (5, 2)]
    assert cut_shards([], 0, ShardSize(1)) == []


# what makes a plan another one


@pytest.mark.parametrize(
    "change",
    [{"key": "other.png"}, {"stat": "12-6"}, {"label": 1}, {"size": (4, 3)}, {"size": None}, {"skip": "too tall"},
     {"digest": "d"}, {"index": 9}],
)  # fmt: skip
def test_the_digest_of_a_listing_tells_each_change(change: dict[str, Any]) -> None:
    before = SampleRef(0, "a.png", "12-5", size=(3, 4))
    after = SampleRef(**{**{name: getattr(before, name) for name in before.__slots__}, **change})
    assert listing_digest(listing_of([before])) != listing_digest(listing_of([after]))
    assert listing_digest(listing_of([before])) == listing_digest(listing_of([before]))


def test_the_digest_of_images_alone_is_what_it_always_was() -> None:
    """Datasets that an earlier version made would else no longer be finished."""
    refs = [SampleRef(0, "a.png", "12-5", 3, (1, 2), "abc"), SampleRef(1, "b.png", "", fault="no such file")]
    expected = digest_lines(["0 a.png 12-5 3 abc", "1 b.png  None ", "first", "second"])
    assert listing_digest(listing_of(refs, classes=["first", "second"])) == expected


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_plan_of_another_version_is_refused_with_the_way_out(tmp_path: Path, overwrite: bool) -> None:
    photos, dest = tmp_path / "photos", tmp_path / "out"
    make_photos(photos, 4)
    settings_of = {"resolution": "32x32", "model_url": "fake"}

    def stop(event: object) -> None:
        if getattr(event, "kind", "") == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latentmill.encode(photos, dest, **settings_of, tell=stop)
    file = next(dest.glob(".latentmill/plan-*/plan.json"))
    table = json.loads(file.read_text())
    file.write_text(json.dumps({**table, "format": 1, "layouts": None}))
    before = contents(dest)
    if not overwrite:
        with pytest.raises(DestinationError, match=r"plan\.json was written by another version.*--overwrite"):
            latentmill.encode(photos, dest, **settings_of)
        assert contents(dest) == before
        return
    latentmill.encode(photos, dest, **settings_of, overwrite=True)
    assert not latentmill.verify(dest).problems
    assert not (dest / ".latentmill").exists()


# old and new


def kept(key: str, stat: str, stage: str = "", digest: str = "") -> Kept:
    outcome = Outcome(
        SampleRef(0, key, stat), digest, stage=stage, geometry=Geometry((1, 1), (1, 1), (0, 0, 1, 1), (1, 1))
    )
    return Kept(outcome, {})


EARLIER = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("123"), st.sampled_from(["", "read", "decode"]))
)
NOW = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("123"))


@given(EARLIER, NOW)
def test_each_result_is_kept_once_or_dropped(earlier: list[tuple[str, str, str]], now: dict[str, str]) -> None:
    old = [kept(*item) for item in sorted(earlier)]
    refs = [SampleRef(number, key, now[key]) for number, key in enumerate(sorted(now))]
    pairs = list(match_by_key(refs, iter(old)))
    assert [ref for ref, _ in pairs if ref is not None] == refs
    assert sorted(id(item) for _, item in pairs if item is not None) == sorted(map(id, old))
    for ref, item in pairs:
        if ref is not None and item is not None:
            assert (item.outcome.ref.key, item.outcome.ref.stat) == (ref.key, ref.stat)
            assert item.outcome.stage != "read"
        if ref is not None and item is None:
            assert not any(e[:2] == (ref.key, ref.stat) and e[2] != "read" for e in earlier)


@given(EARLIER, NOW)
def test_each_result_is_found_by_its_digest_once(earlier: list[tuple[str, str, str]], now: dict[str, str]) -> None:
    old = [kept(key, "s", "", content) for key, content, _ in sorted(earlier)]
    refs = [SampleRef(number, key, "s", digest=now[key]) for number, key in enumerate(sorted(now))]
    pairs = list(match_by_digest(refs, iter(old)))
    assert [ref for ref, _ in pairs if ref is not None] == refs
    assert sorted(id(item) for _, item in pairs if item is not None) == sorted(map(id, old))
    found = sum(ref is not None and item is not None for ref, item in pairs)
    contents_now, contents_then = list(now.values()), [content for _, content, _ in earlier]
    assert found == sum(min(contents_now.count(c), contents_then.count(c)) for c in "123")
