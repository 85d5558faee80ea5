"""A report as a file: looked at, drawn and written as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from latentmill.errors import DestinationError
from latentmill.files import replace_text, write_errors
from latentmill.formats.metadata import METADATA_JSON
from latentmill.outcome import Tell, quiet
from latentmill.report.collect import collect
from latentmill.report.collect_soundness import VerifyHow
from latentmill.report.facts import ReportFacts

_MARK, _LOOKED_AT = b'content="latentmill"', 4096  # of the page's `generator`, and where it stands


def make_report(
    root: str | Path,
    out: str | Path = "report.html",
    *,
    source: str | Path | None = None,
    sample: int | None = None,
    verify: VerifyHow = "auto",
    vae: str | None = None,
    decode: bool = True,
    device: str = "auto",
    tell: Tell = quiet,
) -> ReportFacts:
    """Write a page that shows what a result is, whether it is sound, and what a model will see; give what it tells.

    root: any result of latentmill, or a folder of several. An earlier report at `out` is replaced, any other file is
    not. Settings: see `report.collect.collect`. Raises LatentmillError.
    """
    from latentmill.report.page import render
    from latentmill.report.svg import require_matplotlib

    require_matplotlib()
    place = Path(out)
    _check_place(place)
    facts = collect(
        root, source=source, sample=sample, verify=verify, vae=vae, decode=decode, device=device, tell=tell
    )  # fmt: skip
    with write_errors(place):
        replace_text(place, render(facts))
    return facts


def _check_place(place: Path) -> None:
    """Refuse to replace what is no report, and to lie among a dataset's files. Raises DestinationError."""
    if place.is_dir():
        raise DestinationError(
            f"the report must be a file. Found the folder {place}: give --out {place / 'report.html'}"
        )
    if not place.absolute().parent.is_dir():
        raise DestinationError(f"the report's folder must be there. Found none at {place.absolute().parent}: make it")
    if (place.absolute().parent / METADATA_JSON).exists():
        raise DestinationError(f"a report must not lie in a dataset, whose files are all known. Found: {place}")
    if place.exists():
        with write_errors(place), place.open("rb") as file:
            if _MARK not in file.read(_LOOKED_AT):
                raise DestinationError(f"{place} is no report of latentmill, and is not replaced: give another --out")
