"""Stored text features to what a model takes: the tensors that the pipeline's own `encode_prompt` gives.

Stored vectors are float16, and so are the results. Positions that the pipeline masks are zero here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.functional import pad

from latentmill.errors import ConfigError
from latentmill.registry import TEXT_SETS

Parts = dict[str, torch.Tensor]
CHOSEN = "caption"  # the name of one that was chosen by weights


def assemble(
    name: str, batch: Mapping[str, Any], caption: str = CHOSEN, max_length: int | None = None
) -> dict[str, torch.Tensor | None]:
    """What the pipeline of a set of text encoders (`registry.TEXT_SETS`) takes, by the names of its arguments.

    batch: of `collate`, whose `text_features`, `text_mask` and `text_pooled` hold a caption's by each encoder of the
    set (`prompt/clip-l`; of a set of one also `prompt`). caption: which; by default the
    one chosen by weights, or the only one.
    `prompt_embeds` (N, L, D) always; `pooled_prompt_embeds` (N, P) for sd3 and flux.1; `text_ids` for flux.1 (L, 3) and
    flux.2-klein (N, L, 4); `prompt_attention_mask` (N, L) for pixart-sigma and sana; `prompt_embeds_mask` (N, L) for
    qwen-image, None where nothing is padding.
    max_length: L of pixart-sigma, sana and wan, by default the pipeline's (300, 300, 512); longer ones are cut. L of
    qwen-image is the batch's; that of the others as they are stored.
    Raises ConfigError where the batch lacks a part.
    """
    if name not in _MAKERS:
        raise ConfigError(f"there is no set of text encoders {name!r}. There are: {', '.join(_MAKERS)}")
    features, mask, pooled = (
        _parts(name, batch.get(kind, {}), caption) for kind in ("text_features", "text_mask", "text_pooled")
    )
    if name in _PADDED:
        length = max_length or TEXT_SETS[name][0].entry.max_length
        features = {member: pad(part, (0, 0, 0, length - part.shape[1])) for member, part in features.items()}
        mask = {member: pad(part, (0, length - part.shape[1])) for member, part in mask.items()}
    return _MAKERS[name](features, mask, pooled)


def _parts(name: str, found: Mapping[str, torch.Tensor], caption: str) -> Parts:
    """By the encoder's name in the set; those that are there. Of a batch with one caption, that one will do."""
    members = [member.name for member in TEXT_SETS[name]]
    captions = {key.partition("/")[0] for key in found}
    if caption == CHOSEN and len(captions) == 1:
        (caption,) = captions
    parts = {member: found[f"{caption}/{member}"] for member in members if f"{caption}/{member}" in found}
    return parts or ({members[0]: found[caption]} if len(members) == 1 and caption in found else {})


def _of(parts: Parts, member: str) -> torch.Tensor:
    if member not in parts:
        raise ConfigError(
            f"the batch lacks the text features of {member}: load the folders of every encoder of the set, and name "
            f"the caption. Found: {', '.join(parts) or 'none'}"
        )
    return parts[member]


def _sd3(features: Parts, mask: Parts, pooled: Parts) -> dict[str, torch.Tensor | None]:
    clip = torch.cat([_of(features, "clip-l"), _of(features, "clip-g")], dim=-1)
    t5 = _of(features, "t5")
    return {
        "prompt_embeds": torch.cat([pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5], dim=1),
        "pooled_prompt_embeds": torch.cat([_of(pooled, "clip-l"), _of(pooled, "clip-g")], dim=-1),
    }


def _flux(features: Parts, mask: Parts, pooled: Parts) -> dict[str, torch.Tensor | None]:
    t5 = _of(features, "t5")
    return {
        "prompt_embeds": t5,
        "pooled_prompt_embeds": _of(pooled, "clip-l"),
        "text_ids": t5.new_zeros((t5.shape[1], 3)),
    }


def _flux2_klein(features: Parts, mask: Parts, pooled: Parts) -> dict[str, torch.Tensor | None]:
    qwen = _of(features, "qwen")
    ids = torch.zeros((*qwen.shape[:2], 4), dtype=torch.int64, device=qwen.device)
    ids[..., 3] = torch.arange(qwen.shape[1], device=qwen.device)
    return {"prompt_embeds": qwen, "text_ids": ids}


def _masked(features: Parts, mask: Parts, pooled: Parts) -> dict[str, torch.Tensor | None]:
    (member,) = features or ("its text encoder",)
    return {"prompt_embeds": _of(features, member), "prompt_attention_mask": _of(mask, member)}


def _qwen_image(features: Parts, mask: Parts, pooled: Parts) -> dict[str, torch.Tensor | None]:
    real = _of(mask, "qwen")
    return {"prompt_embeds": _of(features, "qwen"), "prompt_embeds_mask": None if bool(real.all()) else real}


def _wan(features: Parts, mask: Parts, pooled: Parts) -> dict[str, torch.Tensor | None]:
    return {"prompt_embeds": _of(features, "t5")}


_PADDED = ("pixart-sigma", "sana", "wan")  # to max_length, whatever the batch
_MAKERS: dict[str, Callable[[Parts, Parts, Parts], dict[str, torch.Tensor | None]]] = {
    "pixart-sigma": _masked,
    "sd3": _sd3,
    "flux.1": _flux,
    "sana": _masked,
    "qwen-image": _qwen_image,
    "flux.2-klein": _flux2_klein,
    "wan": _wan,
}
