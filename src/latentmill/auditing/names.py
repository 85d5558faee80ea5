"""Names that collide: two images whose features, captions or copies on another system would be one file."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from latentmill.auditing import kinds
from latentmill.auditing.findings import Finding


def name_findings(keys: Iterable[str]) -> Iterator[Finding]:
    """Keys that differ in their extension alone; and keys, whole, that differ only in case or Unicode form."""
    keys = list(keys)
    for group in _alike(keys, lambda key: key.rpartition(".")[0]):
        yield Finding(kinds.SAME_STEM, group)
    for group in _alike(keys, folded):
        one_form = len({unicodedata.normalize("NFC", key) for key in group}) == 1
        yield Finding(kinds.SAME_NAME, group, "in Unicode form" if one_form else "in case")


def folded(key: str) -> str:
    """A key as a file system that ignores case and Unicode form has it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", key).casefold())


def _alike(keys: Iterable[str], name: Callable[[str], str]) -> Iterator[tuple[str, ...]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[name(key)].append(key)
    return (tuple(group) for group in groups.values() if len(group) > 1)
