"""Versions of installed packages."""

from __future__ import annotations

from importlib import metadata

from latentmill.versions import installed_version


def test_versions_are_those_of_the_metadata() -> None:
    names = {distribution.name for distribution in metadata.distributions()}
    assert "latentmill" in names
    assert {name: installed_version(name) for name in names} == {name: metadata.version(name) for name in names}


def test_what_is_not_installed_has_none() -> None:
    assert installed_version("no-such-package") is None
