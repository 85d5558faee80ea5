"""`latentmill` and `python -m latentmill`: the garbage collector rests while modules are imported."""

from __future__ import annotations

import gc


def main() -> None:
    """The command line. A command turns the collector on again, as it begins."""
    gc.disable()
    from latentmill.cli import main as run

    gc.freeze()
    run()


if __name__ == "__main__":
    main()
