"""Images that are there more than once: the same bytes, the same pixels in other bytes, or pictures that look alike.

Of each group the first is the one to keep: with a caption that can be used, then, where they are not the same, of the
most pixels and the most bytes, then first by key.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latentmill.auditing import kinds
from latentmill.auditing.findings import Finding
from latentmill.auditing.looking import Look
from latentmill.auditing.near import HASH_WORDS, near_groups
from latentmill.records import Array, SampleRef

Group = list[int]  # places in the listing, the one to keep first
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Seen:
    """What is kept of every image, as columns: 106 bytes each. Rows are in the listing's order.

    digests, pixels: 128 bits. hashes: uint64 (N, HASH_WORDS). hashed, usable: whether there is a hash, or anything.
    """

    digests: Array
    pixels: Array
    hashes: Array
    areas: Array
    lengths: Array
    hashed: Array
    usable: Array

    @classmethod
    def of(cls, count: int) -> Seen:
        """Of so many images, of which nothing is known yet."""
        kind = f"S{_DIGEST_BYTES * 2}"
        return cls(
            np.zeros(count, kind),
            np.zeros(count, kind),
            np.zeros((count, HASH_WORDS), np.uint64),
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
            np.zeros(count, bool),
            np.zeros(count, bool),
        )

    def take(self, place: int, look: Look) -> None:
        """Note what one image's bytes say."""
        if look.stage:
            return
        self.usable[place] = True
        self.digests[place], self.pixels[place] = look.digest, look.pixels
        self.areas[place], self.lengths[place] = look.size[0] * look.size[1], look.length
        if look.hash:
            self.hashed[place] = True
            self.hashes[place] = np.frombuffer(look.hash, np.uint64)

    def groups(self, distance: int, last: Iterable[int]) -> tuple[list[Group], list[Group], list[Group]]:
        """Groups of the same bytes; of the same pixels, and near ones, of which each stands for its copies.

        last: places that are kept only where a group has no other.
        """
        put_off = np.zeros(len(self.areas), bool)
        put_off[list(last)] = True
        rank = _rank(put_off)
        bytes_alike = _alike(self.digests, np.flatnonzero(self.usable), rank)
        first = _without_copies(np.flatnonzero(self.usable), bytes_alike)
        pixels_alike = _alike(self.pixels, first, rank)
        first = _without_copies(first, pixels_alike)
        return (
            bytes_alike,
            pixels_alike,
            self._near(first[self.hashed[first]], distance, _rank(-self.lengths, -self.areas, put_off)),
        )

    def _near(self, places: Array, distance: int, rank: Array) -> list[Group]:
        distinct, of = np.unique(self.hashes[places], axis=0, return_inverse=True)
        members: dict[int, Group] = defaultdict(list)
        for place, number in sorted(
            zip(places.tolist(), of.ravel().tolist(), strict=True), key=lambda each: int(rank[each[0]])
        ):
            members[number].append(place)
        best = np.array([rank[members[number][0]] for number in range(len(distinct))], np.int64)
        in_order = np.argsort(best)
        groups = [in_order[each].tolist() for each in near_groups(distinct[in_order], distance)]
        told = {number for group in groups for number in group}
        found = [[place for number in group for place in members[number]] for group in groups]
        found += [group for number, group in members.items() if number not in told and len(group) > 1]
        return [sorted(group, key=lambda place: int(rank[place])) for group in found]


def _rank(*keys: Array) -> Array:
    """The place of each image in the order in which they are kept: by the last key, then the one before, then place."""
    rank = np.empty(len(keys[0]), np.int64)
    rank[np.lexsort(keys)] = np.arange(len(rank))
    return rank


def _alike(column: Array, places: Array, rank: Array) -> list[Group]:
    """Groups of places of equal values, each in order of rank."""
    _, of, counts = np.unique(column[places], return_inverse=True, return_counts=True)
    groups: dict[int, Group] = defaultdict(list)
    for place, number in zip(places[counts[of] > 1].tolist(), of[counts[of] > 1].tolist(), strict=True):
        groups[number].append(place)
    return sorted(sorted(group, key=lambda place: int(rank[place])) for group in groups.values())


def _without_copies(places: Array, groups: Sequence[Group]) -> Array:
    """Places without those that another of their group stands for."""
    copies = [place for group in groups for place in group[1:]]
    return places[~np.isin(places, copies)]


def copy_findings(
    seen: Seen,
    refs: Sequence[SampleRef],
    distance: int,
    class_of: Callable[[int], str],
    caption_of: Callable[[int], str],
    last: Iterable[int],
) -> Iterator[Finding]:
    """Groups of copies, those in several classes, and those with different captions. last: see `Seen.groups`.

    class_of, caption_of: of a place; "" without one.
    """

    def keys(group: Group) -> tuple[str, ...]:
        return tuple(refs[place].key for place in group)

    alike = seen.groups(distance, last)
    for kind, groups in zip((kinds.SAME_BYTES, kinds.SAME_PIXELS, kinds.NEAR), alike, strict=True):
        yield from (Finding(kind, keys(group)) for group in groups)
    same, whole = _whole(alike[:2], ()), _whole(alike[:2], alike[2])
    for group in whole:
        if len(classes := _several(group, class_of)) > 1:
            yield Finding(kinds.TWO_CLASSES, keys(group), ", ".join(classes))
    for group in same:
        if len(captions := _several(group, caption_of)) > 1:
            yield Finding(kinds.TWO_CAPTIONS, keys(group), " / ".join(captions))


def _several(group: Group, of: Callable[[int], str]) -> list[str]:
    return list(dict.fromkeys(filter(None, map(of, group))))


def _whole(alike: Iterable[Sequence[Group]], near: Sequence[Group]) -> list[Group]:
    """Groups with every copy of what stands in them."""
    found: dict[int, Group] = {}
    for groups in (*alike, near):
        for group in groups:
            found[group[0]] = [place for each in group for place in found.pop(each, [each])]
    return list(found.values())
