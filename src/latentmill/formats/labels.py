"""`dataset.json` as it is written: labels of the stored files, in order, for class-conditional trainers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_BEGIN, _END, _NONE = '{"labels": [', "]}", '{"labels": null}'


class LabelsWriter:
    """`dataset.json`, streamed: [[name, label], ...] in order, or null as soon as one image has no label."""

    def __init__(self, path: Path) -> None:
        self.path, self.complete, self.count = path, True, 0
        self.file = path.open("w", newline="\n")
        self.file.write(_BEGIN)

    def add(self, name: str, label: int | None) -> None:
        self.complete &= label is not None
        self.file.write(f"{', ' if self.count else ''}{_entry(name, label)}")
        self.count += 1

    def close(self) -> None:
        self.file.write(_END)
        self.file.close()
        if not self.complete:
            self.path.write_text(_NONE)


def labels_bytes(rows: Iterable[tuple[str, int | None]]) -> bytes:
    """The whole file in memory, of names and their labels."""
    rows = list(rows)
    if any(label is None for _, label in rows):
        return _NONE.encode()
    return f"{_BEGIN}{', '.join(_entry(name, label) for name, label in rows)}{_END}".encode()


def _entry(name: str, label: int | None) -> str:
    return f'["{name}", {label}]'
