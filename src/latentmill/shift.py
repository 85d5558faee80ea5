"""The last step of an update: bring kept and new results to their final names, drop the rest. Safe to repeat.

Names shift when an image is added or removed, so that a file's new name may still be another's old one. First
every kept file that changes its name moves into the update's own folder, and what is dropped is deleted; then
all of that folder moves to the final names. Both halves skip what they find done, so a kill at any moment
costs nothing. Success: the data is what a fresh run would have made. While it runs, the dataset has no
`latentmill.json`, since it is not whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from latentmill.errors import DestinationError
from latentmill.files import remove_empty_folders, remove_tree, sync_filesystem, write_errors
from latentmill.formats.metadata import DATASET_JSON, INDEX_COLUMNS, INDEX_JSONL, METADATA_JSON, WORK_FOLDER
from latentmill.manifest import Plan

SHIFTING, GATHERED, SHIFTED = "shifting", "gathered", "shifted"


def shift(plan: Plan, roots: Mapping[str, Path]) -> None:
    """Run or go on with the shift of an update whose shards are all committed. `roots`: each output's folder."""
    if plan.marked(SHIFTED):
        return
    plan.mark(SHIFTING)
    for root in roots.values():
        with write_errors(root):
            for name in (METADATA_JSON, DATASET_JSON, INDEX_COLUMNS, INDEX_JSONL):
                (root / name).unlink(missing_ok=True)
    if not plan.marked(GATHERED):
        _gather(plan, roots)
        plan.mark(GATHERED)
    _remove_empty_folders(plan, roots)  # first: a file may take the name of a folder that was left empty
    for root in roots.values():
        with write_errors(root):
            _place(root / plan.publish, root)
            sync_filesystem(root)
    plan.mark(SHIFTED)
    for root in roots.values():
        for folder in (root / WORK_FOLDER).glob("new-*"):
            remove_tree(folder)


def _gather(plan: Plan, roots: Mapping[str, Path]) -> None:
    for outcome, where in plan.kept():
        for output, old in where.items():
            name = outcome.files[output].name
            if old != name:
                _move(roots[output] / old, roots[output] / plan.publish / name)
    for _, where in plan.dropped():
        for output, old in where.items():
            with write_errors(roots[output] / old):
                (roots[output] / old).unlink(missing_ok=True)
    for root in roots.values():
        with write_errors(root):
            sync_filesystem(root)


def _move(old: Path, new: Path) -> None:
    with write_errors(new):
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(old, new)  # noqa: PTH105
        except FileNotFoundError as error:
            if not new.exists():
                raise DestinationError(
                    f"{old} is missing, though an earlier run made it; --overwrite makes the dataset anew"
                ) from error


def _place(folder: Path, root: Path) -> None:
    for inner, _, files in os.walk(folder):
        target = root / Path(inner).relative_to(folder)
        if files:
            target.mkdir(parents=True, exist_ok=True)
        for name in files:
            os.replace(Path(inner) / name, target / name)  # noqa: PTH105


def _remove_empty_folders(plan: Plan, roots: Mapping[str, Path]) -> None:
    """Of those that files were moved or dropped from."""
    left: dict[tuple[str, str], None] = {}
    for item in plan.kept():
        left |= {
            (o, old.rpartition("/")[0]): None for o, old in item.where.items() if item.outcome.files[o].name != old
        }
    for item in plan.dropped():
        left |= {(output, old.rpartition("/")[0]): None for output, old in item.where.items()}
    for output, folder in left:
        remove_empty_folders(roots[output] / folder, roots[output])
