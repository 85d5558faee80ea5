"""A model compiled by torch.compile: once for each shape, and in no other way, however many shapes there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from latentmill.errors import ModelError

_MOST_SHAPES = 1 << 14  # beyond PyTorch's own limit a model runs uncompiled, so bytes would depend on what came before


def compile_module(module: Any, backend: str) -> None:
    """Let a module's forwards be compiled when first called with a shape. backend: of torch.compile."""
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_SHAPES)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, _MOST_SHAPES)
    module.compile(backend=backend, dynamic=False, options=_options(backend))


def _options(backend: str) -> dict[str, Any] | None:
    """Inductor is not to choose kernels by timing them, by which bytes could depend on the moment of compiling."""
    if backend != "inductor":
        return None
    import torch._inductor.config as inductor

    return {"deterministic": True} if hasattr(inductor, "deterministic") else None


@contextmanager
def compile_errors(name: str) -> Iterator[None]:
    """Raises ModelError where a model cannot be compiled here, which is seen at its first forward of a shape."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        told = " ".join(str(error).split())[:300]
        raise ModelError(f"{name} cannot be compiled here: leave out --compile. Found: {told}") from error


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within it, modules run as if they were not compiled."""
    import torch

    with torch.compiler.set_stance("force_eager"):
        yield
