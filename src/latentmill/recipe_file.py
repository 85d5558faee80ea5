"""A recipe as a TOML file: read with the place of every setting in it, changed by `--set`, written."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentmill.errors import ConfigError, SourceError
from latentmill.nearby import instead_of
from latentmill.wording import hinted

_SYNTAX_PLACE = re.compile(r"(.*) \(at line (\d+), column (\d+)\)")
_TOKEN = re.compile(
    r"""
      (?P<comment> \#[^\n]* )
    | (?P<string> \"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\])*" | '[^']*' )
    | (?P<mark> [][{},=\n] )
    | (?P<bare> [^][{},=\s\#"']+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_OPTION = re.compile(r"(`[^`]*`)|--([a-z]+(?:-[a-z]+)*)")
_OPTION_NAMES = {
    "model-url": "model",
    "vae": "model",
    "text-encoder": "model",
    "caption-label": "label",
    "caption-column": "caption_columns",
    "overwrite": "--overwrite",
    "set": "--set",
    "dest": "path",
    "data-info": "path",
}
_PATHS = frozenset({"dest", "source", "path", "images", "exclude", "pixels"})  # settings
Keys = tuple[str, ...]  # of a setting, as ("outputs", "sd", "resolution")


@dataclass(frozen=True)
class RecipeFile:
    """Where a recipe's settings were told. lines: of tables and keys. told: by `--set`, as it was given."""

    name: str = ""
    lines: dict[Keys, int] = field(default_factory=dict)
    told: dict[Keys, str] = field(default_factory=dict)

    def place(self, path: Keys) -> str:
        """`recipe.toml, line 7: `, or the `--set`, of a setting or of what it would be in; "" without a file."""
        for inner in _prefixes(path):
            if (found := self._told_by(inner)) is not None:
                return f"--set {found}: "
            if inner in self.lines:
                return f"{self.name}, line {self.lines[inner]}: "
        return f"{self.name}: " if self.name else ""

    def knows(self, path: Keys) -> bool:
        """Whether this very setting, or something in it, was told."""
        return path in self.lines or self._told_by(path) is not None

    def is_told(self, path: Keys) -> bool:
        """Whether `--set` gave this setting, or the table that it is in."""
        return any(inner in self.told for inner in _prefixes(path))

    def _told_by(self, path: Keys) -> str | None:
        """The `--set` of it, of a table around it, or of the first setting of a table that the file lacks."""
        for inner in _prefixes(path):
            if inner in self.told:
                return self.told[inner]
        if path in self.lines:
            return None
        return next((text for keys, text in self.told.items() if keys[: len(path)] == path), None)


NO_FILE = RecipeFile()


def _prefixes(path: Keys) -> Iterator[Keys]:
    """A path and what it is in, the longest first."""
    return (path[:length] for length in range(len(path), 0, -1))


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], RecipeFile]:
    """The tables of a recipe, `a.b=c` settings over them, and where each was told. Raises SourceError, ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        text = f"the recipe {path} cannot be read: {error.strerror or error}"
        raise SourceError(hinted(text, _rather(path))) from error
    except UnicodeDecodeError as error:
        raise SourceError(f"the recipe {path} is not UTF-8 text (byte {error.start:,})") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _SYNTAX_PLACE.fullmatch(str(error))
        where, what = (f"{path}, line {found[2]}", found[1]) if found else (str(path), str(error))
        raise ConfigError(f"{where}: not TOML: {what}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a recipe: tables or lists are nested too deep") from error
    told = {}
    for override in overrides:
        told[_override(table, override)] = override
    return table, RecipeFile(str(path), lines_of(text), told)


def _override(table: dict[str, Any], override: str) -> Keys:
    """Set one setting of the tables; gives its path."""
    name, equals, value = override.partition("=")
    path = _path(name)
    if not equals or not path:
        raise ConfigError(f"--set must be NAME=VALUE, as outputs.sd.batch_size=16. Found: {override!r}")
    if path[0] == "source" and isinstance(table.get("source"), str):
        table["source"] = {"path": table["source"]}
    inner = table
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {part} is a value, and holds no settings")
    inner[path[-1]] = _value(value.strip())
    if path[-1] in _PATHS and not isinstance(inner[path[-1]], str | dict):
        inner[path[-1]] = value.strip()  # a folder may be called 2024
    return path


def _path(name: str) -> Keys:
    """The parts of a dotted name; () of what is none."""
    try:
        inner = tomllib.loads(f"{name.strip()} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    path: Keys = ()
    while isinstance(inner, dict) and len(inner) == 1:
        ((part, inner),) = inner.items()
        path += (part,)
    return () if isinstance(inner, dict) else path


def _value(text: str) -> Any:
    """As TOML has it; what is none of its values is a text."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def lines_of(text: str) -> dict[Keys, int]:
    """The line of every table and every key of valid TOML, but of those inside lists."""
    lines: dict[Keys, int] = {}
    table: Keys = ()
    path: Keys = ()  # of the key that is read, or whose value is
    around: list[Keys | None] = []  # the tables in braces that are open; None of a list, and of all within
    header = in_value = False
    for kind, token, number in _tokens(text):
        if around and around[-1] is None and token not in ("[", "]", "{", "}"):
            continue
        if token == "\n" and not around:
            path, header, in_value = (), False, False
        elif kind != "mark":
            path += () if in_value else _parts(kind, token)
        elif in_value and token in ("[", "{"):
            around.append(path if token == "{" and None not in around else None)
            path, in_value = (), around[-1] is None
        elif around and token in ("]", "}"):
            around.pop()
            in_value = True
        elif token == "[":
            header = True
        elif token == "]" and header and path:
            table, path = path, ()
            _note(lines, (), table, number)
        elif token == ",":
            path, in_value = (), False
        elif token == "=":
            outer = (around[-1] if around else table) or ()
            _note(lines, outer, path, number)
            path, in_value = outer + path, True
    return lines


def _note(lines: dict[Keys, int], table: Keys, path: Keys, number: int) -> None:
    for length in range(1, len(path) + 1):
        lines.setdefault(table + path[:length], number)


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """The kind (`mark`, `bare`, `string`), the text and the line of each token."""
    number, position = 1, 0
    for match in _TOKEN.finditer(text):
        number += text.count("\n", position, match.start())
        position = match.start()
        if match.lastgroup is not None and match.lastgroup != "comment":
            yield match.lastgroup, match[0], number


def _parts(kind: str, token: str) -> Keys:
    """The keys that a token of a key names."""
    if kind == "bare":
        return tuple(filter(None, token.split(".")))
    return (tomllib.loads(f"key = {token}")["key"],)


def in_recipe_words(text: str) -> str:
    """A text that tells of a command's options, with the names that settings have in a recipe; not in `code`."""

    def name(match: re.Match[str]) -> str:
        return match[1] or _OPTION_NAMES.get(match[2], match[2].replace("-", "_"))

    return _OPTION.sub(name, text)


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML of tables; None is left out, since TOML has none."""
    import tomli_w

    return tomli_w.dumps(_without_none(table))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _rather(path: Path) -> str:
    """What to do where a recipe cannot be read: take another, or have one made."""
    if path.is_dir():
        return f" It is a folder; to have a recipe written for photos in it: latentmill init {path}"
    return instead_of(path) or " To have one written: latentmill init PHOTOS"
