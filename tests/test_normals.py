"""Normal numbers of a key: known answers, the same bits everywhere, their distribution, and keys by PyTorch's seed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from latentmill import normals as module
from latentmill.encoders.normalization import Affine
from latentmill.loaders_draws import Draws, drawn_key
from latentmill.records import Array
from latentmill.transforms import resample

with contextlib.suppress(ImportError):
    from latentmill.transforms import _resample

KERNELS = _resample.KERNELS if resample.IMPLEMENTATION == "native" else ()
KEYS, COUNT = 256, 4096
Fill = Callable[[int, Array], None]


@pytest.fixture(params=[*KERNELS, "numpy"])
def fill(request: pytest.FixtureRequest) -> Iterator[Fill]:
    """`normals` by each of the inner loops that this processor has, and by NumPy."""
    if request.param == "numpy":
        yield module._normals
    else:
        _resample.use(request.param)
        yield _resample.normals
        _resample.use(KERNELS[0])


def made(fill: Fill, key: int, count: int) -> Array:
    out = np.full(count, np.nan, np.float32)
    fill(key, out)
    return out


# known answers


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: list[int], key: int, words: str) -> None:
    found = module.philox(np.array(counter)[:, None], key)
    assert " ".join(f"{word:08x}" for word in found[:, 0].tolist()) == words


def test_the_numbers_are_these_on_every_machine(fill: Fill) -> None:
    numbers = [made(fill, key, 30_001) for key in (0, 1, 0x123456789ABCDEF, 2**64 - 1)]
    digest = hashlib.sha256(np.concatenate(numbers).astype("<f4").tobytes()).hexdigest()
    assert digest == "97ec9801bd9624eb5e4a7f47656b84acdd10c62f93e0d82c5a37b3ccf94c3c49"


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("sys.modules['latentmill.transforms._resample'] = None", "it was not built"),
        ("import latentmill.compiled as c; c._INTERFACE = 1", "it was built of another version"),
        ("import latentmill.compiled as c; c.load().normals = lambda key, out: out.fill(1)", "rounds differently"),
        ("import latentmill.compiled as c; c.load().draw = lambda m, key, out, *_: out.fill(1)", "rounds differently"),
    ],
    ids=["none", "another version", "other numbers", "other draws"],
)
def test_numpy_makes_them_where_the_compiled_module_cannot(before: str, reason: str) -> None:
    code = f"import sys; {before}; from latentmill import normals as m; print(m.normals is m._normals, m.REASON)"
    if not KERNELS and "sys.modules" not in before:
        pytest.skip("the compiled module is not there")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True ")
    assert reason in done.stdout


@pytest.mark.skipif(not KERNELS, reason="the compiled module is not there")
def test_they_do_not_hang_on_which_resampler_is_in_use() -> None:
    code = "from latentmill import normals as m; print(m.normals is m._normals, m.REASON)"
    environment = os.environ | {resample.VARIABLE: "pillow"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False \n"


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 255, 256, 257, 511, 4096, 4099, 40_000])
def test_every_implementation_gives_the_same_bits(fill: Fill, count: int) -> None:
    for key in np.random.default_rng(count).integers(0, 2**64, 5, np.uint64).tolist():
        expected = made(module._normals, key, 40_000)
        assert made(fill, key, count).tobytes() == expected[:count].tobytes()


def test_numbers_are_what_exact_functions_give_of_the_words() -> None:
    counters = np.zeros((4, 64 * 500), np.uint32)
    counters[0] = np.arange(64 * 500)
    words = module.philox(counters, 77).astype(np.float64).reshape(2, 2, 500, 64)
    root = np.sqrt(-2 * np.log((words[:, 0] + 0.5).astype(np.float32).astype(np.float64) / 2**32))
    angle = np.pi * (words[:, 1] % 2**31 - 2**30) / 2**31 + np.pi * (words[:, 1] >= 2**31)
    exact = np.stack([root * np.cos(angle), root * np.sin(angle)]).transpose(2, 1, 0, 3).reshape(-1)
    assert np.abs(made(module.normals, 77, 128_000) - exact).max() < 1.5e-6


def test_the_largest_number_is_as_exact_as_told() -> None:
    """The largest radius, with the angle that is worst among a seventh of all."""
    radius, word = np.sqrt(-2 * np.log(2.0**-33)), 2144584993
    angle = np.pi * (word % 2**31 - 2**30) / 2**31
    found = module._pairs(np.zeros((1, 1, 1), np.uint32), np.full((1, 1, 1), word, np.uint32)).reshape(-1)
    assert np.abs(found - radius * np.array([np.cos(angle), np.sin(angle)])).max() < 1.9e-6


# the ends


def test_every_pair_of_extreme_words_gives_finite_numbers() -> None:
    ends = np.array([0, 1, 2, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1], np.uint32)
    radii, angles = np.meshgrid(ends, ends)
    found = module._pairs(radii[None], angles[None])[0].transpose(0, 2, 1)  # angle, radius, of the pair
    assert np.isfinite(found).all()
    assert np.allclose(np.hypot(found[..., 0], found[..., 1])[:, [0, -1]], [np.sqrt(-2 * np.log(2**-33)), 0])


@pytest.mark.parametrize(
    ("key", "place", "numbers"),
    [(2360573, 2610, (-6.2644906, -2.55026984)), (2850057, 562, (0.0, 0.0))],  # words of 0 and 2^32 - 1, by search
)
def test_keys_that_have_an_extreme_word(fill: Fill, key: int, place: int, numbers: tuple[float, float]) -> None:
    found = made(fill, key, 4096)
    assert np.isfinite(found).all()
    assert np.array_equal(found[[place, place + 64]], np.array(numbers, np.float32))


# the distribution


def faults(z: Array) -> list[str]:
    """What is not as normal numbers have it, of float32 (keys, numbers): bounds of five deviations and more."""
    found: list[str] = []

    def bound(name: str, value: float, expected: float, deviation: float) -> None:
        if not abs(value - expected) <= 5.5 * deviation:
            found.append(name)

    ordered = np.sort(z, axis=None)
    exact, count = ordered.astype(np.float64), z.size
    power = np.ones_like(exact)
    for number, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        power *= exact
        bound(f"moment {number}", float(power.mean()), mean, (variance / count) ** 0.5)
    for edge, share in ((3.0, 2.699796e-3), (4.0, 6.334248e-5), (4.5, 6.795346e-6)):
        outside = count - int(np.subtract(*np.searchsorted(ordered, [edge, -edge])))
        bound(f"beyond {edge}", outside, share * count, (share * count) ** 0.5)
    below = torch.special.ndtr(torch.from_numpy(exact)).numpy() - np.arange(count) / count
    if max(below.max(), 1 / count - below.min()) * count**0.5 > 2.2:  # 1 in 8,000
        found.append("Kolmogorov-Smirnov")
    if np.count_nonzero(np.diff(ordered)) < 0.9 * count:
        found.append("repeated numbers")
    for name, each, most in (("numbers", z, 7), ("squares", (z**2 - 1) / np.float32(2**0.5), 12)):
        for lag in (1, 2, 3, 4, 8, 32, 63, 64, 65, 128, 192, 256, 512, 1024):
            total = float(np.einsum("ij,ij", each[:, lag:], each[:, :-lag]))
            pairs = len(each) * (each.shape[1] - lag)
            bound(f"{name} {lag} apart", total / pairs, 0, pairs**-0.5)
        between = each @ each.T / each.shape[1] ** 0.5
        np.fill_diagonal(between, 0)
        if np.abs(between).max() > most:  # of 33,000 pairs or more; squares have longer tails
            found.append(f"{name} of two keys")
    return found


def test_numbers_are_normal_and_independent_within_and_between_neighbouring_keys() -> None:
    for first, count in ((0, 4 * COUNT), (2**32 - KEYS // 2, COUNT)):  # the second: the key's lower word carries over
        assert faults(np.stack([made(module.normals, first + key, count) for key in range(KEYS)])) == []


def test_numbers_of_keys_that_differ_in_one_bit_are_independent() -> None:
    keys = [word ^ (1 << bit) for word in (0, 0x0123456789ABCDEF, 2**64 - 1) for bit in range(64)]
    assert faults(np.stack([made(module.normals, key, COUNT) for key in keys])) == []


def _of_twelve(z: Array) -> Array:
    return np.random.default_rng(1).random((12, *z.shape), np.float32).sum(axis=0) - np.float32(6)


WRONG: list[tuple[str, Callable[[Array], Array]]] = [  # and what finds it, of some more
    ("moment 4", _of_twelve),
    ("repeated numbers", lambda z: z.astype(np.float16).astype(np.float32)),
    ("beyond 4.0", lambda z: np.clip(z, -3.9, 3.9)),
    ("moment 2", lambda z: z * np.float32(1.007)),
    ("moment 3", lambda z: z + (z**2 - 1) * np.float32(0.01)),
    ("Kolmogorov-Smirnov", lambda z: z + np.float32(0.008)),
    ("numbers 1 apart", lambda z: np.repeat(z[:, ::2], 2, axis=1)),
    ("numbers 1 apart", lambda z: z * np.float32(0.9999**0.5) + np.roll(z, 1, 1) * np.float32(0.01)),
    ("squares 64 apart", lambda z: np.copysign(np.repeat(z.reshape(-1, 64)[::2], 2, axis=0).reshape(z.shape), z)),
    ("numbers of two keys", lambda z: np.concatenate([z[:-1], -z[:1]])),
    ("squares of two keys", lambda z: np.concatenate([z[:-1], np.copysign(z[:1], z[-1:])])),
    ("repeated numbers", lambda z: np.stack([z.ravel()[256 * n :][:COUNT] for n in range(KEYS // 2)])),
]


@pytest.mark.parametrize(("fault", "wrong"), WRONG)
def test_these_checks_find_a_wrong_generator(fault: str, wrong: Callable[[Array], Array]) -> None:
    assert fault in faults(wrong(np.random.default_rng(0).standard_normal((KEYS, COUNT), np.float32)))


def test_these_checks_pass_another_right_generator() -> None:
    assert faults(np.random.default_rng(0).standard_normal((KEYS, COUNT), np.float32)) == []


# draws


def test_a_draw_is_each_step_in_float32(fill: Fill) -> None:
    draw = module._draw if fill is module._normals else _resample.draw
    numbers = np.random.default_rng(0)
    for channels in (*range(1, 30), 512):
        moments = numbers.standard_normal((2 * channels, 3, 7), np.float32)
        mean, deviation = moments[:channels], moments[channels:]
        z = made(module._normals, channels, mean.size).reshape(mean.shape)
        out = np.empty_like(mean)
        draw(moments, channels, out, 0.1159, 0.3611)
        expected = (mean + deviation * z - np.float32(0.1159)) * np.float32(0.3611)
        assert out.tobytes() == expected.tobytes()


@pytest.mark.skipif(not KERNELS, reason="the compiled module is not there")
def test_the_compiled_one_refuses_what_it_is_not_made_for() -> None:
    out = np.zeros(6, np.float32)
    wrong = (out, np.zeros(12, np.float64), np.zeros(12, np.int32), np.zeros(24, np.float32)[::2], np.zeros(12, ">f4"))
    for bad in wrong:
        with pytest.raises((ValueError, BufferError)):
            _resample.draw(bad, 0, out, 0.0, 1.0)
    for bad in (*wrong[1:], b"123456781234567812345678"):
        with pytest.raises((ValueError, BufferError)):
            _resample.normals(0, bad)


def test_numpys_form_refuses_it_too() -> None:
    for bad in (np.zeros(12, np.float64), np.zeros((4, 6), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match="must be float32 and contiguous"):
            module._normals(0, bad)
        with pytest.raises(ValueError, match="must be float32 and contiguous"):
            module._draw(bad, 0, np.zeros(6, np.float32), 0.0, 1.0)


def test_keys_repeat_after_a_seed_and_go_on_with_the_generators_state() -> None:
    draws = Draws(Affine(0.0, 1.0), True, True)
    moments = np.random.default_rng(0).random((8, 4, 4), np.float32)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = draws(moments), draws(moments)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(draws(moments), first)
    torch.set_rng_state(state)
    assert torch.equal(draws(moments), first)
    assert torch.equal(draws(moments), second)
    torch.manual_seed(6)
    assert not torch.equal(draws(moments), first)
    first += 1  # memory of its own
    assert not torch.equal(draws(moments), first)


def test_keys_use_63_bits_and_are_another_in_every_thread() -> None:
    torch.manual_seed(0)
    keys: list[int] = []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        keys.extend([drawn_key() for _ in range(500)])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys)) == 4000
    assert min(keys) >= 0
    assert 1800 < min(sum(key >> bit & 1 for key in keys) for bit in range(63)) < 2200


def test_a_thread_may_begin_in_inference_mode() -> None:
    """A tensor that is made in that mode may not be written to outside of it."""
    found: list[int] = []

    def take() -> None:
        with torch.inference_mode():
            found.append(drawn_key())
        found.append(drawn_key())

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert len(set(found)) == 2
