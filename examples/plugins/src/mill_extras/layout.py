"""A format: a safetensors file for each image, named by its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from latentmill.records import NOTHING, Array


@dataclass(frozen=True)
class SafetensorsLayout:
    """`layout = "safetensors"`: tensor `latents` in `KEY.safetensors`. statistic: moments, mean or sample.

    The same array must give the same bytes, or a killed job would not end as one that was not.
    """

    statistic: str
    kind = "latents"
    labelled = False  # no dataset.json beside it

    @property
    def code(self) -> str:
        """Of which alone the layout is made again, to read the dataset: its entry point, a version, the statistic."""
        return f"safetensors/v1/{self.statistic}"

    def name(self, number: int, key: str = "") -> str:
        """Every image's own: keys differ in more than their endings."""
        return f"{key}.safetensors"

    def to_bytes(self, array: Array, beside: Mapping[str, Array] = NOTHING) -> bytes:
        from safetensors.numpy import save

        return save({"latents": np.ascontiguousarray(array)})  # it would write another order of axes as it lies

    def from_bytes(self, data: bytes) -> Array:
        """Raises ValueError for bytes that are damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return load(data)["latents"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"not safetensors with `latents`: {error}") from error
