"""Walking a folder: the same files whoever looks at them, links, faults, and threads where looking takes time."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from latentmill.errors import SourceError
from latentmill.sources.folders import image_files, walk


def entries(root: Path) -> list[str]:
    return sorted(entry for looked in image_files(str(root), [], Counter()) for entry in looked.entries)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


IMAGES = ["a.jpg", "b/c.PNG", "b/c.d/e.f.webp", ".hidden/.a.jpg", *(f"many/{number}.jpeg" for number in range(1200))]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    touch(tmp_path / "tree", *IMAGES, "b/no.txt", "x-ray", "..png", ".hidden/.jpg")
    return tmp_path / "tree"


def test_every_image_comes_with_its_size_and_time(tree: Path) -> None:
    stats = {name: (tree / name).stat() for name in IMAGES}
    assert entries(tree) == sorted(f"{name}\0{stat.st_size}-{stat.st_mtime_ns}" for name, stat in stats.items())


def test_threads_look_where_looking_takes_time(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("whether a thread waits is told by Linux")
    wanted, real, names = entries(tree), os.stat, set()

    def slow(*arguments: Any, **settings: Any) -> os.stat_result:
        names.add(threading.current_thread().name)
        time.sleep(1e-5)
        return real(*arguments, **settings)

    monkeypatch.setattr(os, "stat", slow)
    monkeypatch.setattr(os, "supports_dir_fd", {slow})
    assert entries(tree) == wanted
    assert any(name.startswith("load") for name in names)


def test_without_folder_descriptors_the_same_is_found(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = entries(tree)
    monkeypatch.setattr(os, "supports_dir_fd", set())
    assert entries(tree) == wanted


def test_what_cannot_be_looked_at_has_a_fault(tree: Path) -> None:
    (tree / "gone.jpg").symlink_to(tree / "nowhere")
    (tree / "itself.jpg").symlink_to(tree / "itself.jpg")
    (tree / "linked.jpg").symlink_to(tree / "a.jpg")
    os.mkfifo(tree / "pipe.jpg")
    faults = {
        entry.partition("\0")[0]: fault
        for looked in image_files(str(tree), [], Counter())
        for entry, fault in looked.faults.items()
    }
    assert set(faults) == {"gone.jpg", "itself.jpg", "pipe.jpg"}
    assert faults["gone.jpg"] == "No such file or directory"
    assert faults["pipe.jpg"] == "not a file"


def test_a_folder_that_goes_away_meanwhile_leaves_faults(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def fail(path: str, *arguments: Any, **settings: Any) -> int:
        if str(path).endswith("many"):
            raise FileNotFoundError(2, "No such file or directory")
        return real(path, *arguments, **settings)

    monkeypatch.setattr(os, "open", fail)
    faults = [fault for looked in image_files(str(tree), [], Counter()) for fault in looked.faults.values()]
    assert faults == ["No such file or directory"] * 1200


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "tree", "a/b/c.jpg", "a/.latentmill/own.jpg")
    (tmp_path / "tree" / "a" / "b" / "up").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "twice").symlink_to(tmp_path / "tree" / "a" / "b")
    loops: list[str] = []
    found = {f"{files.below}{name}" for files in walk(str(tmp_path / "tree"), loops) for name in files.names}
    assert found == {"a/b/c.jpg", "twice/c.jpg"}
    assert {Path(loop).name for loop in loops} == {"up"}
    with pytest.raises(SourceError, match="cannot list the folder"):
        list(walk(str(tmp_path / "none"), []))
