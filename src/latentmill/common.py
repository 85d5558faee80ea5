"""What the calls of `api` and `features` have in common."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version

from latentmill.config import FeatureSettings
from latentmill.errors import ConfigError, DestinationError, SampleError
from latentmill.formats.containers import FolderContainer
from latentmill.formats.metadata import ModelInfo, Value
from latentmill.formats.pixart import ReaderKind
from latentmill.job import Job
from latentmill.outcome import Event, Result, Tell
from latentmill.records import Listing, SampleRef
from latentmill.registry import FAKE
from latentmill.sources.captioned import IMAGE_FOLDER, CaptionedSet, captioned
from latentmill.stages import EncoderSpec, Load, Source

_PROBE_IMAGES = 8


@contextmanager
def torch_given_back() -> Iterator[None]:
    """Leave the caller's PyTorch as it was, if the job used it."""
    try:
        yield
    finally:
        device = sys.modules.get("latentmill.encoders.device")
        if device is not None:
            device.restore_torch()


def announced(listing: Listing, tell: Tell) -> Listing:
    """The listing, its warnings told."""
    for warning in listing.warnings:
        tell(Event("warning", warning))
    return listing


def check_divisible(size: tuple[int, int], info: ModelInfo) -> None:
    """Refuse a (width, height) that the VAE cannot bring down. Raises ConfigError."""
    if any(side % info.downscale_factor for side in size):
        raise ConfigError(
            f"{info.name} needs sides that are multiples of {info.downscale_factor}. Found: {size[0]}x{size[1]}; "
            "give another --resolution"
        )


def series(package: str) -> str:
    """Major and minor version: what may change results. Patch releases do not make a dataset stale."""
    return ".".join(version(package).split("+")[0].split(".")[:2])


def stored_int(made_with: dict[str, Value], name: str) -> int | None:
    """A number of the settings that a destination was begun with."""
    value = made_with.get(name)
    return value if isinstance(value, int) else None


def stored_reader(made_with: dict[str, Value]) -> ReaderKind | None:
    """Whose file names a feature folder was begun with."""
    value = made_with.get("reader")
    return "multi" if value == "multi" else "single" if value == "single" else None


def model_line(info: ModelInfo) -> str:
    """A VAE's figures for a person."""
    told = f"{info.latent_channels} channels, factor {info.downscale_factor}"
    if info.scaling_factor is not None:
        told += f", scaling {info.scaling_factor:g}"
    return told + (f", shift {info.shift_factor:g}" if info.shift_factor is not None else "")


def seconds_an_image(source: Source, load: Load, spec: EncoderSpec, refs: Sequence[SampleRef]) -> float:
    """Seconds that one image takes to encode alone: an upper bound, since batches are faster."""
    for ref in refs[:_PROBE_IMAGES]:
        try:
            sample = load(ref, source.read(ref))
        except SampleError:
            continue
        if sample is None:
            continue
        encoder = spec.open()
        seconds = 0.0
        for _ in range(2):  # the first may only warm up; a slow one need not be repeated
            start = time.perf_counter()
            encoder.encode([replace(sample, digest="0")])
            seconds = time.perf_counter() - start
            if seconds > 1:
                break
        return seconds
    return 0.1


@dataclass(frozen=True)
class Prepared:
    """A job that has been checked and told, and only waits to be run."""

    job: Job
    listing: Listing

    def run(self) -> Result:
        """Raises LatentmillError."""
        if not any(map(self.listing.wanted, self.listing.refs())):
            self.job.tell(Event("warning", f"no row is in the slice; the source has {self.listing.count:,}"))
        try:
            with torch_given_back():
                return self.job.run(announced(self.listing, self.job.tell))
        finally:
            close = getattr(self.job.encoder, "close", None)  # where a model was loaded: the next job loads its own
            if close is not None:
                close()


def vae_spec(
    name: str,
    revision: str | None,
    subfolder: str | None,
    *,
    device: str,
    dtype: str,
    pixel_range: tuple[float, float],
    save_dtype: str,
    threads: int,
    store: str = "moments",
    seed: int = 0,
    tiling: str = "auto",
) -> tuple[EncoderSpec, ModelInfo]:
    """A VAE by name, or the fake encoder. Raises ModelError."""
    if name == FAKE:
        from latentmill.encoders.fake import FAKE_INFO, FakeSpec

        return FakeSpec(save_dtype), FAKE_INFO
    from latentmill.encoders.device import choose_device
    from latentmill.encoders.models import resolve
    from latentmill.encoders.vae import VaeSpec

    model = resolve(name, revision, subfolder)
    spec = VaeSpec(model, choose_device(device), dtype, pixel_range, store, seed, save_dtype, threads, tiling)
    return spec, model.info


def captioned_source(chosen: FeatureSettings, *, of_images: bool) -> CaptionedSet:
    """What `data_info` holds of images, or of captions. Raises SourceError, ConfigError."""
    return captioned(
        chosen.data_info,
        images=chosen.images,
        caption_extension=chosen.caption_extension,
        multi_line=chosen.multi_line,
        path_column=chosen.path_column,
        caption_columns=chosen.caption_columns,
        needs_images=of_images,
        with_captions=not of_images,
    )


def check_feature_folder(place: FolderContainer, found: CaptionedSet) -> None:
    """Refuse a feature folder that is a file, or lies among the images. Raises DestinationError."""
    if place.path.exists() and not place.path.is_dir():
        raise DestinationError(f"the feature folder must be a folder. Found a file: {place.path}")
    inner, images = place.path.resolve(), found.images.resolve()
    walked = found.path.is_dir() or images.name == IMAGE_FOLDER  # what lies there would be taken for images
    if inner == images or (walked and images in inner.parents):
        raise DestinationError(f"the destination {place.path} lies among the source's images; choose another --dest")
