"""The report as a page: what a result is, is it sound, what will a model see, how is it distributed, how fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from markupsafe import Markup

from latentmill.records import CMYK, EXIF_ROTATED, TRANSPARENT, TRUNCATED
from latentmill.report import cards, figures, shell
from latentmill.report.facts import DatasetFacts, ReportFacts, Soundness
from latentmill.report.svg import require_matplotlib
from latentmill.wording import counted, printable

_PROBLEMS = 50  # that are listed
_MANY_REJECTS = 0.01  # of the images: more are worth a look
_TILE_BUCKETS = 40  # that are shown with pictures
_NOTES = {
    EXIF_ROTATED: "the camera noted that it is to be turned, which --exif apply does",
    TRANSPARENT: "with an alpha channel, which --alpha decides about",
    CMYK: "printing colours, converted to RGB",
    TRUNCATED: "longer than --max-length tokens, so that the end is lost",
}
_ROWS = 10  # of models and settings, before the others have to be opened


def render(facts: ReportFacts) -> str:
    """The whole page. Raises ConfigError where charts cannot be drawn."""
    require_matplotlib()
    pictures = shell.Pictures(picture for dataset in facts.datasets for picture in cards.pictures(dataset))
    if len(facts.datasets) == 1:
        body, contents = _single(facts.datasets[0], pictures)
        title, lead = printable(facts.datasets[0].name), facts.datasets[0].summary
    else:
        body, contents = _several(facts, pictures)
        title, lead = printable(facts.root.resolve().name or str(facts.root)), _overview(facts)
    body = shell.joined(*_left_out(facts.left_out), body, pictures.sprite())
    return shell.document(title, body, lead=lead, contents=contents, footer=_footer(facts))


def _left_out(told: Sequence[str]) -> Iterator[Markup]:
    """Datasets of the folder that this report cannot show."""
    if told:
        headline = f"{counted(len(told), 'datasets')} not shown"
        parts = [shell.verdict("bad", headline, "Damaged, or not finished."), shell.bullets(map(printable, told))]
        yield shell.section("left-out", "Is anything missing?", shell.joined(*parts))


def _single(facts: DatasetFacts, pictures: shell.Pictures) -> tuple[Markup, list[tuple[str, str]]]:
    parts = list(_parts(facts, pictures, 2))
    sections = [shell.section(name, heading, part) for name, heading, part in parts]
    body = shell.joined(shell.key_figures(_key_figures(facts)), *sections)
    return body, [(name, heading) for name, heading, _ in parts]


def _several(facts: ReportFacts, pictures: shell.Pictures) -> tuple[Markup, list[tuple[str, str]]]:
    """A section of each dataset, under a table of all."""
    if not facts.datasets:
        return shell.verdict("warning", "Nothing was found here", f"{facts.root} holds no result of latentmill"), []
    sections, contents = [_table_of(facts)], []
    for number, dataset in enumerate(facts.datasets, 1):
        parts = [shell.key_figures(_key_figures(dataset))]
        parts += [
            shell.section(f"dataset-{number}-{name}", heading, part, level=3)
            for name, heading, part in _parts(dataset, pictures, 3, facts.datasets[: number - 1])
        ]
        name = printable(dataset.name)
        sections.append(shell.section(f"dataset-{number}", name, shell.joined(*parts), lead=dataset.summary))
        contents.append((f"dataset-{number}", name))
    return shell.joined(*sections), contents


def _table_of(facts: ReportFacts) -> Markup:
    """The datasets, one a line, each with a link to its section."""
    rows: list[list[shell.Cell]] = [
        [
            Markup('<a href="#dataset-{}">{}</a>').format(number, printable(dataset.name)),
            _state(dataset.soundness, _what(dataset))[1], dataset.kind, dataset.soundness.stored,
            dataset.soundness.rejected,
        ]
        for number, dataset in enumerate(facts.datasets, 1)
    ]  # fmt: skip
    return shell.table(["dataset", "verdict", "kind", "stored", "rejected"], rows, caption="The datasets", hidden=True)


def _parts(
    facts: DatasetFacts, pictures: shell.Pictures, level: int, above: Sequence[DatasetFacts] = ()
) -> Iterator[tuple[str, str, Markup]]:
    """(id, heading, content) of the sections that this dataset has something for.

    above: the datasets before it, whose pictures are not shown again.
    """
    yield "sound", "Is it sound?", _sound(facts.soundness, _what(facts), pictures, level)
    if facts.identity or facts.notes:
        yield "identity", "Models and settings", _identity(facts)
    seen = _seen(facts, pictures, level, above)
    if seen:
        yield "seen", "What will the model see?", shell.joined(*seen)
    figured = figures.distribution(facts)
    if figured:
        yield "distribution", "How is it distributed?", _figures(figured)
    if facts.speed:
        drawn = figures.speed(facts.speed)
        told = [shell.paragraph(facts.speed.bottleneck)] if facts.speed.bottleneck else []
        if drawn or told:
            yield "speed", "How fast was it made?", shell.joined(*told, *([_figures(drawn)] if drawn else []))


def _identity(facts: DatasetFacts) -> Markup:
    first, rest = facts.identity[:_ROWS], facts.identity[_ROWS:]
    parts = [shell.properties(first)] if first else []
    if rest:
        parts.append(shell.details(f"{len(rest)} more", shell.properties(rest)))
    if facts.notes:
        parts.append(shell.paragraph("What this report does not tell, and why:", quiet=True))
        parts.append(shell.bullets(facts.notes))
    return shell.joined(*parts)


def _key_figures(facts: DatasetFacts) -> list[tuple[str, str]]:
    sound = facts.soundness
    found = [("samples stored", f"{sound.stored:,}"), ("rejected", f"{sound.rejected:,}")]
    known = [quality.psnr for quality in facts.qualities if quality.psnr == quality.psnr]
    if known:
        found.append(("median PSNR", cards.decibels(median(known))))
    if len(facts.buckets) > 1:
        found.append(("buckets", f"{len(facts.buckets):,}"))
    if facts.classes and len(facts.classes.names):
        found.append(("classes", f"{len(facts.classes.names):,}"))
    return found


def _state(facts: Soundness, what: str) -> tuple[shell.State, str]:
    """The verdict, in a few words. what: the samples are."""
    if facts.problems:
        return "bad", f"{counted(len(facts.problems), 'problems')} found"
    if not facts.stored:
        return "bad", "Nothing is stored"
    if not facts.checked:
        return "warning", "Not checked"
    if facts.rejected > _MANY_REJECTS * max(facts.listed, 1):
        return "warning", f"Sound, with {counted(facts.rejected, what)} rejected"
    return "good", "Sound"


def _what(facts: DatasetFacts) -> str:
    return "captions" if facts.kind == "text" else "images"


def _sound(facts: Soundness, what: str, pictures: shell.Pictures, level: int) -> Markup:
    state, headline = _state(facts, what)
    parts = [shell.verdict(state, headline, _checked(facts))]
    if facts.problems:
        parts.append(shell.bullets(printable(problem) for problem in facts.problems[:_PROBLEMS]))
        if len(facts.problems) > _PROBLEMS:
            parts.append(shell.paragraph(f"And {len(facts.problems) - _PROBLEMS:,} more: latentmill verify lists all."))
    if facts.by_reason:
        rows: list[list[shell.Cell]] = [[printable(reason), count] for reason, count in facts.by_reason]
        parts.append(shell.table(["reason", what], rows, caption=f"Why {what} were rejected"))
    if facts.some:
        group = shell.Group(f"Rejected {what}", cards.rejects(facts.some))
        parts.append(shell.gallery(f"Rejected {what}", [group], level=level + 1, pictures=pictures, tiles=True))
    if facts.notes:
        noted: list[list[shell.Cell]] = [[_explained(note), count] for note, count in facts.notes]
        parts.append(shell.table(["worth knowing", what], noted, caption=f"What was noted of {what}"))
    return shell.joined(*parts)


def _explained(note: str) -> str:
    return f"{note}: {_NOTES[note]}" if note in _NOTES else note


def _checked(facts: Soundness) -> str:
    skipped = f", {facts.skipped:,} skipped" if facts.skipped else ""
    return (
        f"{facts.stored:,} stored of {counted(facts.listed, 'samples')} listed, {facts.rejected:,} rejected{skipped}. "
        + (f"Checked: {facts.checked}." if facts.checked else "With --verify none, no file was looked at.")
    )


def _seen(facts: DatasetFacts, pictures: shell.Pictures, level: int, above: Sequence[DatasetFacts]) -> list[Markup]:
    """The gallery, and the grid of each bucket."""
    groups = cards.groups(facts)
    for number, other in enumerate(above, 1):
        if groups and cards.nothing_new(groups, cards.groups(other)):
            link = Markup('<a href="#dataset-{}-seen">{}</a>').format(number, printable(other.name))
            return [Markup("<p>The same samples as of {}, which shows them.</p>").format(link)]
    parts = []
    if groups:
        name = f"Samples of {printable(facts.name)}"
        parts.append(shell.gallery(name, groups, level=level + 1, pictures=pictures))
    grids = [
        shell.Group(cards.size(bucket.size), cards.tiles(bucket), lead=counted(bucket.images, "images"))
        for bucket in facts.buckets
        if len(facts.buckets) > 1
    ]
    grids = [grid for grid in grids if grid.cards]
    if grids:
        name = f"Buckets of {printable(facts.name)}"
        drawn = shell.gallery(name, grids[:_TILE_BUCKETS], level=level + 1, pictures=pictures, tiles=True)
        parts.append(shell.details(f"By bucket: {counted(len(grids), 'buckets')}", drawn))
    return parts


def _figures(parts: list[Markup]) -> Markup:
    return Markup('<div class="figures">{}</div>').format(shell.joined(*parts))


def _overview(facts: ReportFacts) -> str:
    kinds = ", ".join(dict.fromkeys(dataset.kind for dataset in facts.datasets))
    return f"{counted(len(facts.datasets), 'datasets')} made by latentmill: {kinds}." if facts.datasets else ""


def _footer(facts: ReportFacts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.software.items())
    return " ".join(part for part in (facts.sampled, f"Made with {versions}." if versions else "") if part)
