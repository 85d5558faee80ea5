"""`latentmill`, `python -m latentmill` and the drop-in programs: supervised, with the collector at rest at first."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from latentmill.supervising import supervise


def main() -> None:
    """The command line."""
    begin("latentmill.cli", sys.argv[1:])


def begin(module: str, words: Sequence[str]) -> None:
    """Run `main` of a module as this process's program. words: of the command line, the command first.

    The garbage collector rests while the module is imported; a command turns it on again, as it begins.
    """
    supervise(words)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # to look for some takes longer than all models
    gc.disable()
    program = import_module(module)
    gc.freeze()
    try:
        program.main()
    except SystemExit as ended:
        _leave(ended.code)
        raise


def _leave(code: object) -> None:
    """End the process once all is written and put away: Python would first take apart all that was imported."""
    if not (code is None or isinstance(code, int)) or sys.gettrace() or sys.getprofile():
        return
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):  # nobody reads any more, which Python tells in its own way
        return
    os._exit(code or 0)


if __name__ == "__main__":
    main()
