"""Docstrings as this project writes them, in Markdown: a line `name, other: what it is` becomes an item of a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ITEM = re.compile(r"^(?P<names>[a-z_]+(?:, [a-z_]+)*): (?=\S)")
_LAST = re.compile(r"^(Raises|Returns|Draws|Whoever|Both|No) |^`")  # begin a paragraph after a list


class Items(griffe.Extension):
    """Changes every docstring once it is read."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = in_markdown(obj.docstring.value)


def in_markdown(text: str) -> str:
    """The lines of parameters as a list, each with the lines that go on with it."""
    lines: list[str] = []
    in_item = False
    for line in text.splitlines():
        if item := _ITEM.match(line):
            names = ", ".join(f"`{name}`" for name in item["names"].split(", "))
            lines += [] if in_item else [""]
            line, in_item = f"- {names}: {line[item.end() :]}", True
        elif in_item and (not line.strip() or _LAST.match(line)):
            lines.append("")
            in_item = False
        elif in_item:
            line = f"  {line}"
        lines.append(line)
    return "\n".join(lines)
