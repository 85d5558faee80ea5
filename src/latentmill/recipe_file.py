"""A recipe as a TOML file: read with the place of every setting in it, changed by `--set`, written."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from latentmill.errors import ConfigError, SourceError

_HEADER = re.compile(r"\s*\[\[?\s*(.+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_ADDRESS = "file://"
_SYNTAX_PLACE = re.compile(r"(.*) \(at line (\d+), column (\d+)\)")
Keys = tuple[str, ...]  # of a setting, as ("outputs", "sd", "resolution")


@dataclass(frozen=True)
class RecipeFile:
    """Where a recipe's settings were told. lines: of tables and keys. told: by `--set`, as it was given."""

    name: str = ""
    lines: dict[Keys, int] = field(default_factory=dict)
    told: dict[Keys, str] = field(default_factory=dict)

    def place(self, path: Keys) -> str:
        """`recipe.toml, line 7: `, or the `--set`, of a setting or of what it would be in; "" without a file."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.told:
                return f"--set {self.told[path[:length]]}: "
            if path[:length] in self.lines:
                return f"{self.name}, line {self.lines[path[:length]]}: "
        return f"{self.name}: " if self.name else ""


NO_FILE = RecipeFile()


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], RecipeFile]:
    """The tables of a recipe, `a.b=c` settings over them, and where each was told. Raises SourceError, ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"the recipe {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"the recipe {path} is not UTF-8 text (byte {error.start:,})") from error
    try:
        table = _with_paths(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        found = _SYNTAX_PLACE.fullmatch(str(error))
        where, what = (f"{path}, line {found[2]}", found[1]) if found else (str(path), str(error))
        raise ConfigError(f"{where}: not TOML: {what}") from error
    told = {}
    for override in overrides:
        where_to = _override(table, override)
        told[where_to] = override
    return table, RecipeFile(str(path), lines_of(text), told)


def _override(table: dict[str, Any], override: str) -> Keys:
    """Set one setting of the tables; gives its path."""
    name, equals, value = override.partition("=")
    parts = tuple(part.strip() for part in name.split("."))
    if not equals or not all(parts):
        raise ConfigError(f"--set must be NAME=VALUE, as outputs.sd.batch_size=16. Found: {override!r}")
    inner = table
    for part in parts[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {part} is a value, and holds no settings")
    inner[parts[-1]] = _value(value.strip())
    return parts


def _value(text: str) -> Any:
    """As TOML has it; what is none of its values is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def lines_of(text: str) -> dict[Keys, int]:
    """The line of every table and every key that begins a line, of valid TOML."""
    lines: dict[Keys, int] = {}
    table: Keys = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            table = _parts(header[1])
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            parts = _parts(key[1])
            for length in range(1, len(parts) + 1):
                lines.setdefault(table + parts[:length], number)
    return lines


def _parts(name: str) -> Keys:
    return tuple(part.strip("\"'") for part in _KEY_PART.findall(name))


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML of tables; None is left out, since TOML has none."""
    import tomli_w

    return tomli_w.dumps(_without_none(table))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    return _as_text(str(value)) if isinstance(value, str | Path) else value


def _as_text(value: str) -> str:
    """A text as TOML can hold it: a path that is not UTF-8 becomes a `file://` address."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return Path(os.path.abspath(value)).as_uri()  # noqa: PTH100 - without following links
    return value


def _with_paths(value: Any) -> Any:
    """The inverse, of all texts in a table."""
    if isinstance(value, dict):
        return {name: _with_paths(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_paths(inner) for inner in value]
    if isinstance(value, str) and value.startswith(_ADDRESS):
        return os.fsdecode(unquote_to_bytes(value.removeprefix(_ADDRESS)))
    return value
