"""Loading a model of transformers: from safetensors, whole, in evaluation mode, without its reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentmill.encoders.memory import DeviceFullError, is_out_of_memory
from latentmill.errors import ModelError

if TYPE_CHECKING:
    import torch


def load_pretrained(
    class_name: str,
    folder: Path,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    unused: str = "",
    **settings: Any,
) -> Any:
    """The model. settings: of its config, that are not those of the file.

    unused: ending of the names of tensors that may be missing. Raises ModelError, also where others are missing.
    """
    import transformers

    made = getattr(transformers, class_name, None)
    if made is None:
        raise ModelError(f"{name} needs {class_name}, which transformers {transformers.__version__} lacks: upgrade it")
    with load_errors(name):
        with quietly():
            model, loading = made.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                torch_dtype=dtype,
                output_loading_info=True,
                **settings,
            )
        model = model.eval().requires_grad_(False).to(device)
    missing = sorted(key for key in loading["missing_keys"] if not unused or not key.endswith(unused))
    if missing:
        raise ModelError(f"the weights of {name} are not whole: {len(missing)} tensors are missing, {missing[0]} first")
    return model


@contextmanager
def load_errors(name: str) -> Iterator[None]:
    """Raises ModelError where a model cannot be loaded: DeviceFullError where it does not fit in memory."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        told = " ".join(str(error).split())[:300]
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise DeviceFullError(
                f"{name} does not fit in the device's memory: use --dtype bfloat16, or --device cpu. Found: {told}"
            ) from error
        raise ModelError(f"{name} cannot be loaded: {told}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars and load reports; what matters of them is an error here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
