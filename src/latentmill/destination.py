"""What stands at a destination: whose it is, what it was made with, who writes there now, and how to clear it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from latentmill.errors import DestinationError
from latentmill.files import remove_tree, write_errors
from latentmill.formats.containers import Container
from latentmill.formats.metadata import (
    DATASET_JSON,
    INDEX_JSONL,
    METADATA_JSON,
    REJECTS_JSONL,
    REPORT_JSON,
    Metadata,
    Value,
)
from latentmill.manifest import current_plan

_LOCK_SECONDS = 10.0


def stored_fingerprint(place: Container) -> dict[str, Value]:
    """The settings that a destination was or is being made with; empty for a new one."""
    plan = current_plan(place.work)
    if plan is not None:
        return plan.fingerprint
    metadata = Metadata.read_beside(place.path)
    return metadata.fingerprint if metadata else {}


def refuse_foreign(place: Container) -> None:
    """Refuse a destination that holds anything that latentmill did not write."""
    if place.exists() and Metadata.read_beside(place.path) is None and not place.work.exists():
        what = "is a zip that" if place.is_zip else "is not empty and"
        raise DestinationError(f"the destination {what} latentmill did not make: {place.path}. Choose another")


def clear(place: Container) -> None:
    """Remove what latentmill made at a destination, and nothing else. Raises DestinationError where that is unclear."""
    refuse_foreign(place)
    with write_errors(place.path):
        remove_tree(place.work)
        for name in (REJECTS_JSONL, REPORT_JSON):
            place.side_file(name).unlink(missing_ok=True)
        if place.is_zip:
            place.path.unlink(missing_ok=True)
            return
        for name in (METADATA_JSON, INDEX_JSONL, DATASET_JSON):
            (place.path / name).unlink(missing_ok=True)
        for folder in place.path.glob("[0-9]" * 5):
            remove_tree(folder)


@contextmanager
def locked(place: Container) -> Iterator[None]:
    """Hold the destination's lock; one job at a time writes there."""
    with write_errors(place.path):
        place.work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.work / "lock")
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout as error:
        raise DestinationError(f"another latentmill process is writing to {place.path}") from error
    try:
        yield
    except DestinationError:
        if current_plan(place.work) is None:  # refused before anything was planned: leave no trace
            remove_tree(place.work)
        raise
    finally:
        lock.release()
