"""The text-to-image layouts that PixArt-Sigma's readers open: a feature folder each for latents and for captions.

Its two readers look for different names: the multi-scale one takes the image's path with its last `/` turned into
`_`, the single-scale one its base name. A file is named as its reader will look for it.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from latentmill.checksums import crc32
from latentmill.errors import SourceError
from latentmill.files import printable
from latentmill.formats.metadata import WORK_FOLDER
from latentmill.formats.payload import npy_array, npy_bytes
from latentmill.formats.stored_zip import directory_entry, end_records, local_header
from latentmill.records import NOTHING, Array

ReaderKind = Literal["multi", "single"]
EMPTY_CAPTION = "latentmill-empty.npz"  # of text features: those of the empty caption
MAX_RATIO = 4.5  # height/width over which the reader leaves an image out
# In this order, wherever they occur in a path; the single-scale reader replaces the first alone.
_REPLACED = (".png", ".jpg", ".webp", ".jpeg", ".JPEG", ".JPG")
_MAX_NAME_BYTES = 255  # of one part of a path, on the filesystems that are used
_SHOWN = 5
_MULTI_HINT = "; the reader of --multi-scale features takes nested folders and JPEGs as they are"
_FEATURE, _MASK, _POOLED = "caption_feature", "attention_mask", "pooled"
_DEFLATED_BYTES = 1 << 16  # of a feature: in smaller ones the headers count, and deflating costs nothing
_CODE = re.compile(
    r"pixart/(?:latents/(multi|single)(?:/(mean|sample))?|text/(multi|single)(?:/padded-(\d+))?(?:/pooled-(\d+)(-only)?)?)"
)


def feature_name(key: str, reader: ReaderKind, suffix: str) -> str:
    """The name under which a reader opens the features (`.npy` or `.npz`) of the image at `key`; no part is `.`."""
    if reader == "single":
        return key.rpartition("/")[2].replace(_REPLACED[0], suffix)
    folder, slash, base = key.rpartition("/")
    name = f"{folder}_{base}" if slash else base
    for extension in _REPLACED:
        name = name.replace(extension, suffix)
    return posixpath.normpath(name)


def check_names(keys: Iterable[str], reader: ReaderKind, suffix: str) -> None:
    """Refuse, before any work, paths that the reader cannot map to a file of their own. Raises SourceError."""
    taken: dict[str, str] = {EMPTY_CAPTION: "the features of the empty caption"}
    wrong: list[str] = []
    for key in keys:
        name = feature_name(key, reader, suffix)
        if fault := _fault(name, reader, suffix):
            wrong.append(f"{printable(key)} ({fault})")
        elif name in taken:
            wrong.append(f"{printable(key)} and {printable(taken[name])} (both are {printable(name)})")
        else:
            taken[name] = key
    wrong += _files_that_are_folders(taken)
    if wrong:
        more = f" and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        raise SourceError(
            f"PixArt's {reader}-scale reader cannot tell these paths apart or find them: "
            f"{'; '.join(wrong[:_SHOWN])}{more}. `latentmill import{' --flatten --png' if reader == 'single' else ''}` "
            f"makes names that it can{_MULTI_HINT if reader == 'single' else ''}"
        )


def _fault(name: str, reader: ReaderKind, suffix: str) -> str:
    """Why no file can have this name; "" where one can."""
    if not name.endswith(suffix):
        return (
            f"the {reader}-scale reader maps names in {', '.join(_REPLACED[: 1 if reader == 'single' else None])} only"
        )
    if any(len(part.encode("utf-8", "surrogateescape")) > _MAX_NAME_BYTES for part in name.split("/")):
        return f"its file name would be over {_MAX_NAME_BYTES} bytes"
    if name.startswith(f"{WORK_FOLDER}/"):
        return f"its file would lie in a folder of latentmill's own, {WORK_FOLDER}"
    return ""


def _files_that_are_folders(taken: dict[str, str]) -> Iterator[str]:
    """Of names by file name: a file `x.npy` of `x.jpg` leaves no room for the folder of `x.png/a/y.png`."""
    for name, key in taken.items():
        folder = name.rpartition("/")[0]
        while folder:
            if folder in taken:
                yield (
                    f"{printable(taken[folder])} and {printable(key)} "
                    f"({printable(folder)} cannot be a file and a folder)"
                )
            folder = folder.rpartition("/")[0]


def latents_folder(resolution: int, multi_scale: bool, suffix: str = "") -> str:
    """The folder of latents under `InternData`."""
    return f"img_sdxl_vae_features_{resolution}resolution{'_ms' if multi_scale else ''}_new" + _appended(suffix)


def text_folder(label: str, suffix: str = "") -> str:
    """The folder of a caption's features under `InternData`: every `prompt_` in it is removed."""
    return f"{label}_caption_features_new".replace("prompt_", "") + _appended(suffix)


def _appended(suffix: str) -> str:
    return f"_{suffix}" if suffix else ""


@dataclass(frozen=True)
class PixArtLatents:
    """Moments, (2C, h/8, w/8), in `.npy`; `mean` or `sample`, (C, h/8, w/8), is nothing that PixArt's readers open."""

    reader: ReaderKind
    statistic: str = "moments"
    kind = "latents"
    labelled = False

    @property
    def code(self) -> str:
        return f"pixart/latents/{self.reader}" + ("" if self.statistic == "moments" else f"/{self.statistic}")

    def name(self, number: int, key: str = "") -> str:
        return feature_name(key, self.reader, ".npy")

    def to_bytes(self, array: Array, beside: Mapping[str, Array] = NOTHING) -> bytes:
        return npy_bytes(array)

    def from_bytes(self, data: bytes) -> Array:
        return npy_array(data)


@dataclass(frozen=True)
class PixArtText:
    """Text features in `.npz`: `caption_feature` float16 (1, L, D) and `attention_mask` int16 (1, L).

    padded: L of every file; the last real vector is repeated up to it, as the reader does with shorter ones, and the
    mask is 0 there. None: each caption's real tokens alone. pooled: P of the caption's one vector, `pooled` float16
    (1, P) in the same file; None where there is none. features: False where a file holds `pooled` alone; then that is
    the array, as (1, P).
    """

    reader: ReaderKind
    padded: int | None = None
    pooled: int | None = None
    features: bool = True
    kind = "text"
    labelled = False

    @property
    def code(self) -> str:
        code = f"pixart/text/{self.reader}" + (f"/padded-{self.padded}" if self.padded else "")
        return code + (f"/pooled-{self.pooled}{'' if self.features else '-only'}" if self.pooled else "")

    def name(self, number: int, key: str = "") -> str:
        return feature_name(key, self.reader, ".npz")

    def to_bytes(self, array: Array, beside: Mapping[str, Array] = NOTHING) -> bytes:
        """float16 (L, D), the real tokens, and beside them `pooled` (P,) -> a file."""
        if not self.features:
            return _deflated({f"{_POOLED}.npy": npy_bytes(array)})
        real = len(array)
        length = self.padded or real
        feature = np.concatenate([array, np.repeat(array[-1:], length - real, axis=0)])
        mask = (np.arange(length) < real).astype(np.int16)
        members = {f"{_FEATURE}.npy": npy_bytes(feature[None]), f"{_MASK}.npy": npy_bytes(mask[None])}
        if self.pooled:
            members[f"{_POOLED}.npy"] = npy_bytes(beside[_POOLED][None])
        small = feature.nbytes <= _DEFLATED_BYTES
        return _deflated(members) if self.padded or small else _stored(members)

    def from_bytes(self, data: bytes) -> Array:
        """The real tokens, float16 (L, D). Raises ValueError where the file is not what `to_bytes` makes."""
        return self.both_of(data)[0]

    def both_of(self, data: bytes) -> tuple[Array, Array | None]:
        """What `from_bytes` gives, and the pooled vector float16 (P,), None where there is none. Raises ValueError."""
        names = ([_FEATURE, _MASK] if self.features else []) + ([_POOLED] if self.pooled else [])
        with np.load(io.BytesIO(data), allow_pickle=False) as members:
            if missing := set(names).difference(members):
                raise ValueError(f"{' and '.join(sorted(missing))} not there")
            found = {name: members[name] for name in names}
        pooled = found.get(_POOLED)
        if pooled is not None and (pooled.dtype != np.float16 or pooled.shape != (1, self.pooled)):
            raise ValueError(f"pooled {pooled.dtype} {pooled.shape}, not float16 {(1, self.pooled)}")
        if not self.features:
            assert pooled is not None
            return pooled, pooled[0]
        return self._real(found[_FEATURE], found[_MASK]), None if pooled is None else pooled[0]

    def _real(self, feature: Array, mask: Array) -> Array:
        """The vectors where the mask is 1. Raises ValueError where they are not as `to_bytes` lays them out."""
        if (feature.dtype, mask.dtype) != (np.float16, np.int16):
            raise ValueError(f"feature {feature.dtype} and mask {mask.dtype}, not float16 and int16")
        if feature.ndim != 3 or len(feature) != 1 or mask.shape != feature.shape[:2]:
            raise ValueError(f"feature {feature.shape} and mask {mask.shape} do not belong together")
        real = int(mask.sum())
        if not real or (mask[0, :real] != 1).any() or feature.shape[1] != (self.padded or real):
            raise ValueError(f"{feature.shape[1]} positions of which {real} are real")
        array: Array = feature[0, :real]
        return array


def _stored(members: dict[str, bytes]) -> bytes:
    """A zip of stored members: numbers like these deflate by a tenth at most, and stored ones are read much faster."""
    parts: list[bytes] = []
    entries: list[bytes] = []
    offset = 0
    for name, data in members.items():
        crc = crc32(data)
        entries.append(directory_entry(name, len(data), crc, offset))
        parts += [local_header(name, len(data), crc), data]
        offset += len(parts[-2]) + len(data)
    directory = b"".join(entries)
    return b"".join([*parts, directory, end_records(len(members), len(directory), offset)])


def _deflated(members: dict[str, bytes]) -> bytes:
    """A zip whose headers and repeated vectors take next to no room."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def layout_of(code: str) -> PixArtLatents | PixArtText | None:
    """The layout that a code describes; None where it is none of PixArt's."""
    match = _CODE.fullmatch(code)
    if match is None:
        return None
    latents, statistic, text, padded, pooled, only = match.groups()
    reader: ReaderKind = "single" if "single" in (latents, text) else "multi"
    if latents:
        return PixArtLatents(reader, statistic or "moments")
    return PixArtText(reader, int(padded) if padded else None, int(pooled) if pooled else None, not only)
