"""The model of throughput against what whole jobs take: predicted from measured parts, for one worker and for all."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from converting import SIDE, check_same_pngs, convert, fresh, source_photos
from harness import Section, Setting, cpus, in_turn, spread, times, walls
from reference_loops import photos as jpegs

from latentmill.bench.advice import purchase
from latentmill.bench.pixels import PixelFigures, load_of, measure_pixels, settings_of
from latentmill.bench.samples import Samples, gather
from latentmill.bench.scaling import measure_scaling
from latentmill.bench.session import convert_demand, encode_demand
from latentmill.throughput import Machine, forecast

TRANSFORM = "center-crop-dhariwal"
GPU_RATES = (400, 1500)  # images a second of one GPU, to show: a slower and a faster one
MACHINES = ((16, 0), (64, 0), (16, 1), (32, 4), (128, 8))  # cores, GPUs


def run(setting: Setting) -> list[Section]:
    photos, count = source_photos(setting)
    samples = gather(photos, 64)
    chosen = settings_of(TRANSFORM, (SIDE, SIDE))
    figures = measure_pixels(samples, chosen, setting.folder("parts"), setting.count(12, 3))
    company = measured_company(setting, samples)
    return [parts(figures), validation(setting, photos, count, figures, company), beyond(figures, company)]


def measured_company(setting: Setting, samples: Samples) -> float:
    """Median of several rounds."""
    load = load_of(settings_of(TRANSFORM, (SIDE, SIDE)))
    rounds = [
        measure_scaling(samples.data, load, setting.workers, 3.0, threads=False).company
        for _ in range(setting.count(5, 1))
    ]
    return statistics.median(rounds)


def parts(figures: PixelFigures) -> Section:
    section = Section(
        "Parts of a conversion, CPU time of one core",
        "nothing: the same functions that a conversion calls, whose results are compared above",
        ("part", "ms an image", "images/s"),
    )
    for name, figure in figures.parts.items():
        rate = f"{figure.rate:,.0f}" if figure.median > 1e-6 else ""
        each = [1000 * value for value in (figure.median, figure.low, figure.high)]
        section.add(name, f"{each[0]:.3f} ({each[1]:.3f} to {each[2]:.3f})", rate)
    section.add("before and after the work, which nothing shares", f"{1000 * figures.serial:.3f}", "")
    section.notes.append("`latent` is in the place of PNG and write where latents are made")
    section.notes.append(f"a job of any length takes {figures.fixed:.2f} CPU seconds more, without the process's start")
    return section


def validation(setting: Setting, photos: Path, count: int, figures: PixelFigures, company: float) -> Section:
    """Whole processes at one worker and at all of them, against what the parts say."""
    out = setting.folder("modelled")
    counts = sorted({1, setting.workers})
    programs = {str(each): lambda each=each: convert(photos, fresh(out / f"w{each}"), each) for each in counts}
    programs["start"] = lambda: convert(one_photo(setting, photos), fresh(out / "one"), 1)
    for program in programs.values():
        program()
    for each in counts[1:]:
        check_same_pngs(out / f"w{each}", out / f"w{counts[0]}")
    took = in_turn(programs, setting.rounds)
    section = Section(
        f"The model against whole conversions of {count:,} photos",
        "the datasets of one worker and of several hold the same pixels",
        ("workers", "predicted, s", "measured, s", "measured over predicted", "CPU predicted, s", "CPU measured, s"),
    )
    start = statistics.median(walls(took["start"]))
    for each in counts:
        machine = Machine(each, write_rate=figures.write_rate, company=company if each > 1 else 1.0)
        demand = replace(convert_demand(figures), fixed=start)
        predicted = forecast(demand, machine).seconds(count)
        measured = walls(took[str(each)])
        cpu = statistics.median(cpus(took["start"])) + count * (demand.serial + demand.cpu_seconds * machine.company)
        section.add(
            f"{each}", f"{predicted:.2f}", spread(measured), times([value / predicted for value in measured]),
            f"{cpu:.2f}", spread(cpus(took[str(each)])),
        )  # fmt: skip
    section.notes.append(
        f"a worker takes {company:.2f} times as long beside {setting.workers - 1} others as alone, measured"
    )
    section.notes.append("predicted from the parts, and a whole process that converts one photo")
    section.notes.append("other work on the machine makes wall times longer than predicted, CPU times less so")
    return section


def one_photo(setting: Setting, photos: Path) -> Path:
    folder = setting.folder("one-photo")
    if not any(folder.iterdir()):
        (folder / "0.jpg").write_bytes(jpegs(photos)[0].read_bytes())
    return folder


def beyond(figures: PixelFigures, company: float) -> Section:
    section = Section(
        "What the model says of other machines, with cores like these",
        "nothing can be: these machines were not here",
        ("job", "cores", "GPUs", "images/s", "limited by; next"),
    )
    for cores, gpus in MACHINES:
        if not gpus:
            found = forecast(convert_demand(figures), Machine(cores, company=company))
            section.add("convert", f"{cores}", "", f"{found.rate:,.0f}", purchase(found))
            continue
        for rate in GPU_RATES:
            machine = Machine(cores, gpus, company=company, groups=gpus)
            found = forecast(encode_demand(figures, 1 / rate), machine)
            job = f"encode from photos, {rate} images/s a GPU"
            section.add(job, f"{cores}", f"{gpus}", f"{found.rate:,.0f}", purchase(found))
    section.notes.append(
        "a core is taken to be as slow beside many as beside those of this machine; disks are not counted"
    )
    return section
