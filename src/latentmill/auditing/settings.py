"""The settings of an audit: those of a source, and what images and captions are held against."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from latentmill.auditing.near import DISTANCE, HASH_BITS, MOST_DISTANCE
from latentmill.config import SourceSettings, validated
from latentmill.config_types import Positive, Size
from latentmill.errors import ConfigError


class AuditSettings(SourceSettings):
    """What `latentmill audit` takes."""

    resolution: Size | None = Field(
        None, description="Width and height that results will have, as `256x256`: smaller images are told."
    )
    max_duplicate_distance: int = Field(
        DISTANCE,
        ge=0,
        le=MOST_DISTANCE,
        description=f"Of the {HASH_BITS} bits of two perceptual hashes, how many may differ in near duplicates.",
    )
    model: str | None = Field(
        None,
        description="The text encoder whose tokens captions are counted in: short name, hub repository or folder.",
    )
    num_workers: Positive | None = Field(None, description="Processes. Default: the usable cores.")


def audit_settings(values: dict[str, Any]) -> AuditSettings:
    """Settings of values; refuses what an audit has no use for. Raises ConfigError."""
    chosen = validated(AuditSettings, values)
    if chosen.start_index or chosen.end_index is not None:
        raise ConfigError("an audit looks at a whole source: start-index and end-index are of pixart. Leave them out")
    return chosen


def need_audit() -> None:
    """Raises ConfigError, with the pip command, where what an audit needs is not installed."""
    missing = []
    for name in ("imagehash", "ftfy"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ConfigError(
            f"an audit needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'latentmill[audit]'"
        )
