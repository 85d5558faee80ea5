"""How a benchmark is shown: tables for a person, a table of names and numbers for a program."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from latentmill.bench.advice import advice, purchase
from latentmill.bench.figures import Figure
from latentmill.bench.pixels import LATENT
from latentmill.bench.session import Report, elsewhere, encode_demand, forecasts
from latentmill.estimate import human
from latentmill.terminal import clock, counted, err, out, shown
from latentmill.throughput import Forecast, Machine, forecast
from latentmill.transforms import resample

_SHOWN = 10  # damaged files
_IMAGES = 1_281_167  # of ImageNet's training set, for a whole job
_LONG = 2 * 86400  # seconds, from which they are told in days
_FIRST_COLUMN = 30


def show(report: Report) -> None:
    """Print everything."""
    _show_head(report)
    for way, figures in report.pixels.items():
        parts = {name: figure for name, figure in figures.parts.items() if way == "exact" or name in ("decode", "crop")}
        out.print("\n[bold]pixels[/], CPU time of one core" if way == "exact" else f"\n--resize {way}")
        out.print(_figures_table(parts), soft_wrap=False)
    out.print(_scaling_line(report))
    out.print(f"disk, with the sync of a commit: {human(report.pixels['exact'].write_rate)}/s")
    _show_models(report)
    _show_forecasts("forecast for this machine", forecasts(report))
    if report.encode is not None and not report.accelerated:
        out.print(f"these cores can load for a GPU of up to {_feeding(report):,.0f} images/s")
    other = elsewhere(report)
    if other:
        settings = report.settings
        cores = f"{settings.cores or report.cores} cores"
        gpus = f", {settings.gpus} GPUs" if settings.gpus else ""
        rate = f" of {settings.gpu_rate:g} images/s" if settings.gpu_rate else ""
        _show_forecasts(f"forecast for {cores}{gpus}{rate}", other)
    _show_advice(report)


def _show_head(report: Report) -> None:
    samples, settings = report.samples, report.settings
    height, width = samples.size
    photos = f"{counted(len(samples.data), 'photos')} of {samples.listed:,} in {shown(samples.name)}"
    result = f"{settings.size[0]}x{settings.size[1]} by {settings.transform}"
    out.print(f"{photos}: median {width}x{height}, {human(samples.mean_bytes)}; to {result}")
    memory = "" if report.memory is None else f", {human(report.memory)} memory free"
    load = f"load average {report.load[0]:.1f} before, {report.load[1]:.1f} after"
    out.print(f"{report.cores} usable cores{memory}; {load}; measured in {clock(report.seconds)}")
    if report.load[0] > 0.3 * report.cores:
        err.print("[yellow]warning:[/] the machine is busy with other work: rates of a quiet one are higher")
    for key, reason in samples.left_out[:_SHOWN]:
        err.print(f"[yellow]left out:[/] {shown(key)}: {shown(reason)}")
    if len(samples.left_out) > _SHOWN:
        err.print(f"… and {len(samples.left_out) - _SHOWN:,} more are left out")


def _figures_table(figures: Mapping[str, Figure]) -> Table:
    table = _table("", "images/s", "ms", "least to most")
    for name, figure in figures.items():
        rate = f"{figure.rate:,.0f}" if figure.median > 1e-6 else "-"
        label = {LATENT: "latent, in place of PNG, write", "rest": "rest (ledger, queues)"}.get(name, name)
        table.add_row(label, rate, *_spread(figure))
    return table


def _spread(figure: Figure) -> tuple[str, str]:
    return f"{1000 * figure.median:.2f}", f"{1000 * figure.low:.2f} to {1000 * figure.high:.2f}"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(headings[0].ljust(_FIRST_COLUMN), no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _scaling_line(report: Report) -> str:
    told = [
        f"{each.together / max(each.alone, 1e-9):.2f} times one ({name})"
        for name, each in (("processes", report.processes), ("threads", report.threads))
    ]
    return f"\n{report.processes.workers} workers at once do {' and '.join(told)}"


def _show_models(report: Report) -> None:
    if report.encode is not None:
        encode = report.encode
        threads = "" if report.accelerated else f", {counted(encode.threads, 'threads')}"
        out.print(f"\n[bold]encode[/] {shown(encode.name)} on {encode.device}{threads}, {report.settings.dtype}")
        table = _table("", "images/s", "ms", "least to most", "first batch")
        for size, figure in encode.by_batch.items():
            mark = " (fast enough)" if size == encode.batch_size and len(encode.by_batch) > 1 else ""
            row = (f"batch of {size}{mark}", f"{figure.rate:,.1f}", *_spread(figure))
            table.add_row(*row, clock(encode.warm_up[size]))
        out.print(table, soft_wrap=False)
    if report.text is not None:
        text = report.text
        out.print(f"\n[bold]text[/] {shown(text.name)} on {text.device}")
        table = _table("", "captions/s", "ms", "least to most")
        table.add_row(f"captions of {text.tokens:.0f} tokens", f"{text.figure.rate:,.0f}", *_spread(text.figure))
        out.print(table, soft_wrap=False)


def _show_forecasts(title: str, found: Mapping[str, Forecast]) -> None:
    out.print(f"\n[bold]{title}[/]")
    for name, each in found.items():
        seconds = each.seconds(_IMAGES)
        time = clock(seconds) if seconds < _LONG else f"{seconds / 86400:,.1f} days"
        whole = f"1.28 M images in {time}"
        out.print(f"{shown(name).ljust(_FIRST_COLUMN)}  {each.rate:8,.0f} images/s   {whole}")
        out.print(f"  limited by {purchase(each)}")


def _feeding(report: Report) -> float:
    """Images a second that the cores can load for a device."""
    demand = encode_demand(report.pixels["exact"], 1e-9)
    return forecast(
        demand, Machine(report.cores, 1, company=report.processes.company, contention=report.contention)
    ).rate


def _show_advice(report: Report) -> None:
    out.print("\n[bold]recommended[/]")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in advice(report):
        table.add_row(f"{each.command} {each.setting} {each.value}", shown(each.reason))
    out.print(table, soft_wrap=False)


def as_table(report: Report) -> dict[str, Any]:
    """Everything as names and numbers; times in milliseconds, rates a second, bytes."""
    import latentmill

    encode, text = report.encode, report.text
    return {
        "latentmill": latentmill.__version__,
        "python": platform.python_version(),
        "resampler": resample.IMPLEMENTATION,
        "cores": report.cores,
        "memory_bytes": report.memory,
        "load_average": list(report.load),
        "seconds": round(report.seconds, 2),
        "photos": {
            "source": report.samples.name,
            "listed": report.samples.listed,
            "used": len(report.samples.data),
            "median_height_width": list(report.samples.size),
            "left_out": [{"key": key, "reason": reason} for key, reason in report.samples.left_out],
        },
        "parts": {
            way: {name: figure.told() for name, figure in figures.parts.items()}
            for way, figures in report.pixels.items()
        },
        "disk_bytes_per_second": round(report.pixels["exact"].write_rate),
        "scaling": {
            name: {"workers": each.workers, "alone": round(each.alone, 2), "together": round(each.together, 2)}
            for name, each in (("processes", report.processes), ("threads", report.threads))
        },
        "encode": None if encode is None else {
            "model": encode.name,
            "device": encode.device,
            "threads": encode.threads,
            "batches": {str(size): figure.told() for size, figure in encode.by_batch.items()},
            "first_batch_seconds": {str(size): round(value, 4) for size, value in encode.warm_up.items()},
        },
        "text": None if text is None else {
            "model": text.name, "device": text.device, "tokens": round(text.tokens, 2), **text.figure.told(),
        },
        "forecast": _told_forecasts(forecasts(report)),
        "forecast_elsewhere": _told_forecasts(elsewhere(report)),
        "recommended": [
            {"command": each.command, "setting": each.setting, "value": each.value, "reason": each.reason}
            for each in advice(report)
        ],
    }  # fmt: skip


def _told_forecasts(found: Mapping[str, Forecast]) -> dict[str, Any]:
    return {
        name: {
            "images_per_second": round(each.rate, 2),
            "limit": each.limit,
            "limits": {resource: round(rate, 2) for resource, rate in each.limits.items()},
            "next": purchase(each),
        }
        for name, each in found.items()
    }
