"""Small images on a CPU: two at once, each by itself, whatever else is in its batch; what fails beside another."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentmill.encoders import side_by_side
from latentmill.encoders import vae as encoders_vae
from latentmill.encoders.models import resolve
from latentmill.encoders.side_by_side import SideBySide
from latentmill.encoders.vae import VaeEncoder, VaeSpec, restore_torch
from latentmill.records import Encoded, Sample, SampleRef
from recipe_jobs import Photos, run
from support import TINY_VAE, WHOLE
from tiny_vaes import saved_vae

SIDE = 32
PATIENCE = 20  # seconds that a test waits for another thread, which is there at once


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    yield
    restore_torch()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    return [Sample(SampleRef(number, f"{number}.png", ""), each, f"{number}") for number, each in enumerate(pixels)]


def opened(threads: int = 2, **changes: Any) -> VaeEncoder:
    tiny = VaeSpec(resolve(str(TINY_VAE)), "cpu", "float32", (-1.0, 1.0), "moments", 0, "float32", threads)
    return replace(tiny, **changes).open()


def wrapped(encoder: VaeEncoder, around: Callable[[Callable[[], Any], torch.Tensor], Any]) -> None:
    """Call `around` with each forward of the model, not yet begun, and its input."""
    own = encoder.vae.encode
    encoder.vae.encode = lambda x: around(lambda: own(x), x)


def numbers(results: list[Any]) -> np.ndarray:
    assert all(isinstance(result, Encoded) for result in results), results
    return np.stack([result.array for result in results])


def test_neither_the_batch_nor_its_order_changes_a_bit(samples: list[Sample]) -> None:
    together = numbers(opened().encode(samples))
    encoder = opened()
    alone = numbers([encoder.encode([one])[0] for one in samples])
    assert np.array_equal(together, alone)
    assert np.array_equal(numbers(opened().encode(samples[::-1]))[::-1], together)
    assert np.array_equal(numbers(opened(1).encode(samples)), together)  # one thread an image, as with two
    whole = numbers(opened(WHOLE).encode(samples))
    assert np.allclose(whole, together, atol=1e-5)


def test_two_are_computed_at_once_with_half_of_the_threads_each(samples: list[Sample]) -> None:
    encoder, both, threads = opened(4), threading.Barrier(2), set()

    def around(forward: Callable[[], Any], x: torch.Tensor) -> Any:
        assert len(x) == 1
        both.wait(PATIENCE)
        threads.add(torch.get_num_threads())
        return forward()

    wrapped(encoder, around)
    assert len(encoder.encode(samples)) == 4
    assert threads == {2}
    assert torch.get_num_threads() == 4  # of this thread


def test_a_batch_is_begun_while_the_last_one_ends_and_no_further_one(samples: list[Sample]) -> None:
    encoder, go, begun = opened(1), threading.Event(), []

    def around(forward: Callable[[], Any], x: torch.Tensor) -> Any:
        begun.append(float(x.mean()))
        assert go.wait(PATIENCE)
        return forward()

    wrapped(encoder, around)
    first = encoder.submit(samples[:2])  # returns while its images wait
    second: list[Any] = []
    beside = threading.Thread(target=lambda: second.append(encoder.submit(samples[2:])))
    beside.start()
    beside.join(0.05)
    assert beside.is_alive()
    assert len(begun) == 1
    go.set()
    beside.join(PATIENCE)
    assert np.array_equal(numbers([*first(), *second[0]()]), numbers(opened(1).encode(samples)))


def test_what_has_no_room_beside_another_is_computed_again_by_itself(samples: list[Sample]) -> None:
    encoder, running, crowds = opened(), [], []

    def around(forward: Callable[[], Any], x: torch.Tensor) -> Any:
        running.append(x)
        try:
            if threading.current_thread() is not threading.main_thread():
                crowds.append(weakref.ref(x))
                time.sleep(0.02 * len(crowds))  # the first has failed while others are still computed
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
            assert len(running) == 1
            assert not any(crowd() is not None for crowd in crowds)  # their tensors are gone
            return forward()
        finally:
            running.pop()

    wrapped(encoder, around)
    found = encoder.encode(samples)
    assert [result.notes for result in found] == [()] * 4
    assert len(crowds) == 4
    assert np.allclose(numbers(found), numbers(opened().encode(samples)), atol=1e-5)


def test_another_error_comes_out_where_its_batch_ends_and_the_encoder_goes_on(samples: list[Sample]) -> None:
    encoder, expected = opened(), numbers(opened().encode(samples))

    def around(forward: Callable[[], Any], x: torch.Tensor) -> Any:
        if bad and float(x.mean()) == bad[0]:
            raise ValueError("no such number")
        return forward()

    bad: list[float] = []
    means: list[float] = []
    wrapped(encoder, lambda forward, x: (means.append(float(x.mean())), forward())[1])
    encoder.encode(samples[1:2])
    bad += means
    wrapped(encoder, around)
    ending = encoder.submit(samples)
    with pytest.raises(ValueError, match="no such number"):
        ending()
    bad.clear()
    assert np.array_equal(numbers(encoder.encode(samples)), expected)


@pytest.mark.parametrize("why", ["threads", "large", "memory", "compiled", "tiled", "frames"])
def test_what_is_computed_whole(
    samples: list[Sample], why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An odd number of threads, large tensors, no room for two, models that are compiled or keep frames, tiles."""
    changes: dict[str, Any] = {"tiling": "always"} if why == "tiled" else {}
    if why == "compiled":
        changes = {"compile": True, "backend": "eager"}
    if why == "frames":
        changes = {"model": resolve(str(saved_vae("wan2.1", tmp_path / "vae")))}
    if why == "large":
        monkeypatch.setattr(encoders_vae, "LARGEST_TENSOR", SIDE * SIDE * 16 * 4 - 1)
    if why == "memory":
        monkeypatch.setattr(encoders_vae, "available_memory", lambda: int(1.5 * SIDE * SIDE * 5 * 16 * 4 / 0.8))
    encoder, places = opened(WHOLE if why == "threads" else 2, **changes), set()

    def around(forward: Callable[[], Any], x: torch.Tensor) -> Any:
        places.add(threading.current_thread())
        return forward()

    wrapped(encoder, around)
    assert len(encoder.encode(samples)) == 4
    assert places == {threading.main_thread()}


def test_a_batch_that_is_computed_whole_waits_for_small_images(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of both would wait for each other at every operation."""
    monkeypatch.setattr(encoders_vae, "LARGEST_TENSOR", SIDE * SIDE * 16 * 4)
    encoder, running, most = opened(), [], []

    def around(forward: Callable[[], Any], x: torch.Tensor) -> Any:
        running.append(id(x))
        most.append((len(running), x.shape[-1]))
        time.sleep(0.05 if x.shape[-1] == SIDE else 0)
        try:
            return forward()
        finally:
            running.remove(id(x))

    wrapped(encoder, around)
    wide = np.random.default_rng(1).integers(0, 256, (SIDE, 2 * SIDE, 3), np.uint8)
    ending = encoder.submit(samples)
    large = encoder.submit([Sample(SampleRef(9, "9.png", ""), wide, "9")])
    assert (1, wide.shape[1]) in most
    assert len(ending()) + len(large()) == 5


def test_results_come_in_order_and_threads_end_with_what_began_them() -> None:
    before = threading.active_count()
    beside: SideBySide[int] = SideBySide(2)
    waits = [wait for start in range(0, 40, 8) for wait in beside.begin(lambda one: one * one, range(start, start + 8))]
    assert [wait() for wait in waits] == [item * item for item in range(40)]
    assert threading.active_count() <= before + side_by_side.AT_ONCE
    pool = beside._pool
    del beside, waits
    pool.shutdown(wait=True)
    assert threading.active_count() == before


def test_encoders_of_one_pass_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models, and a batch of each in turn: never one of each at once."""
    running: list[Any] = []
    mixed: list[bool] = []
    load = encoders_vae.load_vae

    def loaded(*arguments: Any) -> Any:
        vae = load(*arguments)
        own = vae.encode

        def encode(x: torch.Tensor) -> Any:
            running.append(vae)
            mixed.append(len({id(each) for each in running}) > 1)
            try:
                return own(x)
            finally:
                running.remove(vae)

        vae.encode = encode
        return vae

    monkeypatch.setattr(encoders_vae, "load_vae", loaded)
    common = {"kind": "latents", "resolution": "32x32", "transform": "center-crop", "batch_size": 2}
    outputs = {name: {"model": model, **common} for name, model in (("a", str(TINY_VAE)), ("b", "mini"))}
    results = run(Photos(tmp_path / "photos", 11).root, tmp_path / "out", outputs, threads=2)
    assert [result.stored for result in results.values()] == [11, 11]
    assert len(mixed) >= 22  # more where the time of a batch is tried first
    assert not any(mixed)
