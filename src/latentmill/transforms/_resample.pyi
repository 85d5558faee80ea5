"""The compiled half of `resample`; its C is in `native/`. It takes what `resample` has checked."""

from typing import Any

Table = Any  # a capsule

KERNELS: tuple[str, ...]

def resize(
    pixels: Any,
    out: Any,
    halvings: tuple[tuple[Table, Table, bool], ...],
    across: Table | None,
    down: Table | None,
    down_first: bool,
    top: int,
    left: int,
) -> None: ...
def table(size_in: int, size_out: int, method: int, first: int, last: int) -> tuple[Table, int, int]: ...
def planes(pixels: Any, out: Any) -> None: ...
def mirrored(pixels: Any, out: Any) -> None: ...
def stored_planes(blocks: Any, out: Any) -> bool: ...
def draw(moments: Any, z: Any, shift: float, scale: float) -> None: ...
def use(name: str) -> None: ...
