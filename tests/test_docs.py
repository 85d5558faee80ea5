"""Every command and program in README and the documentation works, in order; what pages say of the code is true of it.

Commands run as they stand, in a folder of their page, with the demo's photos and with small models in the hub's cache.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import latentmill
from docs_runner import ROOT, Block, blocks_of, hub_cache, prepare, run_command
from latentmill import events
from latentmill.recipe import Recipe

sys.path.insert(0, str(ROOT / "tools" / "docs"))
DOCS = ROOT / "docs"
PAGES = ["README.md", *sorted(f"docs/{path.relative_to(DOCS).as_posix()}" for path in DOCS.rglob("*.md"))]
FOREIGN = [page for page in PAGES if page.startswith("docs/coming-from/")]  # which tell of other programs' options
INSTALLING, CLUSTER = "installs: CI does, and the extras are looked up below", "needs a cluster: tests/test_ray.py"

# (page, beginning of the line): why it is not run. Each must be met.
NOT_RUN = {
    ("README.md", "make test"): "is this",
    ("README.md", "pip install ."): INSTALLING,
    ("docs/quickstart.md", "pip install"): INSTALLING,
    ("docs/guides/choosing-a-vae.md", "pip install"): INSTALLING,
    ("docs/guides/finetune.md", "pip install"): INSTALLING,
    ("docs/guides/looking.md", "pip install"): INSTALLING,
    ("docs/guides/ray.md", "pip install"): INSTALLING,
    ("docs/guides/ray.md", "latentmill convert"): CLUSTER,
    ("docs/guides/ray.md", "ray start"): CLUSTER,
    ("docs/guides/ray.md", "latentmill encode"): CLUSTER,
}
# (page, beginning): `data` is removed before, since the page tells another way to the same place.
ANEW = {
    ("README.md", "latentmill encode --source train"),
    ("README.md", "latentmill import photos"),
    ("README.md", "import latentmill\n\nlatentmill.convert"),
    ("README.md", "recipe = latentmill.Recipe"),
}
# (page, beginning): what is changed so that it takes seconds. Each must be met.
SHORTER = {
    ("README.md", "make demo"): ("make", "latentmill"),  # which it runs
    ("README.md", "python examples/train_class.py"): (
        "vae-mini",
        "vae-mini --steps 1 --width 64 --depth 1 --sampling-steps 1",
    ),
    ("README.md", "python examples/train_t2i.py"): ("pixart", "pixart --steps 1 --width 64 --depth 1"),
    ("README.md", "import latentmill\nfrom torch"): ("num_workers=4", "num_workers=0"),
    ("docs/guides/settings.md", "latentmill convert --source photos --dest tuned"): ("256x256", "64x64"),
    ("docs/guides/imagenet.md", "latentmill convert --source ILSVRC/Data/CLS-LOC/train --dest data/img512"): (
        "512x512",
        "64x64",
    ),
    ("docs/guides/settings.md", "latentmill bench"): ("--seconds 10", "--seconds 1"),
    ("docs/guides/choosing-a-vae.md", "latentmill compare-vae"): ("256x256", "64x64"),
    ("docs/quickstart.md", "latentmill report"): ("report.html", "report.html --sample 2"),
    ("docs/guides/finetune.md", "latentmill report"): ("trial.html", "trial.html --sample 2"),
    ("docs/guides/looking.md", "latentmill report"): ("report.html", "report.html --sample 2"),
    ("docs/guides/finetune.md", "latentmill run tune.toml"): (
        "tune.toml",
        "tune.toml --set outputs.latents.resolution=256",
    ),
}


def met(table: dict[tuple[str, str], object] | set[tuple[str, str]], page: str, text: str) -> tuple[str, str] | None:
    """The entry of a table that a line or a program of a page is meant by."""
    return next((entry for entry in table if entry[0] == page and text.startswith(entry[1])), None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_cache(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, which two pages run: made once, so that they find it finished."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        assert run_command("latentmill demo", monkeypatch) == 0
    return folder / "latentmill-demo"


@pytest.fixture
def here(models: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that a page takes to be there; one core, so that few processes are started."""
    import huggingface_hub.constants as hub

    shutil.copytree(demo, tmp_path / "latentmill-demo", copy_function=shutil.copy2)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(models))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(models))  # of processes that are started
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shortened(page: str, text: str) -> str:
    entry = met(SHORTER, page, text)
    if entry is None:
        return text
    old, new = SHORTER[entry]
    assert old in text
    return text.replace(old, new)


def run_block(block: Block, names: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a block as a reader would who has done all before it on the page."""
    for text in block.commands if block.language == "bash" else [block.text]:
        if met(ANEW, block.page, text):
            shutil.rmtree("data", ignore_errors=True)
        if block.language == "bash" and not met(NOT_RUN, block.page, text):
            assert run_command(shortened(block.page, text), monkeypatch) == 0, f"{block.page}: {text}"
        elif block.language == "python":
            exec(compile(shortened(block.page, text), block.page, "exec"), names)


def has_code(page: str) -> bool:
    return any(block.language in ("bash", "python") for block in page_blocks(page))


@cache
def page_blocks(page: str) -> list[Block]:
    return blocks_of(page, (ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if has_code(page)])
def test_a_page_can_be_followed(page: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in page_blocks(page):
        if block.title:
            (here / block.title).write_text(block.text)
        run_block(block, names, monkeypatch)


def test_no_exception_is_left_over() -> None:
    """The lists of what is not run as it stands name what is there, and nothing else."""
    told: dict[str, list[str]] = {page: [] for page in PAGES}
    for page in PAGES:
        for block in page_blocks(page):
            told[page] += block.commands if block.language == "bash" else [block.text]
    for table in (NOT_RUN, ANEW, SHORTER):
        for page, beginning in table:
            assert any(text.startswith(beginning) for text in told[page]), f"{page} has no {beginning!r} any more"
    assert len(NOT_RUN) <= 12


def test_extras_and_targets_that_pages_name_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    assert {name for names in re.findall(r"latentmill\[([a-z,]+)\]", text) for name in names.split(",")} <= set(extras)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M)) <= targets


def test_the_python_page_has_every_public_name() -> None:
    page = (DOCS / "reference" / "python.md").read_text()
    for name in set(latentmill.__all__) - {"__version__", "LatentmillError"}:
        assert f"::: latentmill.{name}\n" in page, name


def test_recipes_and_json_on_pages_are_valid() -> None:
    found = 0
    for page in PAGES:
        for block in page_blocks(page):
            if block.language == "toml":
                assert Recipe.of(tomllib.loads(block.text)).chosen()
                found += 1
            elif block.language == "json":
                json.loads(block.text)
    assert found >= 3


@cache
def literals() -> str:
    """Every text in the package's code, with `…` for what is filled in."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_that_are_quoted_are_those_that_are_printed() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    quoted = [line.removeprefix("> ") for line in text.splitlines() if line.startswith("> ")]
    assert len(quoted) > 15
    for message in quoted:
        for part in message.split("…"):
            assert part.strip(" ().,;:") in literals(), f"nothing prints {part!r} (of {message!r})"


def test_options_that_are_named_exist() -> None:
    from command_reference import page as commands

    known = set(re.findall(r"`(--[a-z-]+)", commands())) | {"--help", "--debug"}
    known |= {"--data-dir", "--debug", "--head", "--address", "--port", "--set"}  # of REPA's trainer and of Ray
    for page in PAGES:
        if page not in FOREIGN:
            code = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(code)):
                assert option in known, f"{page} tells of {option}, which no command has"


def test_examples_of_the_help_name_commands_and_options_that_exist() -> None:
    from command_reference import page as commands

    sections = dict(re.findall(r"^## latentmill ([a-z-]+) .*?\n(.*?)(?=^## |\Z)", commands(), re.M | re.S))
    shared = {"--json", "--quiet", "--log-file", "--debug", "--help"}
    examples = [line for text in sections.values() for line in text.splitlines() if line.startswith("latentmill ")]
    assert len(examples) >= len(sections) >= 17
    for line in examples:
        command = line.split()[1]
        known = set(re.findall(r"`(--[a-z-]+)", sections[command])) | shared
        assert set(re.findall(r"(?<=\s)--[a-z-]+", line)) <= known, line


def test_every_event_is_on_its_page() -> None:
    page = (DOCS / "reference" / "events.md").read_text()
    kinds = re.findall(r"^([a-z]+)  +\S", events.__doc__ or "", re.M)
    assert len(kinds) >= 8
    assert {f"`{kind}`" for kind in kinds} <= set(re.findall(r"^\| (`[a-z]+`) \|", page, re.M))
    assert f"(of this schema, {events.VERSION})" in page


def test_every_setting_is_described_on_the_recipe_page() -> None:
    from recipe_reference import page

    from latentmill.outputs.kinds import KINDS
    from latentmill.recipe_stored import SOURCE_NAMES

    text = page()
    for kind in KINDS:
        for name, field in kind.settings.model_fields.items():
            assert field.description, name
            assert field.description.endswith((".", "…")), name
            told = SOURCE_NAMES.get(name, "path" if name == "dest" else name)
            assert f"`{told}`" in text, f"{kind.told}: {told}"


def test_every_page_is_in_the_navigation_and_begins_with_what_the_reader_gets() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        name = page.removeprefix("docs/")
        assert f": {name}\n" in navigation, name
        title, paragraph = re.split(r"\n\s*\n", (ROOT / page).read_text())[:2]
        assert title.startswith("# ")
        assert name == "architecture.md" or re.match(r"[A-Z*]", paragraph), name
