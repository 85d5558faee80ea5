"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from latentmill import supervising
from support import make_photos

# Commands that are called in a test's process must not fork it; those in processes of their own are supervised.
supervising.SUPERVISED = frozenset()

# Two test processes share the cores: a thread of PyTorch that waits for its like would burn what the other needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

os.environ.pop("TERMINAL_WIDTH", None)  # which Typer reads once, and which goes before a test's COLUMNS

# Hundreds of processes are started, and each would compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The tests sync thousands of times. What they hold takes half a gigabyte.
_MEMORY = Path("/dev/shm")
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# The same examples in every run: a new one should be met while working, not in somebody's CI.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 12 small JPEGs in two class folders."""
    folder = tmp_path / "photos"
    make_photos(folder, 12)
    return folder


@pytest.fixture(autouse=True)
def torch_given_back() -> Iterator[None]:
    """PyTorch's settings, which are the whole process's, as they were before a test that opened an encoder."""
    yield
    device = sys.modules.get("latentmill.encoders.device")
    if device is not None:
        device.restore_torch()
