"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import make_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 12 small JPEGs in two class folders."""
    folder = tmp_path / "photos"
    make_photos(folder, 12)
    return folder
