"""latentmill: raw images and captions in, training-ready latents out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentmill.api import convert, decode, encode
    from latentmill.assembling import assemble
    from latentmill.auditing.audit import audit
    from latentmill.comparing.session import compare_vae
    from latentmill.errors import LatentmillError
    from latentmill.features import pixart
    from latentmill.importing import import_captioned
    from latentmill.loaders import collate, load
    from latentmill.recipe import Recipe, RecipeError
    from latentmill.report.make import make_report
    from latentmill.sampling import BucketSampler
    from latentmill.verification import verify

__all__ = [
    "BucketSampler",
    "LatentmillError",
    "Recipe",
    "RecipeError",
    "__version__",
    "assemble",
    "audit",
    "collate",
    "compare_vae",
    "convert",
    "decode",
    "encode",
    "import_captioned",
    "load",
    "make_report",
    "pixart",
    "verify",
]

# No module may be called as one of these: importing it would put the module in the name's place.
_HOMES = {
    "assemble": "latentmill.assembling",
    "audit": "latentmill.auditing.audit",
    "BucketSampler": "latentmill.sampling",
    "Recipe": "latentmill.recipe",
    "RecipeError": "latentmill.recipe",
    "collate": "latentmill.loaders",
    "compare_vae": "latentmill.comparing.session",
    "import_captioned": "latentmill.importing",
    "pixart": "latentmill.features",
    "LatentmillError": "latentmill.errors",
    "convert": "latentmill.api",
    "decode": "latentmill.api",
    "encode": "latentmill.api",
    "load": "latentmill.loaders",
    "make_report": "latentmill.report.make",
    "verify": "latentmill.verification",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("latentmill")
    if name not in _HOMES:
        raise AttributeError(f"module 'latentmill' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
