"""Versions of what latentmill is made of, and the extras that are there or can be installed."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from latentmill.doctor.findings import Finding, State

GROUP, EXTRAS = "versions", "extras"
_PACKAGE = "latentmill"
_SHOWN_FIRST = ("torch", "diffusers", "transformers", "pillow", "simplejpeg", "numpy", "zlib-ng")
_FOR_DEVELOPERS = "dev"
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def findings() -> list[Finding]:
    python = f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()})"
    found = [Finding(GROUP, _PACKAGE, version(_PACKAGE)), Finding(GROUP, "Python", python)]
    plain = [text for text in requires(_PACKAGE) or () if not _EXTRA.search(text)]
    found += sorted((_package(text) for text in plain), key=_place)
    return found + [_extra(name) for name in metadata(_PACKAGE).get_all("Provides-Extra") or ()]


def _place(finding: Finding) -> tuple[int, str]:
    known = _SHOWN_FIRST.index(finding.name) if finding.name in _SHOWN_FIRST else len(_SHOWN_FIRST)
    return known, finding.name


def _package(requirement: str) -> Finding:
    """A package that latentmill needs."""
    name, found, fits = installed(requirement)
    if not found:
        return Finding(GROUP, name, "not installed", "broken", f"pip install '{wanted(requirement)}'")
    state: State = "ok" if fits else "broken"
    return Finding(GROUP, name, found, state, "" if fits else f"too old: pip install -U '{wanted(requirement)}'")


def _extra(name: str) -> Finding:
    """An optional extra: there where each of its packages is."""
    texts = [text for text in requires(_PACKAGE) or () if name in _EXTRA.findall(text)]
    each = [installed(text) for text in texts]
    missing = [package for package, found, fits in each if not (found and fits)]
    if not missing:
        return Finding(EXTRAS, name, ", ".join(f"{package} {found}" for package, found, _ in each) or "nothing to it")
    what = "for developers; " if name == _FOR_DEVELOPERS else ""
    return Finding(EXTRAS, name, f"without {', '.join(missing)}", "absent", f"{what}pip install '{_PACKAGE}[{name}]'")


def installed(requirement: str) -> tuple[str, str, bool]:
    """A requirement's package, the version that is installed ("": none), and whether that is new enough.

    A requirement with a marker that is not for this Python or system is taken as fulfilled.
    """
    from packaging.requirements import Requirement

    asked = Requirement(requirement)
    extras = _EXTRA.findall(requirement) or [""]
    if asked.marker is not None and not any(asked.marker.evaluate({"extra": extra}) for extra in extras):
        return asked.name, f"not for Python {sys.version_info.major}.{sys.version_info.minor}", True
    try:
        found = version(asked.name)
    except PackageNotFoundError:
        return asked.name, "", False
    return asked.name, found, asked.specifier.contains(found, prereleases=True)


def wanted(requirement: str) -> str:
    """A requirement as pip takes it, without its marker."""
    return requirement.partition(";")[0].strip()
