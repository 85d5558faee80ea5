"""One comparison from beginning to end: photos, VAEs in turn, scores, worst cases.

The VAEs take turns: a part of the photos is encoded and decoded by each, then the next part, so that a machine that
slows down slows all alike. One model is in memory at a time. A VAE that fails is told and left out; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from latentmill.comparing.cases import Restored, worst_cases
from latentmill.comparing.contender import decode_batch, find, labels
from latentmill.comparing.latents import Gathering
from latentmill.comparing.machine import machine_line
from latentmill.comparing.photos import Photos, gather
from latentmill.comparing.reading import reading
from latentmill.comparing.result import FLIP, PSNR, SSIM, Comparison, Conditions, Metric
from latentmill.comparing.turns import Run, parts, take_turn
from latentmill.config import LatentSettings, validated
from latentmill.errors import ConfigError, LatentmillError, ModelError
from latentmill.outcome import Event, Tell, quiet
from latentmill.outputs.shared import Shared
from latentmill.report import metrics
from latentmill.system import usable_cores
from latentmill.versions import installed_version

DEFAULT_TRANSFORM, DEFAULT_RESOLUTION, DEFAULT_SAMPLE, DEFAULT_BATCH = "center-crop-dhariwal", "256x256", 64, 8
_SETTINGS = frozenset(
    {"transform", "resolution", "resize", "device", "dtype", "pixel_range", "indivisible", "threads", "images",
     "exif", "alpha", "max_pixels", "max_images", "exclude", "source_kind", "source_options", "path_column"}
)  # fmt: skip
_PACKAGES = ("latentmill", "torch", "diffusers", "numpy", "pillow", "scikit-image", "flip-evaluator")


def compare_vae(
    source: str | Path,
    vaes: str | Sequence[str],
    *,
    sample: int = DEFAULT_SAMPLE,
    batch_size: int = DEFAULT_BATCH,
    tell: Tell = quiet,
    **settings: Any,
) -> Comparison:
    """Encode and decode a sample of one's own photos with several VAEs, and measure what each keeps and costs.

    Pictures are made of the posterior's mean, in float32; PSNR, SSIM and, where flip-evaluator is installed, FLIP
    compare them with the crops. vaes: short names, folders, or hub repositories (`owner/name`, with `/subfolder` and
    `@revision`). sample: photos, evenly spread over the source. settings: transform and resolution (without either,
    center-crop-dhariwal to 256x256), device, dtype, pixel_range, indivisible, threads, and how photos are read, as of
    `encode`. Raises LatentmillError where nothing can be compared; a VAE that fails is in `failures`.
    """
    metrics.need_metrics()
    names = [vaes] if isinstance(vaes, str) else list(vaes)
    chosen = _chosen(source, names, sample, batch_size, settings)
    began = time.perf_counter()
    threads = chosen.threads or usable_cores()
    photos = gather(chosen, sample, Shared(), tell)
    _check_size(photos)
    runs, failures = _found(names, chosen, photos, batch_size, threads, tell)
    measured = (PSNR, SSIM, *((FLIP,) if metrics.can_flip() else ()))
    with Restored() as restored:
        _run(runs, failures, photos, batch_size, measured, restored, tell)
        done = [run for run in runs if run.contender.label not in failures]
        if not done:
            raise _nothing_worked(failures)
        candidates = tuple(run.candidate(photos.keys) for run in done)
        cases = worst_cases(candidates, photos.crops, restored, {run.contender.label: run.contender for run in done})
    conditions = _conditions(source, chosen, photos, batch_size, threads, done[0].contender.spec.device)
    conditions = replace(conditions, seconds=time.perf_counter() - began)
    found = Comparison(conditions, measured, photos.keys, candidates, tuple(failures.items()), cases)
    return replace(found, reading=reading(found))


def _chosen(
    source: str | Path, names: Sequence[str], sample: int, batch_size: int, settings: dict[str, Any]
) -> LatentSettings:
    """Settings as `encode` has them. Raises ConfigError."""
    if not names:
        raise ConfigError("compare-vae needs at least one VAE (--vae NAME, repeatable)")
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise ConfigError(f"each VAE is compared once. Found twice: {twice}")
    for name, value in (("sample", sample), ("batch-size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number above 0. Found: {value!r}")
    unknown = next((name for name in settings if name not in _SETTINGS), None)
    if unknown is not None:
        raise ConfigError(f"compare-vae has no setting {unknown}. There are: {', '.join(sorted(_SETTINGS))}")
    given = {name: value for name, value in settings.items() if value is not None}
    if given.get("transform", DEFAULT_TRANSFORM) != "none":
        given = {"transform": DEFAULT_TRANSFORM, "resolution": DEFAULT_RESOLUTION, **given}
    return validated(LatentSettings, {"source": source, "dest": ".", **given})


def _check_size(photos: Photos) -> None:
    if min(photos.size) < metrics.SMALLEST:
        height, width = photos.size
        raise ConfigError(f"SSIM needs sides of {metrics.SMALLEST} pixels. Found crops of {width}x{height}")


def _found(
    names: Sequence[str], chosen: LatentSettings, photos: Photos, batch_size: int, threads: int, tell: Tell
) -> tuple[list[Run], dict[str, str]]:
    runs: list[Run] = []
    failures: dict[str, str] = {}
    for name, label in labels(names).items():
        try:
            contender = find(name, label, chosen, photos.size, threads)
        except LatentmillError as error:
            failures[label] = str(error)
            continue
        scores = {metric.name: np.full(len(photos.keys), np.nan) for metric in (PSNR, SSIM, FLIP)}
        decoded = decode_batch(contender, batch_size)
        runs.append(Run(contender, batch_size, decoded, Gathering(contender.info), scores))
    if not runs:
        raise _nothing_worked(failures)
    for label, why in failures.items():
        tell(Event("warning", f"{label} is left out: {why}"))
    return runs, failures


def _nothing_worked(failures: dict[str, str]) -> ModelError:
    if len(failures) == 1:
        ((_, reason),) = failures.items()
        return ModelError(reason)
    return ModelError("no VAE could be compared. " + "; ".join(f"{name}: {why}" for name, why in failures.items()))


def _run(
    runs: Sequence[Run],
    failures: dict[str, str],
    photos: Photos,
    batch_size: int,
    measured: Sequence[Metric],
    restored: Restored,
    tell: Tell,
) -> None:
    """All rounds: in each, every VAE that has not failed takes its turn with the same photos."""
    total, done = len(runs) * len(photos.keys), 0
    tell(Event("progress", total=total, done=0))
    for numbers in parts(len(photos.keys), batch_size):
        for run in runs:
            if run.contender.label not in failures:
                try:
                    take_turn(run, numbers, photos, measured, restored)
                except LatentmillError as error:
                    failures[run.contender.label] = str(error)
                    tell(Event("warning", f"{run.contender.label} is left out: {error}"))
            done += len(numbers)
            tell(Event("progress", total=total, done=done))


def _conditions(
    source: str | Path, chosen: LatentSettings, photos: Photos, batch_size: int, threads: int, device: str
) -> Conditions:
    return Conditions(
        source=str(source), listed=photos.listed, used=len(photos.keys), left_out=photos.left_out, size=photos.size,
        transform=chosen.transform, indivisible=chosen.indivisible, dtype=chosen.dtype, pixel_range=chosen.pixel_range,
        batch_size=batch_size, threads=threads, device=device, machine=machine_line(device),
        versions={name: found for name in _PACKAGES if (found := installed_version(name))},
    )  # fmt: skip
