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

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentmill.config import OutputSettings, SourceSettings, validated, validated_in
from latentmill.config_types import FILES
from latentmill.errors import ConfigError, LatentmillError, ModelError, SourceError
from latentmill.files import printable, replace_text
from latentmill.formats.metadata import RECIPE_TOML
from latentmill.nearby import instead_of
from latentmill.outcome import Event, Result, Results, Tell, quiet
from latentmill.outputs.kinds import KINDS, Chosen, Kind, kind_of
from latentmill.outputs.shared import Shared
from latentmill.passes import Prepared, run_pass, runner_of
from latentmill.plugins import ENCODERS, installed
from latentmill.recipe_checks import OF_SETS, RUN_FIELDS, SOURCE_FIELDS, check_names, check_places, check_table, meant
from latentmill.recipe_file import NO_FILE, Keys, RecipeFile, in_recipe_words, read_recipe
from latentmill.recipe_stored import SOURCE_NAMES, recipe_of, resolved_settings, stored_toml
from latentmill.transforms.variant import Variant
from latentmill.wording import did_you_mean, hinted

if TYPE_CHECKING:
    from latentmill.recipe_plan import RecipePlan
    from latentmill.registry import TextSetMember

TellOf = Callable[[str], Tell]
_NO_DEFAULTS = SourceSettings.model_fields.keys() | OF_SETS | {"dest"}
_SECTIONS = ("source", "dest", "run", "defaults", "outputs")
_LONGEST = 4096  # of a path, on the systems that are used


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
    of_options: made of a command's options, which errors then tell of; it is stored with each output alone.
    """

    source: str | Path | Mapping[str, Any]
    outputs: Mapping[str, Mapping[str, Any]]
    dest: str | Path = "."
    run_settings: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    file: RecipeFile = NO_FILE
    folder: Path = Path()
    of_options: bool = False

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
        for name in tables:
            if name not in _SECTIONS:
                raise ConfigError(f"{file.place((name,))}a recipe has no {name}.{meant(name, _SECTIONS)}")
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
        check_names(self.file, self.run_settings, ("run",), RUN_FIELDS, "[run]")
        check_table(self.file, self.outputs, ("outputs",))
        known = {each for kind in KINDS for each in kind.settings.model_fields} - _NO_DEFAULTS
        check_names(self.file, self.defaults, ("defaults",), known, "[defaults]")
        if not self.outputs:
            raise ConfigError(f"{self.file.place(('outputs',))}a recipe needs an output: [outputs.NAME] with a kind")
        found = [each for name, table in self.outputs.items() for each in self._output(name, table, source)]
        check_places(self.file, found)
        return found

    def _source(self) -> dict[str, Any]:
        source = {"path": self.source} if isinstance(self.source, str | Path) else self.source
        check_names(self.file, source, ("source",), SOURCE_FIELDS, "[source]")
        if "path" not in source:
            raise ConfigError(f"{self.file.place(('source',))}[source] needs path")
        own = {told: name for name, told in SOURCE_NAMES.items()}
        source = {own.get(name, name): value for name, value in source.items()}
        for name in ("source", "images", "exclude"):
            if source.get(name) is not None:
                source[name] = self._located(source[name], ("source", SOURCE_NAMES.get(name, name)))
        return source

    def _located(self, path: Any, keys: Keys) -> Path:
        """A path of the file is relative to its folder; one of `--set`, to the working directory."""
        found = self._path(path, keys)
        return found if self.file.is_told(keys) else _short(self.folder / found)

    def _within(self, path: Any, keys: Keys) -> Path:
        """An output's place is relative to `dest`, wherever it is told."""
        return _short(self.root / self._path(path, keys))

    def _path(self, path: Any, keys: Keys) -> Path:
        if not isinstance(path, str | Path) or "\0" in str(path):
            raise ConfigError(f"{self.file.place(keys)}{'.'.join(keys)} must be a path, as text. Found: {path!r}")
        return Path(os.path.expanduser(path))  # noqa: PTH111 - which leaves a user that it does not know

    @property
    def root(self) -> Path:
        """The folder of the outputs' folders."""
        return self._located(self.dest, ("dest",))

    def _model(self, name: Any, keys: Keys) -> Any:
        """A model's folder is relative to the file, as other paths; names, installed ones included, are as they are."""
        if not isinstance(name, str) or self.folder == Path() or self.file.is_told(keys):
            return name
        from latentmill.registry import MINI

        folder = self.folder / os.path.expanduser(name)  # noqa: PTH111
        if name == MINI or len(name) >= _LONGEST or not folder.is_dir() or name in installed(ENCODERS):
            return name
        return str(folder)

    def _output(self, name: str, table: Any, source: Mapping[str, Any]) -> Iterator[Chosen]:
        keys: Keys = ("outputs", name)
        check_table(self.file, table, keys)
        own = dict(table)
        try:
            kind = kind_of(own.pop("kind", None), own.pop("layout", None))
        except ConfigError as error:
            others = [other for other in self.outputs if other != name] if "kind" not in table else []
            text = hinted(f"outputs.{name}: {error}", did_you_mean(name, others).replace("mean ", "mean outputs."))
            raise ConfigError(f"{self.file.place((*keys, 'kind'))}{text}") from error
        fields = kind.settings.model_fields.keys() - SourceSettings.model_fields.keys() - {"dest"} | {"path"}
        check_names(self.file, own, keys, fields, f"outputs.{name} ({kind.told})")
        own["dest"] = self._within(own.pop("path", name), (*keys, "path"))
        if own.get("pixels") is not None:
            own["pixels"] = self._within(own["pixels"], (*keys, "pixels"))
        defaults = {key: value for key, value in self.defaults.items() if key in kind.settings.model_fields}
        values = {**source, **self.run_settings, **defaults, **own}
        for setting in ("model", "repository"):
            if setting in values:
                values[setting] = self._model(values[setting], self._told_at(name, setting))
        for member, more in _members(kind, values):
            settings = self._valid(kind, name, {**values, **more})
            yield Chosen(f"{name}-{member}" if member else name, kind, settings, name)

    def _valid(self, kind: Kind, name: str, values: dict[str, Any]) -> OutputSettings:
        def beginning(setting: str) -> str:
            if not setting:
                return f"{self.file.place(('outputs', name))}outputs.{name}: "
            keys = self._told_at(name, setting)
            return f"{self.file.place(keys)}{'.'.join(keys)}"

        if self.of_options:
            return validated(kind.settings, values)
        try:
            return validated_in(kind.settings, values, beginning)
        except ConfigError as error:
            raise ConfigError(in_recipe_words(str(error))) from error

    def _told_at(self, output: str, setting: str) -> Keys:
        """Where a setting of an output was told: there, in the defaults, the run or the source; by its name there."""
        told = SOURCE_NAMES.get(setting, setting)
        own: Keys = ("outputs", output, "path" if setting == "dest" else setting)
        elsewhere = (("defaults", self.defaults), ("run", self.run_settings), ("source", self.source))
        if own[-1] not in self.outputs[output]:
            for section, table in elsewhere:
                name = told if section == "source" else setting
                if isinstance(table, Mapping) and name in table:
                    return section, name
        return own

    def check_source(self, chosen: SourceSettings) -> None:
        if self.of_options or chosen.source_kind != FILES:
            return
        for name in ("source", "images", "exclude"):
            path, keys = getattr(chosen, name), ("source", SOURCE_NAMES.get(name, name))
            if path is not None and not os.path.exists(path):  # noqa: PTH110 - False of what is no path at all
                place = f"{self.file.place(keys)}{'.'.join(keys)}"
                raise SourceError(hinted(f"{place} does not exist: {printable(str(path))}", instead_of(path)))

    def plan(self) -> RecipePlan:
        """What `run` would do: counts, buckets, bytes, time, rejects seen; nothing is written.

        Raises LatentmillError, but not for a model that cannot be had.
        """
        from latentmill.recipe_plan import plan_of

        return plan_of(self)

    # jobs

    def prepare(self, tell_of: TellOf = lambda name: quiet) -> list[Named]:
        """Every job, checked and told; nothing is written. Raises LatentmillError, with the place in the file."""
        chosen = self.chosen()
        self.check_source(chosen[0].settings)
        shared = Shared(encoders=any(each.kind.encodes_images for each in chosen))
        found = []
        for each in chosen:
            tell = self.worded(tell_of(each.name))
            with self.naming(each):
                runner_of(each.settings.runner, each.settings.ray_address)
                shared.tell_excluded(each.settings, tell)
                jobs = each.kind.prepare()(each.settings, shared, tell)
            if others := [Variant.of(job.job.fingerprint).suffix for job in jobs[1:]]:
                tell(Event("plan", f"the same for {', '.join(each.name + suffix for suffix in others)}"))
            for job in jobs:
                name = each.name + Variant.of(job.job.fingerprint).suffix
                named = Named(
                    name, each.name, replace(job, runner=each.settings.runner, address=each.settings.ray_address)
                )
                job.job.recipe, job.job.tell = recipe_of(each, job.job, self._moved), self.worded(tell_of(named.name))
                if not self.of_options or len(chosen) > 1:
                    job.job.called = f"{self.file.place(('outputs', each.table))}outputs.{named.name}: "
                found.append(named)
        return found

    @contextmanager
    def naming(self, chosen: Chosen) -> Iterator[None]:
        """An error of one output is told with its place in the file."""
        try:
            yield
        except LatentmillError as error:
            if self.of_options:
                raise
            raise type(error)(self.told_of(chosen, error)) from error

    def told_of(self, chosen: Chosen, error: LatentmillError) -> str:
        """An error of one output with its place in the file, and with settings as a recipe has them."""
        if isinstance(error, SourceError) and str(error).startswith("the source "):
            return f"{self.file.place(('source', 'path'))}source.path: {in_recipe_words(str(error))}"
        is_model = isinstance(error, ModelError)
        keys = self._told_at(chosen.table, "model") if is_model else ("outputs", chosen.table)
        return f"{self.file.place(keys)}outputs.{chosen.name}: {in_recipe_words(str(error))}"

    def worded(self, tell: Tell) -> Tell:
        """Tells the same but once, and of settings as a recipe has them."""
        if self.of_options:
            return tell
        seen: set[str] = set()

        def tell_once(event: Event) -> None:
            text = in_recipe_words(event.text)
            if not text or text not in seen:
                tell(replace(event, text=text))
            seen.add(text)

        return tell_once

    def run(self, tell_of: TellOf = lambda name: quiet) -> Results:
        """Make every output; gives what became of each, by name.

        Outputs of images are made in one pass, then those of captions. One that refuses (its settings are others than
        it was made with, say) leaves the rest to be made. Raises RecipeError then, and any other LatentmillError.
        """
        return self.carry_out(self.prepare(tell_of))

    def carry_out(self, jobs: Sequence[Named]) -> Results:
        """Run what `prepare` gave; see `run`."""
        results = Results()
        errors: dict[str, LatentmillError] = {}
        passes = _passes(jobs)
        for group in passes:
            then = (lambda: self._store(jobs)) if group is passes[-1] and not errors else None
            for each, found in zip(group, run_pass([each.prepared for each in group], then), strict=True):
                if isinstance(found, Result):
                    results[each.name] = found
                else:
                    errors[each.name] = type(found)(f"{each.prepared.job.called}{found}")
        if errors and not self.file.name and len(jobs) == 1:
            raise next(iter(errors.values()))
        if errors:
            raise RecipeError(errors, results)
        return results

    def _repr_html_(self) -> str:
        from latentmill.showing.plans import recipe_html

        return recipe_html(self)

    def __repr__(self) -> str:
        from latentmill.showing.plans import recipe_text

        return recipe_text(self)

    # the recipe with its result

    def to_toml(self, resolved: Mapping[str, Mapping[str, Any]] | None = None) -> str:
        """The whole recipe as it lies in `root`: every setting that is not as by default.

        resolved: of outputs by name, settings as they were found while the jobs were prepared.
        """
        return stored_toml(self.chosen(), self.root, self._moved, resolved or {})

    def _is_stored_with_one(self) -> bool:
        """Whether this is an output's own recipe, run in its place, where the whole one may lie too."""
        file = Path(self.file.name)
        whole = file.name == RECIPE_TOML and file.parent.resolve() == self.root.resolve()
        stored = file.name == RECIPE_TOML or file.name.endswith(f".zip.{RECIPE_TOML.removeprefix('latentmill-')}")
        return stored and not whole and not self.file.is_told(("dest",))

    @property
    def _moved(self) -> Path | None:
        """The folder that is moved as a whole, where there is one."""
        return self.root if str(self.dest) or not self.of_options else None

    def _store(self, jobs: Sequence[Named]) -> None:
        """In the folder that the outputs have in common, where it is none of theirs."""
        root = self.root
        dests = [Path(os.path.abspath(each.settings.dest)) for each in self.chosen()]  # noqa: PTH100 - not its target
        whole = all(Path(os.path.abspath(root)) in dest.parents for dest in dests)  # noqa: PTH100
        if whole and not self.of_options and not self._is_stored_with_one():
            resolved = {each.output: resolved_settings(each.prepared.job) for each in jobs}
            file, text = root / RECIPE_TOML, self.to_toml(resolved)
            if not file.exists() or file.read_bytes() != text.encode():
                replace_text(file, text)
            for left in root.glob(f"{RECIPE_TOML}.tmp*"):  # of a run that was cut off here
                left.unlink(missing_ok=True)


def _members(kind: Kind, values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The encoders of a set, as `sd3`, each an output of its own beside the others; else the output itself."""
    members = _of_set(values.get("model")) if kind.name == "text" and values.get("member") is None else ()
    if not members:
        yield "", {}
        return
    for member in members:
        dest = values["dest"]
        place = dest.with_name(f"{dest.name}-{member.name}")
        yield member.name, {"member": member.entry.name, "encoder": member.name, "dest": place}


def _of_set(model: object) -> tuple[TextSetMember, ...]:
    """The encoders that the name of a set stands for; none for any other name."""
    from latentmill.registry import TEXT_SETS

    return TEXT_SETS.get(str(model), ())


def _passes(jobs: Sequence[Named]) -> list[list[Named]]:
    """Jobs that read the same images by the same runner go together, in order; every other one alone."""
    groups: dict[object, list[Named]] = {}
    for each in jobs:
        root = getattr(each.prepared.job.source, "root", None)
        images = os.path.abspath(root) if root is not None else (each.name,)  # noqa: PTH100 - without following links
        groups.setdefault((images, each.prepared.runner), []).append(each)
    return list(groups.values())


def _short(path: Path) -> Path:
    """Without `..`, where that leads to the same place: links may lead elsewhere."""
    found = Path(os.path.normpath(path))
    return found if found.resolve() == path.resolve() else path
