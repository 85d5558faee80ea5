"""How a dataset's latents are distributed, channel by channel, and which scale and shift they suggest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from latentmill.formats.metadata import Normalization
from latentmill.formats.payload import ARRAY_ERRORS
from latentmill.records import Array
from latentmill.report.collect_index import Opened, spread, stored_at
from latentmill.report.facts import ChannelFacts, Histogram, LatentFacts

_FILES = 512  # of a histogram
_VALUES = 1 << 25  # of all channels, that are read for one
_BINS = 64
_REACH = 4.5  # standard deviations on either side that a histogram shows
_LEAST = 1e-12  # of a deviation that is divided by


def latent_facts(dataset: Opened, stored: int) -> LatentFacts | None:
    """Histograms of spread files; mean and deviation of the whole dataset where it records them, else of those files.

    The suggested factors are of what a trainer draws: of moments the posterior's samples, whose variance is that of the
    means and the mean variance. overall: as one distribution, the law of total variance over the channels. None where
    no file can be read. Raises SourceError.
    """
    latents = _read(dataset, stored)
    if not latents:
        return None
    metadata = dataset.metadata
    assert metadata.model is not None and metadata.latent is not None
    channels = metadata.model.latent_channels
    flat = [np.concatenate([array[c].ravel() for array in latents]) for c in range(channels)]  # float32 (values,)
    if (known := metadata.statistics) is not None:
        mean, std, drawn = known.mean, known.std, known.std_sampled
    else:
        mean = [float(values.mean(dtype=np.float64)) for values in flat]
        std = [float(values.std(dtype=np.float64)) for values in flat]
        drawn = std
    scales, shifts = _recorded(metadata.model.normalization, metadata.model.scaling_factor, channels)
    middle = math.fsum(mean) / channels
    total = math.fsum(s * s + (m - middle) ** 2 for m, s in zip(mean, drawn, strict=True)) / channels
    return LatentFacts(
        channels=tuple(
            ChannelFacts(
                c, _histogram(flat[c], mean[c], std[c]), mean[c], std[c], scales[c], shifts[c],
                1 / max(drawn[c], _LEAST), mean[c],
            )
            for c in range(channels)
        ),
        recorded_scale=scales[0] if len(set(scales)) == 1 else None,
        recorded_shift=shifts[0] if len(set(shifts)) == 1 else None,
        overall_scale=1 / max(math.sqrt(total), _LEAST),
        overall_shift=middle,
        files=len(latents),
        whole_dataset=known is not None,
    )  # fmt: skip


def _read(dataset: Opened, stored: int) -> list[Array]:
    """float32 (C, h, w) of spread files, of moments the means; those that cannot be read are left to verify."""
    metadata = dataset.metadata
    assert metadata.model is not None
    channels, found, room = metadata.model.latent_channels, list[Array](), _VALUES
    rows = stored_at(dataset, spread(stored, _FILES))
    for _, row in _inside_out(sorted(rows.items())):
        try:
            array = dataset.array(row)[:channels].astype(np.float32)
        except ARRAY_ERRORS:
            continue
        if not np.isfinite(array).all() or (found and array.size > room):
            continue
        room -= array.size
        found.append(array)
    return found


def _inside_out(rows: Sequence[tuple[int, dict[str, object]]]) -> list[tuple[int, dict[str, object]]]:
    """Every 8th, then those between: spread over the dataset wherever the reading ends."""
    return [row for start in range(8) for row in rows[start::8]]


def _histogram(values: Array, mean: float, std: float) -> Histogram:
    reach = max(_REACH * std, _LEAST)
    counts, edges = np.histogram(values, _BINS, (mean - reach, mean + reach))
    return Histogram(edges, counts, int((values < edges[0]).sum()), int((values > edges[-1]).sum()))


def _recorded(
    how: Normalization | None, scale: float | None, channels: int
) -> tuple[list[float | None], list[float | None]]:
    """Scale and shift of each channel, as (z - shift) * scale; None where there are none, or not of these channels."""
    if how is None or how.kind == "scale-shift":
        factor = scale if how is None else how.scaling_factor
        shift = 0.0 if how is None else how.shift_factor or 0.0
        return [factor] * channels, [None if factor is None else shift] * channels
    if how.mean is None or how.std is None or len(how.mean) != channels:
        return [None] * channels, [None] * channels
    return [1 / max(std, _LEAST) for std in how.std], list(how.mean)
