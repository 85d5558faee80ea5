"""Fixtures that several test modules share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from support import make_photos

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
