"""One run of `latentmill bench`: what is measured, in which order, and what follows from it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentmill.bench.models import EncodeFigures, TextFigures, encoder_of, measure_encode, measure_text
from latentmill.bench.pixels import (
    CROP,
    DECODE,
    LATENT,
    PNG,
    READ,
    REST,
    WRITE,
    PixelFigures,
    cropped,
    load_of,
    measure_pixels,
    settings_of,
)
from latentmill.bench.samples import Samples, gather
from latentmill.bench.scaling import Scaling, measure_scaling
from latentmill.config import PixelSettings
from latentmill.errors import ConfigError, DestinationError
from latentmill.files import write_errors
from latentmill.system import available_memory, usable_cores
from latentmill.throughput import Demand, Forecast, Machine, contention_of, forecast

EXACT, FAST = "exact", "fast"
_SHARES = {"pixels": 0.5, "scaling": 0.08, "encode": 0.2, "text": 0.08}  # of the time, of each measurement


@dataclass(frozen=True)
class BenchSettings:
    """What to measure. size: (width, height). model, text_model: None leaves it out. more: settings of `encode`.

    dest: a folder on the disk that is to be written to. seconds: about how long, loading the models not counted.
    cores, gpus, gpu_rate: of another machine to forecast; gpu_rate: images a second of one GPU.
    """

    source: Path | None = None
    size: tuple[int, int] = (256, 256)
    transform: str = "center-crop-dhariwal"
    model: str | None = "mini"
    text_model: str | None = "mini"
    device: str = "auto"
    dtype: str = "float32"
    more: dict[str, Any] = field(default_factory=dict)
    seconds: float = 30.0
    max_images: int = 64
    dest: Path | None = None
    cores: int | None = None
    gpus: int | None = None
    gpu_rate: float | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name in ("seconds", "max_images", "cores", "gpu_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name.replace('_', '-')} must be above 0. Found: {value}")
        if self.gpus is not None and self.gpus < 0:
            raise ConfigError(f"gpus must be 0 or more. Found: {self.gpus}")
        if self.gpu_rate is not None and not self.gpus:
            raise ConfigError("gpu-rate is of the GPUs of another machine: give their number with --gpus")


@dataclass(frozen=True)
class Report:
    """Everything that was measured. pixels: by `exact` and, where there is that way, `fast`. load: before and after."""

    settings: BenchSettings
    samples: Samples
    cores: int
    memory: int | None
    pixels: dict[str, PixelFigures]
    processes: Scaling
    threads: Scaling
    encode: EncodeFigures | None
    text: TextFigures | None
    load: tuple[float, float]
    seconds: float

    @property
    def contention(self) -> float:
        """Of the threads of a process, by its lock alone."""
        return contention_of(self.threads.company, self.processes.company, self.threads.workers)

    @property
    def accelerated(self) -> bool:
        """Whether the model runs elsewhere than on the cores."""
        return self.encode is not None and not self.encode.device.startswith("cpu")


def run(settings: BenchSettings, say: Callable[[str], None] = lambda text: None) -> Report:
    """Measure; `say` is told what comes next. Raises LatentmillError."""
    began, load = time.perf_counter(), _load_average()
    chosen = settings_of(settings.transform, settings.size)
    say("photos")
    samples = gather(settings.source, settings.max_images)
    cores = usable_cores()
    with _work_folder(settings.dest) as folder:
        pixels = _pixel_figures(settings, samples, chosen, Path(folder), say)
    say("one worker against all")
    loads = load_of(chosen)
    seconds = _SHARES["scaling"] * settings.seconds
    processes = measure_scaling(samples.data, loads, cores, seconds, threads=False)
    threads = measure_scaling(samples.data, loads, cores, seconds, threads=True)
    encode = _encode(settings, samples, chosen, cores, say)
    text = _text(settings, cores, say)
    return Report(
        settings, samples, cores, available_memory(), pixels, processes, threads, encode, text,
        (load, _load_average()), time.perf_counter() - began,
    )  # fmt: skip


def _work_folder(dest: Path | None) -> tempfile.TemporaryDirectory[str]:
    if dest is not None and not dest.is_dir():
        raise DestinationError(f"dest must be a folder that is there, to measure its disk. Found: {dest}")
    with write_errors(dest or Path(tempfile.gettempdir())):
        return tempfile.TemporaryDirectory(prefix="latentmill-bench-", dir=dest)


def _pixel_figures(
    settings: BenchSettings, samples: Samples, chosen: PixelSettings, folder: Path, say: Callable[[str], None]
) -> dict[str, PixelFigures]:
    ways = {EXACT: chosen}
    if "resize" in PixelSettings.model_fields:
        ways[FAST] = settings_of(settings.transform, settings.size, resize=FAST)
    found = {}
    for name, way in ways.items():
        say(f"decode, crop, PNG, write ({name})")
        (folder / name).mkdir()
        found[name] = measure_pixels(samples, way, folder / name, _SHARES["pixels"] * settings.seconds / len(ways))
    return found


def _encode(
    settings: BenchSettings, samples: Samples, chosen: PixelSettings, cores: int, say: Callable[[str], None]
) -> EncodeFigures | None:
    if settings.model is None:
        return None
    say(f"encode with {settings.model}")
    asked = {"model": settings.model, "device": settings.device, "dtype": settings.dtype, **settings.more}
    spec, name = encoder_of(asked, cores)
    device = getattr(spec, "device", "cpu")
    images = cropped(samples, load_of(chosen))
    return measure_encode(spec, name, device, cores, images, _SHARES["encode"] * settings.seconds)


def _text(settings: BenchSettings, cores: int, say: Callable[[str], None]) -> TextFigures | None:
    if settings.text_model is None:
        return None
    say(f"text with {settings.text_model}")
    from latentmill.encoders.text import text_spec

    dtype: Any = settings.dtype
    spec = text_spec(settings.text_model, device=settings.device, dtype=dtype, threads=cores)
    return measure_text(spec, settings.text_model, _SHARES["text"] * settings.seconds)


def _load_average() -> float:
    return os.getloadavg()[0] if sys.platform != "win32" else 0.0


# what follows


def convert_demand(figures: PixelFigures) -> Demand:
    """What one image of a conversion takes."""
    parts = figures.cpu(READ, DECODE, CROP, PNG, WRITE, REST)
    return Demand(parts, written=figures.written, serial=figures.serial, fixed=figures.fixed)


def encode_demand(figures: PixelFigures, model: float, *, cores: int = 0) -> Demand:
    """What one image of an encoding job from photos takes. model: seconds a forward of one image on the device.

    cores: that the model keeps busy; 0 where the device is none of them.
    """
    parts = figures.cpu(READ, DECODE, CROP, LATENT, REST)
    if cores:
        parts["model"] = model * cores
    device = 0.0 if cores else model
    return Demand(parts, device, written=figures.latent_bytes, serial=figures.serial, fixed=figures.fixed)


def forecasts(report: Report) -> dict[str, Forecast]:
    """Of each job, as this machine would run it."""
    return _forecasts(report, report.cores, int(report.accelerated), _model_seconds(report), on_this_disk=True)


def elsewhere(report: Report) -> dict[str, Forecast]:
    """Of each job, on the machine that the settings tell; its cores are taken to be like these. {}: none is told.

    Raises ConfigError where nothing tells the rate of its GPUs.
    """
    settings = report.settings
    if settings.cores is None and settings.gpus is None:
        return {}
    seconds = 1 / settings.gpu_rate if settings.gpu_rate else _model_seconds(report)
    if settings.gpus and not (settings.gpu_rate or report.accelerated):
        raise ConfigError(
            "gpus needs the rate of one GPU: --gpu-rate N (images a second), or --device cuda where one is here"
        )
    return _forecasts(report, settings.cores or report.cores, settings.gpus or 0, seconds, on_this_disk=False)


def _forecasts(
    report: Report, cores: int, devices: int, model: float | None, *, on_this_disk: bool
) -> dict[str, Forecast]:
    """model: seconds an image on one device, or on all of this machine's cores where there is no device."""
    found = {}
    company = report.processes.company if cores > 1 else 1.0
    for way, figures in report.pixels.items():
        machine = Machine(cores, write_rate=figures.write_rate if on_this_disk else None, company=company)
        found[f"convert ({way})"] = forecast(convert_demand(figures), machine)
    if model is None or (report.accelerated and not devices):
        return found
    if devices:
        demand = encode_demand(report.pixels[EXACT], model)
        machine = replace(machine, devices=devices, groups=devices, contention=report.contention)
        return found | {"encode from photos": forecast(demand, machine)}
    assert report.encode is not None
    # the model's threads were measured together, so they are counted as they are
    demand = encode_demand(report.pixels[EXACT], model / company, cores=report.encode.threads)
    return found | {"encode from photos": forecast(demand, machine)}


def _model_seconds(report: Report) -> float | None:
    return None if report.encode is None else report.encode.best.median
