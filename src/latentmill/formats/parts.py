"""A file, or a part of one, read straight to where its bytes are wanted: in one compiled call, or by Python's own.

`head` is what must stand before the bytes that are wanted; it is compared, and not kept. `out` is a contiguous buffer
that can be written to, such as an array, of just their number. What it holds after a False or an error is undefined.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from latentmill.compiled import compiled

_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


def _read_file(path: str, head: bytes, out: Any) -> bool:
    file = os.open(path, _OPEN)
    try:
        return _read_part(file, 0, head, out, beyond=1)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from error
    finally:
        os.close(file)


def _read_part(file: int, at: int, head: bytes, out: Any, beyond: int = 0) -> bool:
    found = bytearray(len(head))
    count = os.preadv(file, [found, out, bytearray(beyond)], at)
    return count == len(head) + memoryview(out).nbytes and found == head


# read_file(path, head, out): whether the file is `head` and `out`, and no more. Raises OSError.
read_file: Callable[[str, bytes, Any], bool] = compiled("read_file") or _read_file
# read_part(file, at, head, out): whether they stand at this place of an open file. Moves no position. Raises OSError.
read_part: Callable[[int, int, bytes, Any], bool] = compiled("read_part") or _read_part
AVAILABLE = hasattr(os, "preadv")  # not on Windows
