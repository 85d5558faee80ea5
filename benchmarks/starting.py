"""Starting: the command itself, listing a large source, and what a finished or half-finished job takes to say so.

    python benchmarks/starting.py [--files 1000000] [--folders 1000] [--rounds 3] [--work DIR]

The source is a tree of empty files: listing opens none. Plans, ledgers and indexes are latentmill's own writers'; only
the outcomes are made up. What is listed is compared with a plain walk over the tree before any time is told.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import DifferentError, Section, Setting, Took, cpus, in_turn, inside, latentmill, process, spread, walls

from latentmill.api import convert_recipe
from latentmill.beginning import begin
from latentmill.job import Begun, Job
from latentmill.manifest import Plan
from latentmill.planning import listing_digest
from latentmill.records import Listing, Outcome, SampleRef, ShardReport, StoredFile
from latentmill.sources.images import ImageSource

FILES, FOLDERS, QUICK_FILES = 1_000_000, 1000, 20_000
MOST_ROUNDS = 3
SETTINGS = {"transform": "center-crop-dhariwal", "resolution": "256x256", "num_workers": 2}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
GOALS = {
    "--help": "under 0.3 s",
    "listing": "100,000 files/s",
    "finished": "at most 30 s",
    "finished, --trust-source": "at most 5 s",
}


def run(setting: Setting) -> list[Section]:
    """Figures of everything. The tree is removed afterwards."""
    count = setting.count(FILES, QUICK_FILES)
    tree = setting.work / "tree"
    try:
        make_tree(tree, count, max(1, count * FOLDERS // FILES))
        rounds = min(setting.rounds, MOST_ROUNDS)
        return [
            commands_section(setting.rounds),
            listing_section(tree, rounds),
            jobs_section(tree, setting.work, rounds),
        ]
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def make_tree(root: Path, files: int, folders: int) -> None:
    """Empty files in class folders, named as ImageNet's are."""
    for folder in range(folders):
        path = root / f"n{folder:08d}"
        path.mkdir(parents=True)
        for number in range(files * folder // folders, files * (folder + 1) // folders):
            os.close(os.open(path / f"n{folder:08d}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))


# the command


def commands_section(rounds: int) -> Section:
    if subprocess.run(
        [sys.executable, "-c", "import sys, latentmill.cli; sys.exit('numpy' in sys.modules)"]
    ).returncode:
        raise DifferentError("the command imports NumPy before it has a use for it, or nothing at all")
    programs: dict[str, Callable[[], Took]] = {
        "python that does nothing": lambda: process(sys.executable, "-c", "pass"),
        "--version": lambda: latentmill("--version"),
        "--help": lambda: latentmill("--help"),
        "convert --help": lambda: latentmill("convert", "--help"),
    }
    section = Section(
        "The command", "it imports no NumPy before it has one to use", ("program", "seconds", "CPU seconds", "goal")
    )
    for name, took in in_turn(programs, rounds).items():
        section.add(name, spread(walls(took)), spread(cpus(took)), GOALS.get(name, ""))
    return section


# listing


def plain_walk(tree: Path) -> list[str]:
    """What a listing must find: `key NUL size-time`, in order of key."""
    found = []
    for folder, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - as fast as it goes
            stat = os.stat(path)  # noqa: PTH116
            key = os.path.relpath(folder, tree) + "/" + name
            found.append(f"{key}\0{stat.st_size}-{stat.st_mtime_ns}")
    return sorted(found)


def check_listing(tree: Path) -> int:
    """Raises DifferentError; gives the number of files."""
    listing = ImageSource(tree).listing()
    wanted = plain_walk(tree)
    found = [f"{ref.key}\0{ref.stat}" for ref in listing.refs()]
    if found != wanted or [ref.index for ref in listing.refs()] != list(range(len(wanted))):
        wrong = next((a, b) for a, b in zip([*found, ""], [*wanted, ""], strict=False) if a != b)
        raise DifferentError(f"listing: {wrong[0]!r} against {wrong[1]!r}")
    return len(wanted)


def listing_section(tree: Path, rounds: int) -> Section:
    count = check_listing(tree)
    section = Section(
        f"Listing {count:,} files, warm",
        "keys, sizes, times and order are those of a plain walk",
        ("program", "files/s", "files/s of CPU time", "goal"),
    )
    listing = ImageSource(tree).listing()
    programs: dict[str, Callable[[], Took]] = {
        "os.walk, os.stat, sorted": lambda: inside(lambda: plain_walk(tree)),
        "listing": lambda: inside(lambda: ImageSource(tree).listing()),
        "its digest, which tells a change": lambda: inside(lambda: listing_digest(listing)),
    }
    for name, took in in_turn(programs, rounds).items():
        rates = [[count / seconds for seconds in found] for found in (walls(took), cpus(took))]
        section.add(name, spread(rates[0], digits=0), spread(rates[1], digits=0), GOALS.get(name, ""))
    return section


# jobs


def prepared(tree: Path, dest: Path) -> tuple[Job, Listing]:
    (named,) = convert_recipe(tree, dest, **SETTINGS).prepare()
    return named.prepared.job, named.prepared.listing


def made_up(job: Job, ref: SampleRef) -> Outcome:
    """What would become of an image of this number."""
    name = job.outputs[0].layout.name(ref.index, ref.key)
    digest = f"{ref.index:032x}"
    return Outcome(ref, digest, files={"images": StoredFile(name, 197_000, digest, ref.index % (1 << 32))})


def commit(job: Job, plan: Plan, shard: int) -> None:
    """A shard's ledger entry, as a worker writes it."""
    outcomes = [made_up(job, ref) for ref in plan.refs(shard)]
    plan.commit(ShardReport(shard, len(outcomes), len(outcomes), 0, 0, {"read": 1.0}), outcomes)


def make_job(tree: Path, dest: Path, share: float) -> dict[str, Took]:
    """A job of which a share of the shards is done; all of them: a finished dataset, but for the images themselves."""
    took: dict[str, Took] = {}
    job, listing = prepared(tree, dest)
    with job.locked():
        begun: list[Begun] = []
        took["planning"] = inside(lambda: begun.append(begin(job, listing)))
        plan = begun[0].plan
        assert plan is not None
        todo = begun[0].todo
        took["the ledger's entries"] = inside(
            lambda: [commit(job, plan, shard) for shard in todo[: int(len(todo) * share)]]
        )
        if share == 1:
            took["finishing"] = inside(lambda: job.end(begun[0], 0.0))
    return took


def first_batch(tree: Path, dest: Path, trust: bool) -> None:
    """As the command begins: up to the references of the first batch that is left to do."""
    (named,) = convert_recipe(tree, dest, **SETTINGS, trust_source=trust).prepare()
    with named.prepared.job.locked():
        begun = begin(named.prepared.job, named.prepared.listing)
        assert begun.plan is not None
        if not 0 < len(begun.todo) < len(begun.plan.shards) or not begun.plan.batches(begun.todo[0]):
            raise DifferentError("the job at the half is not at the half")


def jobs_section(tree: Path, work: Path, rounds: int) -> Section:
    whole, half = work / "whole", work / "half"
    made = make_job(tree, whole, 1.0)
    make_job(tree, half, 0.5)
    count = ImageSource(tree).listing().count
    section = Section(
        f"A job of {count:,} images",
        "the finished one says so and changes no file; the other is at its half",
        ("what", "seconds", "CPU seconds", "peak memory, MB", "goal"),
    )
    for name, took in made.items():
        section.add(name, spread([took.wall]), spread([took.cpu]), "", "")
    command = ["convert", f"--source={tree}", f"--dest={whole}", *OPTIONS]
    me = [sys.executable, Path(__file__), "--half", half, "--tree", tree]
    programs = {
        "finished": lambda: latentmill(*command),
        "finished, --trust-source": lambda: latentmill(*command, "--trust-source"),
        "at the half, to its first batch": lambda: process(*me),
        "at the half, trusting its source": lambda: process(*me, "--trust"),
    }
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    for name, each in in_turn(programs, rounds).items():
        peak = spread([took.peak / 1e6 for took in each], digits=0)
        section.add(name, spread(walls(each)), spread(cpus(each)), peak, GOALS.get(name, ""))
    if {path: path.stat().st_mtime_ns for path in whole.rglob("*")} != before:
        raise DifferentError("a finished job was changed by being run again")
    return section


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--folders", type=int, default=FOLDERS)
    parser.add_argument("--rounds", type=int, default=MOST_ROUNDS)
    parser.add_argument("--work", type=Path, help="folder for the tree and what is made of it")
    parser.add_argument("--half", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--trust", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.half is not None:
        first_batch(options.tree, options.half, options.trust)
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="latentmill-starting-", dir=options.work) as name:
        tree = Path(name) / "tree"
        make_tree(tree, options.files, options.folders)
        print(f"a tree of {options.files:,} files: {time.perf_counter() - started:.1f} s", flush=True)
        sections = [
            commands_section(options.rounds),
            listing_section(tree, options.rounds),
            jobs_section(tree, Path(name), options.rounds),
        ]
    print("\n".join(section.markdown() for section in sections))


if __name__ == "__main__":
    main()
