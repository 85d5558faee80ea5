"""How one image of an import gets its place: linked, copied, or encoded as PNG where no trainer reads its format."""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Literal

from PIL import Image

from latentmill.decoding import decode
from latentmill.errors import SampleError
from latentmill.files import write_errors
from latentmill.formats.metadata import WORK_FOLDER
from latentmill.records import EXIF_ROTATED
from latentmill.sources.caption_imports import Imported, Made
from latentmill.sources.headers import HeaderFault, read_header

Link = Literal["hard", "copy", "symlink"]
Exif = Literal["ignore", "apply"]
# What trainers read, by Pillow's names: MPO is a JPEG that more pictures follow.
_EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg"}
_PNG_LEVEL = 1  # of compression: half the time of the usual 6, a few percent larger
# A filesystem or the system's rules refuse a hard link: another disk, no such thing, not the owner's, too many.
_NO_HARD_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


class Placer:
    """Puts images from below `source` into the folder `images`; its methods may be called from many threads.

    png: JPEG files too are encoded as PNG. refused: why the filesystem refused a hard link, and a copy was made.
    """

    def __init__(self, source: Path, images: Path, link: Link, exif: Exif, png: bool = False) -> None:
        self.source, self.images = source, images
        self.link, self.exif, self.png = link, exif, png
        self.work = images / WORK_FOLDER
        self.refused = ""
        self._numbers = itertools.count()

    def wanted(self, key: str, name: str, known: Mapping[str, Imported]) -> tuple[Imported, bool]:
        """What an image is to become, and whether it stands there already. name: its path without the extension.

        Raises SampleError.
        """
        try:
            stat = os.stat(self.source / key)  # noqa: PTH116
        except OSError as error:
            raise SampleError("read", error.strerror or str(error)) from error
        seen = f"{stat.st_size}-{stat.st_mtime_ns}"
        for extension in (".png", ".jpg"):
            old = known.get(name + extension)
            if old is None or (old.source, old.stat) != (key, seen):
                continue
            if old.made == self._made(old.format, old.orientation):
                return old, self._stands(old, stat)
        header = read_header(self.source, key)
        if isinstance(header, HeaderFault):
            raise SampleError(header.stage, header.reason)
        made = self._made(header.format, header.orientation)
        extension = ".png" if made in ("png", "upright") else _EXTENSIONS[header.format]
        notes = (EXIF_ROTATED,) if header.orientation != 1 else ()
        image = Imported(name + extension, key, seen, made, header.format, header.size, header.orientation, notes=notes)
        return image, False

    def _made(self, format_: str, orientation: int) -> Made:
        if orientation != 1 and self.exif == "apply":
            return "upright"
        linked = format_ == "PNG" or (format_ in _EXTENSIONS and not self.png)
        return self.link if linked else "png"

    def _stands(self, image: Imported, source: os.stat_result) -> bool:
        """Whether an image is in its place, whole and as it is wanted."""
        target = self.images / image.path
        try:
            found = os.lstat(target)
            if image.made == "symlink":
                return S_ISLNK(found.st_mode) and os.readlink(target) == self._absolute(image)  # noqa: PTH115
        except OSError:
            return False
        if not S_ISREG(found.st_mode):
            return False
        if image.is_encoded:
            return image.encoded_bytes == found.st_size
        if os.path.samestat(found, source):
            return image.made == "hard"
        return (found.st_size, found.st_mtime_ns) == (source.st_size, source.st_mtime_ns)

    def place(self, image: Imported) -> Imported:
        """Put an image into its place, all or nothing; gives what is now known of it.

        Raises SampleError, and DestinationError where it cannot be written.
        """
        target = self.images / image.path
        temporary = self.work / str(next(self._numbers))
        with write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                image = self._make(image, temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)  # a link that replaces itself stays
        return image

    def _make(self, image: Imported, temporary: Path) -> Imported:
        if image.made == "symlink":
            temporary.symlink_to(self._absolute(image))
        elif image.made == "hard":
            self._hard_link(image, temporary)
        elif image.made == "copy":
            self._copy(image, temporary)
        else:
            pixels, notes = decode(self._bytes(image)[0], exif="apply" if image.made == "upright" else "ignore")
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "PNG", compress_level=_PNG_LEVEL)
            temporary.write_bytes(data.getvalue())
            return replace(image, size=pixels.shape[:2], encoded_bytes=len(data.getvalue()), notes=notes)
        return image

    def _absolute(self, image: Imported) -> str:
        return os.path.abspath(self.source / image.source)  # noqa: PTH100 - links on the way stay

    def _hard_link(self, image: Imported, temporary: Path) -> None:
        source = self.source / image.source
        try:
            os.link(source.resolve() if source.is_symlink() else source, temporary)
        except FileNotFoundError as error:
            raise SampleError("read", error.strerror or str(error)) from error
        except OSError as error:
            if error.errno not in _NO_HARD_LINK:
                raise
            self.refused = error.strerror or str(error)
            self._copy(image, temporary)

    def _copy(self, image: Imported, temporary: Path) -> None:
        data, stat = self._bytes(image)
        temporary.write_bytes(data)
        os.utime(temporary, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def _bytes(self, image: Imported) -> tuple[bytes, os.stat_result]:
        try:
            with (self.source / image.source).open("rb") as file:
                stat, data = os.fstat(file.fileno()), file.read()
        except OSError as error:
            raise SampleError("read", error.strerror or str(error)) from error
        if image.stat != f"{stat.st_size}-{stat.st_mtime_ns}" or len(data) != stat.st_size:
            raise SampleError("read", "the file changed while it was imported: import again")
        return data, stat
