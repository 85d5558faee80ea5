"""Normal numbers of a 64-bit key, and draws from a posterior made of them: to the bit the same wherever they are made.

Numbers come in blocks of 256, of 64 counters each. The words of counter n are Philox 4x32-10 of (n, 0, 0, 0) under the
key (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), so that each key has a stream
of its own. A block holds r cos(a) of the counters' first two words, then r sin(a) of them, then both of the other two
words, with r = sqrt(-2 ln u) (Box-Muller). The first of two words gives u = (word + 0.5) / 2^32, rounded to float32,
whose steps get finer towards 0, where the largest numbers come from (up to 6.76); near 1 they are 2^-24, and one pair
in 2^25 is 0. The second gives the angle a: its upper bit a half turn, the others from -pi/2 to pi/2.

Every step is one addition, multiplication or root in float32, which IEEE 754 defines to the bit; logarithm, sine and
cosine are polynomials. So NumPy, which is in use where nothing was compiled, and `native/normals.h` give the same
numbers, on any processor and by any compiler that keeps to IEEE 754, which is looked at once, at import. They are at
most 1.9e-6 from what exact functions give of u and the angle: where the radius is largest (1.0e-6 in 25 million pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from latentmill.compiled import load
from latentmill.records import Array

_COUNTERS = 64
_BLOCK = 4 * _COUNTERS
_TOGETHER = 256  # blocks that NumPy makes at a time
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_ROUNDS = 10
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROOT_HALF = np.uint32(0x3F3504F3)  # the bits of sqrt(0.5), from where mantissas are taken
_ABOVE_ROOT = np.uint32(0x3F800000 - 0x3F3504F3)
# Of the least largest error: by least squares, weighted anew until the error was level, in double precision; then
# rounded to float32. The first: of -2 ln(1 + f) / f from sqrt(1/2) to sqrt(2), with the last two factors given: 3.1e-8
# of it. The others: of cos(x), and of sin(x) / x, in x^2, up to a quarter turn, the last one given: 2.4e-10, 4.6e-9.
_LOG = (-0.174008742, 0.285349756, -0.298295349, 0.331551701, -0.399261266, 0.500026762, -0.66667819, 1.0, -2.0)
_COS = (-2.6077106e-07, 2.47618864e-05, -0.00138884038, 0.0416666418, -0.5, 1.0)
_SIN = (2.60005459e-06, -0.000198066147, 0.00833301712, -0.166666567, 1.0)
_TRIAL_KEY = 0x0123456789ABCDEF
_LOG_OF_2, _TURN = -1.38629436, 1.46291808e-09  # -2 ln 2, and pi / 2^31


def philox(counters: Array, key: int) -> Array:
    """Philox 4x32-10 of unsigned words (4, N), below 2^32, under a key of 64 bits: uint64 (4, N), below 2^32."""
    words = counters.astype(np.uint64)
    first, second = words[::2], words[1::2]
    keys = np.array([[key & 0xFFFFFFFF], [key >> 32 & 0xFFFFFFFF]], np.uint64)
    for _ in range(_ROUNDS):
        products = (_MULTIPLIERS * first)[::-1]
        first, second = products >> _HALF ^ second ^ keys, products & _LOW
        keys = keys + _KEY_STEPS & _LOW
    return np.stack([first, second], axis=1).reshape(4, -1)


def _normals(key: int, out: Array) -> None:
    _check(out)
    flat = out.reshape(-1)
    for start in range(0, -(-out.size // _BLOCK), _TOGETHER):
        part = flat[start * _BLOCK : (start + _TOGETHER) * _BLOCK]
        part[:] = _blocks(key, start, -(-part.size // _BLOCK))[: part.size]


def _check(values: Array) -> None:
    if values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ValueError("moments and draws must be float32 and contiguous")


def _blocks(key: int, first: int, count: int) -> Array:
    """The numbers of so many blocks, from block `first` on."""
    counters = np.zeros((4, count * _COUNTERS), np.uint64)
    counters[0] = np.arange(first * _COUNTERS, (first + count) * _COUNTERS, dtype=np.uint64) & _LOW
    words = philox(counters, key).astype(np.uint32).reshape(2, 2, count, _COUNTERS)
    found = _pairs(words[:, 0], words[:, 1])  # of the counter's pair, block, of the pair, counter
    return found.transpose(1, 0, 2, 3).reshape(-1)


def _pairs(radii: Array, angles: Array) -> Array:
    """Two normal numbers of each two words: (2, blocks, 64) twice -> float32 (2, blocks, 2, 64)."""
    radius = _radius(radii)
    radius.view(np.uint32)[...] ^= angles & np.uint32(0x80000000)
    signed = (angles & np.uint32(0x7FFFFFFF)).astype(np.int32) - np.int32(0x40000000)
    angle = signed.astype(np.float32) * np.float32(_TURN)
    square = angle * angle
    return np.stack([radius * _polynomial(_COS, square), radius * (_polynomial(_SIN, square) * angle)], axis=2)


def _radius(words: Array) -> Array:
    """sqrt(-2 ln u) of u = (word + 0.5) / 2^32."""
    low = (words & np.uint32(0xFFFF)).astype(np.float32) + np.float32(0.5)
    shifted = ((words >> np.uint32(16)).astype(np.float32) * np.float32(65536) + low).view(np.uint32) + _ABOVE_ROOT
    exponent = (shifted >> np.uint32(23)).astype(np.float32) - np.float32(127 + 32)
    f = ((shifted & np.uint32(0x7FFFFF)) + _ROOT_HALF).view(np.float32) - np.float32(1)
    result: Array = np.sqrt(exponent * np.float32(_LOG_OF_2) + _polynomial(_LOG, f) * f)
    return result


def _polynomial(factors: Sequence[float], x: Array) -> Array:
    """Horner's rule in float32, the highest power's factor first."""
    result = np.full_like(x, factors[0])
    for factor in factors[1:]:
        result *= x
        result += np.float32(factor)
    return result


def _draw(moments: Array, key: int, out: Array, shift: float, scale: float) -> None:
    _check(moments)
    half = len(moments) // 2
    _normals(key, out)
    np.multiply(moments[half:], out, out=out)
    np.add(moments[:half], out, out=out)
    np.subtract(out, shift, out=out)
    np.multiply(out, scale, out=out)


class _Both(NamedTuple):
    """`normals` and `draw`, and why they are NumPy's; empty where they are compiled."""

    normals: Callable[[int, Array], None]
    draw: Callable[[Array, int, Array, float, float], None]
    reason: str = ""


def _chosen() -> _Both:
    try:
        module = load()
    except ImportError as error:
        return _Both(_normals, _draw, f"the compiled module cannot be used: {error}")
    both = _Both(module.normals, module.draw)
    if _agree(both, _Both(_normals, _draw)):
        return both
    return _Both(_normals, _draw, "the compiled module rounds differently: install without -ffast-math and the like")


def _agree(*forms: _Both) -> bool:
    """Whether two forms give the same bits, of a whole block and a part of one."""
    found = []
    for each in forms:
        numbers, drawn = np.empty(_BLOCK + 7, np.float32), np.empty((1, _BLOCK + 7), np.float32)
        each.normals(_TRIAL_KEY, numbers)
        each.draw(np.stack([numbers, numbers[::-1]]), _TRIAL_KEY, drawn, 0.1159, 0.3611)
        found.append(numbers.tobytes() + drawn.tobytes())
    return found[0] == found[1]


# normals(key, out): fill float32 `out`, contiguous, of at most 2^34 numbers, with those of a key from 0 to 2^64 - 1.
# draw(moments, key, out, shift, scale): `out` (C, …) becomes (mean + deviation * z - shift) * scale, each step in
# float32, of the means and then deviations (2C, …), and z, the numbers of the key; all float32 and contiguous.
normals, draw, REASON = _chosen()
