"""What a sampler is asked for, checked: buckets, batch sizes, rank, whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.distributed as dist

from latentmill.errors import ConfigError
from latentmill.records import Array

_NAMED = 6  # so many buckets or differences does a message name
_LONGEST_SIDE = 2**31 - 1


def codes_of(buckets: Any) -> Array:
    """(height, width) of every sample as one int64 each, in the order of heights, then widths."""
    try:
        pairs = np.asarray(buckets)
    except ValueError as error:
        raise ConfigError(f"buckets must be one (height, width) per sample. Found: {error}") from error
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu" or not len(pairs):
        raise ConfigError(
            "buckets must be one (height, width) in whole pixels per sample, for at least one sample. "
            f"Found: {pairs.dtype} of shape {pairs.shape}"
        )
    if pairs.min() < 1 or pairs.max() > _LONGEST_SIDE:
        row = int(np.flatnonzero(((pairs < 1) | (pairs > _LONGEST_SIDE)).any(axis=1))[0])
        raise ConfigError(f"buckets must be positive (height, width). Found: {pairs[row].tolist()} for sample {row}")
    codes: Array = (pairs[:, 0].astype(np.int64) << 32) | pairs[:, 1].astype(np.int64)
    return codes


def batch_sizes_of(
    buckets: list[tuple[int, int]], batch_size: int | Mapping[tuple[int, int], int] | None, pixels: int | None
) -> dict[tuple[int, int], int]:
    if (batch_size is None) == (pixels is None):
        raise ConfigError(
            f"give batch_size or pixels, one of the two. Found: {'neither' if pixels is None else 'both'}"
        )
    if pixels is not None:
        budget = integer("pixels", pixels, 1)
        return {(height, width): max(1, budget // (height * width)) for height, width in buckets}
    if not isinstance(batch_size, Mapping):
        return dict.fromkeys(buckets, integer("batch_size", batch_size, 1))
    lacking = [str(bucket) for bucket in buckets if bucket not in batch_size]
    if lacking:
        raise ConfigError(f"batch_size must name every bucket (height, width). Found: none for {some(lacking)}")
    return {bucket: integer(f"batch_size of {bucket}", batch_size[bucket], 1) for bucket in buckets}


def rank_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if rank is None and world_size is None:
        here = dist.is_available() and dist.is_initialized()
        return (dist.get_rank(), dist.get_world_size()) if here else (0, 1)
    if rank is None or world_size is None:
        raise ConfigError(f"give rank and world_size, or neither. Found: rank {rank}, world_size {world_size}")
    world_size = integer("world_size", world_size, 1)
    return integer("rank", rank, 0, world_size - 1), world_size


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"from {least} on" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{name} must be a whole number {limits}. Found: {value!r}")
    return int(value)


def some(items: list[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more
