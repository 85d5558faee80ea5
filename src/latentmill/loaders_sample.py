"""What `dataset[i]` gives: a dict that can show itself."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentmill.encoders.normalization import Affine
from latentmill.formats.metadata import LatentInfo, ModelInfo
from latentmill.records import Array

if TYPE_CHECKING:
    from PIL.Image import Image

    from latentmill.encoders.vae import DecoderSpec
    from latentmill.showing.colours import Colours


@dataclass
class Origin:
    """What a dataset's samples need to show themselves; what it holds in memory is found when it is first needed.

    latents, images: where the dataset was opened. affine: its normalisation. classes: names by label, where known.
    """

    latents: Path
    images: Path | None
    model: ModelInfo
    latent: LatentInfo
    affine: Affine
    classes: tuple[str, ...] = ()
    _decoder: DecoderSpec | None = field(default=None, repr=False)
    _colours: Colours | None = field(default=None, repr=False)

    def decode(self, latents: torch.Tensor, device: str = "auto") -> list[Array]:
        """Normalised latents (N, C, h, w) -> N pictures, uint8 (H, W, 3), by the VAE that made them.

        Raises ModelError.
        """
        from latentmill.encoders.decoder import decoded, decoder_spec, model_of
        from latentmill.encoders.device import choose_device, restore_torch

        if self._decoder is None:
            model = model_of(self.model, None)
            self._decoder = decoder_spec(model, self.latent, choose_device(device), torch.get_num_threads())
        try:
            return decoded(self._decoder, list(self.affine.undo(latents.detach().cpu()).float().numpy()))
        finally:
            restore_torch()

    @property
    def colours(self) -> Colours:
        """How latents are shown as pictures without their VAE; found from a few samples of the dataset."""
        if self._colours is None:
            from latentmill.showing.colours import colours_of

            self._colours = colours_of(self.latents, self.images)
        return self._colours

    def label_name(self, label: int) -> str:
        """The class's name; the number where that is all that is known, "" of -1."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label) if label >= 0 else ""

    def to_send(self) -> Origin:
        """Without what another process finds by itself."""
        return replace(self, _decoder=None)


class Sample(dict[str, Any]):
    """A sample of a LatentDataset: a dict, which a notebook shows as pictures and figures.

    Copied or collated it becomes a plain dict, and saved (pickle, `torch.save`) an OrderedDict, which `torch.load`
    takes with `weights_only=True`. Between a DataLoader's processes it stays what it is.
    """

    __slots__ = ("_of",)  # without `__init__`, which would cost each access half a microsecond
    _of: Origin | None

    @property
    def origin(self) -> Origin | None:
        """Where it comes from; None of one that was made by hand."""
        return getattr(self, "_of", None)

    def show(self, decode: bool = False, device: str = "auto") -> Image | None:
        """Display the sample in a notebook; elsewhere give it as one picture (PIL), to `.show()` or `.save()`.

        It has the image, where it is paired; the latent, with its channels as colours (`showing.colours` says how);
        with `decode`, what the VAE that made the latents makes of it; and the key, label, sizes and captions.
        Raises ModelError where that VAE cannot be had, ConfigError of a sample that no dataset gave.
        """
        from latentmill.showing.samples import show

        return show(self, decode, device)

    def _repr_html_(self) -> str:
        from latentmill.showing.samples import sample_html

        return sample_html(self)

    def __repr__(self) -> str:
        from latentmill.showing.samples import sample_text

        return sample_text(self)

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(self), memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), None, None, iter(self.items())


def of_dataset(values: dict[str, Any], origin: Origin | None) -> Sample:
    """A sample of a dataset."""
    sample = Sample(values)
    sample._of = origin
    return sample


def _sent(sample: Sample) -> tuple[Callable[..., Sample], tuple[Any, ...]]:
    origin = sample.origin
    return of_dataset, (dict(sample), None if origin is None else origin.to_send())


ForkingPickler.register(Sample, _sent)
