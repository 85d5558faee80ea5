"""Whether models can be run: the packaged one really encodes a photo; which others are on this disk already."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from latentmill.doctor.findings import Finding, one_line
from latentmill.errors import LatentmillError, SampleError
from latentmill.estimate import human
from latentmill.records import Sample, SampleRef
from latentmill.registry import MINI, MODELS, TEXT_MODELS, VISION_MODELS, Entry

GROUP = "models"
_SIDE = 64  # of the picture that is encoded
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_SHOWN = 12
_YES = ("1", "ON", "YES", "TRUE")


def findings() -> list[Finding]:
    return [_encodes(), *_cached(), *_offline()]


def _encodes() -> Finding:
    """The whole way through diffusers, which breaks where its version and PyTorch's do not fit."""
    start = time.perf_counter()
    try:
        from latentmill.outputs.common import vae_spec

        spec, _ = vae_spec(
            MINI, None, None, device="cpu", dtype="float32", pixel_range=(-1.0, 1.0), save_dtype="float32", threads=1
        )
        picture = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        (result,) = spec.open().encode([Sample(SampleRef(0, "", ""), picture, "0")])
    except (LatentmillError, ImportError, OSError, RuntimeError, AttributeError) as error:
        advice = "pip install -U diffusers transformers accelerate"
        return Finding(GROUP, MINI, f"cannot be run: {one_line(error)}", "broken", advice)
    if isinstance(result, SampleError):
        return Finding(GROUP, MINI, f"does not encode: {result}", "broken", "pip install --force-reinstall latentmill")
    seconds = time.perf_counter() - start
    return Finding(GROUP, MINI, f"encodes on the cpu (loaded with its libraries in {seconds:.1f} s)")


def cache_folder() -> Path:
    """Where the hub's models are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _cached() -> list[Finding]:
    """The hub's models on this disk, those with short names first."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    folder = cache_folder()
    try:
        repositories = [each for each in scan_cache_dir(folder).repos if each.repo_type == "model"]
    except (CacheNotFound, OSError):
        return [Finding(GROUP, "cache", f"none yet: {folder}")]
    names: dict[str, str] = {}
    tables: tuple[Mapping[str, Entry], ...] = (MODELS, TEXT_MODELS, VISION_MODELS)
    for table in tables:
        for name, entry in table.items():
            names.setdefault(entry.repository, name)
    total = sum(each.size_on_disk for each in repositories)
    found = [Finding(GROUP, "cache", f"{len(repositories)} models, {human(total)}: {folder}")]
    in_order = sorted(repositories, key=lambda each: (each.repo_id not in names, each.repo_id))
    shown = in_order[:_SHOWN]
    return found + [Finding(GROUP, names.get(each.repo_id, each.repo_id), human(each.size_on_disk)) for each in shown]


def _offline() -> list[Finding]:
    found = []
    for name in _OFFLINE:
        value = os.environ.get(name, "")
        if value.upper() in _YES:
            advice = "models that are not in the cache cannot be downloaded; unset it to allow that"
            found.append(Finding(GROUP, name, value, "warning", advice))
    return found
