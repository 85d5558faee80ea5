"""What latentmill raises.

LatentmillError                 one clear line for a person, exit code 2
├── ConfigError                 a setting is not valid, or two settings disagree
├── SourceError                 the source cannot be listed or its labels cannot be read
├── DestinationError            the destination cannot be used or written
│   └── SettingsChangedError    the destination was made with other settings
├── ModelError                  a model cannot be found, loaded or used as asked
├── TooManyFailuresError        more images were rejected than --max-failures allows
└── SampleError                 one image failed; recorded as a reject, the job goes on
"""

from __future__ import annotations


class LatentmillError(Exception):
    """Base of every error that latentmill raises on purpose; `str(error)` is one line for a person."""


class ConfigError(LatentmillError):
    """A setting is not valid, or two settings disagree."""


class SourceError(LatentmillError):
    """The source cannot be listed, is empty, or its labels cannot be read."""


class DestinationError(LatentmillError):
    """The destination cannot be used or written."""


class SettingsChangedError(DestinationError):
    """The destination was made with other settings; the message names each that differs."""


class ModelError(LatentmillError):
    """A model cannot be found, loaded, or used as asked."""


class TooManyFailuresError(LatentmillError):
    """More images were rejected than `max_failures` allows."""


class SampleError(LatentmillError):
    """One image failed at a stage (`list`, `read`, `decode`, `transform`, `encode`)."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"
