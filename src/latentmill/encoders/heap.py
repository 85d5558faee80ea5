"""glibc's heap made to keep a forward's buffers for the next forward: no byte changes, and no page is faulted in anew.

PyTorch takes every buffer of a forward on a CPU from malloc, and glibc gives each of more than 32 MB a mapping of its
own, which goes back to the system when the buffer is freed. So every layer of every forward touches new pages, which
the system must clear first: with small models that takes as long as the arithmetic. What is kept is bounded by a share
of the available memory; buffers that are large beside that are mapped as before. Elsewhere than with glibc, nothing is
done.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from latentmill.system import available_memory

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's parameters, of glibc's malloc.h
_LARGEST_INT = (1 << 31) - 1
_USUAL_MMAP = 32 << 20  # where glibc's own threshold ends up once a large buffer was freed; trimming's is twice it
_KEPT_SHARE = 1 / 8  # of the available memory: beside the share of 0.8 that a batch may take, see `vae`
_BUFFERS = 4  # at least so many of the largest that are kept fit in what may be kept
_LARGE_FILE = 2 << 20  # that of a photo of some 8 megapixels: decoding it takes long beside mapping its blocks
_LARGE_BLOCK = 1 << 20
_LARGE_TOP = 1 << 20  # what may be free at the end of the heap meanwhile: the first large file lies there
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class _Keeping:
    """resident: bytes of this process above which memory is given back."""

    libc: ctypes.CDLL
    resident: int


_keeping: _Keeping | None = None
_mapping = False  # large blocks of their own


def keep_buffers() -> None:
    """Keep buffers that are freed from now on, within a share of the available memory. Called when models lie there."""
    global _keeping
    libc, available = _glibc(), available_memory()
    if libc is None or available is None:
        return
    kept = int(available * _KEPT_SHARE)
    if libc.mallopt(_MMAP_THRESHOLD, min(kept // _BUFFERS, _LARGEST_INT)):  # older ones take no more than 32 MB
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
        _keeping = _Keeping(libc, _resident() + kept)


def keep_small() -> None:
    """Before photos are decoded: keep what is freed of up to 32 MB at once, where glibc gives it back and forth.

    It would map of its own whatever is larger than anything freed so far, and trim its heap at twice that.
    """
    _set(_USUAL_MMAP, 2 * _USUAL_MMAP)


def map_large(size: int) -> None:
    """Once a file is large: map large blocks of their own, so that they go back to the system when they are freed.

    In glibc's heap, a result that lies behind a file keeps its pages. size: bytes.
    """
    global _mapping
    if size >= _LARGE_FILE and not _mapping and _keeping is None:
        _set(_LARGE_BLOCK, _LARGE_TOP)
        _mapping = True


def _set(mmap_threshold: int, trim_threshold: int) -> None:
    global _mapping
    libc = _glibc()
    if libc is not None and _keeping is None:
        libc.mallopt(_MMAP_THRESHOLD, mmap_threshold)
        libc.mallopt(_TRIM_THRESHOLD, trim_threshold)
        libc.malloc_trim(0)
        _mapping = False


def bound_kept() -> None:
    """After a forward: give free memory back to the system where more is kept than may be."""
    if _keeping is not None and _resident() > _keeping.resident:
        _keeping.libc.malloc_trim(0)


def give_back() -> None:
    """Give free memory back, and later frees at once, as in any process that has used large buffers."""
    global _keeping
    if _keeping is None:
        return
    _keeping.libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
    _keeping.libc.mallopt(_TRIM_THRESHOLD, 2 * _USUAL_MMAP)
    _keeping.libc.malloc_trim(0)
    _keeping = None


def trim() -> None:
    """Give what is free back to the system, so that what is resident is what is used."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    names = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return libc if all(hasattr(libc, name) for name in names) else None


def _resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
