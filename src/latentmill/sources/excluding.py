"""A list of keys to leave out of a source, as `latentmill audit --list` writes it and `--exclude` takes it.

A key of the list is as if its file were not there (or its row, in a table): it gets no number, no label and no reject.
So a dataset made with a list is, byte for byte, that of the source without these files; an update after the list has
changed drops what is left out now and makes what is listed again.

One key a line, UTF-8. What follows a tab and `#`, and lines that begin with `#`, are comments. A key that this would
change (it begins with `#` or `"`, has a control character, or spaces at an end) stands as a JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from latentmill.errors import SourceError
from latentmill.files import counted, printable, replace_bytes
from latentmill.records import Listing, SampleRef

_NEEDS_QUOTES = re.compile(r"""["#\s]|.*[\x00-\x1f\x7f\x85\u2028\u2029]|.*\s\Z""", re.DOTALL)
_COMMENT = re.compile(r"\t\s*#.*", re.DOTALL)
_QUOTED = re.compile(r'("(?:[^"\\]|\\.)*")\s*(?:#.*)?')


@dataclass(frozen=True)
class Exclusion:
    """The keys that a list leaves out, in its order. path: of the list."""

    path: Path
    keys: dict[str, None]

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    @property
    def summary(self) -> str:
        """What a person is told before the work."""
        return f"left out by {printable(str(self.path))}: {counted(len(self.keys), 'keys')}"

    def told(self, left_out: int) -> list[str]:
        """What a person is warned of: keys of the list that the source does not hold. left_out: those that it does."""
        missing = len(self.keys) - left_out
        if not missing:
            return []
        match = "matches" if missing == 1 else "match"
        return [
            f"{missing:,} of the {counted(len(self.keys), 'keys')} in {printable(str(self.path))} {match} nothing in "
            "the source: a key is an image's path from the source's folder, as an audit's list has it"
        ]

    def check_any_left(self, left: int, source: Path) -> None:
        """Raises SourceError where nothing is left of a source."""
        if not left:
            raise SourceError(f"the source holds no images beside those that {self.path} leaves out: {source}")


def read_exclusion(path: Path | None) -> Exclusion | None:
    """A list; None without one. Raises SourceError where it cannot be read."""
    if path is None:
        return None
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise SourceError(
            f"the list of keys to exclude cannot be read: {path} ({error.strerror or error}). "
            "Expected a text file with a key a line, as `latentmill audit --list` writes it"
        ) from error
    lines = enumerate(text.split("\n"), 1)
    return Exclusion(path, {key: None for number, line in lines for key in _keys(path, number, line.rstrip("\r"))})


def _keys(path: Path, number: int, line: str) -> Iterator[str]:
    """The key of a line, if it has one. Raises SourceError."""
    if not line.strip() or line.startswith("#"):
        return
    if not line.startswith('"'):
        yield _COMMENT.sub("", line).rstrip()
        return
    match = _QUOTED.fullmatch(line)
    try:
        if match is None:
            raise ValueError("no closing quote")
        yield json.loads(match[1])
    except ValueError as error:
        raise SourceError(
            f"{path}, line {number:,}: expected a key, or one as a JSON string. Found: {printable(line)} ({error})"
        ) from error


def exclusion_line(key: str, reason: str) -> str:
    """A line of a list: the key, and why it is left out."""
    told = json.dumps(key) if _NEEDS_QUOTES.match(key) or not key else key
    return f"{told}\t# {' '.join(reason.split())}" if reason else told


def write_exclusion(path: Path, head: Iterable[str], reasons: Iterable[tuple[str, str]]) -> None:
    """Write a list of keys with their reasons, all or nothing. head: comments. Raises DestinationError."""
    lines = [*(f"# {line}" for line in head), *(exclusion_line(key, reason) for key, reason in reasons), ""]
    replace_bytes(path, "\n".join(lines).encode("utf-8", "surrogateescape"))


def without(listing: Listing, exclusion: Exclusion, source: Path, max_images: int | None = None) -> Listing:
    """A listing without what is left out, numbered as before: for sources that number their images themselves.

    Raises SourceError where nothing is left.
    """

    def kept() -> Iterator[SampleRef]:
        return islice((ref for ref in listing.refs() if ref.key not in exclusion), max_images)

    left_out = sum(ref.key in exclusion for ref in listing.refs())
    count = listing.count - left_out if max_images is None else min(listing.count - left_out, max_images)
    exclusion.check_any_left(count, source)
    warnings = [*listing.warnings, *exclusion.told(left_out)]
    return Listing(count, listing.classes, warnings, listing.knows_digests, kept, listing.wanted)
