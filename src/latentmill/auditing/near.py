"""Perceptual hashes, and pictures that look alike found among a million of them without comparing all pairs.

The hash is pHash (imagehash): the lowest 12 x 12 coefficients of a DCT of the grey picture, each a bit that says
whether it is over their median. Hashes of pictures that have nothing in common differ in about half of the 144 bits.

Measured on 75 photos (the demo's 12 among them), 2,775 pairs: no two photos that are not copies of each other were
nearer than 52 bits. Copies were, at the median, in nine of ten, and at most: JPEG of quality 20: 2, 4, 8; half the
size: 2, 6, 24; brighter by 30 %: 4, 15, 30; 2 % cut away: 8, 14, 22; 4 %: 14, 22, 30; 6 %: 22, 30, 40. So `DISTANCE`
finds what was encoded or resized again, and small crops mostly; 32 finds more crops, and more that only look alike.

Hashes that lie near are found by sorting: in each of many rounds the bits are put into another order (from a fixed
seed) and the hashes sorted by it; those that begin with the same bits lie side by side and are compared. Rounds are as
many as find a pair at the asked distance with `_RECALL`; nearer ones are found with more. (Charikar 2002, section 3.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from latentmill.records import Array

DISTANCE, MOST_DISTANCE = 20, 48  # bits; beyond the latter, photos that have nothing in common are near
HASH_SIDE, _FINER = 12, 4  # 12 x 12 of 48 x 48 coefficients
HASH_BITS = HASH_SIDE * HASH_SIDE
HASH_WORDS = 3  # of 64 bits
_FLAT = 3.0  # grey levels of deviation under which the bits are noise: a white page, a black frame
_RECALL = 0.99
_COMPANY = 8  # hashes that begin alike, about
_PARTNERS = 64  # that a hash is told with, at most
_WINDOW = 48  # neighbours that a hash is compared with in a round, at most
_SEED = 0
_LEAST_BITS, _MOST_BITS = 3, 24


def reduced(pixels: Array) -> Image.Image:
    """The picture with its shorter side at about twice what the hash needs; smaller ones as they are."""
    image = Image.fromarray(pixels)
    factor = min(image.size) // (2 * HASH_SIDE * _FINER)
    return image.reduce(factor) if factor > 1 else image


def picture_hash(picture: Image.Image) -> bytes:
    """The 144 bits of an RGB picture, padded to 24 bytes; b"" of one without contrast, which would match all others."""
    import imagehash

    grey = picture.convert("L")
    if np.asarray(grey).std() < _FLAT:
        return b""
    bits = imagehash.phash(grey, hash_size=HASH_SIDE, highfreq_factor=_FINER).hash
    return np.packbits(bits.ravel()).tobytes().ljust(8 * HASH_WORDS, b"\0")


def distances(a: Array, b: Array) -> Array:
    """Bits in which hashes, uint64 (..., HASH_WORDS), differ."""
    differing = a ^ b
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(differing).sum(axis=-1, dtype=np.int32)  # type: ignore[no-any-return]
    return np.unpackbits(differing.view(np.uint8), axis=-1).sum(axis=-1, dtype=np.int32)  # type: ignore[no-any-return]


def near_pairs(hashes: Array, distance: int) -> Array:
    """Pairs (P, 2) of places, the lower first, sorted, of hashes, uint64 (N, HASH_WORDS), at most so many bits apart.

    The hashes differ from each other, and stand in the order in which they are kept: of what is near to one and stands
    before it, the first `_PARTNERS` found are told, so that frames of a film, all alike, do not fill the memory.
    """
    count = len(hashes)
    if count < 2:
        return np.empty((0, 2), np.int64)
    leading = min(_MOST_BITS, max(_LEAST_BITS, round(math.log2(max(1.0, count / _COMPANY)))))
    found = np.empty(0, np.int64)
    for order in _orders(leading, distance):
        keys = _keys(hashes, order)
        pairs = _neighbours(hashes, keys, np.uint64(64 - leading), distance)
        found = _first_partners(np.union1d(found, pairs[:, 1] * count + pairs[:, 0]), count)
    later, earlier = np.divmod(found, count)
    order = np.lexsort((later, earlier))
    return np.stack([earlier[order], later[order]], axis=1)


def _first_partners(found: Array, count: int) -> Array:
    """Of sorted later * count + earlier, the first `_PARTNERS` of each later."""
    later = found // count
    begins = np.searchsorted(later, later)
    return found[np.arange(len(found)) - begins < _PARTNERS]


def _orders(leading: int, distance: int) -> Iterator[Array]:
    """Orders of the bits, as many as find a pair at this distance with `_RECALL`: it must agree in the leading ones."""
    agree = math.prod((HASH_BITS - distance - bit) / (HASH_BITS - bit) for bit in range(leading))
    rounds = math.ceil(math.log(1 - _RECALL) / math.log1p(-agree)) if agree < 1 else 1
    random = np.random.default_rng(_SEED)
    for _ in range(rounds):
        yield random.permutation(HASH_BITS)[:64]


def _keys(hashes: Array, order: Array) -> Array:
    """64 bits of each hash in this order, the first the most significant."""
    as_bytes = hashes.view(np.uint8)
    keys = np.zeros(len(hashes), np.uint64)
    for bit in order:
        keys <<= np.uint64(1)
        keys |= ((as_bytes[:, bit >> 3] >> np.uint8(7 - (bit & 7))) & np.uint8(1)).astype(np.uint64)
    return keys


def _neighbours(hashes: Array, keys: Array, shift: np.uint64, distance: int) -> Array:
    """Pairs that are near, of those that stand close to each other by their keys and begin with the same bits."""
    places = np.argsort(keys, kind="stable")
    heads, ordered = keys[places] >> shift, hashes[places]
    at, found = np.arange(len(keys)), []
    for step in range(1, min(_WINDOW, len(keys) - 1) + 1):
        at = at[at + step < len(keys)]
        at = at[heads[at] == heads[at + step]]
        if not len(at):
            break
        near = at[distances(ordered[at], ordered[at + step]) <= distance]
        found.append(np.stack([places[near], places[near + step]], axis=1))
    return np.sort(np.concatenate(found), axis=1) if found else np.empty((0, 2), np.int64)


def near_groups(hashes: Array, distance: int) -> list[list[int]]:
    """Groups of places of hashes, in the order in which they are kept: see `groups_of`.

    A hash whose told partners are all in groups of others is compared with the leaders themselves.
    """
    pairs = near_pairs(hashes, distance)
    groups = groups_of(pairs)
    taken = [place for group in groups for place in group]
    left = np.setdiff1d(pairs, taken)
    for group in groups:
        near = left[distances(hashes[group[0]], hashes[left]) <= distance]
        if len(near):
            group += near.tolist()
            left = np.setdiff1d(left, near)
    return groups


def groups_of(pairs: Array) -> list[list[int]]:
    """Groups of places: each is led by its first, and holds those that are near to that one.

    So a chain of pictures, each like the next, does not become one group of all.
    """
    beside: dict[int, list[int]] = {}
    for a, b in pairs.tolist():
        beside.setdefault(a, []).append(b)
        beside.setdefault(b, []).append(a)
    groups, taken = [], set()
    for leader in sorted(beside):
        if leader in taken:
            continue
        members = [place for place in beside[leader] if place not in taken]
        if members:
            groups.append([leader, *sorted(members)])
            taken.update(groups[-1])
    return groups
