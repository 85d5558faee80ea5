"""`latentmill` and `python -m latentmill`: supervised, and with the collector at rest while modules are imported."""

from __future__ import annotations

import atexit
import gc
import os
import sys

from latentmill.supervising import supervise


def main() -> None:
    """The command line. A command turns the collector on again, as it begins."""
    supervise(sys.argv[1:])
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # to look for some takes longer than all models
    gc.disable()
    from latentmill.cli import main as run

    gc.freeze()
    try:
        run()
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
