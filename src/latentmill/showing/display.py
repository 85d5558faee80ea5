"""Whether this is a notebook, and displaying there. IPython is not needed: where it is not loaded, there is none."""

from __future__ import annotations

import sys


def in_notebook() -> bool:
    """Whether code runs in a kernel (Jupyter, Colab, VS Code), which has a page to display on; not IPython's prompt."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def displayed(html: str) -> bool:
    """Display HTML where there is a notebook; gives whether there is."""
    if not in_notebook():
        return False
    from IPython.display import HTML, display

    display(HTML(html))  # type: ignore[no-untyped-call]
    return True
