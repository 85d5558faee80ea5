"""What MkDocs does beside its own: pages made of the code and of the repository's files, and the drawn data flow."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # hooks are loaded by their file

import command_reference
import recipe_reference
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
MADE = {"reference/recipe.md": recipe_reference.page, "reference/commands.md": command_reference.page}
SHOWN = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}  # files of the repository's root
_FLOW = "architecture.md", "assets/data-flow.html"
_FENCE = re.compile(r"^```\n.*?^```\n", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^]]+)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie nowhere in `docs`."""
    for name, page in MADE.items():
        files.append(File.generated(config, name, content=page()))
    for name, source in SHOWN.items():
        if not (ROOT / source).is_file():
            raise PluginError(f"the page {name} shows {source}, which is not there")
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Draw the data flow, and tell where in the repository a file lies that is no page."""
    name = page.file.src_uri
    if name == _FLOW[0]:
        markdown = _drawn(markdown, Path(config.docs_dir) / _FLOW[1])
    base = ROOT if name in SHOWN else Path(config.docs_dir, name).parent
    return _LINK.sub(lambda link: _within(link, base.resolve(), Path(config.docs_dir).resolve()), markdown)


def _drawn(markdown: str, drawing: Path) -> str:
    """The first diagram in characters becomes the drawing, which follows the page's colours."""
    changed, count = _FENCE.subn(lambda _: drawing.read_text(encoding="utf-8") + "\n", markdown, count=1)
    if not count:
        raise PluginError(f"{_FLOW[0]} has no diagram for {drawing.name} to take the place of")
    return changed


def _within(link: re.Match[str], base: Path, docs: Path) -> str:
    """A link to a file of the repository that is no page becomes its path; one to a page, a link within the site."""
    text, address = link.groups()
    file, _, anchor = address.partition("#")
    if not file or ":" in file:
        return link[0]
    target = (base / file).resolve()
    if target.is_relative_to(docs):
        inside = target.relative_to(docs).as_posix() if base == ROOT else file
        return f"[{text}]({inside}{'#' if anchor else ''}{anchor})"
    if not target.exists() or not target.is_relative_to(ROOT):
        return link[0]  # MkDocs says that it leads nowhere
    path = f"`{target.relative_to(ROOT).as_posix()}`"
    return path if text.strip("`") in path else f"{text} ({path})"
