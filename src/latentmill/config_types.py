"""The kinds of value that settings take, and how each is read from a person's text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from latentmill.devices import is_device
from latentmill.plugins import RUNNERS, SOURCES, TRANSFORMS, Group, choices, installed

FAILURES_JUDGED_AFTER = 100  # images, for a limit in percent
_SIZE = re.compile(r"(\d+)[x,](\d+)")
_RANGES = {"-1,1": (-1.0, 1.0), "0,1": (0.0, 1.0)}
_PATH_PART = re.compile(r"(?!\.)[^/\\\0]*")
_PERCENT_OR_COUNT = re.compile(r"(\d+(?:\.\d+)?)(%?)")

BUILT_IN_TRANSFORMS = ("none", "center-crop", "center-crop-wide", "center-crop-dhariwal")
FILES = "files"  # the built-in kind of source
AUTO = "auto"  # of a batch size: what is measured to be fastest
LOCAL, RAY = "local", "ray"  # the built-in runners
CROPPING = ("center-crop", "center-crop-dhariwal")  # transforms whose crop may lie elsewhere than in the centre


@dataclass(frozen=True)
class FailureLimit:
    """At most `count` rejects, or at most `share` of the images, judged once 100 have been seen."""

    text: str
    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, value: object) -> FailureLimit:
        if isinstance(value, cls):
            return value
        match = _PERCENT_OR_COUNT.fullmatch(str(value))
        if match and match[2] and float(match[1]) <= 100:
            return cls(str(value), share=float(match[1]) / 100)
        if match and not match[2] and "." not in match[1]:
            return cls(str(value), count=int(match[1]))
        raise ValueError("must be a number of images, or a percentage up to 100%")

    def exceeded(self, rejected: int, images: int) -> bool:
        if self.count is not None:
            return rejected > self.count
        assert self.share is not None
        return images >= FAILURES_JUDGED_AFTER and rejected > self.share * images

    def __str__(self) -> str:
        return self.text


def _size(value: object) -> object:
    """(W, H) of `WxH` or `W,H`, or of a pair of integers."""
    if value is None:
        return value
    match = _SIZE.fullmatch("x".join(map(str, value)) if isinstance(value, tuple | list) else str(value))
    if not match or int(match[1]) == 0 or int(match[2]) == 0:
        raise ValueError("must be WxH with positive integers")
    return int(match[1]), int(match[2])


def _range(value: object) -> object:
    """(low, high) of `low,high`, or of a pair of numbers."""
    ends = tuple(value) if isinstance(value, tuple | list) else _RANGES.get(str(value).replace(" ", ""))
    if ends not in _RANGES.values():
        raise ValueError(f"must be {' or '.join(_RANGES)}")
    return ends


def _device(value: object) -> object:
    if not is_device(str(value)):
        raise ValueError("must be auto, cpu, cpu:N, mps, cuda, cuda:N or cuda:N,M")
    return value


def _batch_size(value: object) -> object:
    if value == AUTO or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and int(value):
        return int(value)
    raise ValueError("must be a whole number from 1 on, or auto")


def _suffix(value: object) -> object:
    if not isinstance(value, str) or not _PATH_PART.fullmatch(value):
        raise ValueError("must be a part of a folder's name, without / and not starting with a dot")
    return value


def _named(group: Group, *built_in: str) -> BeforeValidator:
    """A name that is built in, or that an installed package brings; nothing is imported."""

    def check(value: object) -> object:
        if value in built_in or value in installed(group):
            return value
        raise ValueError(f"must be {choices(group, value, built_in)}")

    return BeforeValidator(check)


Transform = Annotated[str, _named(TRANSFORMS, *BUILT_IN_TRANSFORMS)]
SourceKind = Annotated[str, _named(SOURCES, FILES)]
RunnerName = Annotated[str, _named(RUNNERS, LOCAL, RAY)]
Size = Annotated[tuple[int, int], BeforeValidator(_size)]
Limit = Annotated[FailureLimit, BeforeValidator(FailureLimit.parse)]
Positive = Annotated[int, Field(ge=1)]
BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_batch_size)]
PixelRange = Annotated[tuple[float, float], BeforeValidator(_range)]
Device = Annotated[str, BeforeValidator(_device)]
FolderPart = Annotated[str, BeforeValidator(_suffix)]
