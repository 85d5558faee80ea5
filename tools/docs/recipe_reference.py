"""The recipe reference as Markdown, made of the settings themselves: names, values, defaults, descriptions."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from latentmill.config import RunSettings, SourceSettings, VariantSettings
from latentmill.config_base import SettingsBase
from latentmill.config_shared import CropSettings
from latentmill.config_types import BatchSize, Device, FailureLimit, FolderPart, PixelRange, Size
from latentmill.encoders.text_settings import TextSettings
from latentmill.outputs.kinds import BUCKETS, LATENTS, PIXELS, TEXT, VISION, Kind
from latentmill.recipe_stored import SOURCE_NAMES

_WORDS: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    Path: "path",
    FailureLimit: "number or percentage",
    dict[str, Any]: "table",
}
_BY_FORM = {  # of types that are read from text
    typing.get_args(Size): "`WxH`",
    typing.get_args(PixelRange): '`"-1,1"` or `"0,1"`',
    typing.get_args(BatchSize): '`1`, `2`, … or `"auto"`',
    typing.get_args(Device): "device",
    typing.get_args(FolderPart): "text",
}
_LONG = 10_000  # from which on numbers have their thousands marked
_HEAD = """\
# Recipe reference

Every setting of a recipe: where it goes, what it takes, its default. This page is made from latentmill's own settings
when the site is built, so it cannot be out of date.

A recipe is a TOML file. Paths in it are relative to the file. `latentmill init SRC` writes a first one with comments,
`latentmill plan` shows what a recipe would do, `latentmill run` does it. Any setting can be given on the command line
instead, with its full name: `--set outputs.vae-sd.batch_size=16`. A misspelt or misplaced setting is refused, with the
line it stands in and what may have been meant.

| at the top | what it takes |
|---|---|
| `dest` | path of the folder in which every output gets a folder of its name. Default: the recipe's own folder |
| `[source]` | where images and captions come from; a path alone will do: `source = "photos"` |
| `[run]` | how the work is run; nothing of it changes what is made |
| `[defaults]` | settings that every output takes which has them and does not say otherwise |
| `[outputs.NAME]` | one table for each output, with its `kind` |
"""
_OUTPUT = """
An output also takes the settings of [`[run]`](#run) for itself alone, and `path`: its folder (or zip) in `dest`, if
that is not to be its name.
"""
_ENCODING = """\
What `encoding` of a text output takes, as `encoding = {layers = [-2], template = "chat"}`. Short names and sets have
their pipelines' own settings already; you need it for other models.
"""
_KINDS = (
    (PIXELS, "Cropped 8-bit RGB PNGs of one size, as REPA's, SiT's and EDM2's trainers read them."),
    (
        LATENTS,
        "VAE latents of one size, by number, as REPA's, SiT's and EDM2's trainers read them. The default layout.",
    ),
    (BUCKETS, "VAE latents in aspect buckets or squares, named by the images' paths, as PixArt's trainers read them."),
    (VISION, "Features of DINOv2, DINOv3, CLIP or SigLIP, as REPA's alignment loss compares with."),
    (TEXT, "Features of the captions: of T5, UMT5, CLIP, Gemma or Qwen."),
)


def page() -> str:
    """The whole page."""
    shared = set(SourceSettings.model_fields) | set(RunSettings.model_fields) | {"dest"}
    parts = [_HEAD, "## [source] {: #source }\n", _table(SourceSettings, SourceSettings.model_fields)]
    parts += ["## [run] {: #run }\n", _table(RunSettings, RunSettings.model_fields)]
    parts += ["## [outputs.NAME] {: #outputs }\n", _OUTPUT]
    for kind, what in _KINDS:
        parts += [_heading(kind), f"{what}\n", _of_kind(kind, shared)]
    parts += ["## encoding {: #encoding }\n", _ENCODING, *_encoding()]
    return "\n".join(parts) + "\n"


def _encoding() -> Iterator[str]:
    """The settings of a text output's `encoding`, as their own docstring tells them."""
    _, _, items = (TextSettings.__doc__ or "").partition("\n\n")
    text = "\n".join(line.strip() for line in items.splitlines())
    for name, what in re.findall(r"^([a-z]+): (.*?)(?=^[a-z]+: |\Z)", text, re.MULTILINE | re.DOTALL):
        yield f"- `{name}`: {' '.join(what.split())}"


def _heading(kind: Kind) -> str:
    layout = f', layout = "{kind.layout}"' if kind.layout else ""
    return f'### kind = "{kind.name}"{layout} {{: #{"-".join(filter(None, (kind.name, kind.layout)))} }}\n'


def _of_kind(kind: Kind, shared: Set[str]) -> str:
    """The kind's own settings first, then those of crops and of variants, where it has them."""
    of_variants = [name for name in VariantSettings.model_fields if name not in shared]
    of_crops = [name for name in CropSettings.model_fields if name not in {*shared, *of_variants}]
    fields = kind.settings.model_fields
    own = [name for name in fields if name not in {*shared, *of_variants, *of_crops}]
    groups = [own, [n for n in of_crops if n in fields], [n for n in of_variants if n in fields]]
    return _table(kind.settings, [name for group in groups for name in group])


def _table(settings: type[SettingsBase], names: Iterable[str]) -> str:
    rows = ["| setting | takes | default | |", "|---|---|---|---|"]
    hints = typing.get_type_hints(settings, include_extras=True)
    rows += [_row(name, hints[name], settings.model_fields[name], settings is SourceSettings) for name in names]
    return "\n".join(rows) + "\n"


def _row(name: str, kind: Any, field: FieldInfo, of_source: bool) -> str:
    told = SOURCE_NAMES.get(name, name) if of_source else name
    cells = (f"`{told}`", _takes(kind), _default(field), _described(name, field))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _described(name: str, field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"the setting {name} has no description: give it one where it is defined (config*.py)")
    return field.description


def _takes(kind: Any) -> str:
    """What a person may write for a type."""
    if typing.get_args(kind) in _BY_FORM and typing.get_origin(kind) is typing.Annotated:
        return _BY_FORM[typing.get_args(kind)]
    return " or ".join(dict.fromkeys(_words(kind)))


def _words(kind: Any) -> Iterator[str]:
    if kind in _WORDS:
        yield _WORDS[kind]
    elif typing.get_args(kind) in _BY_FORM:
        yield _BY_FORM[typing.get_args(kind)]
    elif typing.get_origin(kind) is typing.Annotated:
        yield from _words(typing.get_args(kind)[0])
    elif typing.get_origin(kind) is Literal:
        yield " ".join(f'`"{value}"`' for value in typing.get_args(kind))
    elif typing.get_origin(kind) in (typing.Union, types.UnionType):
        for inner in typing.get_args(kind):
            if inner is not types.NoneType:
                yield from _words(inner)
    elif typing.get_origin(kind) in (list, dict):
        yield "list" if typing.get_origin(kind) is list else "table"
    else:
        raise ValueError(f"no words for the type {kind!r}: add them to {Path(__file__).name}")


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.is_required():
        return "needed"
    if value is None or value == {}:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f'`"{",".join(f"{each:g}" for each in value)}"`'
    if isinstance(value, int):
        return f"`{value:_}`" if value >= _LONG else f"`{value}`"
    return f'`"{value}"`'
