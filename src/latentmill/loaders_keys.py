"""A million keys of one dataset found among those of another, exactly, in arrays."""

from __future__ import annotations

import numpy as np

from latentmill.formats.columns_texts import Texts, within
from latentmill.records import Array

_ROWS_AT_ONCE = 1 << 15
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
ABSENT = -1


def found_in(wanted: Texts, known: Texts) -> Array:
    """int64 (N,): the position in `known` of every text of `wanted`, -1 where it is not there.

    Texts are compared by a hash of 64 bits, and what that finds byte by byte.
    """
    if len(wanted) == len(known) and _all_same(wanted, known):
        return np.arange(len(known))
    if not len(wanted) or not len(known):
        return np.full(len(wanted), ABSENT)
    hashes = _hashes(known)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    if len(ordered) > 1 and (ordered[1:] == ordered[:-1]).any():
        return _found_one_by_one(wanted, known)
    ours = _hashes(wanted)
    turns = np.argsort(ours, kind="stable")  # looked for in order, so that memory is gone through once
    found = np.empty(len(ours), np.int64)
    found[turns] = np.searchsorted(ordered, ours[turns])
    at = order[np.minimum(found, len(order) - 1)]
    hit = np.flatnonzero(hashes[at] == ours)
    hit = hit[same_texts(wanted, hit, known, at[hit])]
    result = np.full(len(wanted), ABSENT)
    result[hit] = at[hit]
    return result


def same_texts(first: Texts, rows: Array, second: Texts, others: Array) -> Array:
    """bool (M,): whether the texts at these positions of both are the same."""
    same = np.zeros(len(rows), bool)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        same[part] = _same_part(first, rows[part], second, others[part])
    return same


def _same_part(first: Texts, rows: Array, second: Texts, others: Array) -> Array:
    starts, ends = first.spans(rows)
    other_starts, other_ends = second.spans(others)
    lengths = ends - starts
    same: Array = lengths == other_ends - other_starts
    lengths = np.where(same, lengths, 0)
    ours, theirs = within(starts, starts + lengths), within(other_starts, other_starts + lengths)
    differs = first.joined[ours] != second.joined[theirs]
    same[np.repeat(np.arange(len(rows)), lengths)[differs]] = False
    return same


def _all_same(first: Texts, second: Texts) -> bool:
    return np.array_equal(first.joined, second.joined) and np.array_equal(first.ends, second.ends)


def _hashes(texts: Texts) -> Array:
    """uint64 (N,): of every text the polynomial of its bytes modulo 2**64.

    The powers run on from text to text, and are divided out by the inverse of each text's first one.
    """
    result = np.zeros(len(texts), np.uint64)
    inverse = np.uint64(pow(_MULTIPLIER, -1, 1 << 64))
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        starts, ends = texts.spans(np.arange(start, min(start + _ROWS_AT_ONCE, len(texts))))
        data = texts.joined[starts[0] : ends[-1]].astype(np.uint64) + np.uint64(1)
        if not len(data):
            continue
        sums = np.concatenate([[np.uint64(0)], np.cumsum(data * _powers(np.uint64(_MULTIPLIER), len(data)))])
        parts = sums[ends - starts[0]] - sums[starts - starts[0]]
        result[start : start + _ROWS_AT_ONCE] = parts * _powers(inverse, len(data) + 1)[starts - starts[0]]
    return result


def _powers(base: np.uint64, count: int) -> Array:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _found_one_by_one(wanted: Texts, known: Texts) -> Array:
    """Where two known texts have one hash, or are the same: then the last counts."""
    positions = {known[position]: position for position in range(len(known))}
    return np.array([positions.get(wanted[position], ABSENT) for position in range(len(wanted))], np.int64)
