"""The settings that fit this machine, by what was measured on it, each with its reason."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from latentmill.bench.session import EXACT, FAST, Report, forecasts
from latentmill.estimate import Estimate, human
from latentmill.outputs.latents import DEFAULT_BATCH
from latentmill.throughput import CORES, DEVICES, READING, WRITING, Forecast, Purchase, enough_cores, next_purchase

_WORTH = 1.15  # what fast resizing must gain to be told as more than a choice
_SAFE_SHARE = 0.8  # of the available memory
_BATCH = 32  # of a conversion
_NAMES = {CORES: "cores", DEVICES: "device", READING: "reading", WRITING: "disk"}


@dataclass(frozen=True)
class Advice:
    """A setting of a command, the value to give it, and why."""

    command: str
    setting: str
    value: str
    reason: str


def advice(report: Report) -> list[Advice]:
    """What to set."""
    found = forecasts(report)
    convert = found[f"convert ({EXACT})"]
    told = [_workers(report, convert), _resize(report, found)]
    if report.encode is not None:
        told += [_batch(report), _device(report)]
        encode = next(each for name, each in found.items() if name.startswith("encode"))
        told.append(_loading(report, encode))
    return told


def _workers(report: Report, convert: Forecast) -> Advice:
    sizes = [(pixels.shape[1], pixels.shape[0]) for pixels in report.samples.pixels]
    estimate = Estimate.for_convert(report.samples.listed, sizes, report.settings.size, report.settings.dest or Path())
    wanted = enough_cores(convert)
    count = wanted
    while report.memory and count > 1 and estimate.memory(count, _BATCH) > _SAFE_SHARE * report.memory:
        count -= 1
    if count < wanted:
        reason = f"{wanted} would need {human(estimate.memory(wanted, _BATCH))} of {human(report.memory or 0)} memory"
    elif wanted < report.cores:
        reason = f"limited by {_NAMES[convert.limit]}: more would wait for it"
    else:
        reason = f"all usable cores; about {human(estimate.memory(count, _BATCH))} of memory"
    return Advice("convert", "--num-workers", str(count), reason)


def _resize(report: Report, found: dict[str, Forecast]) -> Advice:
    exact = found[f"convert ({EXACT})"]
    if FAST not in report.pixels:
        return Advice("convert", "resize", EXACT, "pixel for pixel what the literature's crops give")
    gain = found[f"convert ({FAST})"].rate / exact.rate
    if gain < _WORTH:
        return Advice("convert", "--resize", EXACT, f"fast would be {gain:.2f} times as fast on these photos")
    reason = f"pixel for pixel; --resize {FAST} is {gain:.2f} times as fast, where close is good enough"
    return Advice("convert", "--resize", EXACT, reason)


def _batch(report: Report) -> Advice:
    assert report.encode is not None
    size, best = report.encode.batch_size, report.encode.best
    if len(report.encode.by_batch) == 1:
        reason = "the default; there was time for batches of 1 alone (--seconds)"
        return Advice("encode", "--batch-size", str(DEFAULT_BATCH), reason)
    others = [figure.rate for count, figure in report.encode.by_batch.items() if count > size]
    reason = f"{best.rate:,.1f} images/s"
    if others:
        reason += f"; larger ones reach {max(others):,.1f} and take more memory"
    return Advice("encode", "--batch-size", str(size), reason)


def _device(report: Report) -> Advice:
    assert report.encode is not None
    other = other_device(report.encode.device)
    if other:
        return Advice("encode", "--device", other, f"there is one: measure it with `latentmill bench --device {other}`")
    reason = "measured" if report.accelerated else "no GPU is seen (`latentmill doctor` tells why)"
    return Advice("encode", "--device", report.encode.device, reason)


def other_device(device: str) -> str:
    """A faster kind of device that PyTorch sees, and that is not the one used; else nothing."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cpu"):
        return ""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else ""


def _loading(report: Report, encode: Forecast) -> Advice:
    if not report.accelerated:
        return Advice("encode", "--num-workers", str(report.cores), "loading threads share the cores with the model")
    count = enough_cores(encode)
    reason = "all usable cores: loading limits" if encode.limit == CORES else "they keep the device busy"
    return Advice("encode", "--num-workers", str(count), reason)


def purchase(found: Forecast) -> str:
    """What limits a job and what one would buy next, for a person."""
    bought = next_purchase(found)
    if bought is None:
        return f"{_NAMES[found.limit]}; more of them would not help: they wait for each other"
    then = f", and the {_NAMES[bought.gives.limit]} would limit" if bought.gives.limit != found.limit else ""
    return f"{_NAMES[found.limit]}; {_told(bought)}: {bought.gives.rate:,.0f}/s{then}"


def _told(bought: Purchase) -> str:
    if bought.resource in (READING, WRITING):
        return f"with a disk of {human(bought.count)}/s"
    noun = "core" if bought.resource == CORES else "device"
    return f"with {bought.count:,.0f} {noun}{'s' if bought.count > 1 else ''}"
