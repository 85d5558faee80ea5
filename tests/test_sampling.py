"""BucketSampler: whole epochs, equal ranks, one bucket a batch, and exact resume under real workers and ranks."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import pickle
import random
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset

from latentmill.errors import ConfigError
from latentmill.sampling import BucketSampler
from support import descendants, wait_until

SIZES = [(256, 256), (256, 512), (512, 256), (320, 448)]
LOADERS = {
    "no worker": {"num_workers": 0},
    "workers": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3},
    "pinned": {"num_workers": 1, "pin_memory": True},
}


def mixed(*counts: int, seed: int = 0) -> np.ndarray:
    """Buckets of `sum(counts)` samples, so many of each size, in no order."""
    return np.random.default_rng(seed).permutation(np.repeat(SIZES[: len(counts)], counts, axis=0))


def ranks_of(buckets: Any, *sizes: Any, world_size: int, epoch: int = 0, **settings: Any) -> list[BucketSampler]:
    samplers = [
        BucketSampler(buckets, *sizes, rank=rank, world_size=world_size, **settings) for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return samplers


class Photos(Dataset[torch.Tensor]):
    """A dataset of buckets: a sample is its position, in a tensor of its bucket's height."""

    def __init__(self, buckets: np.ndarray) -> None:
        self.buckets = buckets

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, position: int) -> torch.Tensor:
        return torch.full((int(self.buckets[position][0]) // 64,), position)


def loader_of(sampler: BucketSampler, buckets: np.ndarray, **options: Any) -> DataLoader[torch.Tensor]:
    options = {"num_workers": 2, **options}
    if options["num_workers"]:
        options["multiprocessing_context"] = "fork" if sys.platform == "linux" else None
    return DataLoader(Photos(buckets), batch_sampler=sampler, **options)


def positions(batch: torch.Tensor) -> list[int]:
    return batch[:, 0].tolist()


# what an epoch holds


@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 23), min_size=1, max_size=4),
    st.lists(st.integers(1, 9), min_size=4, max_size=4),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 3),
)
def test_ranks_share_every_sample_in_equally_many_batches_of_one_bucket(
    counts: list[int], batch_sizes: list[int], world_size: int, shuffle: bool, epoch: int
) -> None:
    buckets, by_bucket = mixed(*counts), dict(zip(SIZES, batch_sizes, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranks = ranks_of(buckets, by_bucket, world_size=world_size, shuffle=shuffle, epoch=epoch)
    batches = [list(rank) for rank in ranks]
    assert {len(own) for own in batches} == {len(rank) for rank in ranks} == {len(ranks[0])}
    for batch in (batch for own in batches for batch in own):
        sizes = {tuple(size) for size in buckets[batch].tolist()}
        assert len(sizes) == 1
        assert 1 <= len(batch) <= by_bucket[sizes.pop()]
    seen = Counter(sample for own in batches for batch in own for sample in batch)
    again = Counter(ranks[-1].repeated)
    assert seen == Counter(range(len(buckets))) + again
    if again:  # only where single samples do not suffice, and then the fewest
        assert all(len(batch) == 1 for own in batches for batch in own)
        assert again.total() == -len(buckets) % world_size
    uncut = sum(-(-count // size) for count, size in zip(counts, batch_sizes, strict=False))
    assert len(ranks[0]) == -(-uncut // world_size)  # splitting adds no step


@settings(max_examples=80)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(1, 7),
    st.integers(1, 5),
    st.booleans(),
)
def test_drop_last_leaves_whole_batches_and_says_what_it_drops(
    counts: list[int], size: int, world_size: int, shuffle: bool
) -> None:
    full = sum(count // size for count in counts)
    assume(full >= world_size)
    buckets = mixed(*counts)
    ranks = ranks_of(buckets, size, world_size=world_size, shuffle=shuffle, drop_last=True)
    batches = [batch for rank in ranks for batch in rank]
    assert {len(batch) for batch in batches} == {size}
    assert len(batches) == full // world_size * world_size
    assert all(rank.dropped == ranks[0].dropped for rank in ranks)
    assert sorted([*ranks[0].dropped, *itertools.chain(*batches)]) == list(range(len(buckets)))


def test_drop_last_is_told_in_words() -> None:
    """10 of the first bucket are 3 batches and 1 sample, 5 of the second are 1 batch and 2: 4 batches for 3 ranks."""
    sampler = BucketSampler(mixed(10, 5), 3, drop_last=True, rank=0, world_size=3)
    line = sampler.describe()
    assert "1 batches on each of 3 ranks" in line
    assert "dropped: 3 samples of incomplete batches (1 of (256, 256), 2 of (256, 512)), 3 of whole batches" in line
    dropped = {tuple(sampler.dropped)}
    for epoch in (1, 2, 3):
        sampler.set_epoch(epoch)
        dropped.add(tuple(sampler.dropped))
    assert len(dropped) > 1, "the same samples would be left out of the whole training"
    with pytest.raises(ConfigError, match=r"4 full batches of 15 samples for 5 ranks"):
        BucketSampler(mixed(10, 5), 3, drop_last=True, rank=0, world_size=5)


def test_last_batches_are_split_and_others_are_whole() -> None:
    """17 samples by 4 are 5 batches: 3 ranks need 6, so one of 5 is halved."""
    sizes = sorted(len(batch) for rank in ranks_of(mixed(17), 4, world_size=3) for batch in rank)
    assert sizes in ([1, 2, 2, 4, 4, 4], [1, 4, 4, 4, 4])
    in_order = [list(rank) for rank in ranks_of(mixed(16, 2), 4, world_size=3, shuffle=False)]
    assert [len(own[-1]) for own in in_order] == [4, 1, 1]


def test_too_few_samples_come_again_with_one_warning() -> None:
    with pytest.warns(UserWarning, match=r"5 samples cannot make 1 batches for each of 8 ranks.*: 3 come") as told:
        sampler = BucketSampler(mixed(5), 4, rank=7, world_size=8)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            assert len(list(sampler)) == 1
            assert len(set(sampler.repeated)) == 3
    assert len(told) == 1
    assert told[0].filename == __file__


def test_nothing_is_said_where_nothing_comes_again() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BucketSampler(mixed(8), 4, rank=0, world_size=8).repeated == []


def test_pixel_budget_gives_small_pictures_larger_batches() -> None:
    sampler = BucketSampler([*[(256, 256)] * 10, *[(512, 512)] * 10, *[(4096, 4096)] * 2], pixels=4 * 512 * 512 + 100)
    assert sampler.batch_sizes == {(256, 256): 16, (512, 512): 4, (4096, 4096): 1}
    assert sorted(map(len, sampler)) == [1, 1, 2, 4, 4, 10]


def test_without_shuffle_samples_come_in_order_by_height_and_width() -> None:
    buckets = [(512, 256), (256, 512), (512, 256), (256, 256), (512, 256), (256, 512)]
    assert list(BucketSampler(buckets, 2, shuffle=False)) == [[3], [1, 5], [0, 2], [4]]


def test_shuffling_mixes_buckets_and_samples() -> None:
    buckets = mixed(400, 400)
    batches = list(BucketSampler(buckets, 4))
    kinds = [tuple(buckets[batch[0]]) for batch in batches]
    assert 60 < sum(a != b for a, b in itertools.pairwise(kinds)) < 140  # about half of 199
    firsts = [np.mean([min(batch) for batch in list(BucketSampler(buckets, 4, seed=seed))[:50]]) for seed in range(9)]
    assert 100 < np.mean(firsts) < 220  # the least of 4 out of 800 is 160 on average


def test_epochs_differ_and_repeat() -> None:
    buckets = mixed(30, 20)
    sampler = BucketSampler(buckets, 4, seed=5)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(BucketSampler(buckets, 4, seed=6)) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_order_is_of_a_fixed_value() -> None:
    """The same in every process; a later version that gives another order must say so by its state's version."""
    sampler = BucketSampler([(256, 256 + 256 * (i % 2)) for i in range(11)], 3, seed=7, rank=1, world_size=2)
    sampler.set_epoch(2)
    assert list(sampler) == [[9, 3], [6, 2, 10]]
    assert sampler.state_dict()["version"] == 1


def test_a_copy_by_pickle_gives_the_same_batches_and_keeps_a_resume_point() -> None:
    buckets = mixed(30, 20)
    sampler = BucketSampler(Photos(buckets), {(256, 256): 3, (256, 512): 5}, seed=1)
    sampler.set_epoch(3)
    whole = list(sampler)
    assert list(pickle.loads(pickle.dumps(sampler))) == whole
    sampler.load_state_dict(sampler.state_dict() | {"consumed": 4})
    assert list(pickle.loads(pickle.dumps(sampler))) == whole[4:]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([[(256, 256)]], {}, "batch_size or pixels, one of the two. Found: neither"),
        ([[(256, 256)], 4], {"pixels": 9}, "Found: both"),
        ([[(256, 256)], 0], {}, "batch_size must be a whole number from 1 on. Found: 0"),
        ([[(256, 256)]], {"pixels": 2.5}, "pixels must be a whole number"),
        (
            [[(256, 256), (256, 512)], {(256, 256): 4}],
            {},
            r"name every bucket \(height, width\). Found: none for \(256, 512\)",
        ),
        ([[(256, 256)], {(256, 256): True}], {}, r"batch_size of \(256, 256\) must be"),
        ([[], 4], {}, "for at least one sample"),
        ([[256, 256], 4], {}, r"one \(height, width\).*Found: int64 of shape \(2,\)"),
        ([[(256, 256), (256,)], 4], {}, r"one \(height, width\) per sample"),
        ([[(1.5, 2.0)], 4], {}, "Found: float64"),
        ([[(256, 256), (0, 256)], 4], {}, r"Found: \[0, 256\] for sample 1"),
        ([[(256, 256)], 4], {"rank": 1}, "give rank and world_size, or neither"),
        ([[(256, 256)], 4], {"rank": 2, "world_size": 2}, "rank must be a whole number from 0 to 1. Found: 2"),
        ([[(256, 256)], 4], {"seed": -1}, "seed must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: list[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BucketSampler(*arguments, **settings)


# resume


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.parametrize("kind", LOADERS)
def test_state_counts_what_the_loop_got_and_resumes_there(kind: str) -> None:
    """Asked in the loop, after it was left, and after its iterator died; through JSON, into a new loader."""
    buckets = mixed(21, 16)
    sampler = BucketSampler(buckets, 3, seed=2)
    loader = loader_of(sampler, buckets, **LOADERS[kind])
    sampler.set_epoch(1)
    assert sampler.state_dict()["consumed"] == 0
    got = []
    for count, batch in enumerate(loader, 1):
        got.append(positions(batch))
        assert sampler.state_dict()["consumed"] == count
        if count == 5:
            break
    del batch
    gc.collect()
    state = json.loads(json.dumps(sampler.state_dict()))
    assert (state["epoch"], state["consumed"]) == (1, 5)

    other = BucketSampler(buckets, 3, seed=2)
    again = loader_of(other, buckets, **LOADERS[kind])
    other.load_state_dict(state)
    assert other.state_dict() == state
    other.set_epoch(1)
    for count, batch in enumerate(again, 6):
        got.append(positions(batch))
        assert other.state_dict()["consumed"] == count
    whole = BucketSampler(buckets, 3, seed=2)
    whole.set_epoch(1)
    assert got == list(whole)
    assert other.state_dict()["consumed"] == len(other) == len(again) == len(got)
    assert [positions(batch) for batch in again] == got, "a resume point is used once"
    other.set_epoch(2)
    assert other.state_dict() == {**state, "epoch": 2, "consumed": 0}
    assert len(list(again)) == len(other)


def test_a_left_loop_is_still_counted_and_leaves_no_worker_and_no_batch_behind() -> None:
    buckets = mixed(60)
    sampler = BucketSampler(buckets, 2)
    loader = loader_of(sampler, buckets)
    dataset = weakref.ref(loader.dataset)
    held = iter(loader)
    next(held)
    next(held)
    assert sampler.state_dict()["consumed"] == 2
    workers = len(descendants(os.getpid())) if sys.platform == "linux" else 0
    del held
    assert sampler.state_dict()["consumed"] == 2
    if workers:
        assert wait_until(lambda: len(descendants(os.getpid())) <= workers - 2, 10), "its workers still run"
    del loader
    gc.collect()
    assert dataset() is None, "what the loader held is kept"


def test_an_error_in_the_loop_does_not_move_the_count() -> None:
    buckets = mixed(20)
    sampler = BucketSampler(buckets, 2)

    def train() -> None:
        for step, _ in enumerate(loader_of(sampler, buckets)):
            if step == 3:
                raise RuntimeError("the fourth step fails")

    with pytest.raises(RuntimeError, match="fourth"):
        train()
    assert sampler.state_dict()["consumed"] == 4


def test_iterated_directly_what_was_yielded_is_consumed() -> None:
    sampler = BucketSampler(mixed(20), 2)
    batches = iter(sampler)
    got = [next(batches), next(batches)]
    state = sampler.state_dict()
    assert state["consumed"] == 2
    sampler.load_state_dict(state)
    assert [*got, *sampler] == list(sampler)


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.data())
def test_any_rank_resumes_from_any_ranks_state(
    first: int, second: int, size: int, world_size: int, drop_last: bool, data: st.DataObject
) -> None:
    buckets = mixed(first, second)
    assume(first // size + second // size >= world_size if drop_last else size > 1 and first + second >= world_size * 2)
    ranks = ranks_of(buckets, size, world_size=world_size, drop_last=drop_last, epoch=4)
    batches = [list(rank) for rank in ranks]
    step = data.draw(st.integers(0, len(ranks[0])))
    running = iter(ranks[0])
    for _ in range(step):
        next(running)
    state = ranks[0].state_dict()
    for own, rank in zip(batches, ranks_of(buckets, size, world_size=world_size, drop_last=drop_last), strict=True):
        rank.load_state_dict(state)
        assert list(rank) == own[step:]
        assert list(rank) == own


def test_a_resume_point_is_of_its_epoch() -> None:
    sampler = BucketSampler(mixed(20), 2)
    state = {**sampler.state_dict(), "epoch": 3, "consumed": 6}
    sampler.load_state_dict(state)
    lengths = []
    for epoch in range(sampler.epoch, 6):
        sampler.set_epoch(epoch)
        lengths.append(len(list(sampler)))
    assert lengths == [4, 10, 10]
    sampler.load_state_dict(state)
    sampler.set_epoch(4)
    sampler.set_epoch(3)
    assert len(list(sampler)) == 10


def test_state_at_the_end_of_an_epoch_leaves_nothing_of_it() -> None:
    buckets = mixed(12)
    sampler = BucketSampler(buckets, 2)
    list(loader_of(sampler, buckets))
    fresh = BucketSampler(buckets, 2)
    fresh.load_state_dict(sampler.state_dict())
    loader = loader_of(fresh, buckets)
    assert [len(list(loader)) for _ in range(2)] == [0, 6]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed is 0 here and 1 in the state"),
        ({"shuffle": False}, "shuffle is True here and False in the state"),
        ({"drop_last": True}, "drop_last is False here and True in the state"),
        ({"world_size": 2, "rank": 0}, "world_size is 1 here and 2 in the state"),
        ({"buckets": mixed(12, 8, seed=1)}, "buckets is "),
        ({"buckets": mixed(12, 9)}, "samples is 20 here and 21 in the state"),
        (
            {"batch_size": {(256, 256): 4, (256, 512): 2}},
            r"Found: batch_size of \(256, 512\) is 4 here and 2 in the state\. ",
        ),
    ],
)
def test_a_state_of_another_order_is_refused_by_name(change: dict[str, Any], difference: str) -> None:
    made = {"buckets": mixed(12, 8), "batch_size": 4}
    sampler = BucketSampler(**made)
    with pytest.raises(ConfigError, match=difference):
        sampler.load_state_dict(BucketSampler(**{**made, **change}).state_dict())
    assert sampler.state_dict()["consumed"] == 0


@pytest.mark.parametrize("change", [{"consumed": 99}, {"consumed": -1}, {"consumed": None}, {"epoch": 1.5}])
def test_a_broken_state_is_refused(change: dict[str, Any]) -> None:
    sampler = BucketSampler(mixed(20), 4)
    with pytest.raises(ConfigError, match=f"the state's {next(iter(change))} must be a whole number"):
        sampler.load_state_dict({**sampler.state_dict(), **change})
    with pytest.raises(ConfigError, match="version is 1 here and None in the state"):
        sampler.load_state_dict({"epoch": 1, "consumed": 2})


def test_where_the_count_cannot_be_known_no_state_is_given() -> None:
    class Half(BatchSampler):
        def __init__(self, sampler: BucketSampler) -> None:
            self.sampler = sampler

        def __iter__(self) -> Iterator[list[int]]:
            return (batch[: len(batch) // 2] for batch in self.sampler)

        def __len__(self) -> int:
            return len(self.sampler)

    buckets = mixed(20)
    sampler = BucketSampler(buckets, 4)
    for _ in DataLoader(Photos(buckets), batch_sampler=Half(sampler)):
        with pytest.raises(ConfigError, match="must get the BucketSampler itself"):
            sampler.state_dict()
    for _ in loader_of(sampler, buckets, in_order=False):
        with pytest.raises(ConfigError, match="in_order=False"):
            sampler.state_dict()
    batches = iter(loader_of(sampler, buckets, num_workers=0))
    del batches._num_yielded  # as a PyTorch that counts otherwise
    with pytest.raises(ConfigError, match="must count the batches it gave"):
        sampler.state_dict()


# ranks

RANKS, WORKERS, EPOCHS = 4, 3, 2


def train_on_a_rank(rank: int, folder: Path, buckets: np.ndarray, stops: list[int]) -> None:
    """Train all epochs, starting anew from rank 0's state after each of the steps `stops`; write what this rank got."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    early = BucketSampler(buckets, 2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    with pytest.raises(ConfigError, match=f"made as rank 0 of 1, used as rank {rank} of {RANKS}"):
        iter(early)
    got: list[list[list[int]]] = [[] for _ in range(EPOCHS)]
    state = None
    for stop in [*stops, 0]:
        sampler = BucketSampler(Photos(buckets), pixels=4 * 256 * 512, seed=11)
        if state:
            sampler.load_state_dict(state)
        train(sampler, loader_of(sampler, buckets, num_workers=WORKERS), got, stop)
        kept = [sampler.state_dict() if rank == 0 else None]
        dist.broadcast_object_list(kept)
        state = kept[0]
    (folder / f"rank{rank}.json").write_text(json.dumps(got))
    dist.destroy_process_group()


def train(sampler: BucketSampler, loader: DataLoader[torch.Tensor], got: list[list[list[int]]], stop: int) -> None:
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        for batch in loader:
            got[epoch].append(positions(batch))
            dist.all_reduce(torch.ones(1))  # hangs where a rank has fewer batches
            if sum(map(len, got)) == stop:
                return


def test_four_ranks_with_three_workers_resume_at_random_steps(tmp_path: Path) -> None:
    buckets = mixed(83, 41, 22)
    steps = len(BucketSampler(buckets, pixels=4 * 256 * 512, rank=0, world_size=RANKS))
    stops = sorted(random.Random(3).sample(range(1, EPOCHS * steps), 3))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "torch.utils.data"])  # imported once, not by each rank
    ranks = [context.Process(target=train_on_a_rank, args=(rank, tmp_path, buckets, stops)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    try:
        wait_until(lambda: not any(process.is_alive() for process in ranks), 90)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    assert [process.exitcode for process in ranks] == [0] * RANKS
    got = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    assert got[0][0] != got[0][1]
    for epoch in range(EPOCHS):
        assert [len(own[epoch]) for own in got] == [steps] * RANKS
        batches = [batch for own in got for batch in own[epoch]]
        assert sorted(itertools.chain(*batches)) == list(range(len(buckets)))
        assert all(len({tuple(buckets[sample]) for sample in batch}) == 1 for batch in batches)
