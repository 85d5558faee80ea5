"""Recipes, what they would do, and the batches of a sampler, as a person looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentmill.config import RunSettings, SourceSettings
from latentmill.errors import ConfigError
from latentmill.estimate import free_disk, human
from latentmill.screen import clock
from latentmill.showing.page import Html, facts, folded, line, page, share, table, verbatim
from latentmill.wording import counted

if TYPE_CHECKING:
    from latentmill.outputs.kinds import Chosen
    from latentmill.recipe import Recipe
    from latentmill.recipe_plan import OutputPlan, RecipePlan
    from latentmill.sampling import BucketSampler
    from latentmill.transforms.bucket_report import BucketReport

_SHOWN = 20


def recipe_text(recipe: Recipe) -> str:
    """A line for the source, and one for each output."""
    outputs = [f"  {name}: {_kind(table)}" for name, table in recipe.outputs.items()]
    return "\n".join([f"Recipe({_source(recipe)!r} -> {str(recipe.dest)!r})", *outputs])


def recipe_html(recipe: Recipe) -> str:
    """Source, outputs and the whole TOML as a notebook displays them; of one that is not valid, why."""
    try:
        chosen, toml = recipe.chosen(), recipe.to_toml()
    except ConfigError as error:
        return page("Recipe", _source(recipe), line(error, "bad"))
    rows = [(each.name, _named(each), _told(each), each.settings.dest) for each in chosen]
    whole = folded("the whole recipe, as TOML", verbatim(toml))
    return page("Recipe", _source(recipe), table(("output", "kind", "settings", "where"), rows), whole)


def plan_text(plan: RecipePlan) -> str:
    """A short block."""
    lines = [f"RecipePlan({counted(plan.images, 'images')} in {str(plan.source)!r}, {_sum(plan)})"]
    lines += [
        f"  {each.name}: {each.standing.word}, {each.samples:,} samples, {_bytes(each)}, {_seconds(each)}"
        for each in plan.outputs
    ]
    return "\n".join(lines + ([f"  {counted(len(plan.rejects), 'rejects')} seen already"] if plan.rejects else []))


def plan_html(plan: RecipePlan) -> str:
    """What a recipe would do, as a notebook displays it."""
    headings = ("output", "kind", "where", "samples", "bytes", "time", "state")
    rows = [
        (each.name, each.kind, each.dest, f"{each.samples:,}", _bytes(each), _seconds(each), each.standing.word)
        for each in plan.outputs
    ]
    free = free_disk(plan.root)
    summed = _sum(plan) + (f" ({human(free)} free)" if free is not None else "")
    whole = folded("the whole recipe, as TOML", verbatim(plan.recipe))
    return page(
        "Plan", f"{counted(plan.images, 'images')} in {plan.source}",
        table(headings, rows, ("samples", "bytes", "time")), line(summed), *_told_of_outputs(plan),
        *_rejects(plan), *(_buckets(name, report) for name, report in plan.buckets.items()), whole,
    )  # fmt: skip


def sampler_text(sampler: BucketSampler) -> str:
    """One line."""
    return f"BucketSampler({sampler.describe()})"


def sampler_html(sampler: BucketSampler) -> str:
    """Samples and batches of every bucket, as a notebook displays them."""
    sizes, counts = sampler.batch_sizes, sampler.counts
    most = max(counts.values())
    rows = [
        (f"{height} x {width}", f"{counts[height, width]:,}", f"{size:,}", f"{-(-counts[height, width] // size):,}",
         share(counts[height, width], most, f"{counts[height, width]:,} samples"))
        for (height, width), size in sizes.items()
    ]  # fmt: skip
    headings = ("height x width", "samples", "batch size", "batches", "")
    found = table(headings, rows, headings[1:4])
    how = {
        "seed": sampler.seed,
        "shuffle": "yes" if sampler.shuffle else "no",
        "incomplete batches": "dropped" if sampler.drop_last else "kept",
        "rank": f"{sampler.rank} of {sampler.world_size}" if sampler.world_size > 1 else "",
    }
    some = found if len(rows) <= _SHOWN else folded(f"{len(rows)} buckets", found)
    return page("BucketSampler", sampler.describe(), facts(how), some)


def _source(recipe: Recipe) -> str:
    source = recipe.source
    return str(source if not isinstance(source, dict) else source.get("path", source))


def _kind(settings: object) -> str:
    if not isinstance(settings, dict):
        return str(settings)
    told = [f"{name}={value!r}" for name, value in settings.items() if name != "kind"]
    return " ".join([str(settings.get("kind", "of no kind")), *told])


def _named(chosen: Chosen) -> str:
    return f"{chosen.kind.name}, {chosen.kind.layout}" if chosen.kind.layout else chosen.kind.name


def _told(chosen: Chosen) -> str:
    """What was set, of what tells an output from others."""
    fields = type(chosen.settings).model_fields
    left_out = SourceSettings.model_fields.keys() | RunSettings.model_fields.keys() | {"dest"}
    told = {name: getattr(chosen.settings, name) for name in fields if name not in left_out}
    return ", ".join(
        f"{name} {'x'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in told.items()
        if name == "model" or value != fields[name].default
    )


def _sum(plan: RecipePlan) -> str:
    known = sum(each.bytes for each in plan.outputs if each.bytes is not None)
    unknown = ", and what is unknown" if any(each.bytes is None for each in plan.outputs) else ""
    time = f"; at most {clock(plan.seconds)}" if plan.seconds is not None else ""
    return f"together about {human(known)}{unknown}{time}"


def _bytes(each: OutputPlan) -> str:
    return "unknown" if each.bytes is None else human(each.bytes)


def _seconds(each: OutputPlan) -> str:
    return "unknown" if each.seconds is None else clock(each.seconds)


def _told_of_outputs(plan: RecipePlan) -> Iterator[Html]:
    for warning in plan.warnings:
        yield line(warning, "warn")
    for each in plan.outputs:
        if each.without or each.standing.why:
            yield line(f"{each.name}: {each.without or each.standing.why}", "warn")
    told = {each.name: "; ".join(each.told) for each in plan.outputs if each.told}
    if told:
        yield folded("what each will do", facts(told))


def _rejects(plan: RecipePlan) -> Iterator[Html]:
    if plan.rejects:
        looked = f" (of {counted(plan.looked, 'images')} looked at)" if plan.looked else ""
        yield line(f"{counted(len(plan.rejects), 'rejects')} seen already{looked}", "warn")
        yield table(("image", "why"), list(plan.rejects.items())[:_SHOWN])
        if len(plan.rejects) > _SHOWN:
            yield line(f"and {len(plan.rejects) - _SHOWN:,} more")


def _buckets(name: str, report: BucketReport) -> Html:
    rows = [row for row in report.rows() if row.images]
    most = max((row.images for row in rows), default=1)
    cells = [
        (f"{row.bucket[0]} x {row.bucket[1]}", f"{row.images:,}", share(row.images, most, f"{row.images:,} images"),
         f"{row.cropped_away:.1%}", f"{row.distortion:.1%}", f"{row.upscaled:,}") for row in rows
    ]  # fmt: skip
    headings = ("height x width", "images", "", "cropped away", "distortion", "upscaled")
    total = report.totals()
    summary = f"buckets of {name}: {len(rows)}, {total.cropped_away:.1%} of pixels cropped away"
    return folded(summary, table(headings, cells, ("images", "cropped away", "distortion", "upscaled")))
