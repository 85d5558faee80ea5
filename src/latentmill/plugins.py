"""Sources, transforms, encoders, formats and runners that other packages bring, found by entry point.

A package names them in its `pyproject.toml`, by group:

    [project.entry-points."latentmill.transforms"]
    squares = "acme.mill:squares"

and a recipe uses them by that name, as it uses built-in ones:

    latentmill.sources     [source] kind = "NAME", with path and a table [source.options]    `MakeSource`
    latentmill.transforms  transform = "NAME", of kinds pixels, latents and vision            `Transform`
    latentmill.encoders    model = "NAME", of kind latents, both layouts                      `MakeEncoder`
    latentmill.formats     layout = "NAME", of kind latents, with the settings of `repa`      `MakeLayout`
    latentmill.runners     [run] runner = "NAME"                                              `Runner`

Each protocol says how its object is called. Built-in names come first and cannot be taken; a name is of letters,
digits, `.`, `_` and `-`. Nothing is imported before a recipe or a dataset names it. Worker processes may be spawned:
what the objects give is pickled, and a transform is imported there by its entry point.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from latentmill.errors import ConfigError, LatentmillError, ModelError, SourceError
from latentmill.records import Array, Listing
from latentmill.stages import EncoderSpec, Layout, Source

if TYPE_CHECKING:
    from latentmill.formats.metadata import ModelInfo
    from latentmill.worker import Emit, Task, Unit

_NAME = re.compile(r"[A-Za-z0-9._-]+")


class ListedSource(Source, Protocol):
    """A Source that lists what it holds. Picklable, apart from what only `listing` needs."""

    def listing(self, max_images: int | None = None) -> Listing:
        """The images, or the first so many, in code-point order of key; keys and indices differ. Raises SourceError."""


class MakeSource(Protocol):
    """`[source] kind`. path: as the recipe has it, which is relative to its file. options: of `[source.options]`.

    Images are then read, decoded and numbered as those of a folder are. Equal `root`s are read in one pass.
    """

    def __call__(self, path: Path, options: Mapping[str, Any]) -> ListedSource: ...


class Transform(Protocol):
    """`transform`: uint8 HWC RGB pixels to those of the recipe's resolution; None leaves the image out.

    Called from many threads; `pixels` is not changed. Raises SampleError for an image that cannot be used. The
    package's name and version are part of a dataset's settings: after an upgrade it is made anew, or refused.
    """

    def __call__(self, pixels: Array, width: int, height: int) -> Array | None: ...


@dataclass(frozen=True)
class EncoderRequest:
    """What an output of latents asks of its model, as `config.LatentSettings` has it.

    device: `auto`, `cpu`, `cuda:1`; see `encoders.device.choose_device`. store: moments, mean or sample (by `seed`).
    threads: of a forward on the CPU. tiling: see `encoders.vae.VaeSpec`.
    """

    revision: str | None
    subfolder: str | None
    device: str
    dtype: str
    pixel_range: tuple[float, float]
    store: str
    seed: int
    save_dtype: str
    threads: int
    tiling: str


class MakeEncoder(Protocol):
    """`model` of latents: how it is opened, and what `latentmill.json` says of it. Raises ModelError.

    The EncoderSpec's samples are uint8 HWC; an Encoded holds what `store` names: (C, h, w), or (2C, h, w) of moments,
    and as `sums` each channel's mean, mean square and mean variance over the positions. It may have `device`, and
    `close`, which lets go of the model. Of the ModelInfo, what `weights_sha256` and `config_sha256` say is part of a
    dataset's settings, with the package's name and version.
    """

    def __call__(self, request: EncoderRequest) -> tuple[EncoderSpec, ModelInfo]: ...


class MakeLayout(Protocol):
    """`layout` of latents. statistic: moments, mean or sample.

    The Layout is of kind latents; its code begins with `NAME/` and ends with `/` and the statistic, of which alone it
    is made again to read the dataset. Every sample needs a name of its own, by number or by key. `from_bytes` raises
    ValueError for bytes that are damaged. The package's name and version are part of a dataset's settings.
    """

    def __call__(self, statistic: str) -> Layout: ...


class Runner(Protocol):
    """`[run] runner`: runs every unit by `worker.run_units`, wherever that is; see `runners.local.run_local`.

    One that starts workers itself gets retries and culprits by `runners.scheduler.schedule`, with a `Crew` of its own.
    workers: how many processes are asked for. emit: to be called in the calling process, with all that `run_units`
    emits. Returns when all is committed; raises the first failure.
    """

    def __call__(self, task: Task, units: Sequence[Unit], workers: int, emit: Emit) -> None: ...


@dataclass(frozen=True)
class Group:
    """Entry points of one kind. setting: what names them. error: what they raise when they cannot be had."""

    name: str
    setting: str
    error: type[LatentmillError] = ConfigError


SOURCES = Group("latentmill.sources", "source kind", SourceError)
TRANSFORMS = Group("latentmill.transforms", "transform")
ENCODERS = Group("latentmill.encoders", "model", ModelError)
FORMATS = Group("latentmill.formats", "layout")
RUNNERS = Group("latentmill.runners", "runner")


def installed(group: Group) -> list[str]:
    """The names that installed packages bring, in order; nothing is imported."""
    return sorted({entry.name for entry in entry_points(group=group.name) if _NAME.fullmatch(entry.name)})


def choices(group: Group, name: object, built_in: Sequence[str]) -> str:
    """What a name must be, built in or installed, and which of these may be meant: "'a', 'b' or 'c'"."""
    known = [*built_in, *(each for each in installed(group) if each not in built_in)]
    told = " or ".join(filter(None, (", ".join(map(repr, known[:-1])), repr(known[-1]))))
    close = difflib.get_close_matches(str(name), known, 1)
    return f"{told} (did you mean {close[0]!r}?)" if close else told


def origin(group: Group, name: str) -> str:
    """Name and version of the package that brings it: `acme-mill 1.0`."""
    dist = _entry(group, name).dist
    assert dist is not None
    return f"{dist.name} {dist.version}"


def load(group: Group, name: str) -> Any:
    """The object of an installed name, imported. Raises the group's error, which names the package."""
    entry = _entry(group, name)
    told = f"{group.setting} {name!r} ({entry.value}) of the package {origin(group, name)}"
    try:
        found = entry.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        why = " ".join(str(error).split())
        raise group.error(f"{told} cannot be imported: {why}. Mend that package, or uninstall it") from error
    if not callable(found):
        raise group.error(f"{told} must be something to call. Found: {found!r}")
    return found


def _entry(group: Group, name: str) -> EntryPoint:
    found = list(entry_points(group=group.name, name=name))
    if not found:
        raise group.error(f"no installed package brings the {group.setting} {name!r} ({group.name})")
    packages = sorted({entry.dist.name for entry in found if entry.dist is not None})
    if len(packages) > 1:
        raise group.error(f"the {group.setting} {name!r} is of several packages: uninstall all but one of {packages}")
    return found[0]
