"""A source: the images of a tar archive, read in place."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentmill.errors import SampleError, SourceError
from latentmill.records import Listing, SampleRef

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_LABELS = ("none", "class")


class TarSource:
    """`[source] kind = "tar"`: an uncompressed tar, as WebDataset's shards are. Option `labels`: none or class.

    latentmill pickles it for its worker processes, and calls `read` from many threads: no open file is kept.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self.path, self.labels = path, options.get("labels", "none")
        if set(options) - {"labels"} or self.labels not in _LABELS:
            raise SourceError(f"a tar's options must be labels = one of {', '.join(_LABELS)}. Found: {dict(options)}")

    @property
    def root(self) -> Path | None:
        """Two outputs of one archive share what is read of it."""
        return self.path

    def listing(self, max_images: int | None = None) -> Listing:
        """The images in order of key, each with what changes when its bytes do: its place and time in the archive."""
        members = sorted(self._members(), key=_key)[:max_images]
        classes = sorted({_class(member) for member in members}) if self.labels == "class" else None
        refs = [
            SampleRef(
                number,
                key=_key(member),
                stat=f"{member.size}-{member.mtime}",
                label=classes.index(_class(member)) if classes is not None else None,
                where=(member.offset_data, member.size),
            )
            for number, member in enumerate(members)
        ]
        return Listing(len(refs), classes, [], False, lambda: iter(refs))

    def read(self, ref: SampleRef) -> bytes:
        """The bytes of one image. A SampleError is a reject of this image alone; the job goes on."""
        offset, size = ref.where
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise SampleError("read", f"the archive ends {size - len(data)} bytes too early")
        return data

    def _members(self) -> Iterator[tarfile.TarInfo]:
        try:
            with tarfile.open(self.path, "r:") as archive:
                yield from (each for each in archive if each.isreg() and each.name.lower().endswith(_ENDINGS))
        except (OSError, tarfile.TarError) as error:
            raise SourceError(f"the source must be an uncompressed tar archive. Found: {self.path}: {error}") from error


def _key(member: tarfile.TarInfo) -> str:
    """The path in the archive; formats make names of it, so none may lead out of their folder. Raises SourceError."""
    key = posixpath.normpath(member.name)
    if key.startswith(("/", "../")):
        raise SourceError(f"a tar's members must lie below its root. Found: {member.name}")
    return key


def _class(member: tarfile.TarInfo) -> str:
    return _key(member).split("/")[0]
