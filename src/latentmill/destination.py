"""What stands at a destination: whose it is, what it was made with, who writes there now, and how to clear it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from latentmill.errors import DestinationError, LatentmillError, SourceError
from latentmill.files import (
    digest,
    digest_lines,
    printable,
    remove_empty_folders,
    remove_tree,
    replace_text,
    write_errors,
)
from latentmill.formats.containers import Container
from latentmill.formats.layouts import layout_of
from latentmill.formats.metadata import (
    DATASET_JSON,
    INDEX_COLUMNS,
    INDEX_JSONL,
    METADATA_JSON,
    RECIPE_TOML,
    REJECTS_JSONL,
    REPORT_JSON,
    Metadata,
    Value,
    index_rows,
    open_beside,
)
from latentmill.formats.repa import ImageLayout, LatentLayout
from latentmill.manifest import current_plan
from latentmill.supervising import cleared_before, note_cleared

_LOCK_SECONDS = 10.0
_SHOWN_ENTRIES = 3  # of a folder that is refused
_PROOFS = 16  # files of an index, of which one must be as it says
_TELLING = (INDEX_JSONL, INDEX_COLUMNS)  # a recipe and a report do not: they lie beside other things too
_LOCK, _CLEARING, _JOB = "lock", "clearing", "job"


def stored_fingerprint(place: Container) -> dict[str, Value]:
    """The settings that a destination was or is being made with; empty for a new one."""
    plan = current_plan(place.work)
    if plan is not None:
        return plan.fingerprint
    metadata = Metadata.read_beside(place.path)
    return metadata.fingerprint if metadata else {}


def refuse_foreign(place: Container, overwrite: bool = False) -> None:
    """Refuse a destination that holds anything that latentmill did not write, or, unless to overwrite, damaged."""
    if place.is_zip and place.exists() and not zipfile.is_zipfile(place.path):
        raise DestinationError(_no_zip(place))
    try:
        metadata = Metadata.read_beside(place.path)
    except SourceError as error:
        if overwrite:
            return
        raise DestinationError(f"{error}. --overwrite makes the dataset anew") from error
    if metadata is not None or not place.exists() or place.work.exists():
        return
    if left := [name for name in _TELLING if _holds(place, name)]:
        _refuse_incomplete(place, left, overwrite)
        return
    held = f" (it holds {_first_entries(place.path)})" if place.path.is_dir() else ""
    what = "is a zip" if place.is_zip else "is not empty"
    raise DestinationError(
        f"the destination {what}, and latentmill did not make it: {place.path}{held}. Choose another, or move it away"
    )


def _no_zip(place: Container) -> str:
    beside = next((path for path in (place.side_file(REPORT_JSON), place.work) if path.exists()), None)
    if beside is not None:
        return (
            f"{place.path} is not a zip archive that can be read, though {beside.name} lies beside it: it was cut off, "
            "or damaged at its end. Move it away to make it anew, or choose another destination"
        )
    return f"the destination is no zip archive, and latentmill did not make it: {place.path}"


def _holds(place: Container, name: str) -> bool:
    """Whether one of latentmill's own files is in a folder or a zip."""
    with suppress(SourceError):
        stream = open_beside(place.path, name)
        if stream is not None:
            stream.close()
            return True
    return False


def _refuse_incomplete(place: Container, left: Sequence[str], overwrite: bool) -> None:
    """Refuse a dataset without its `latentmill.json`, unless to overwrite a folder that is visibly latentmill's."""
    own = not place.is_zip and _is_own_work(place.path)
    if own and overwrite:
        return
    raise DestinationError(
        f"{place.path} is not whole: it holds {', '.join(left)}, but no {METADATA_JSON}, which tells how it was made. "
        "Put that file back from a copy, move it all away, or choose another destination"
        + (", or make the dataset anew with --overwrite" if own else "")
    )


def _is_own_work(folder: Path) -> bool:
    """Whether a folder is visibly a dataset of latentmill's: a file's bytes are those that its index recorded.

    Names alone prove nothing, since other tools number their files alike.
    """
    with suppress(SourceError, OSError, KeyError, TypeError):
        stored = (row for row in index_rows(folder) if "name" in row)
        return any(_is_as_recorded(folder, row) for row in islice(stored, _PROOFS))
    return False


def _is_as_recorded(folder: Path, row: dict[str, Any]) -> bool:
    file = folder / row["name"]
    return _is_inside(row["name"]) and file.is_file() and digest(file.read_bytes()) == row["digest"]


def _is_inside(name: str) -> bool:
    """Whether a name of an index leads nowhere but into its dataset."""
    path = Path(name)
    return not path.is_absolute() and not path.drive and ".." not in path.parts


def _first_entries(folder: Path) -> str:
    """The names of a few entries of a folder, for a person."""
    names = sorted(islice((entry.name for entry in folder.iterdir()), _SHOWN_ENTRIES + 1))
    return ", ".join(map(printable, names[:_SHOWN_ENTRIES])) + (", …" if len(names) > _SHOWN_ENTRIES else "")


def refuse_unrelated(places: Sequence[Container], metadata: Metadata | None) -> None:
    """Refuse second outputs (`--images`) that a new job would write over, or a finished one was not made with.

    metadata: of the first output, where that is finished.
    """
    for place in places[1:]:
        theirs = Metadata.read_beside(place.path)
        others = current_plan(place.work) is not None or _token(place) not in ("", _token(places[0]))
        if metadata is None and (theirs is not None or others):
            raise DestinationError(f"{place.path} belongs to another dataset. Choose another, or --overwrite it")
        if metadata is not None and (theirs is None or theirs.source_digest != metadata.source_digest):
            raise DestinationError(
                f"{place.path} does not hold what was made together with {places[0].path}. "
                "Name the place that does, or --overwrite to make both anew"
            )


def tie(places: Sequence[Container]) -> None:
    """Mark outputs as those of one job, so that it goes on with the same ones."""
    if len(places) > 1:
        token = _token(places[0]) or uuid4().hex
        for place in places:
            replace_text(place.work / _JOB, token)


def _token(place: Container) -> str:
    file = place.work / _JOB
    return file.read_text() if file.exists() else ""


def refuse_untied(places: Sequence[Container]) -> None:
    """Refuse to go on with other outputs than those that the job was begun with."""
    for place in places:
        if _token(place) != _token(places[0]):
            raise DestinationError(
                f"the job at {places[0].path} was not begun with {place.path}. Name the same places to go on, "
                "or --overwrite to start anew"
            )


def refuse_damaged(place: Container, metadata: Metadata) -> None:
    """Refuse to update a dataset whose index is not the one that was written with it."""
    stream = open_beside(place.path, INDEX_JSONL)
    what = "is missing from"
    if stream is not None:
        with stream:
            if digest_lines(line.decode(errors="replace") for line in stream) == metadata.index_digest:
                return
        what = "was changed in"
    raise DestinationError(
        f"{INDEX_JSONL} {what} {place.path}, and nothing else holds what it tells. Put it back from a copy, or make "
        "the dataset anew with --overwrite"
    )


def has_empty_caption(place: Container, metadata: Metadata) -> bool:
    """Whether the features of the empty caption lie there as they were made; True where none belong to the dataset."""
    if metadata.text is None:
        return True
    try:
        return digest((place.path / metadata.text.empty).read_bytes()) == metadata.text.empty_digest
    except OSError:
        return False


def drop_changed_empty_caption(place: Container, metadata: Metadata) -> None:
    """Remove features of the empty caption that are not those that were made, so that they are made again."""
    if metadata.text is not None and not has_empty_caption(place, metadata):
        with write_errors(place.path):
            (place.path / metadata.text.empty).unlink(missing_ok=True)


def to_clear(overwrite: bool, *places: Container) -> bool:
    """Whether places are to be made anew that a person said to: not once more, where a killed command goes on."""
    return overwrite and not all(cleared_before(place.path) for place in places)


def being_cleared(place: Container) -> bool:
    """Whether a run was cut off while it cleared this destination."""
    return (place.work / _CLEARING).exists()


def clear(places: Sequence[Container]) -> None:
    """Remove what latentmill made at locked destinations, and nothing else.

    A mark in each work folder outlasts all that is removed; a run that finds one must clear again.
    """
    for place in places:
        replace_text(place.work / _CLEARING, "")
    for place in places:
        with write_errors(place.path):
            _clear_data(place)
            sweep(place, keep=(_LOCK, _CLEARING))
    for place in places:
        (place.work / _CLEARING).unlink()
    for place in places:
        note_cleared(place.path)


def sweep(place: Container, keep: Sequence[str] = (_LOCK,)) -> None:
    """Empty a work folder, but for the lock that is held on it (`locked` removes that last)."""
    for inner in place.work.iterdir():
        if inner.is_dir():
            remove_tree(inner)
        elif inner.name not in keep:
            inner.unlink()


def _clear_data(place: Container) -> None:
    from latentmill.formats.pixart import EMPTY_CAPTION

    for name in (REJECTS_JSONL, REPORT_JSON, RECIPE_TOML):
        place.side_file(name).unlink(missing_ok=True)
    if place.is_zip:
        place.path.unlink(missing_ok=True)
        return
    (place.path / METADATA_JSON).unlink(missing_ok=True)  # not whole any more; the index goes last, it names the files
    for file in chain(_named_files(place), _numbered_files(place)):
        file.unlink(missing_ok=True)
        remove_empty_folders(file.parent, place.path)
    for name in (EMPTY_CAPTION, DATASET_JSON, INDEX_COLUMNS, INDEX_JSONL):
        (place.path / name).unlink(missing_ok=True)


def _numbered_files(place: Container) -> Iterator[Path]:
    """Files of the class-conditional layouts, which their names tell."""
    from latentmill.formats.vision import VisionLayout

    for folder in place.path.glob("[0-9]" * 5):
        for file in folder.iterdir():
            name = f"{folder.name}/{file.name}"
            if any(layout.member.fullmatch(name) for layout in (ImageLayout, LatentLayout, VisionLayout)):
                yield file


def _named_files(place: Container) -> Iterator[Path]:
    """Files that the index, or the plan of an unfinished job, knows by name."""
    with suppress(SourceError):  # a damaged index: what it names up to there
        for row in index_rows(place.path):
            if "name" in row and _is_inside(row["name"]):
                yield place.path / row["name"]
    with suppress(DestinationError):
        plan = current_plan(place.work)
        if plan is None:
            return
        for item in chain(plan.kept(), plan.dropped()):
            yield from (place.path / name for name in item.where.values())
        for layout in map(layout_of, plan.layouts.values()):
            for shard in range(len(plan.shards)):
                yield from (place.path / layout.name(ref.index, ref.key) for ref in plan.refs(shard))


@contextmanager
def locked(places: Sequence[Container], tell_waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the destinations' locks: one job at a time writes there. Leaves no work folder that holds nothing.

    That includes what a job left that was refused before it had a plan. tell_waiting: wait for as long as another
    process takes, and say so; None refuses after a few seconds.
    """
    with ExitStack() as locks:
        for place in places:
            locks.enter_context(_locked(place, tell_waiting))
        try:
            yield
        except LatentmillError:
            if current_plan(places[0].work) is None and not any(map(being_cleared, places)):
                for place in reversed(places):
                    if current_plan(place.work) is None and _token(place) in ("", _token(places[0])):
                        sweep(place)
            raise
        finally:
            for place in places:
                if [inner.name for inner in place.work.iterdir()] == [_LOCK]:
                    remove_tree(place.work)


def _said(text: str) -> None:
    """Once is enough."""


@contextmanager
def _locked(place: Container, tell_waiting: Callable[[str], None] | None) -> Iterator[None]:
    """Hold one destination's lock, in its work folder, which a job that ended meanwhile may have taken away."""
    path = place.work / _LOCK
    with write_errors(place.path):
        while True:
            place.work.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=_LOCK_SECONDS)
            except Timeout as error:
                if tell_waiting is not None:
                    tell_waiting(f"waiting for another latentmill process that writes to {place.path}")
                    tell_waiting = _said
                    continue
                raise DestinationError(f"another latentmill process is writing to {place.path}") from error
            except FileNotFoundError:
                continue
            if path.exists():
                break
            lock.release()
    try:
        yield
    finally:
        lock.release()
