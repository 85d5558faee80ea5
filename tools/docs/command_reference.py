"""The command reference as Markdown, made of the command line itself: usage, examples, every option with its help."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import typer.main

from latentmill.command import _TELLING as TELLING

_HEAD = """\
# Command reference

Every command and option, as `latentmill COMMAND --help` tells them. This page is made from the command line itself when
the site is built, so it cannot be out of date.

"""
_COMMON = """\
`bench` and `doctor` have a `--json` of their own, which prints one object.
"""
_MARKUP = re.compile(r"\[/?[a-z ]*\]")  # Rich's


def page() -> str:
    """The whole page."""
    from latentmill.cli import app

    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="latentmill")
    names: Sequence[str] = group.list_commands(context)
    commands = {name: group.get_command(context, name) for name in names}
    parts = [_HEAD, "## latentmill {: #latentmill }\n", *_options(group, context)]
    parts += [
        "## Options of every command {: #common }\n",
        _COMMON,
        *_options(commands[names[0]], context, common=True),
    ]
    for name, command in commands.items():
        parts += [f"## latentmill {name} {{: #{name} }}\n", *_command(command, context, name)]
    return "\n".join(parts) + "\n"


def _command(command: Any, parent: Any, name: str) -> Iterator[str]:
    context = typer.Context(command, info_name=name, parent=parent)
    yield "\n\n".join(" ".join(each.split()) for each in (command.help or "").strip().split("\n\n")) + "\n"
    pieces = " ".join(command.collect_usage_pieces(context)).replace("{", "").replace("}", "")
    yield f"```text\nlatentmill {name} {pieces}\n```\n"
    if command.examples:
        yield "```bash\n" + "\n".join(command.examples) + "\n```\n"
    yield from _options(command, context)


def _options(command: Any, context: Any, common: bool = False) -> Iterator[str]:
    """A table for each panel of the help, in order. common: of the options that every command has, or of the others."""
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        is_common = getattr(parameter, "rich_help_panel", None) == TELLING or parameter.name == "help"
        if getattr(parameter, "hidden", False) or (is_common != common and hasattr(command, "examples")):
            continue
        kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panel = getattr(parameter, "rich_help_panel", None) or kind
        panels.setdefault(panel, []).append(_row(parameter, context))
    for panel, rows in panels.items():
        yield f"| {panel} | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _row(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        takes = "" if parameter.is_flag else f" {_takes(parameter, context)}"
        names = " ".join(f"`{name}{takes}`" for name in (*parameter.opts, *parameter.secondary_opts))
    text = _MARKUP.sub("", parameter.help or "").strip()
    sentence = text if not text or text[-1] in ".:)" else f"{text}."
    cells = (names, sentence.replace("<", "&lt;") + _default(parameter))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _takes(parameter: Any, context: Any) -> str:
    """As the help has it, without angle brackets."""
    return str(parameter.metavar or parameter.display_type(context)).replace("<", "").replace(">", "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return " **Needed.**" if parameter.param_type_name == "option" else ""
    value = parameter.default
    if value is None or value is False or value == "" or not getattr(parameter, "show_default", True):
        return ""
    if callable(value) or isinstance(value, list | tuple):
        return ""
    return f" Default: `{value}`."
