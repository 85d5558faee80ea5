"""The names that an import gives to images, so that PixArt's readers find one feature file for each."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from latentmill.decoding import is_image_extension
from latentmill.errors import SourceError
from latentmill.files import printable
from latentmill.formats.metadata import WORK_FOLDER
from latentmill.formats.pixart import EMPTY_CAPTION, feature_name

# The readers replace these wherever they occur in a path, and not only at its end.
_READ_AS_EXTENSION = re.compile(r"\.(?=png|jpg|webp|jpeg|JPEG|JPG)")
_FEATURES = ".npz"
_MAX_NAME_BYTES = 255
_SHOWN = 3


def import_name(key: str, flatten: bool) -> str:
    """The path of an image in `InternImgs`, without its extension: `a/x.png.JPG` -> `a/x_png`, flattened `a_x_png`."""
    path = posixpath.normpath(key)
    stem, extension = posixpath.splitext(path)
    stem = _READ_AS_EXTENSION.sub("_", stem if is_image_extension(extension) else path).replace("\\", "_")
    return stem.replace("/", "_") if flatten else stem


def import_names(keys: Iterable[str], flatten: bool) -> list[str]:
    """The `import_name` of every image. Raises SourceError, before any work, where two would be read as one."""
    taken: dict[str, str] = {EMPTY_CAPTION: "the features of the empty caption"}
    names: list[str] = []
    wrong: list[str] = []
    for key in keys:
        name = import_name(key, flatten)
        feature = feature_name(f"{name}.png", "multi", _FEATURES)
        if WORK_FOLDER in name.split("/"):
            wrong.append(f"{printable(key)} (lies in a folder of latentmill's own, {WORK_FOLDER})")
        elif any(len(part.encode("utf-8", "surrogateescape")) > _MAX_NAME_BYTES for part in feature.split("/")):
            wrong.append(f"{printable(key)} (a name would be over {_MAX_NAME_BYTES} bytes)")
        elif feature in taken:
            wrong.append(f"{printable(taken[feature])} and {printable(key)} (both are read as {printable(feature)})")
        taken.setdefault(feature, key)
        names.append(name)
    if wrong:
        more = f" and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        raise SourceError(
            f"these images cannot be imported side by side: {'; '.join(wrong[:_SHOWN])}{more}. Rename or leave out one"
        )
    return names
