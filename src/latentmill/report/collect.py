"""Everything that a report tells of a result, collected once: by whole indexes, and by samples of files, told as such.

Nothing here writes to the result, asks the network (but for a model that a person names) or draws at random.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from latentmill.errors import SourceError
from latentmill.finish import software
from latentmill.formats.metadata import METADATA_JSON
from latentmill.outcome import Tell, quiet
from latentmill.report.collect_dataset import Asked, Collector
from latentmill.report.collect_index import Opened, datasets_under, opened
from latentmill.report.collect_soundness import VerifyHow
from latentmill.report.facts import ReportFacts


def collect(
    root: str | Path,
    *,
    source: str | Path | None = None,
    sample: int | None = None,
    verify: VerifyHow = "auto",
    vae: str | None = None,
    decode: bool = True,
    device: str = "auto",
    tell: Tell = quiet,
) -> ReportFacts:
    """Look at a result: one dataset, or a folder of several, whose samples are then shown together.

    source: where the photos are, if not where the stored recipe says. sample: how many samples are shown and decoded of
    each dataset; None: 32, of which fewer are decoded where that takes longer than 25 seconds. verify: read every file
    (`full`), 1,000 files and the whole index (`sample`), nothing (`none`), or what the size allows (`auto`). vae:
    decodes the latents in place of the model that made them, and may be downloaded. decode: False leaves
    reconstructions out. Raises SourceError, ConfigError, ModelError.
    """
    started = time.monotonic()
    asked = Asked(None if source is None else Path(source), sample, verify, vae, decode, device)
    found, left_out = datasets_under(Path(root))
    collector = Collector(asked, found, _beside(found), tell)
    datasets = [collector.facts_of(dataset) for dataset in found]
    sampled = "; ".join(collector.sampled)
    if sampled:
        sampled = f"Of large datasets some files stand for all, evenly spread, the same in every report: {sampled}."
    seconds = time.monotonic() - started
    return ReportFacts(Path(root), tuple(datasets), sampled, seconds, software(), tuple(left_out))


def _beside(found: Sequence[Opened]) -> list[Opened]:
    """What helps to show these datasets without being asked for: their neighbours, and what they were made from."""
    known = {dataset.path.resolve() for dataset in found}
    others = []
    for place in _near(found):
        if place.resolve() in known:
            continue
        known.add(place.resolve())
        try:
            one = opened(place)
        except SourceError:
            continue
        if one is not None:
            others.append(one)
    return others


def _near(found: Sequence[Opened]) -> list[Path]:
    folders = dict.fromkeys(each.path.resolve().parent for each in found)
    places = [file.parent for folder in folders for file in sorted(folder.glob(f"*/{METADATA_JSON}"))]
    sources = [each.recipe.source for each in found if not isinstance(each.recipe, str)]
    return places + [source for source in sources if source.is_dir() or source.suffix.lower() == ".zip"]
