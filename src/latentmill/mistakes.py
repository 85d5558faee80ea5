"""What a wrong command line was probably meant to be."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import typer

from latentmill.wording import did_you_mean, hinted

ClickError: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]  # Click's, wherever Typer has it from
_CHOICES = re.compile(r"'([^']*)' is not one of (.*)", re.DOTALL)
_EMPTY_PATH = "'' (is a variable of the shell not set?)"
_COMMANDS = {
    "crop": "convert", "resize": "convert", "preprocess": "convert", "images": "convert", "vae": "encode",
    "latents": "encode", "precompute": "encode", "cache": "encode", "extract": "pixart", "features": "pixart",
    "t5": "pixart", "check": "verify", "validate": "verify", "show": "report", "view": "report", "inspect": "report",
    "list": "models", "dedupe": "audit", "duplicates": "audit", "compare": "compare-vae", "new": "init",
    "create": "init", "make": "run", "build": "run", "dry-run": "plan", "estimate": "plan", "benchmark": "bench",
    "test": "doctor", "env": "doctor", "info": "doctor", "example": "demo", "version": "--version", "help": "--help",
}  # fmt: skip
_OPTIONS = {  # what other tools call it: what it is called here, the first that the command has
    "--size": ("--resolution", "--buckets"), "--res": ("--resolution",), "--image-size": ("--resolution",),
    "--width": ("--resolution",), "--height": ("--resolution",), "--crop": ("--transform",),
    "--input": ("--source", "--data-info"), "--in": ("--source", "--data-info"), "--src": ("--source",),
    "--data": ("--source", "--data-info"), "--data-dir": ("--source", "--data-info"), "--dataset": ("--source",),
    "--source": ("--data-info",), "--output": ("--dest", "--out"), "--out": ("--dest",), "--output-dir": ("--dest",),
    "--dst": ("--dest",), "--save-dir": ("--dest",), "--dest": ("--out",), "--workers": ("--num-workers", "--threads"),
    "--jobs": ("--num-workers",), "--processes": ("--num-workers",), "--bs": ("--batch-size",),
    "--batch": ("--batch-size",), "--limit": ("--max-images", "--end-index"), "--num-images": ("--max-images",),
    "--max-samples": ("--max-images",), "--force": ("--overwrite",), "--gpu": ("--device",), "--gpus": ("--device",),
    "--cuda": ("--device",), "--model": ("--vae", "--text-encoder"), "--checkpoint": ("--vae",),
    "--pretrained": ("--vae",), "--fp16": ("--dtype",), "--bf16": ("--dtype",), "--half": ("--dtype",),
    "--mixed-precision": ("--dtype",), "--precision": ("--dtype",), "--t5": ("--text-encoder",), "--yes": (),
    "--verbose": ("--log-file",), "--silent": ("--quiet",), "--bucket": ("--buckets",), "--mirror": ("--flip",),
    "--hflip": ("--flip",), "--captions": ("--caption-label",), "--sample": ("--store",), "--dry-run": (),
}  # fmt: skip
_ENCODER = ("--vae", "--model-url", "--dtype", "--store", "--pixel-range", "--revision", "--save-dtype")


def explained(error: Any, commands: Collection[str]) -> str:
    """One line for a person: what was found, and what to do. error: of Click. commands: that there are."""
    context = getattr(error, "ctx", None)
    typed: Sequence[str] = getattr(error, "typed", ())
    kind, text = type(error).__name__, str(error.format_message()).strip()
    if context is None:
        return text
    if context.parent is None and text.startswith("No such command"):
        return _unknown_command(typed[0] if typed else "", commands)
    if kind == "NoSuchOption":
        return _unknown_option(error.option_name, context, commands)
    placed = _by_position(context, typed) if context.parent is not None else []
    if placed:
        return _not_by_position(placed, context, typed)
    if kind == "MissingParameter":
        return _missing(error, context)
    if "extra argument" in text:
        return _too_many(context, typed)
    return _wrong_value(error, text, typed) or " ".join(text.replace("Value error, ", "").split())


def refuse_empty_paths(context: Any, typed: Sequence[str]) -> None:
    """Raise Click's error where a path is an empty text, as an unset variable of a shell makes it."""
    values, _, _ = context.command.make_parser(context).parse_args(args=list(typed))
    for parameter in context.command.params:
        if values.get(parameter.name) == "" and isinstance(context.params.get(parameter.name), Path):
            raise typer.BadParameter(_EMPTY_PATH, ctx=context, param=parameter)


def _unknown_command(name: str, commands: Collection[str]) -> str:
    known = _COMMANDS.get(name.lower())
    if name.endswith(".toml"):
        return f"{name!r} is no command. To run a recipe: latentmill run {shlex.quote(name)}"
    if "/" in name or "." in name:
        return f"{name!r} is no command. To begin with a folder of photos: latentmill init {shlex.quote(name)}"
    if known is not None and (known in commands or known.startswith("--")):
        return f"there is no command {name!r}. Did you mean {known!r}?"
    near = did_you_mean(name, commands)
    word = near.removeprefix(" Did you mean ").removesuffix("?")
    return f"there is no command {name!r}." + (
        f" Did you mean {word!r}?" if near else f" There are: {', '.join(sorted(commands))}"
    )


def _unknown_option(option: str, context: Any, commands: Collection[str]) -> str:
    name = context.info_name if context.parent is not None else ""
    own = {each for parameter in context.command.params for each in parameter.opts}
    beginning = f"{name} has no option {option}." if name else f"there is no option {option}."
    if name == "convert" and option in _ENCODER:
        return f"{beginning} convert makes pixels, without a model; latents are made by: latentmill encode {option} …"
    if option in ("--dry-run", "--yes"):
        told = " `latentmill plan RECIPE` shows what would be done" if option == "--dry-run" else " Nothing is asked"
        return beginning + told
    for other in _OPTIONS.get(option.replace("_", "-").lower(), ()):
        if other in own:
            return f"{beginning} It is called {other} here{_like(option, other)}"
    near = did_you_mean(option.replace("_", "-"), own)
    if not name and not near:
        return f"{beginning} Options of a command come behind its name: latentmill COMMAND {option} …"
    return beginning + (near or _elsewhere(option, context, commands))


def _like(option: str, other: str) -> str:
    """An example, where the value is another too."""
    examples = {"--resolution": "--resolution 256x256", "--device": "--device cuda", "--dtype": "--dtype bfloat16",
                "--flip": "--flip both", "--transform": "--transform center-crop"}  # fmt: skip
    return f", as {examples[other]}" if other in examples else ""


def _elsewhere(option: str, context: Any, commands: Collection[str]) -> str:
    """Which commands have such an option."""
    group = context.find_root().command
    found = [
        name for name in sorted(commands) if any(option in parameter.opts for parameter in group.commands[name].params)
    ]
    return f" These have it: {', '.join(found)}" if found else ""


def _by_position(context: Any, typed: Sequence[str]) -> list[str]:
    """What was given without an option, to a command that takes nothing so."""
    if any(parameter.param_type_name == "argument" for parameter in context.command.params):
        return []
    try:
        _, left, _ = context.command.make_parser(context).parse_args(args=list(typed))
    except ClickError:
        return []
    return list(left)


def _wrong_value(error: Any, text: str, typed: Sequence[str]) -> str:
    """A value that an option cannot have; empty where nothing better is known than what Click says."""
    parameter = getattr(error, "param", None)
    if parameter is None:
        return ""
    option = next((each for each in parameter.opts if each in typed), parameter.opts[0])
    value = typed[typed.index(option) + 1] if option in typed[:-1] else ""
    if _EMPTY_PATH in text:
        name = option if parameter.param_type_name == "option" else parameter.metavar or parameter.name
        return f"{name} must be a path. Found: {_EMPTY_PATH}"
    if found := _CHOICES.search(text):
        known = re.findall(r"'([^']+)'", found[2])
        must = f"{', '.join(known[:-1])} or {known[-1]}"
        return hinted(f"{option} must be {must}. Found: {found[1]!r}", did_you_mean(found[1], known))
    for word, must in (("valid integer", "a whole number"), ("valid number", "a number"), ("valid float", "a number")):
        if word in text:
            return f"{option} must be {must}. Found: {value!r}"
    return ""


def _too_many(context: Any, typed: Sequence[str]) -> str:
    """More places than a command takes."""
    _, left, _ = context.command.make_parser(context).parse_args(args=list(typed))
    wanted = [each.metavar or each.name for each in context.command.params if each.param_type_name == "argument"]
    return f"{context.info_name} takes {' '.join(wanted)} and no more. Found besides: {shlex.join(left)}"


def _not_by_position(placed: Sequence[str], context: Any, typed: Sequence[str]) -> str:
    """`convert SRC DEST` with the options that are wanted."""
    required = [parameter.opts[0] for parameter in context.command.params if parameter.required]
    missing = [option for option in required if context.params.get(option.lstrip("-").replace("-", "_")) is None]
    pairs = [f"{option} {shlex.quote(value)}" for option, value in zip(missing or required, placed, strict=False)]
    command = context.info_name
    if not pairs:
        return f"{command} takes options alone. Found: {shlex.join(placed)}"
    left, rest = list(placed), []
    for each in typed:
        if left and each == left[0]:
            left.pop(0)
        else:
            rest.append(shlex.quote(each))
    line = " ".join(("latentmill", command, *pairs, *rest))
    return f"{command} takes its places by options. Found: {shlex.join(placed)}. Did you mean: {line}"


def _missing(error: Any, context: Any) -> str:
    """What is missing, what it is, and an example."""
    parameter = error.param
    option = parameter.param_type_name == "option"
    name = parameter.opts[0] if option else (parameter.metavar or parameter.name)
    about = f" ({str(parameter.help).rstrip('.')})" if parameter.help else ""
    examples = getattr(context.command, "examples", ())
    example = f" Example: {examples[0]}" if examples else ""
    return f"{context.info_name} needs {name}{about}.{example}"
