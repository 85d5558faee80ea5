"""What is listed now is paired with what was made of it before: an update computes only what is new or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from latentmill.errors import SampleError
from latentmill.files import digest
from latentmill.manifest import Kept
from latentmill.records import Outcome, SampleRef, StoredFile, everything
from latentmill.stages import Load, Source

SameContent = Callable[[SampleRef, Outcome], bool]
RETRIED = ("read", "memory", "worker")  # stages whose rejects a rerun tries again
Matcher = Callable[[Iterable[SampleRef], Iterator[Kept]], Iterator[tuple[SampleRef | None, Kept | None]]]


@dataclass(frozen=True)
class Same:
    """Whether an earlier outcome is what a fresh run would give. What only looks changed costs a read.

    A reject for want of reading or of memory is tried again (a permission, a network or a setting may have been mended,
    which no size or time shows), unless its image is not wanted now.
    """

    source: Source
    load: Load
    check: str
    wanted: Callable[[SampleRef], bool] = everything

    def __call__(self, ref: SampleRef, old: Outcome) -> bool:
        if old.stage in RETRIED:
            return not self.wanted(ref) and not old.files and ref.stat == old.ref.stat
        if ref.skip or (old.skipped and old.reason):
            return old.skipped and old.reason == ref.skip
        if ref.fault or old.stage == "list":
            return old.stage == "list" and old.reason == ref.fault
        return self._same_bytes(ref, old) and self._same_size(ref, old)

    def _same_bytes(self, ref: SampleRef, old: Outcome) -> bool:
        if ref.stat == old.ref.stat and self.check != "digest":
            return True
        if ref.stat.partition("-")[0] != old.ref.stat.partition("-")[0]:  # another size
            return False
        try:
            return digest(self.source.read(ref)) == old.digest
        except SampleError:
            return False

    def _same_size(self, ref: SampleRef, old: Outcome) -> bool:
        """Of an image whose size the source tells, which may have been put right since: a reject is loaded again."""
        if ref.size is None:
            return True
        if not old.stage:
            return old.geometry is None or old.geometry.size == ref.size
        try:
            self.load(ref, self.load.decode(self.source.read(ref)))
        except SampleError as error:
            return (error.stage, error.reason) == (old.stage, old.reason)
        return old.stage == "encode"


def still_there(earlier: Iterable[Kept], roots: Mapping[str, Path], check: str) -> Iterator[Kept]:
    """Earlier results; one whose file is gone or changed counts as unread, so that it is computed again.

    roots: the folder of each output whose files are looked at. A change is seen by size, with `check` "digest" by
    content.
    """
    for item in earlier:
        files = [(roots[name] / item.where[name], file) for name, file in item.outcome.files.items() if name in roots]
        whole = all(_is_whole(path, file, check) for path, file in files)
        yield item if whole else item._replace(outcome=replace(item.outcome, digest="", stage="read"))


def _is_whole(path: Path, stored: StoredFile, check: str) -> bool:
    try:
        return path.lstat().st_size == stored.size and (check != "digest" or digest(path.read_bytes()) == stored.digest)
    except OSError:
        return False


def _same_stat(ref: SampleRef, old: Outcome) -> bool:
    return ref.stat == old.ref.stat and old.stage not in RETRIED


def match_by_key(
    refs: Iterable[SampleRef], earlier: Iterator[Kept], same_content: SameContent = _same_stat
) -> Iterator[tuple[SampleRef | None, Kept | None]]:
    """Pair what is listed now with what was made earlier: (ref, result to keep or None), (None, result to drop).

    Both come in order of key, so neither is held.
    """
    old = next(earlier, None)
    for ref in refs:
        while old is not None and old.outcome.ref.key < ref.key:
            yield None, old
            old = next(earlier, None)
        found = None  # an update that was cut off may have left an image's old and its new result
        while old is not None and old.outcome.ref.key == ref.key:
            if found is None and same_content(ref, old.outcome):
                found = old
            else:
                yield None, old
            old = next(earlier, None)
        yield ref, found
    while old is not None:
        yield None, old
        old = next(earlier, None)


def match_by_digest(
    refs: Iterable[SampleRef], earlier: Iterator[Kept], same_content: SameContent = _same_stat
) -> Iterator[tuple[SampleRef | None, Kept | None]]:
    """As `match_by_key`, for sources that tell each image's digest: an image that was only renumbered is found again.

    The digest is the source's word, not read from the bytes, so `same_content` is asked as well.
    """
    table: dict[str, dict[str, list[Kept]]] = {}  # digest -> stat -> results; copies of one image may be many
    for item in earlier:
        table.setdefault(item.outcome.digest, {}).setdefault(item.outcome.ref.stat, []).append(item)
    for ref in refs:
        by_stat = table.get(ref.digest, {}) if ref.digest else {}
        stat = ref.stat if ref.stat in by_stat else next(iter(by_stat), None)
        if stat is None or not same_content(ref, by_stat[stat][-1].outcome):
            yield ref, None
            continue
        yield ref, by_stat[stat].pop()
        if not by_stat[stat]:
            del by_stat[stat]
    left = (item for by_stat in table.values() for items in by_stat.values() for item in items)
    for item in sorted(left, key=lambda item: item.outcome.ref.key):
        yield None, item
