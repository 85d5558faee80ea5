"""The commands about the machine: `bench` measures it, `doctor` looks whether everything works on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentmill.command import MACHINE, add
from latentmill.guard import EXIT_FOUND, guarded
from latentmill.options import ChannelsLast, CompileOption, Device, Dtype
from latentmill.terminal import err, out

_Json = Annotated[bool, typer.Option("--json", help="Print names and numbers for a program instead.")]
_NONE = "none"


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    add(app, doctor, MACHINE, "latentmill doctor --dest data", "latentmill doctor --result data/vae-sd")
    add(
        app,
        bench,
        MACHINE,
        "latentmill bench photos --model sd-vae-ft-mse --cores 32 --gpus 4 --gpu-rate 400",
    )


def bench(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[SRC]", help="Folder or .zip of photos. Default: those of the package."),
    ] = None,
    resolution: Annotated[str, typer.Option(metavar="WxH", help="Size of every result.")] = "256x256",
    transform: Annotated[str, typer.Option(metavar="NAME", help="As of convert.")] = "center-crop-dhariwal",
    model: Annotated[str, typer.Option(help="VAE: short name, hub repository or folder; none.")] = "mini",
    text_model: Annotated[str, typer.Option(help="Text encoder, likewise; none.")] = "mini",
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the models.")] = Dtype.float32,
    channels_last: ChannelsLast = False,
    compile: CompileOption = False,  # noqa: A002  # the option's name
    seconds: Annotated[float, typer.Option(metavar="S", help="About how long to measure.")] = 30.0,
    max_images: Annotated[int, typer.Option(metavar="N", help="Photos of the source to measure with.")] = 64,
    dest: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder on the disk to write to. Default: the temporary one.")
    ] = None,
    cores: Annotated[int | None, typer.Option(metavar="N", help="Also forecast a machine of N such cores,")] = None,
    gpus: Annotated[int | None, typer.Option(metavar="M", help="and M GPUs,")] = None,
    gpu_rate: Annotated[
        float | None, typer.Option(metavar="R", help="each of R images/s. Default: as measured with --device cuda.")
    ] = None,
    json: _Json = False,
) -> None:
    """Measure what each part of the work takes here, what limits it, and which settings fit."""
    asked: dict[str, Any] = {"source": source, "transform": transform, "device": device, "dtype": str(dtype)}
    asked |= {"seconds": seconds, "max_images": max_images, "dest": dest}
    asked |= {"cores": cores, "gpus": gpus, "gpu_rate": gpu_rate}
    asked |= {name: None if value == _NONE else value for name, value in (("model", model), ("text_model", text_model))}
    more = {name: True for name, value in (("channels_last", channels_last), ("compile", compile)) if value}

    def work() -> int:
        from latentmill.bench.pixels import settings_of
        from latentmill.bench.report import as_table, show
        from latentmill.bench.session import BenchSettings, run

        size = settings_of(transform, resolution).resolution
        assert size is not None
        report = run(BenchSettings(size=size, more=more, **asked), lambda text: err.print(f"measuring: {text}"))
        if json:
            print_json(as_table(report))
        else:
            show(report)
        return 0

    guarded(work, commits=False)


def doctor(
    result: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Look instead whether this result could be gone on with here."),
    ] = None,
    dest: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to measure the disk's speed. Default: the temporary folder."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure no disk, and ask no hub.")] = False,
    json: _Json = False,
) -> None:
    """Look whether everything works here: versions, decoders, resampler, cores, memory, disk, devices, models, hub.

    With --result: whether a rerun of what made a result would be refused here, lack something or make it otherwise.

    Exit code 0 where nothing is broken (warnings may be), 1 where something is, 2 where it could not be looked at.
    """

    def work() -> int:
        from latentmill.doctor import broken, examine
        from latentmill.doctor.report import as_table, show

        if result is not None:
            from latentmill.doctor import result as of_result

            findings = of_result.findings(result, ask_hub=not quick)
        else:
            findings = examine(dest, quick)
        if json:
            print_json(as_table(findings))
        else:
            show(findings)
        return EXIT_FOUND if broken(findings) else 0

    guarded(work, commits=False)


def print_json(table: dict[str, Any]) -> None:
    import json

    out.print(json.dumps(table, indent=2), markup=False)
