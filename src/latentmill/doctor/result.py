"""Whether a result could be gone on with here: what a rerun would refuse, lack or make otherwise, and what to do.

Nothing of it is downloaded, and nothing is written. What a rerun refuses or cannot find is broken; the data itself is
read by `load` all the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from latentmill.doctor.findings import Finding
from latentmill.errors import ConfigError, DestinationError, SourceError
from latentmill.files import counted, printable
from latentmill.finish import software
from latentmill.formats.containers import container
from latentmill.formats.metadata import RECIPE_TOML, Metadata, Value
from latentmill.manifest import current_plan
from latentmill.outputs.common import series
from latentmill.plugins import FORMATS, TRANSFORMS, Group, installed, origin
from latentmill.recipe_file import read_recipe
from latentmill.report.collect_index import places_under

_SERIES = ("pillow", "torch", "diffusers", "transformers")  # of the fingerprint: another one is refused
_PACKAGES: dict[str, tuple[str, Group]] = {
    "transform_package": ("transform", TRANSFORMS),
    "layout_package": ("layout", FORMATS),
}


def findings(result: Path, *, ask_hub: bool = True) -> list[Finding]:
    """Of a dataset, or of each of a folder of several. ask_hub: for a model that is not on this disk.

    Raises SourceError where there is no result.
    """
    if not result.exists():
        raise SourceError(f"--result must be what latentmill made, a folder or a .zip. Found: nothing at {result}")
    return [finding for path in places_under(result) or [result] for finding in _of_dataset(path, ask_hub)]


def _of_dataset(path: Path, ask_hub: bool) -> Iterator[Finding]:
    from latentmill.doctor.result_model import model_finding

    group, place = f"result {path.name}", container(path)
    try:
        metadata, plan = Metadata.read_beside(path), current_plan(place.work)
    except (SourceError, DestinationError) as error:
        yield Finding(group, "metadata", str(error), "broken", "run its command again with --overwrite")
        return
    if metadata is None and plan is None:
        raise SourceError(f"--result must be what latentmill made. Found: {path}, which holds no latentmill.json")
    fingerprint = plan.fingerprint if plan is not None else metadata.fingerprint if metadata is not None else {}
    if plan is not None:
        done = sum(plan.shards[shard][1] for shard in plan.done())
        value = f"{done:,} of {plan.images:,} images are committed"
        yield Finding(group, "not finished", value, "warning", "run its command again, which goes on from there")
    elif metadata is not None:
        counts = metadata.counts
        what = "captions" if metadata.kind == "text" else "images"
        yield Finding(group, "made", f"{metadata.kind}: {counts.stored:,} stored of {counted(counts.listed, what)}")
    yield from _software(group, fingerprint, metadata.software if metadata is not None else {})
    yield from _packages(group, fingerprint)
    if device := _device(group, fingerprint):
        yield device
    if metadata is not None:
        if model := model_finding(group, metadata, ask_hub):
            yield model
        yield _source(group, place.side_file(RECIPE_TOML))


def _software(group: str, fingerprint: Mapping[str, Value], then: Mapping[str, str]) -> Iterator[Finding]:
    """Versions: the series that the fingerprint holds must be the same; other differences are told."""
    refused = [name for name in _SERIES if name in fingerprint]
    for name in refused:
        wanted, here = str(fingerprint[name]), _series(name)
        if here == wanted:
            value = f"{then.get(name, wanted)} then, {version(name)} here: the same series"
            yield Finding(group, name, value)
            continue
        advice = (
            f"a rerun refuses it: pip install '{name}=={wanted}.*' in an environment of its own, or make the dataset "
            "anew with --overwrite"
        )
        yield Finding(group, name, f"made with {wanted}, here is {here or 'none'}", "broken", advice)
    here_now = software()
    others = {name: told for name, told in then.items() if name not in refused and name in here_now}
    changed = [f"{name} {told} (here {here_now[name]})" for name, told in others.items() if here_now[name] != told]
    same = "the same" if not changed else f"made with {', '.join(changed)}: no reason for a rerun to refuse"
    if others:
        yield Finding(group, "other versions", same)


def _series(name: str) -> str:
    try:
        return series(name)
    except PackageNotFoundError:
        return ""


def _packages(group: str, fingerprint: Mapping[str, Value]) -> Iterator[Finding]:
    """Transforms and layouts that other packages brought."""
    for setting, (name, kind) in _PACKAGES.items():
        if setting not in fingerprint:
            continue
        called, then = str(fingerprint[name]), str(fingerprint[setting])
        here = origin(kind, called) if called in installed(kind) else ""
        if here == then:
            yield Finding(group, name, f"{called}, of {here}")
        else:
            advice = f"a rerun refuses it: pip install '{then.replace(' ', '==')}', or --overwrite"
            found = here or "no package that brings it"
            yield Finding(group, name, f"{called}, made by {then}; here is {found}", "broken", advice)


def _device(group: str, fingerprint: Mapping[str, Value]) -> Finding | None:
    """Bytes differ between kinds of device, so a rerun must be on the same."""
    wanted = fingerprint.get("device")
    if wanted in (None, "cpu"):
        return None if wanted is None else Finding(group, "device", "cpu")
    import torch

    there = torch.cuda.is_available() if wanted == "cuda" else torch.backends.mps.is_available()
    if there:
        return Finding(group, "device", f"{wanted}, which is here")
    advice = f"a rerun refuses another device, since bytes differ: run it where there is {wanted}, or --overwrite"
    return Finding(group, "device", f"made on {wanted}, which is not here", "broken", advice)


def _source(group: str, file: Path) -> Finding:
    """What the result was made of must still be where its recipe says."""
    if not file.is_file():
        advice = "to make it again, give the command's own options"
        return Finding(group, "recipe", f"none is stored with it ({file.name})", "absent", advice)
    try:
        tables, _ = read_recipe(file)
    except (ConfigError, SourceError) as error:
        return Finding(group, "recipe", str(error), "broken", "give the command's own options again")
    told: Any = tables.get("source", {})
    path = told.get("path") if isinstance(told, dict) else None
    if isinstance(told, dict) and told.get("kind", "files") != "files":
        return Finding(group, "source", f"{path}, by a source of another package: not looked at")
    if not isinstance(path, str):
        return Finding(group, "recipe", f"{file} names no source", "broken", "give the command's own options again")
    place = Path(os.path.normpath(file.parent / path))
    if place.exists():
        return Finding(group, "source", f"{printable(str(place))} is there")
    advice = f"put it back, or tell where it is: latentmill run {file} --set source.path=..."
    return Finding(group, "source", f"{printable(str(place))} is not there", "broken", advice)
