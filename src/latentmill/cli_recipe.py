"""The commands of recipes: `run`, `plan` and `init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentmill.guard import guarded, run_recipes
from latentmill.terminal import clock, counted, err, out, print_buckets, shown

if TYPE_CHECKING:
    from latentmill.recipe_plan import OutputPlan, RecipePlan

_SHOWN = 20  # rejects

_Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in TOML.", show_default=False)]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting over the file's, as outputs.sd.batch_size=16."),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(run)
    app.command()(plan)
    app.command()(init)


def run(
    recipe: _Recipe,
    settings: _Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make every output anew.")] = False,
) -> None:
    """Make everything that a recipe says, in one pass over the source; run again, do only what is new or changed.

    Example: latentmill run recipe.toml --set source.max_images=100 --set dest=trial
    """

    def work() -> int:
        from latentmill.recipe import Recipe

        told = [*(settings or ()), *(["run.overwrite=true"] if overwrite else ())]
        found = Recipe.read(recipe, told)
        texts = {each.name for each in found.chosen() if each.kind.name == "text"}
        return run_recipes([found], lambda output: (output, "captions" if output in texts else "images"))

    guarded(work)


def plan(recipe: _Recipe, settings: _Set = None) -> None:
    """Show what a recipe would do, and do nothing: counts, buckets, rejects seen, bytes, time, the whole recipe.

    Example: latentmill plan recipe.toml
    """

    def work() -> int:
        from latentmill.recipe import Recipe
        from latentmill.recipe_plan import plan_of

        _show(plan_of(Recipe.read(recipe, settings or ())))
        return 0

    guarded(work)


def init(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder or zip of images, or a table.", show_default=False)
    ],
    dest: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("recipe.toml"),
) -> None:
    """Look at a source, and write a recipe for it, with comments, to be edited.

    Example: latentmill init photos
    """

    def work() -> int:
        from latentmill.recipe_init import write_recipe

        told = write_recipe(source, dest)
        for line in told:
            out.print(shown(line))
        out.print(
            f"[green]written:[/] {shown(dest)}: look at it, then\n"
            f"  latentmill plan {shown(dest)}\n  latentmill run {shown(dest)}"
        )
        return 0

    guarded(work)


def _show(found: RecipePlan) -> None:
    from rich.table import Table

    from latentmill.estimate import human

    images = f"{counted(found.images, 'images')} in " if found.images else ""
    out.print(f"[bold]{images}{shown(found.source)}[/]")
    table = Table(box=None, pad_edge=False)
    for heading in ("output", "kind", "where", "samples", "bytes", "time", "there"):
        table.add_column(heading, justify="right" if heading in ("samples", "bytes", "time") else "left", no_wrap=True)
    for each in found.outputs:
        size = "unknown" if each.bytes is None else human(each.bytes)
        seconds = "unknown" if each.seconds is None else clock(each.seconds)
        table.add_row(shown(each.name), each.kind, shown(each.dest), f"{each.samples:,}", size, seconds, each.state)
    out.print(table)
    for each in found.outputs:
        _show_told(each)
    _show_time(found)
    for name, report in found.buckets.items():
        out.print(f"\n[bold]buckets of {shown(name)}[/]")
        print_buckets(report)
    if found.rejects:
        out.print(f"\n[yellow]{counted(len(found.rejects), 'rejects')} seen already:[/]")
        for key, reason in list(found.rejects.items())[:_SHOWN]:
            out.print(f"  {shown(key)}: {shown(reason)}")
        if len(found.rejects) > _SHOWN:
            out.print(f"  … and {len(found.rejects) - _SHOWN:,} more")
    out.print("\n[bold]the whole recipe[/]")
    for line in found.recipe.splitlines():
        out.print(shown(line))


def _show_told(each: OutputPlan) -> None:
    for text in each.told:
        out.print(f"{shown(each.name)}: {shown(text)}")
    if each.without:
        err.print(f"[yellow]no estimate for {shown(each.name)}:[/] {shown(each.without)}")


def _show_time(found: RecipePlan) -> None:
    total = sum(each.bytes for each in found.outputs if each.bytes is not None)
    unknown = [each.name for each in found.outputs if each.seconds is None]
    from latentmill.estimate import human

    line = f"together about {human(total)}"
    if found.seconds is not None:
        line += f", at most {clock(found.seconds)}"
        line += f" (reading and decoding once: {clock(found.reading)})" if found.reading is not None else ""
    if unknown:
        line += f", without {', '.join(map(shown, unknown))}"
    out.print(line)
