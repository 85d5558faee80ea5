"""The commands of recipes: `run`, `plan` and `init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentmill.command import RECIPES, add
from latentmill.event_results import emit_plan
from latentmill.events import emit
from latentmill.guard import guarded, importing, run_recipes
from latentmill.options import Exclude, TrustSource
from latentmill.terminal import clock, counted, err, out, print_buckets, print_whole, shown, warn

if TYPE_CHECKING:
    from latentmill.recipe_plan import RecipePlan

_SHOWN = 20  # rejects
_TOLD = 0.1  # seconds: less are not told apart

_Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in TOML.", show_default=False)]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting over the file's, as outputs.sd.batch_size=16."),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    add(app, init, RECIPES, "latentmill init photos", "latentmill init table.jsonl --out captions.toml")
    add(app, plan, RECIPES, "latentmill plan recipe.toml")
    add(
        app,
        run,
        RECIPES,
        "latentmill run recipe.toml",
        "latentmill run recipe.toml --set source.max_images=100 --set dest=trial",
        "latentmill run recipe.toml --json --log-file run.log",
    )


def run(
    recipe: _Recipe,
    settings: _Set = None,
    trust_source: TrustSource = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make every output anew.")] = False,
) -> None:
    """Make everything that a recipe says, in one pass over the source; run again, do only what is new or changed."""

    def work() -> int:
        with importing():
            from latentmill.recipe import Recipe

        given = {"run.overwrite=true": overwrite, "run.trust_source=true": trust_source}
        told = [*(settings or ()), *(name for name, is_given in given.items() if is_given)]
        found = Recipe.read(recipe, told)
        texts = {each.name for each in found.chosen() if each.kind.name == "text"}
        return run_recipes([found], lambda output: (output, "captions" if output in texts else "images"))

    guarded(work)


def plan(recipe: _Recipe, settings: _Set = None) -> None:
    """Show what a recipe would do, and do nothing: counts, buckets, rejects seen, bytes, time, the whole recipe."""

    def work() -> int:
        from latentmill.recipe import Recipe
        from latentmill.recipe_plan import plan_of

        found = plan_of(Recipe.read(recipe, settings or ()))
        emit_plan(found)
        _show(found)
        return 0

    guarded(work, commits=False)


def init(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder or zip of images, or a table.", show_default=False)
    ],
    dest: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("recipe.toml"),
    exclude: Exclude = None,
) -> None:
    """Look at a source, and write a recipe for it, with comments, to be edited."""

    def work() -> int:
        from latentmill.recipe_init import write_recipe

        told = write_recipe(source, dest, exclude)
        emit("result", source=source, recipe=dest, told=list(told))
        for line in told:
            out.print(shown(line))
        out.print(
            f"[green]written:[/] {shown(dest)}: look at it, then\n"
            f"  latentmill plan {shown(dest)}\n  latentmill run {shown(dest)}"
        )
        return 0

    guarded(work, commits=False)


def _show(found: RecipePlan) -> None:
    from latentmill.formats.metadata import RECIPE_TOML

    images = f"{counted(found.images, 'images')} in " if found.images else ""
    out.print(f"[bold]{images}{shown(found.source)}[/]\n")
    _show_outputs(found)
    for warning in found.warnings:
        warn(warning)
    for name, report in found.buckets.items():
        out.print(f"\n[bold]buckets of {shown(name)}[/]")
        print_buckets(report)
    if found.rejects:
        where = f" (of {counted(found.looked, 'images')} looked at)" if found.looked else ""
        out.print(f"\n[yellow]{counted(len(found.rejects), 'rejects')} seen already[/]{where}:")
        for key, reason in list(found.rejects.items())[:_SHOWN]:
            out.print(f"  {shown(key)}: {shown(reason)}")
        if len(found.rejects) > _SHOWN:
            out.print(f"  … and {len(found.rejects) - _SHOWN:,} more")
    out.print(f"\n[bold]the whole recipe, as it will lie in {shown(found.root / RECIPE_TOML)}[/]")
    for line in found.recipe.splitlines():
        out.print(shown(line))


def _show_outputs(found: RecipePlan) -> None:
    from rich.table import Table

    from latentmill.estimate import human

    table = Table(box=None, pad_edge=False)
    for heading in ("output", "kind", "where", "samples", "bytes", "time", "state"):
        table.add_column(heading, justify="right" if heading in ("samples", "bytes", "time") else "left", no_wrap=True)
    for each in found.outputs:
        size = "unknown" if each.bytes is None else human(each.bytes)
        seconds = "unknown" if each.seconds is None else clock(each.seconds)
        state = each.standing.word
        table.add_row(shown(each.name), each.kind, shown(each.dest), f"{each.samples:,}", size, seconds, state)
    print_whole(table)
    _show_sums(found)
    for each in found.outputs:
        for text in each.told:
            out.print(f"{shown(each.name)}: {shown(text)}")
        if each.standing.why:
            out.print(f"{shown(each.name)}: {shown(each.standing.why)}")
    for without in dict.fromkeys(each.without for each in found.outputs if each.without):
        err.print(f"[yellow]no model, so no time:[/] {shown(without)}")


def _show_sums(found: RecipePlan) -> None:
    from latentmill.estimate import free_disk, human

    total = sum(each.bytes for each in found.outputs if each.bytes is not None)
    free = free_disk(found.root)
    line = f"together about {human(total)}" + (f" ({human(free)} free)" if free is not None else "")
    if unknown := [each.name for each in found.outputs if each.bytes is None]:
        line += f" and those of {', '.join(map(shown, unknown))}"
    if found.seconds is not None:
        line += f"; at most {clock(found.seconds)}"
        line += f", {clock(found.reading)} of it to read and decode" if found.reading and found.reading > _TOLD else ""
        unknown = [each.name for each in found.outputs if each.seconds is None]
        line += f", and those of {', '.join(map(shown, unknown))}" if unknown else ""
    out.print(f"{line}\n")
