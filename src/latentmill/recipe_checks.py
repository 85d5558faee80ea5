"""What is refused in a recipe's tables before anything is looked at: unknown names, places inside each other."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentmill.config import RunSettings, SourceSettings
from latentmill.errors import ConfigError
from latentmill.outputs.kinds import Chosen
from latentmill.recipe_file import Keys, RecipeFile
from latentmill.recipe_stored import SOURCE_NAMES

SOURCE_FIELDS = SourceSettings.model_fields.keys() - SOURCE_NAMES.keys() | set(SOURCE_NAMES.values())
RUN_FIELDS = frozenset(RunSettings.model_fields)
OF_SETS = frozenset({"member", "encoder", "images_reader"})  # settings that recipes are stored with, not told of


def check_table(file: RecipeFile, table: Any, keys: Keys) -> None:
    """Refuse what is no table. Raises ConfigError."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{file.place(keys)}{'.'.join(keys)} must be a table. Found: {table!r}")


def check_names(file: RecipeFile, table: Any, keys: Keys, known: Any, where: str) -> None:
    """Refuse a setting that nothing has. known: those there are. Raises ConfigError."""
    check_table(file, table, keys)
    for name in table:
        if name not in known:
            place = file.place((*keys, name))
            raise ConfigError(f"{place}{where} has no setting {name}.{meant(name, known - OF_SETS)}")


def check_places(file: RecipeFile, outputs: Sequence[Chosen]) -> None:
    """Refuse outputs of one place or one name, or inside each other. Raises ConfigError."""
    taken: dict[Path, tuple[Chosen, Path]] = {}
    names: dict[str, str] = {}
    for each in outputs:
        for place in each.places:
            path = Path(os.path.abspath(place))  # noqa: PTH100 - without following links
            for other, (owner, its_place) in taken.items():
                if path == other or path in other.parents or other in path.parents:
                    also = "its own pixels" if owner is each else f"outputs.{owner.table}"
                    where = file.place(("outputs", each.table, "path"))
                    raise ConfigError(
                        f"{where}outputs.{each.table} and {also} must not be the same place or inside each other. "
                        f"Found: {place} and {its_place}"
                    )
            taken[path] = each, place
        for name in each.names:
            if name in names:
                where = f"{file.place(('outputs', each.table))}outputs.{each.table}"
                raise ConfigError(f"{where} and outputs.{names[name]} both make {name!r}: name one otherwise")
            names[name] = each.table


def meant(name: str, known: Any) -> str:
    """Where such a setting belongs, or what it may be."""
    for section, fields in (("source", SOURCE_FIELDS - {"path", "kind", "options"}), ("run", RUN_FIELDS)):
        if name in fields:
            return f" It belongs in [{section}]"
    return close(name, known)


def close(name: str, known: Any) -> str:
    """What may have been meant, or all that there is."""
    found = difflib.get_close_matches(name, sorted(known), 1)
    return f" Did you mean {found[0]}?" if found else f" There are: {', '.join(sorted(known))}"
