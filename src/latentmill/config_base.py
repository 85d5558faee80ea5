"""What all settings have in common, and how a wrong one is told: what was expected, what was found."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from latentmill.errors import ConfigError
from latentmill.wording import did_you_mean, hinted


class SettingsBase(BaseModel):
    """Frozen, with no other fields than those told; built when it is first used."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        name = info.field_name or ""
        if isinstance(value, bool) and cls.model_fields[name].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


Settings = TypeVar("Settings", bound=SettingsBase)
_CHOICE = re.compile(r"'([^']+)'|\b(auto|cpu|mps|cuda)\b(?=,)")
_SHOWN = 200  # characters of what was found
_WORDS = {  # by pydantic's type of an error
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text",
    "path_type": "must be a path, as text",
}


def validated(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Settings from values; raises ConfigError with one line for the first that is wrong."""
    return validated_in(kind, values, lambda name: name.replace("_", "-"))


def validated_in(kind: type[Settings], values: dict[str, Any], beginning: Callable[[str], str]) -> Settings:
    """As `validated`; an error begins with `beginning` of the setting's name ("" for what concerns several)."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        message = _WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        if not name:
            raise ConfigError(f"{beginning('')}{message}") from error
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise ConfigError(f"there is no setting {name}. There are: {known}") from error
        message = message.replace("Input should be", "must be")
        text = f"{beginning(name)} {message}. Found: {_found(first['input'])}"
        raise ConfigError(hinted(text, _meant(message, first["input"]))) from error


def _meant(message: str, value: object) -> str:
    """What a value was probably meant to be, of those that the message names."""
    text = str(value)
    if "WxH" in message and text.isdecimal():
        return f" Did you mean {text}x{text}?"
    known = ["".join(found) for found in _CHOICE.findall(message)]
    return "" if "did you mean" in message else did_you_mean(text, known)


def _found(value: object) -> str:
    shown = repr(str(value) if isinstance(value, Path) else value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
