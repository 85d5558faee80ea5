"""A recipe: one source, any number of outputs, made in one pass over its bytes. What every command becomes.

    Recipe("photos", {"images": {"kind": "pixels", "resolution": "256x256"}}, dest="out").run()

says the same as

    dest = "out"
    [source]
    path = "photos"
    [outputs.images]
    kind = "pixels"
    resolution = "256x256"
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from latentmill.config import OutputSettings, RunSettings, SourceSettings, validated_in
from latentmill.errors import ConfigError, LatentmillError, ModelError
from latentmill.files import replace_text
from latentmill.formats.metadata import RECIPE_TOML
from latentmill.job import Job
from latentmill.outcome import Result, Tell, quiet
from latentmill.outputs.kinds import KINDS, Kind, kind_of
from latentmill.outputs.shared import Shared
from latentmill.passes import Prepared, run_pass, runner_of
from latentmill.recipe_file import NO_FILE, Keys, RecipeFile, read_recipe, to_toml
from latentmill.registry import TEXT_SETS
from latentmill.transforms.variant import variants

TellOf = Callable[[str], Tell]
_SOURCE_NAMES = {"source": "path", "source_kind": "kind", "source_options": "options"}  # in `[source]`
_SOURCE_FIELDS = SourceSettings.model_fields.keys() - _SOURCE_NAMES.keys() | set(_SOURCE_NAMES.values())
_RUN_FIELDS = frozenset(RunSettings.model_fields)
_SECTIONS = ("source", "dest", "run", "defaults", "outputs")
_RESOLVED = ("batch_size", "threads")
_SLICES = frozenset({"start_index", "end_index"})  # whose results add up to the whole
_NOT_STORED = frozenset(
    {"num_workers", "max_failures", "check", "overwrite", "wait", "runner"}
)  # nothing of the result depends on them


@dataclass(frozen=True)
class Chosen:
    """One output of a recipe, its settings validated. table: where those were told, which may be of several."""

    name: str
    kind: Kind
    settings: OutputSettings
    table: str

    @property
    def places(self) -> list[Path]:
        """Every folder and zip that it writes."""
        dests = [self.settings.dest, *(p for p in (getattr(self.settings, "pixels", None),) if p is not None)]
        flip, crops = getattr(self.settings, "flip", "none"), getattr(self.settings, "crops", 1)
        return [variant.beside(dest) for dest in dests for variant in variants(flip, crops, 0)]


@dataclass(frozen=True)
class Named:
    """A job of a recipe. name: of its output, and of its variant where it has several."""

    name: str
    output: str
    prepared: Prepared


class RecipeError(LatentmillError):
    """Some outputs refused; the others were made. results: of those. errors: of those that refused, by name."""

    def __init__(self, errors: Mapping[str, LatentmillError], results: Mapping[str, Result]) -> None:
        super().__init__("; ".join(str(error) for error in errors.values()))
        self.errors, self.results = dict(errors), dict(results)


@dataclass(frozen=True)
class Recipe:
    """One source and what is made of it. Settings are those of the TOML; see `latentmill run`.

    source: a path, or the settings of `[source]` with `path`. outputs: by name, the settings of `[outputs.NAME]` with
    `kind`. dest: the folder of the outputs' folders, each of its name unless it says `path`. run: of `[run]`. defaults:
    of every output that has the setting. file: where settings were told, for errors. folder: paths are relative to it.
    """

    source: str | Path | Mapping[str, Any]
    outputs: Mapping[str, Mapping[str, Any]]
    dest: str | Path = "."
    run_settings: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    file: RecipeFile = NO_FILE
    folder: Path = Path()

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """A recipe's file, with `a.b=c` settings over it. Raises SourceError, ConfigError."""
        tables, file = read_recipe(Path(path), overrides)
        recipe = cls.of(tables, file, Path(path).parent)
        recipe.chosen()
        return recipe

    @classmethod
    def of(cls, tables: Mapping[str, Any], file: RecipeFile = NO_FILE, folder: Path = Path()) -> Recipe:
        """A recipe of its tables. Raises ConfigError."""
        for name, table in tables.items():
            if name not in _SECTIONS:
                raise ConfigError(f"{file.place((name,))}a recipe has no {name}.{_close(name, _SECTIONS)}")
            if name not in ("dest", "source") and not isinstance(table, Mapping):
                raise ConfigError(f"{file.place((name,))}{name} must be a table. Found: {table!r}")
        if "source" not in tables:
            raise ConfigError(f"{file.place(())}a recipe needs a source: [source] with path")
        return cls(
            tables["source"], tables.get("outputs", {}), tables.get("dest", "."), tables.get("run", {}),
            tables.get("defaults", {}), file, folder,
        )  # fmt: skip

    # settings

    def chosen(self) -> list[Chosen]:
        """Every output with its settings validated, in order. Raises ConfigError, which names the place in the file."""
        source = self._source()
        self._check_names(self.run_settings, ("run",), _RUN_FIELDS, "[run]")
        if not self.outputs:
            raise ConfigError(f"{self.file.place(('outputs',))}a recipe needs an output: [outputs.NAME] with a kind")
        found = [each for name, table in self.outputs.items() for each in self._output(name, table, source)]
        known = {each for kind in KINDS for each in kind.settings.model_fields}
        self._check_names(self.defaults, ("defaults",), known, "an output")
        self._check_places(found)
        return found

    def _source(self) -> dict[str, Any]:
        source = dict(self.source) if isinstance(self.source, Mapping) else {"path": self.source}
        self._check_names(source, ("source",), _SOURCE_FIELDS, "[source]")
        if "path" not in source:
            raise ConfigError(f"{self.file.place(('source',))}[source] needs path")
        own = {told: name for name, told in _SOURCE_NAMES.items()}
        source = {own.get(name, name): value for name, value in source.items()}
        for name in ("source", "images"):
            if isinstance(source.get(name), str | Path):
                source[name] = self._located(source[name], ("source", "path" if name == "source" else name))
        return source

    def _located(self, path: str | Path, keys: Keys) -> Path:
        """A path of the file is relative to it; one of `--set`, to the working directory."""
        return Path(path) if keys in self.file.told else self.folder / path

    def _output(self, name: str, table: Any, source: Mapping[str, Any]) -> Iterator[Chosen]:
        keys: Keys = ("outputs", name)
        if not isinstance(table, Mapping):
            raise ConfigError(f"{self.file.place(keys)}outputs.{name} must be a table. Found: {table!r}")
        own = dict(table)
        try:
            kind = kind_of(own.pop("kind", None), own.pop("layout", None))
        except ConfigError as error:
            raise ConfigError(f"{self.file.place((*keys, 'kind'))}outputs.{name}: {error}") from error
        fields = kind.settings.model_fields.keys() - SourceSettings.model_fields.keys() - {"dest"} | {"path"}
        self._check_names(own, keys, fields, f"outputs.{name} ({kind.told})")
        dest = self._located(self.dest, ("dest",)) / own.pop("path", name)
        if ("outputs", name, "path") in self.file.told:
            dest = Path(table["path"])
        if isinstance(own.get("pixels"), str | Path):
            beside = self._located(self.dest, ("dest",)) / own["pixels"]
            own["pixels"] = beside
        defaults = {key: value for key, value in self.defaults.items() if key in kind.settings.model_fields}
        values = {**source, **self.run_settings, **defaults, **own, "dest": dest}
        for member, more in _members(kind, values):
            settings = self._valid(kind, name, {**values, **more})
            yield Chosen(f"{name}-{member}" if member else name, kind, settings, name)

    def _valid(self, kind: Kind, name: str, values: dict[str, Any]) -> OutputSettings:
        def place(field_name: str) -> str:
            """Where a setting was told: in the output, the defaults, the run or the source."""
            own = ("outputs", name, "path" if field_name == "dest" else field_name)
            told = _SOURCE_NAMES.get(field_name, field_name)
            for keys in (own, ("defaults", field_name), ("run", field_name), ("source", told)):
                if keys in self.file.lines or keys in self.file.told:
                    return f"{self.file.place(keys)}{'.'.join(keys[:-1])}: "
            return f"{self.file.place(('outputs', name))}outputs.{name}: " if self.file.name else ""

        return validated_in(kind.settings, values, place)

    def _check_names(self, table: Any, keys: Keys, known: Any, where: str) -> None:
        if not isinstance(table, Mapping):
            raise ConfigError(f"{self.file.place(keys)}{'.'.join(keys)} must be a table. Found: {table!r}")
        for name in table:
            if name not in known:
                place = self.file.place((*keys, name))
                raise ConfigError(f"{place}{where} has no setting {name}.{_close(name, known)}")

    def _check_places(self, outputs: Sequence[Chosen]) -> None:
        taken: dict[Path, str] = {}
        for each in outputs:
            for place in each.places:
                path = Path(os.path.abspath(place))  # noqa: PTH100 - without following links
                for other, name in taken.items():
                    if path == other or path in other.parents or other in path.parents:
                        who = "latents and pixels" if name == each.name else f"{name} and {each.name}"
                        raise ConfigError(
                            f"{self.file.place(('outputs', each.table, 'path'))}{who} must not be the same place or "
                            f"inside each other. Found: {place} and {other}"
                        )
                taken[path] = each.name

    # jobs

    def prepare(self, tell_of: TellOf = lambda name: quiet) -> list[Named]:
        """Every job, checked and told; nothing is written. Raises LatentmillError, with the place in the file."""
        chosen = self.chosen()
        shared = Shared(encoders=any(each.kind.encodes_images for each in chosen))
        found = []
        for each in chosen:
            with self.naming(each):
                runner_of(each.settings.runner)
                jobs = each.kind.prepare()(each.settings, shared, tell_of(each.name))
            for job in jobs:
                name = job.job.primary.path.name.removeprefix(each.settings.dest.name) if len(jobs) > 1 else ""
                named = Named(
                    each.name + name.removesuffix(".zip"), each.name, replace(job, runner=each.settings.runner)
                )
                job.job.recipe, job.job.tell = _recipe_of(each, job.job), tell_of(named.name)
                if self.file.name or len(chosen) > 1:
                    job.job.called = f"{self.file.place(('outputs', each.table))}outputs.{named.name}: "
                found.append(named)
        return found

    @contextmanager
    def naming(self, chosen: Chosen) -> Iterator[None]:
        """An error of one output is told with its place in the file."""
        try:
            yield
        except LatentmillError as error:
            if not self.file.name:
                raise
            keys = ("outputs", chosen.table, "model") if isinstance(error, ModelError) else ("outputs", chosen.table)
            raise type(error)(f"{self.file.place(keys)}outputs.{chosen.name}: {error}") from error

    def run(self, tell_of: TellOf = lambda name: quiet) -> dict[str, Result]:
        """Make every output; gives what became of each, by name.

        Outputs of images are made in one pass, then those of captions. One that refuses (its settings are others than
        it was made with, say) leaves the rest to be made. Raises RecipeError then, and any other LatentmillError.
        """
        return self.carry_out(self.prepare(tell_of))

    def carry_out(self, jobs: Sequence[Named]) -> dict[str, Result]:
        """Run what `prepare` gave; see `run`."""
        results: dict[str, Result] = {}
        errors: dict[str, LatentmillError] = {}
        for group in _passes(jobs):
            for each, found in zip(group, run_pass([each.prepared for each in group]), strict=True):
                if isinstance(found, Result):
                    results[each.name] = found
                else:
                    errors[each.name] = type(found)(f"{each.prepared.job.called}{found}")
        if errors and not self.file.name and len(jobs) == 1:
            raise next(iter(errors.values()))
        if errors:
            raise RecipeError(errors, results)
        self._store(jobs)
        return results

    # the recipe with its result

    def to_toml(self, resolved: Mapping[str, Mapping[str, Any]] | None = None) -> str:
        """The whole recipe: every setting that is not as it is by default, paths as they are from `dest`.

        resolved: of outputs by name, settings as they were found while the jobs were prepared.
        """
        return _stored_toml(self.chosen(), self._located(self.dest, ("dest",)), resolved or {})

    def _store(self, jobs: Sequence[Named]) -> None:
        """Beside the outputs, where they have a folder in common that is none of theirs."""
        root = self._located(self.dest, ("dest",))
        if self.file.name and all(each.settings.dest != root for each in self.chosen()):
            resolved = {each.output: resolved_settings(each.prepared.job) for each in jobs}
            replace_text(root / RECIPE_TOML, self.to_toml(resolved))


def _recipe_of(chosen: Chosen, job: Job) -> str:
    """The recipe of one output alone, of all its variants, as it is stored with each: `dest` is where that lies."""
    place = job.primary
    folder = place.path.parent if place.is_zip else place.path
    alone = replace(chosen, name=chosen.kind.name)
    return _stored_toml([alone], folder, {alone.name: resolved_settings(job)})


def resolved_settings(job: Job) -> dict[str, Any]:
    """Settings that were left to be found, as they are in the fingerprint."""
    return {name: job.fingerprint[name] for name in _RESOLVED if job.fingerprint.get(name) is not None}


def _stored_toml(outputs: Sequence[Chosen], folder: Path, resolved: Mapping[str, Mapping[str, Any]]) -> str:
    """A recipe that lies in `folder`, with the settings that are not as by default."""
    unused = frozenset.intersection(*(each.kind.not_stored for each in outputs))
    source = _told(outputs[0].settings, SourceSettings, _SLICES | unused, folder)
    for name in ("source", "images"):
        if name in source:
            source[name] = os.path.abspath(folder / source[name])  # noqa: PTH100 - the dataset may be moved, its source not
    tables = {}
    for each in outputs:
        left_out = SourceSettings.model_fields.keys() | _NOT_STORED | each.kind.not_stored | {"dest"}
        layout = {"layout": each.kind.layout} if each.kind.layout else {}
        found = {name: value for name, value in resolved.get(each.name, {}).items() if name not in left_out}
        tables[each.name] = {
            "kind": each.kind.name,
            **layout,
            "path": os.path.relpath(each.settings.dest, folder),
            **_told(each.settings, each.kind.settings, left_out, folder),
            **found,
        }
    source = {_SOURCE_NAMES.get(name, name): value for name, value in source.items()}
    return to_toml({"dest": ".", "source": source, "outputs": tables})


def _told(settings: OutputSettings, kind: type[BaseModel], left_out: AbstractSet[str], folder: Path) -> dict[str, Any]:
    """Settings that are not as by default, as TOML has them."""
    return {
        name: _plain(getattr(settings, name), folder)
        for name, field_ in kind.model_fields.items()
        if name not in left_out and getattr(settings, name) != field_.default
    }


def _plain(value: Any, folder: Path) -> Any:
    """A setting as TOML has it; a path as it is from `folder`."""
    if isinstance(value, Path):
        return os.path.relpath(value, folder)
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if all(isinstance(side, int) for side in value) else list(value)
    return value if isinstance(value, str | int | float | bool | list | dict) else str(value)


def _members(kind: Kind, values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The encoders of a set, as `sd3`, each an output of its own beside the others; else the output itself."""
    members = TEXT_SETS.get(str(values.get("model"))) if kind.name == "text" else None
    if not members:
        yield "", {}
        return
    for member in members:
        dest = values["dest"]
        place = dest.with_name(f"{dest.name}-{member.name}")
        yield member.name, {"member": member.entry.name, "encoder": member.name, "dest": place}


def _passes(jobs: Sequence[Named]) -> list[list[Named]]:
    """Jobs that read the same images by the same runner go together, in order; every other one alone."""
    groups: dict[object, list[Named]] = {}
    for each in jobs:
        root = getattr(each.prepared.job.source, "root", None)
        images = os.path.abspath(root) if root is not None else (each.name,)  # noqa: PTH100 - without following links
        groups.setdefault((images, each.prepared.runner), []).append(each)
    return list(groups.values())


def _close(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f" Did you mean {close[0]}?" if close else f" There are: {', '.join(sorted(known))}"
