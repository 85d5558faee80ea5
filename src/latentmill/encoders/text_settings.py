"""How a caption becomes text features: the settings that describe an encoding, whatever the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from latentmill.errors import ConfigError
from latentmill.formats.metadata import Value

INSTRUCTION: Literal["instruction"] = "instruction"
CHAT, CHAT_THINKING = "chat", "chat-thinking"
_CAPTION = "{}"  # its place in a template


@dataclass(frozen=True)
class TextSettings:
    """Everything but the model, its precision and `max_length` that decides what is stored of a caption.

    output: `features` (a vector for each token), `pooled` (one for the caption; CLIP alone has it), or `both`.
    layers: of transformers' `hidden_states`, as 0 (embeddings), -2 (penultimate); several are joined on channels.
    (): the model's own output, after its final norm.
    positions: `real` tokens alone are stored, or `all` up to max_length, padding included, for a model that is trained
    with the vectors at the padding.
    mask: whether the encoder is told which positions are padding; without it positions must be `all`.
    template: what the caption is put into, at `{}`; `chat` is the tokenizer's own chat template with the caption as the
    user's message, the answer begun and no thinking; `chat-thinking` the same with thinking allowed.
    drop: how many leading tokens are not stored, those of the template; `instruction` (Sana): of the text before `{}`
    all tokens but its first and its last. They do not count as max_length.
    empty: whether the empty caption is put into the template too, or encoded `bare`.
    clean: what is done to a caption before: `none`; `strip`, of white space around it; `lower`, stripped and in small
    letters; `web`, HTML entities resolved and all white space made single blanks (Wan's, without its ftfy).
    """

    output: Literal["features", "pooled", "both"] = "features"
    layers: tuple[int, ...] = ()
    positions: Literal["real", "all"] = "real"
    mask: bool = True
    template: str = _CAPTION
    drop: int | Literal["instruction"] = 0
    empty: Literal["template", "bare"] = "template"
    clean: Literal["none", "strip", "lower", "web"] = "strip"

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name, kind in get_type_hints(type(self)).items():
            allowed, value = get_args(kind), getattr(self, name)
            if name in ("output", "positions", "empty", "clean") and value not in allowed:
                raise ConfigError(f"text setting {name} must be one of {', '.join(allowed)}. Found: {value!r}")
        if not isinstance(self.mask, bool):
            raise ConfigError(f"text setting mask must be true or false. Found: {self.mask!r}")
        if not isinstance(self.layers, tuple) or not all(type(layer) is int for layer in self.layers):
            raise ConfigError(f"text setting layers must be a whole number or a list of them. Found: {self.layers!r}")
        self._check_template()
        if not self.mask and self.positions == "real":
            raise ConfigError(
                "text setting mask = false changes real tokens by their padding: it needs positions = all"
            )
        if self.layers and self.output == "pooled":
            raise ConfigError("text setting layers is of features. Found: output = pooled")

    def _check_template(self) -> None:
        if not isinstance(self.template, str) or (not self.is_chat and self.template.count(_CAPTION) != 1):
            raise ConfigError(
                f"text setting template must have one {_CAPTION}, or be {CHAT} or {CHAT_THINKING}. "
                f"Found: {str(self.template)[:80]!r}"
            )
        if self.drop != INSTRUCTION and (type(self.drop) is not int or self.drop < 0):
            raise ConfigError(f"text setting drop must be a number of tokens, or {INSTRUCTION}. Found: {self.drop!r}")
        if self.drop == INSTRUCTION and (self.is_chat or not self.before):
            raise ConfigError(f"text setting drop = {INSTRUCTION} needs a template with text before its {_CAPTION}")
        if self.drop and self.positions == "all" and self.empty == "bare":
            raise ConfigError("text setting empty = bare, where a template is dropped, needs positions = real")

    @property
    def is_chat(self) -> bool:
        return self.template in (CHAT, CHAT_THINKING)

    @property
    def before(self) -> str:
        """The template's text before the caption."""
        return self.template.partition(_CAPTION)[0]

    @property
    def after(self) -> str:
        """The template's text after the caption."""
        return self.template.partition(_CAPTION)[2]

    def changed(self, values: Mapping[str, Any]) -> TextSettings:
        """With other values of the settings that are named. Raises ConfigError."""
        names = [field.name for field in fields(self)]
        if unknown := sorted(values.keys() - set(names)):
            raise ConfigError(f"there is no text setting {unknown[0]}. There are: {', '.join(names)}")
        asked: dict[str, Any] = dict(values)
        if "layers" in asked:
            asked["layers"] = _layers(asked["layers"])
        return replace(self, **asked)

    def described(self) -> dict[str, Value]:
        """What differs from the defaults, in simple values: for metadata and fingerprint."""
        told: dict[str, Value] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != getattr(PLAIN, field.name):
                told[field.name] = ",".join(map(str, value)) if isinstance(value, tuple) else value
        return told


PLAIN = TextSettings()  # T5's, as PixArt uses it


def _layers(value: object) -> object:
    """A tuple, of one number, of a list, or of `9,18,27` as `described` gives it."""
    if isinstance(value, str):
        try:
            return tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            return value
    if isinstance(value, list):
        return tuple(value)
    return (value,) if type(value) is int else value
