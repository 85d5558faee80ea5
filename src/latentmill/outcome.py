"""What a job tells while it runs, and what it came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from latentmill.planning import Changes


@dataclass(frozen=True)
class Event:
    """What a person is told while a job runs. kind: `plan`, `progress` or `warning`; the figures are of progress.

    done: images computed; committed: of them, those in committed shards, which a kill cannot take back. seconds: of
    this run's committed shards, by stage.
    """

    kind: str
    text: str = ""
    total: int = 0
    done: int = 0
    committed: int = 0
    rejected: int = 0
    skipped: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a job came to. `computed` is 0 when it was finished before.

    seconds: of this call; running_seconds: of it, from the first batch to the last commit.
    """

    dest: Path
    listed: int
    stored: int
    rejected: int
    skipped: int
    computed: int
    bytes: int
    notes: dict[str, int]
    seconds: float
    running_seconds: float
    report: Path
    rejects: Path | None
    already_done: bool = False
    changes: Changes | None = None

    def _repr_html_(self) -> str:
        from latentmill.showing.results import result_html

        return result_html(self)

    def __repr__(self) -> str:
        from latentmill.showing.results import result_text

        return result_text(self)


class Results(dict[str, Result]):
    """The results of a recipe's outputs, by name."""

    def _repr_html_(self) -> str:
        from latentmill.showing.results import results_html

        return results_html(self)

    def __repr__(self) -> str:
        from latentmill.showing.results import results_text

        return results_text(self)


Tell = Callable[[Event], None]


def quiet(event: Event) -> None:
    """Tell nobody."""
