"""Fixtures that several test modules share."""

from __future__ import annotations

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
