"""What `latentmill models` prints: the models that have short names."""

from __future__ import annotations

from rich.table import Table

from latentmill.encoders.models import resolve
from latentmill.encoders.text_models import resolve_text
from latentmill.registry import MINI, MODELS, TEXT_MODELS, TEXT_SETS, VISION_MODELS, ModelEntry
from latentmill.terminal import out, print_whole


def print_models() -> None:
    """Tables of VAEs, text encoders, sets of text encoders, and vision encoders."""
    for table, line in (
        (_vaes(), "Any other model of a class that diffusers has and these tell: --vae owner/name, or a folder."),
        (_texts(), "Any other T5, UMT5, CLIP, Gemma or Qwen: --text-encoder owner/name, or a folder."),
        (_sets(), "A set is the model of a recipe's text output, and becomes one for each of its encoders."),
        (_vision(), 'Any other DINOv2, DINOv3, CLIP or SigLIP: model = "owner/name" in a recipe, or a folder.'),
    ):
        print_whole(table)
        out.print(f"\n{line}\n")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _vaes() -> Table:
    table = _table("VAE", "repository", "channels", "factor", "normalisation", "used by")
    for entry in MODELS.values():
        channels, factor = str(entry.latent_channels), str(entry.downscale_factor)
        note = entry.note if entry.posterior else f"{entry.note}; --store mean"
        table.add_row(entry.name, entry.repository, channels, factor, _normalisation(entry), note)
    mini = resolve(MINI).info
    scale = f"scale {mini.scaling_factor:g}"
    figures = str(mini.latent_channels), str(mini.downscale_factor), scale
    table.add_row(MINI, "in the package", *figures, "trying and testing only")
    return table


def _normalisation(entry: ModelEntry) -> str:
    if entry.normalization != "scale-shift":
        return entry.normalization
    shift = "" if entry.shift_factor is None else f", shift {entry.shift_factor:g}"
    return f"scale {entry.scaling_factor:g}{shift}"


def _texts() -> Table:
    table = _table("text encoder", "repository", "width", "tokens", "used by")
    for entry in TEXT_MODELS.values():
        table.add_row(entry.name, entry.repository, str(entry.width), str(entry.max_length), entry.note)
    width = str(resolve_text(MINI).info.width)
    table.add_row(MINI, "in the package", width, "300", "random weights: trying and testing only")
    return table


def _sets() -> Table:
    table = _table("set", "encoders")
    for name, members in TEXT_SETS.items():
        table.add_row(name, ", ".join(f"{member.name} ({member.entry.name})" for member in members))
    return table


def _vision() -> Table:
    table = _table("vision encoder", "repository", "width", "patch", "used by")
    for entry in VISION_MODELS.values():
        table.add_row(entry.name, entry.repository, str(entry.width), str(entry.patch_size), entry.note)
    return table
