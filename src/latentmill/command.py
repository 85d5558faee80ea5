"""How a command joins the command line: its panel, its examples, and the options that every command has.

A command's parameters are made only when it is asked for, so that `latentmill --help` starts fast.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from latentmill.errors import ConfigError, LatentmillError
from latentmill.events import emit, events_of
from latentmill.guard import EXIT_FAILED, begun, guarded, state
from latentmill.logfile import log_to
from latentmill.mistakes import ClickError, explained, refuse_empty_paths
from latentmill.options import PICTURE_PANEL, RERUN_PANEL, SOURCE_PANEL, SPEED_PANEL, TEXT_PANEL, VAE_PANEL
from latentmill.screen import err, out, shown
from latentmill.streams import OutputLost

TRY, RECIPES, BEFORE = "First steps", "Recipes: everything in one pass", "Before: look at photos"
PREPARE, AFTER, MACHINE = "Prepare data", "After: look at results", "Models and machine"
_PANELS = (TRY, RECIPES, BEFORE, PREPARE, AFTER, MACHINE)  # in the order of the help
_TELLING = "What is told"  # panel of the common options

_COMMON: dict[str, Any] = {
    "as_json": Annotated[
        bool,
        typer.Option("--json", help="Events for a program on stdout, a JSON object a line.", rich_help_panel=_TELLING),
    ],
    "quiet": Annotated[
        bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.", rich_help_panel=_TELLING)
    ],
    "log_file": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append what is told to a file, with times, settings, versions, every reject and tracebacks.",
            rich_help_panel=_TELLING,
        ),
    ],
    "debug": Annotated[bool, typer.Option("--debug", help="Show an error's traceback.", rich_help_panel=_TELLING)],
}


@dataclass(frozen=True)
class Entry:
    """A command as it was registered. examples: whole lines, as typed."""

    name: str
    function: Callable[..., None]
    panel: str
    examples: tuple[str, ...]

    @property
    def about(self) -> str:
        """The function's docstring, for the help."""
        return inspect.cleandoc(self.function.__doc__ or "")


def program(**settings: Any) -> typer.Typer:
    """A command line whose commands `add` adds."""
    return typer.Typer(cls=type("_Commands", (Commands,), {"entries": {}}), **settings)


def add(app: typer.Typer, function: Callable[..., None], panel: str, *examples: str, name: str = "") -> None:
    """Add a command: a function with Typer's parameters, which ends in `guarded`.

    It gets `--json`, `--quiet`, `--log-file` and `--debug` besides its own options; one that has a `json` parameter
    prints a single JSON object itself, and gets neither `--json` nor `--quiet`.
    """
    name = name or function.__name__
    group = app.info.cls
    assert isinstance(group, type)
    assert issubclass(group, Commands)
    group.entries[name] = Entry(name, function, panel, examples)


def _made(entry: Entry) -> Command:
    """The command of Typer that runs an entry's function."""
    signature = inspect.signature(entry.function, eval_str=True)
    parameters = list(signature.parameters.values())
    left_out = ("as_json", "quiet") if "json" in signature.parameters else ()
    for common, annotation in _COMMON.items():
        if common not in left_out:
            default = None if common == "log_file" else False
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(common, kind, default=default, annotation=annotation))

    def run(**values: Any) -> None:
        _run(entry, values)

    run.__doc__ = entry.function.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    alone.command(entry.name, cls=Command, context_settings={"help_option_names": ["-h", "--help"]})(run)
    command = typer.main.get_command(alone)
    assert isinstance(command, Command)
    command.examples = entry.examples
    command.params.sort(key=_panel_of)
    return command


def _panel_of(parameter: Any) -> int:
    """The place of a parameter's panel in the help: the command's main options first, how it is told last."""
    panel = getattr(parameter, "rich_help_panel", None)
    first = (None, SOURCE_PANEL, VAE_PANEL, TEXT_PANEL, PICTURE_PANEL)
    last = (SPEED_PANEL, RERUN_PANEL, _TELLING)
    if panel in last:
        return len(first) + 1 + last.index(panel)
    return first.index(panel) if panel in first else len(first)


def _run(entry: Entry, values: dict[str, Any]) -> None:
    """Run a command with its common options, which its function does not see."""
    as_json, quiet = bool(values.pop("as_json", False)), bool(values.pop("quiet", False))
    log: Path | None = values.pop("log_file")
    state.debug, state.suggesting = bool(values.pop("debug")) or state.debug, True
    with _silent(as_json or quiet), ExitStack() as opened:
        refused: LatentmillError | None = None
        try:
            _check_log(log, values)
            opened.enter_context(log_to(log))
        except ConfigError as error:
            refused = error
        try:
            opened.enter_context(events_of(entry.name, as_json, values))
        except OutputLost as lost:
            refused = LatentmillError(lost.reason)
        if refused is not None:
            guarded(_refusing(refused))
        begun()
        entry.function(**values)


def _refusing(error: LatentmillError) -> Callable[[], int]:
    def refuse() -> int:
        raise error

    return refuse


def _check_log(log: Path | None, values: Mapping[str, Any]) -> None:
    """A log is no part of a result, where `verify` would take it for a stranger's file. Raises ConfigError."""
    dest = values.get("dest")
    if log is not None and isinstance(dest, Path) and dest.resolve() in log.resolve().parents:
        raise ConfigError(f"--log-file must lie outside of what is made. Found: {log}, in {dest}")


@contextmanager
def _silent(silent: bool) -> Iterator[None]:
    before, out.quiet = out.quiet, silent
    try:
        yield
    finally:
        out.quiet = before


def _flags_bare(parameters: list[Any]) -> list[Any]:
    """A flag takes no value, so that the help has no type for it."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


class Command(TyperCommand):
    """A command whose help ends in examples, each on a line that can be copied, however narrow the terminal is."""

    examples: tuple[str, ...] = ()

    def get_params(self, ctx: Any) -> list[Any]:
        """As Typer's."""
        return _flags_bare(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer's; an error remembers what was typed. An empty path is none: Typer takes it for the folder here."""
        typed = list(args)
        try:
            left = super().parse_args(ctx, args)
            if any(not each or each.endswith("=") for each in typed):
                refuse_empty_paths(ctx, typed)
            return left
        except ClickError as error:
            error.typed = typed  # type: ignore[attr-defined]
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Typer's help, then the examples."""
        super().format_help(ctx, formatter)
        if self.examples:
            out.print(" [bold]Example[/]" if len(self.examples) == 1 else " [bold]Examples[/]")
            for example in self.examples:
                out.print(f"   {shown(example)}")
            out.print()


class _MadeWhenAsked(MutableMapping[str, Any]):
    """Commands by name, each made when it is asked for."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries, self._made = entries, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _made(self._entries[name])
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Commands(TyperGroup):
    """The commands of a program, in panels by task. Wrong command lines become one line that says what to do."""

    entries: ClassVar[dict[str, Entry]] = {}
    _listing = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _MadeWhenAsked(self.entries)

    def get_params(self, ctx: Any) -> list[Any]:
        """As Typer's."""
        return _flags_bare(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the panels."""
        return sorted(self.entries, key=lambda name: _PANELS.index(self.entries[name].panel))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command; for a list of all, its name and help alone."""
        if not self._listing or cmd_name not in self.entries:
            return self.commands.get(cmd_name)
        entry = self.entries[cmd_name]
        first = entry.about.split("\n\n")[0]
        return TyperCommand(cmd_name, help=first, rich_markup_mode="rich", rich_help_panel=entry.panel)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Typer's help."""
        with self._listed():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """What a shell offers for an unfinished word."""
        with self._listed():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _listed(self) -> Iterator[None]:
        self._listing = True
        try:
            yield
        finally:
            self._listing = False

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and end the process with an exit code."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except ClickError as error:
            with suppress(typer.Exit):
                tell_usage_error(error, list(sys.argv[1:] if args is None else args))
            sys.exit(EXIT_FAILED)
        sys.exit(code if isinstance(code, int) else 0)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Typer's; an error remembers what was typed."""
        try:
            return super().resolve_command(ctx, args)
        except ClickError as error:
            error.typed = list(args)  # type: ignore[attr-defined]
            raise


def tell_usage_error(error: Any, args: list[str]) -> None:
    """Print one line that says what was found and what to do, then where the help is."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been shown
        return
    text, command = explained(error, sorted(getattr(context and context.find_root().command, "entries", ()))), ""
    if context is not None:
        command = context.info_name if context.parent else ""
        path = " ".join(filter(None, ("latentmill", command)))
        hint = f"{path} --help"
    as_json = "--json" in args
    with events_of(command, as_json, {}):
        err.print(f"[red]error:[/] {shown(text)}")
        emit("error", type="UsageError", text=text, usage=hint if context is not None else "")
        if context is not None:
            err.print(f"[dim]{shown(hint)} shows what there is[/]")
        raise typer.Exit(EXIT_FAILED)
