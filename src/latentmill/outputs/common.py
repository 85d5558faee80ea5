"""What the kinds of output have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentmill.config import BucketSettings, LatentSettings, OutputSettings
from latentmill.destination import stored_fingerprint, to_clear
from latentmill.devices import encoder_device
from latentmill.errors import ConfigError, DestinationError, ModelError, SampleError
from latentmill.formats.containers import Container, FolderContainer, container
from latentmill.formats.metadata import ModelInfo, Value
from latentmill.outcome import Event, Tell
from latentmill.outputs.shared import Shared
from latentmill.plugins import ENCODERS, EncoderRequest, MakeEncoder, choices, installed, load, origin
from latentmill.records import Listing, Sample, SampleRef
from latentmill.sources.folders import IMAGE_FOLDER
from latentmill.stages import EncoderSpec, Source
from latentmill.versions import installed_version

if TYPE_CHECKING:
    from latentmill.formats.pixart import ReaderKind
    from latentmill.sources.captioned import CaptionedSet

_PROBE_IMAGES = 8
_PROBE_STEP = 4  # times the pixels of the one before
_LONG_PROBE = 1.0  # seconds
_REPEATS = 3
_SECONDS_A_PIXEL = 6e-8  # to decode, crop and write, on one core: measured, and rounded up


def divided(size: tuple[int, int], info: ModelInfo, rule: str) -> tuple[int, int]:
    """(width, height) that the VAE can bring down, by the rule for what does not divide. Raises ConfigError."""
    from latentmill.transforms.divide import divided_size

    multiple = info.pixel_multiple
    if rule == "refuse" and any(side % multiple for side in size):
        raise ConfigError(
            f"{info.name} needs sides that are multiples of {multiple}. Found: {size[0]}x{size[1]}; "
            "give another --resolution, or --indivisible crop or pad"
        )
    try:
        height, width = divided_size(size[::-1], multiple, rule)
    except SampleError as error:
        raise ConfigError(f"{info.name}: {error.reason}") from error
    return width, height


def series(package: str) -> str:
    """Major and minor version: what may change results. Patch releases do not make a dataset stale."""
    return ".".join((installed_version(package) or "unknown").split("+")[0].split(".")[:2])


def begun_with(chosen: OutputSettings, *places: Container) -> dict[str, Value]:
    """The settings that the first of these places was begun with: of a variant its own, or else the plain one's."""
    found = ({} if to_clear(chosen.overwrite, place) else stored_fingerprint(place) for place in places)
    return next(filter(None, found), {})


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
    kind = info.normalization.kind if info.normalization is not None else "scale-shift"
    if kind != "scale-shift":
        return f"{told}, normalised {kind}"
    if info.scaling_factor is not None:
        told += f", scaling {info.scaling_factor:g}"
    return told + (f", shift {info.shift_factor:g}" if info.shift_factor is not None else "")


def batch_size_of(
    asked: int | str | None,
    made_with: dict[str, Value],
    default: int,
    spec: EncoderSpec,
    size: tuple[int, int],
    shared: Shared,
    tell: Tell,
) -> int:
    """Images a batch: as asked for, as the destination was begun with, as measured (`auto`), or the default.

    size: (height, width) of the largest that are encoded. Measured once for all outputs of an encoder, and told.
    """
    if isinstance(asked, int):
        return asked
    stored = stored_int(made_with, "batch_size")
    if stored is not None or asked is None:
        return stored or default
    return shared.once(("batch size", id(spec), size), lambda: _best_batch_size(spec, size, tell))


def _best_batch_size(spec: EncoderSpec, size: tuple[int, int], tell: Tell) -> int:
    from latentmill.encoders.autobatch import best_batch_size

    best, rates = best_batch_size(spec.open(), size)
    shown = ", ".join(f"{count}: {rate:.2f}/s" for count, rate in rates.items())
    tell(Event("plan", f"batch size {best} is best for {size[1]}x{size[0]} ({shown})"))
    return best


def seconds_an_image(spec: EncoderSpec, size: tuple[int, int], smallest: int | None = None) -> float:
    """Seconds that one image of (height, width) takes to encode alone: an upper bound, since batches are faster.

    smallest: side of a square that the encoder takes too, and powers of two times which; where a larger one would take
    long, the time of the image is told by a smaller one's, so that work begins soon after the model is loaded.
    """
    encoder = spec.open()
    encode = getattr(encoder, "trial", encoder.encode)
    pixels = size[0] * size[1]
    if side := smallest:
        _seconds(encode, (side, side))  # warms up
        while side * side * _PROBE_STEP <= pixels:
            seconds = _undisturbed(encode, (side, side))
            if seconds * _PROBE_STEP > _LONG_PROBE:
                return seconds * pixels / (side * side)
            side *= 2
    seconds = _seconds(encode, size)  # the first may only warm up
    return seconds if seconds > _LONG_PROBE else min(seconds, _seconds(encode, size))


def _undisturbed(encode: Callable[[Sequence[Sample]], object], size: tuple[int, int]) -> float:
    """Seconds of one image; the least of a few where it is to tell that of larger ones, and is short enough to repeat.

    Other programs on the same cores make one measurement many times longer, and never shorter.
    """
    seconds = _seconds(encode, size)
    for _ in range(_REPEATS):
        if not _LONG_PROBE / _PROBE_STEP < seconds < _LONG_PROBE:
            break
        seconds = min(seconds, _seconds(encode, size))
    return seconds


def _seconds(encode: Callable[[Sequence[Sample]], object], size: tuple[int, int]) -> float:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    start = time.perf_counter()
    encode([Sample(SampleRef(0, "", ""), noise, "0")])
    return time.perf_counter() - start


def seconds_to_convert(source: Source, refs: Sequence[SampleRef], sizes: Sequence[tuple[int, int]]) -> float:
    """Seconds that one image takes from bytes to bytes: reading is measured, the rest is told by the images' sizes."""
    start = time.perf_counter()
    for ref in (probe := refs[:_PROBE_IMAGES]):
        try:
            source.read(ref)
        except SampleError:
            continue
    reading = (time.perf_counter() - start) / max(len(probe), 1)
    pixels = [width * height for width, height in sizes] or [1]
    return reading + _SECONDS_A_PIXEL * sum(pixels) / len(pixels)


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
    channels_last: bool = False,
    compile: bool = False,  # noqa: A002  # the setting's name
) -> tuple[EncoderSpec, ModelInfo]:
    """A VAE by name, an encoder that another package brings, or the fake one. Raises ModelError, ConfigError."""
    from latentmill.registry import FAKE, MINI, MODELS

    if (channels_last or compile) and (name == FAKE or (name not in (MINI, *MODELS) and name in installed(ENCODERS))):
        raise ConfigError(f"channels-last and compile are of VAEs of diffusers. Found: model {name}; leave them out")
    if name == FAKE:
        from latentmill.encoders.fake import FAKE_INFO, FakeSpec

        if store != "moments":
            raise ConfigError(f"the fake encoder stores moments only. Found: store {store}")
        return FakeSpec(save_dtype), FAKE_INFO
    if name not in (MINI, *MODELS) and name in installed(ENCODERS):
        request = EncoderRequest(
            revision, subfolder, encoder_device(device), dtype, pixel_range, store, seed, save_dtype, threads, tiling
        )
        return _encoder_of_package(name, request)
    _check_name(name)
    from latentmill.encoders.device import choose_device
    from latentmill.encoders.models import check_statistic, resolve
    from latentmill.encoders.vae import VaeSpec

    model = resolve(name, revision, subfolder)
    check_statistic(model.info, store)
    how = (dtype, pixel_range, store, seed, save_dtype, threads, tiling, channels_last, compile)
    spec = VaeSpec(model, choose_device(device), *how)
    return spec, model.info


def shared_vae(chosen: LatentSettings | BucketSettings, shared: Shared, threads: int) -> tuple[EncoderSpec, ModelInfo]:
    """The VAE of an output, found once for all outputs that use it alike. Raises ModelError, ConfigError."""
    told = {
        name: getattr(chosen, name)
        for name in ("device", "dtype", "pixel_range", "save_dtype", "store", "seed", "channels_last", "compile")
    } | {"threads": threads, "tiling": getattr(chosen, "tiling", "auto")}
    key = ("vae", chosen.model, chosen.revision, chosen.subfolder, *told.values())
    spec, info = shared.once(key, lambda: vae_spec(chosen.model, chosen.revision, chosen.subfolder, **told))
    return shared.one(spec), info


def forward_fingerprint(chosen: LatentSettings | BucketSettings) -> dict[str, Value]:
    """How forwards are made to be faster, where that may change bytes; nothing where they are as ever."""
    return {name: True for name in ("channels_last", "compile") if getattr(chosen, name)}


def _check_name(name: str) -> None:
    """Where other packages bring encoders, a name that nothing has may be one of theirs. Raises ModelError."""
    from latentmill.registry import MINI, MODELS

    if installed(ENCODERS) and "/" not in name and name not in (MINI, *MODELS) and not Path(name).exists():
        known = choices(ENCODERS, name, (*MODELS, MINI))
        raise ModelError(f"model must be {known}, a hub repository as owner/name or a folder. Found: {name!r}")


def _encoder_of_package(name: str, request: EncoderRequest) -> tuple[EncoderSpec, ModelInfo]:
    """An encoder, and its ModelInfo, whose config_sha256 then tells the package too. Raises ModelError."""
    from latentmill.encoders.models import check_statistic

    make: MakeEncoder = load(ENCODERS, name)
    spec, info = make(request)
    check_statistic(info, request.store)
    return spec, info.model_copy(update={"config_sha256": f"{info.config_sha256} ({origin(ENCODERS, name)})"})


def destination(source: Path, dest: Path) -> Container:
    """A folder or zip to write, which is neither the source nor inside it. Raises DestinationError."""
    place = container(dest)
    inner, outer = dest.resolve(), source.resolve()
    if inner == outer:
        raise DestinationError(f"the destination is the source: {dest}")
    if outer in inner.parents and outer.is_dir():
        raise DestinationError(f"the destination {dest} lies inside the source, where it would be taken for images")
    return place


def feature_folder(dest: Path, found: CaptionedSet) -> FolderContainer:
    """A folder of features, which does not lie among the images. Raises DestinationError."""
    place = FolderContainer(dest)
    if place.path.exists() and not place.path.is_dir():
        raise DestinationError(f"the feature folder must be a folder. Found a file: {place.path}")
    inner, images = place.path.resolve(), found.images.resolve()
    walked = found.path.is_dir() or images.name == IMAGE_FOLDER  # what lies there would be taken for images
    if inner == images or (walked and images in inner.parents):
        raise DestinationError(f"the destination {place.path} lies among the source's images; choose another --dest")
    return place


def wanted_refs(listing: Listing) -> list[SampleRef]:
    """What of a listing is to be made, without what a rule leaves out or listing found to be unusable."""
    return [ref for ref in filter(listing.wanted, listing.refs()) if not (ref.fault or ref.skip)]
