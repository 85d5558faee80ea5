"""A finished dataset as a PyTorch Dataset: latents normalised as trainers need them, pixels, labels, captions, text."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from latentmill.encoders.normalization import Affine, affine
from latentmill.errors import ConfigError, SourceError
from latentmill.formats.columns_texts import Texts
from latentmill.formats.metadata import METADATA_JSON, WORK_FOLDER, Metadata
from latentmill.loaders_arrays import ArrayFiles, PictureFiles
from latentmill.loaders_draws import Draws
from latentmill.loaders_index import read_index
from latentmill.loaders_pairs import paired_columns
from latentmill.loaders_sample import Origin, Sample
from latentmill.loaders_text import TextFeatures, check_weights, encodings, names_of
from latentmill.loaders_text import collate as collate
from latentmill.loaders_variants import check_same_variant, found_variants, partners
from latentmill.loaders_vision import VisionFeatures, name_of
from latentmill.records import Array
from latentmill.transforms.variant import PLAIN, Variant

if TYPE_CHECKING:
    from PIL.Image import Image

Normalize = Literal["factor", "channel", "none"]
Posterior = Literal["sample", "mean"]
MissingText = Literal["error", "drop", "empty"]
_SHOWN = 3


def load(
    latents: str | Path,
    images: str | Path | None = None,
    *,
    text: str | Path | Sequence[str | Path] | None = None,
    vision: str | Path | Sequence[str | Path] | None = None,
    variants: bool = False,
    captions: Mapping[str, float] | None = None,
    caption_dropout: float = 0.0,
    missing_text: MissingText = "error",
    normalize: Normalize = "factor",
    posterior: Posterior = "sample",
) -> LatentDataset:
    """Open a dataset of latents, and what belongs to them, for training.

    latents: a folder or zip of latents; or a PixArt root (`InternData`, or the folder above), whose one folder of
    latents and all folders of text features are taken. images: those that the latents pair with.
    vision: folders or zips of vision features, paired by the image's path; every image must have them.
    variants: take the variants that lie beside `latents` (`LATENTS-flip`, `LATENTS-crop1`, …) together with it, one at
    every access, each as likely; pixels and vision features are then those of the same variant, beside `images` and
    `vision`. Statistics are those of the plain one. Variants of other settings or another source are an error.
    text: folders of text features, paired by the image's path. captions: choose one by weights at every access,
    `{"prompt": 0.5, "sharegpt4v": 0.5}`. caption_dropout: the share of accesses that get the empty caption's features.
    missing_text: what becomes of images that lack features of a caption (where one is chosen by weights: of any that
    may be chosen): `error`, `drop` (the dataset's `left_out` names them), or `empty`, the empty caption's features.
    normalize: "factor" gives the model's own normalisation, as diffusers' pipelines have it: for most models
    `(z - shift_factor) * scaling_factor` (REPA, SiT, DiT), for others see `metadata.Normalization`; "channel" gives
    `(z - mean) / std` with the set's own per-channel statistics (EDM2 multiplies that by 0.5, its sigma_data); "none"
    gives z.
    posterior: z is a fresh draw from the stored moments at every access, or their mean.
    Raises SourceError or ConfigError.
    """
    folder, texts = _discovered(Path(latents))
    if text is not None:
        texts = _paths(text)
    dataset = LatentDataset(folder, None if images is None else Path(images), normalize, posterior, variants)
    dataset.add_text([TextFeatures(each) for each in texts], captions, caption_dropout, missing_text)
    dataset.add_vision(_paths(vision or ()))
    dataset.release()
    return dataset


def _paths(told: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(told)] if isinstance(told, str | Path) else list(map(Path, told))


class LatentDataset(Dataset[Sample]):
    """Map-style dataset over a folder or a zip; picklable, safe under fork and spawn.

    A sample is a dict that can `show()` itself: `moments` float32 (2C, h, w), as stored (only where moments are
    stored); `latent` float32 (C, h, w), normalised (of FLUX.2 with normalize="factor": (4C, h/2, w/2)); `image` uint8
    (3, H, W), only with images; `label` int (-1 where there is none); `key` str.
    Of bucketed latents, and where there are variants by crop, int64: `size` (2,), height and width of the source image;
    `crop` (4,), the top, left, bottom and right of what is shown in the scaled image; `bucket` (2,), height and width.
    With variants, all is of one that is drawn at every access: `flip` bool, whether it is mirrored; `crop` is that of
    the image before mirroring. `variants` names them, the plain one first. An image that some variants have not is
    drawn from the others.
    With vision: `vision[name]` (N, D), float32 or float16 as stored; its name is the folder's.
    With text: `captions[name]` str, `text_features[name]` float16 (L, D) and `text_mask[name]` int64 (L,), all ones;
    where one is chosen by weights, its name is `caption`, and `caption_name` says which it was. Pooled vectors, where
    they are stored, are `text_pooled[name]` float16 (P,). Of several encoders the names are `prompt/clip-l` and so on.
    `buckets`, int64 (N, 2), is every sample's height and width in pixels, for a BucketSampler.
    Draws use PyTorch's global generator, which a DataLoader seeds anew for every worker and epoch; give ranks
    different seeds where their draws should differ.
    """

    def __init__(
        self, latents: Path, images: Path | None, normalize: Normalize, posterior: Posterior, variants: bool = False
    ) -> None:
        self.metadata = _metadata(latents, "latents")
        latent, model = self.metadata.latent, self.metadata.model
        assert latent is not None and model is not None
        if normalize not in ("factor", "channel", "none"):
            raise ConfigError(f"normalize must be factor, channel or none. Found: {normalize!r}")
        if posterior not in ("sample", "mean"):
            raise ConfigError(f"posterior must be sample or mean. Found: {posterior!r}")
        self.statistic, self.posterior = latent.statistic, posterior
        self.channels = model.latent_channels
        self.path, self.images, self.normalize, self._augmented = latents, images, normalize, variants
        own = Variant.of(self.metadata.fingerprint)
        found = found_variants(latents, self.metadata) if variants else [(own, latents)]
        self.variants, places = [variant for variant, _ in found], [place for _, place in found]
        self._index = read_index(places, self.metadata)
        self._latents = [
            ArrayFiles(place, self.metadata, table) for place, table in zip(places, self._index.tables, strict=True)
        ]
        self._images = [] if images is None else self._pictures(places, self._beside(images))
        self._affine = self._normalisation(normalize)
        self._draws = Draws(self._affine, self.statistic == "moments", posterior == "sample")
        self.origin = Origin(latents, images, model, latent, self._affine, tuple(self.metadata.classes or ()))
        self.text: dict[str, TextFeatures] = {}
        self.vision: dict[str, list[VisionFeatures]] = {}  # of every variant
        self.caption_dropout = 0.0
        self._choice: tuple[list[str], torch.Tensor] | None = None
        self.left_out: list[str] = []

    def _beside(self, root: Path) -> list[Path]:
        """Of another output, what goes with each of the variants."""
        return partners(root, self.variants) if self._augmented else [root]

    def _pictures(self, latents: Sequence[Path], images: Sequence[Path]) -> list[PictureFiles]:
        """The images of every variant, whose rows are those of its latents."""
        found = []
        for table, ours, theirs in zip(self._index.tables, latents, images, strict=True):
            metadata, of_images = _metadata(ours, "latents"), _metadata(theirs, "images")
            columns = paired_columns(table, metadata, of_images, ours, theirs)
            found.append(PictureFiles(theirs, of_images, columns))
        return found

    @property
    def numbers(self) -> Array:
        """Integers (N,), not to be written to: every sample's number in the dataset's names."""
        return self._index.numbers

    @property
    def labels(self) -> Array:
        """Integers (N,), not to be written to; -1 where there is none."""
        return self._index.labels

    @property
    def buckets(self) -> Array:
        """int64 (N, 2): every sample's height and width in pixels."""
        buckets = self._index.buckets
        if buckets is not None:
            return buckets
        latent, model = self.metadata.latent, self.metadata.model
        assert latent is not None and model is not None
        size = [side * model.downscale_factor for side in latent.fixed_shape[1:]]
        return np.broadcast_to(np.array(size, np.int64), (len(self), 2))

    def add_text(
        self,
        texts: Sequence[TextFeatures],
        captions: Mapping[str, float] | None = None,
        caption_dropout: float = 0.0,
        missing_text: MissingText = "error",
    ) -> None:
        """Pair text features with the samples, by the image's path; see `load`. Raises SourceError or ConfigError."""
        if missing_text not in ("error", "drop", "empty"):
            raise ConfigError(f"missing_text must be error, drop or empty. Found: {missing_text!r}")
        if not 0 <= caption_dropout <= 1:
            raise ConfigError(f"caption_dropout must be between 0 and 1. Found: {caption_dropout}")
        if caption_dropout and not texts:
            raise ConfigError("caption_dropout needs text features (text=...)")
        for each in texts:
            if each.name in self.text:
                raise SourceError(
                    f"{self.text[each.name].folder} and {each.folder} both hold features of {each.name!r}: name the "
                    "one to take (text=...)"
                )
            self.text[each.name] = each
        self.caption_dropout = caption_dropout
        self._choice = None if captions is None else check_weights(captions, self.text)
        if self.text:
            self._pair_text(missing_text)

    def _pair_text(self, missing_text: MissingText) -> None:
        needed = list(self.text) if self._choice is None else names_of(self._choice[0], self.text)
        keys = self._index.keys()
        known = np.stack([self._aligned(self.text[name], keys) for name in needed])
        lacking = np.flatnonzero(~known.all(axis=0))
        if not len(lacking) or missing_text == "empty":
            return
        if missing_text == "error" or len(lacking) == len(keys):
            raise SourceError(
                f"{len(lacking):,} of {len(keys):,} images have no features of {' and '.join(needed)} "
                f"({_some(keys, lacking)}): make them, or load with missing_text='drop' or 'empty'"
            )
        kept = np.flatnonzero(known.all(axis=0))
        self.left_out = [keys[int(position)] for position in lacking]
        self._index.keep(kept)
        for name in needed:
            self.text[name].keep(kept)
        for features in chain(*self.vision.values()):
            features.keep(kept)

    def add_vision(self, folders: Sequence[Path]) -> None:
        """Pair vision features with the samples, by the image's path; see `load`. Raises SourceError."""
        keys = self._index.keys() if folders else Texts.of([])
        for folder in folders:
            name = name_of(folder)
            if name in self.vision:
                raise SourceError(f"{self.vision[name][0].folder} and {folder} are both called {name}: rename one")
            found = [VisionFeatures(place) for place in self._beside(folder)]
            check_same_variant(self.metadata, found[0].metadata, self.path, folder)
            known = np.stack([self._aligned(features, keys) for features in found], axis=1) & self._index.known
            lacking = np.flatnonzero(~known.any(axis=1))
            if len(lacking):
                raise SourceError(
                    f"{len(lacking):,} of {len(keys):,} images have no features in {folder} ({_some(keys, lacking)}): "
                    "make them"
                )
            self._index.drop(known)
            self.vision[name] = found

    def _aligned(self, features: TextFeatures | VisionFeatures, keys: Texts) -> Array:
        known = features.align(keys)
        if not known.any():
            raise SourceError(
                f"{features.folder} holds features of none of the {len(keys):,} images ({keys[0]}, …): it was made of "
                "another dataset"
            )
        return known

    def _normalisation(self, normalize: Normalize) -> Affine:
        model, statistics = self.metadata.model, self.metadata.statistics
        assert model is not None
        if normalize == "none":
            return Affine(0.0, 1.0)
        if normalize == "factor":
            return affine(model)
        if statistics is None:
            raise ConfigError("normalize='channel' needs statistics, and these latents have none")
        spread = statistics.std_sampled if self.posterior == "sample" else statistics.std
        scale = [1 / max(value, 1e-12) for value in spread]
        shift, factor = (torch.tensor(each, device="cpu").view(-1, 1, 1) for each in (statistics.mean, scale))
        return Affine(shift, factor)

    def release(self) -> None:
        """Let go of the pages of the index that were looked at while opening."""
        for table in self._index.tables:
            table.release()
        for text in self.text.values():
            text.columns.release()
        for vision in chain(*self.vision.values()):
            vision.columns.release()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Sample:
        index = self._index
        numbers, labels = index.numbers, index.labels
        count = len(numbers)
        if position < 0:
            position += count
        if not 0 <= position < count:
            raise IndexError(position)
        number, key = numbers.item(position), index.key(position)
        variant, row = index.draw(position)
        stored = self._latents[variant].read(row, number, key)
        if stored.dtype != np.float32:
            stored = stored.astype(np.float32)
        sample = Sample(label=labels.item(position), key=key)
        sample._of = self.origin
        if self._augmented:
            sample["flip"] = self.variants[variant].flip
        if self.statistic == "moments":
            sample["moments"] = torch.from_numpy(stored)
        sample["latent"] = self._draws(stored)
        if self._images:
            sample["image"] = self._images[variant].read(row, number)
        box = index.box(position, variant)
        if box is not None:
            how = torch.from_numpy(box)
            sample |= {"size": how[:2], "crop": how[2:6], "bucket": how[6:]}
        if self.vision:
            sample["vision"] = {name: found[variant].read(position, key) for name, found in self.vision.items()}
        if self.text:
            self._add_text(sample, position, key)
        return sample

    def _add_text(self, sample: dict[str, Any], position: int, key: str) -> None:
        dropped = bool(self.caption_dropout) and torch.rand((), device="cpu").item() < self.caption_dropout
        chosen = None
        if self._choice is not None:
            labels, weights = self._choice
            sample["caption_name"] = chosen = labels[int(torch.multinomial(weights, 1))]
        sample |= encodings(self.text, chosen, position, key, empty=dropped)

    def key(self, position: int) -> str:
        """The source image's path relative to the source."""
        return self._index.key(position)

    def denormalize(self, latent: torch.Tensor) -> torch.Tensor:
        """The exact inverse of the normalisation, of `latent` (…, C, h, w): what the VAE's decoder takes."""
        return self._affine.undo(latent)

    def decode(self, latents: torch.Tensor, device: str = "auto") -> list[Array]:
        """Normalised latents (N, C, h, w) -> N pictures, uint8 (H, W, 3), by the VAE that made the dataset.

        Raises ModelError.
        """
        return self.origin.decode(latents, device)

    def show(self, n: int = 16, decode: bool = False, device: str = "auto") -> Image | None:
        """Display `n` samples, evenly spread, in a notebook; elsewhere give one picture (PIL) of them.

        Images where they are paired, else latents as `Sample.show` has them; with `decode`, what the VAE makes of the
        latents. The draws that follow are those that would have come without looking. Raises as `Sample.show`.
        """
        from latentmill.showing.datasets import show

        return show(self, n, decode, device)

    def _repr_html_(self) -> str:
        from latentmill.showing.datasets import dataset_html

        return dataset_html(self)

    def __repr__(self) -> str:
        from latentmill.showing.datasets import dataset_text

        return dataset_text(self)


def _metadata(path: Path, kind: str) -> Metadata:
    metadata = Metadata.read_beside(path) if path.exists() else None
    if metadata is None or metadata.kind != kind:
        raise SourceError(f"{path} holds no {kind} that latentmill made (no {METADATA_JSON} of that kind)")
    return metadata


def _discovered(folder: Path) -> tuple[Path, list[Path]]:
    """A folder of latents alone, or of a PixArt root its one folder of latents and its folders of text features."""
    if not folder.is_dir() or (folder / METADATA_JSON).exists():
        return folder, []
    inner = folder / "InternData"
    root = inner if inner.is_dir() else folder
    made = {path.parent: Metadata.read_beside(path.parent) for path in sorted(root.glob(f"*/{METADATA_JSON}"))}
    latents = [path for path, metadata in made.items() if metadata is not None and metadata.kind == "latents"]
    latents = [path for path in latents if not _is_variant_of_another(path, made[path], latents)]
    if not latents:
        return folder, []
    unfinished = sorted({path.parent for path in root.glob(f"*/{WORK_FOLDER}")} - made.keys())
    if unfinished:
        names = ", ".join(path.name for path in unfinished)
        warnings.warn(f"of {root} is left out, since not finished: {names}", stacklevel=3)
    if len(latents) > 1:
        raise SourceError(
            f"{root} holds several folders of latents: {', '.join(path.name for path in latents)}. Load one of them, "
            "with text=[...]"
        )
    return latents[0], [path for path, metadata in made.items() if metadata is not None and metadata.kind == "text"]


def _some(keys: Texts, positions: Array) -> str:
    """A few of these keys, for a message."""
    named = [keys[int(position)] for position in positions[:_SHOWN]]
    return ", ".join(named) + (", …" if len(positions) > _SHOWN else "")


def _is_variant_of_another(path: Path, metadata: Metadata | None, others: Sequence[Path]) -> bool:
    """Whether this is an augmented variant that lies beside its plain dataset, which stands for both."""
    variant = Variant.of(metadata.fingerprint) if metadata is not None else PLAIN
    return bool(variant.suffix) and any(variant.beside(other) == path for other in others)
