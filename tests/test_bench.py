"""`latentmill bench`, and `make bench`: the figures are of real work, and different results end a benchmark."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from latentmill.bench import pixels as bench_pixels
from latentmill.bench.advice import advice
from latentmill.bench.models import Stopwatch, measure_encode, sample_captions
from latentmill.bench.report import as_table, show
from latentmill.bench.samples import gather
from latentmill.bench.scaling import run_delay
from latentmill.bench.session import BenchSettings, Report, elsewhere, forecasts, run
from latentmill.errors import ConfigError, DestinationError, ModelError, SampleError, SourceError
from latentmill.records import SMALLER_BATCH, Array, Encoded, Sample
from latentmill.terminal import out
from latentmill.throughput import CORES, DEVICES
from support import cli, make_photos

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def settings(source: Path | None, **more: object) -> BenchSettings:
    asked: dict[str, object] = {"source": source, "size": (32, 32), "model": "fake", "text_model": None}
    return BenchSettings(**{**asked, "seconds": 0.4, "max_images": 12, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of 12 photos; whole jobs are of few, and little is written to the disk."""
    root = tmp_path_factory.mktemp("bench")
    make_photos(root / "photos", 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_pixels, "_FEW", 4)
        patch.setattr(bench_pixels, "_MANY", 16)
        patch.setattr(bench_pixels, "_DISK_BYTES", 100_000)
        return run(settings(root / "photos", dest=root))


def test_every_part_is_measured_and_nothing_is_left_behind(report: Report) -> None:
    figures = report.pixels["exact"]
    assert set(figures.parts) == {"read", "decode", "crop", "PNG", "write", "latent", "rest"}
    for name in ("read", "decode", "crop", "PNG", "write", "latent"):
        figure = figures.parts[name]
        assert 0 < figure.low <= figure.median <= figure.high, name
        assert figure.rounds >= 3
    assert figures.written > 3 * 32 * 32
    assert figures.write_rate > 0
    assert report.settings.dest is not None
    assert [path.name for path in report.settings.dest.iterdir()] == ["photos"]


def test_the_json_holds_what_is_shown(
    report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(json.dumps(as_table(report)))
    assert told["photos"]["used"] == 12
    assert told["resampler"] in ("native", "pillow")
    assert told["parts"]["exact"]["decode"]["median_ms"] > 0
    assert told["encode"]["batches"].keys() >= {"1", "2"}
    assert told["forecast"]["convert (exact)"]["limit"] in told["forecast"]["convert (exact)"]["limits"]
    assert {each["setting"] for each in told["recommended"]} >= {"--num-workers", "--batch-size", "--device"}
    monkeypatch.setattr(out, "_width", 80)
    show(report)
    shown = capsys.readouterr().out
    for part in told["parts"]["exact"]:
        assert part in shown
    assert max(map(len, shown.splitlines()[2:])) <= 80


def test_the_command_prints_json_alone_on_stdout(photos: Path) -> None:
    done = cli(
        "bench",
        photos,
        "--resolution=32x32",
        "--model=none",
        "--text-model=none",
        "--seconds=0.2",
        "--json",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["photos"]["listed"] == 12
    assert "measuring: photos" in done.stderr


def test_another_machine_is_forecast(report: Report) -> None:
    asked = replace(report.settings, cores=10_000, gpus=2, gpu_rate=100.0)
    found = elsewhere(replace(report, settings=asked))
    assert found["encode from photos"].rate == 200.0
    assert found["encode from photos"].limit == DEVICES
    assert found["convert (exact)"].limit == CORES
    assert found["convert (exact)"].rate > 100 * forecasts(report)["convert (exact)"].rate
    with pytest.raises(ConfigError, match="needs the rate of one GPU"):
        elsewhere(replace(report, settings=replace(asked, gpu_rate=None)))


def test_workers_are_fewer_where_memory_is_short(report: Report) -> None:
    quick_disk = {"exact": replace(report.pixels["exact"], write_rate=1e12)}
    plenty = replace(report, cores=8, pixels=quick_disk, memory=10**12)
    short = replace(plenty, memory=500_000_000)
    assert workers(plenty) == 8
    assert 1 <= workers(short) < 5


def workers(report: Report) -> int:
    return int(next(each.value for each in advice(report) if each.setting == "--num-workers"))


def test_damaged_files_are_told_and_left_out(photos: Path) -> None:
    whole = sorted(photos.rglob("*.jpg"))
    whole[0].write_bytes(b"no picture at all")
    found = gather(photos, 12)
    assert len(found.data) == 11
    assert [key for key, _ in found.left_out] == [whole[0].relative_to(photos).as_posix()]
    for path in whole:
        path.write_bytes(b"")
    with pytest.raises(SourceError, match="none of 12 images"):
        gather(photos, 12)


def test_photos_are_spread_over_a_large_source(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 40)
    found = gather(tmp_path / "photos", 4)
    assert [ref.index for ref in found.refs] == [0, 10, 20, 30]
    assert found.listed == 40
    assert len(gather(None, 64).data) == 12


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seconds": 0}, "seconds must be above 0"),
        ({"cores": -1}, "cores must be above 0"),
        ({"gpu_rate": 5.0}, "give their number with --gpus"),
        ({"max_images": 0}, "max-images must be above 0"),
    ],
)
def test_settings_are_refused(more: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(None, **more)


def test_a_missing_dest_is_refused(photos: Path) -> None:
    with pytest.raises(DestinationError, match="must be a folder that is there"):
        run(settings(photos, dest=photos / "none"))


class _Encoder:
    """Encodes up to `fits` images as one batch, and says when it could not. submitted: batches begun at once."""

    def __init__(self, fits: int = 1000, fails: bool = False) -> None:
        self.fits, self.fails = fits, fails
        self.sizes: list[int] = []

    def open(self) -> _Encoder:
        return self

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        self.sizes.append(len(samples))
        if self.fails:
            return [SampleError("encode", "not finite") for _ in samples]
        notes = (SMALLER_BATCH,) if len(samples) > self.fits else ()
        return [Encoded(np.zeros((8, 4, 4), np.float32), notes) for _ in samples]


class _Submitting(_Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def submit(self, samples: Sequence[Sample]) -> Callable[[], list[Encoded | SampleError]]:
        self.order.append("begin")
        return lambda: self.order.append("end") or self.encode(samples)


class _WarmingUp(_Encoder):
    def warm_up(self, samples: Sequence[Sample]) -> None:
        self.sizes.append(-len(samples))


IMAGES: list[Array] = [np.zeros((32, 32, 3), np.uint8)]


def test_batches_that_do_not_fit_are_no_figure() -> None:
    found = measure_encode(_Encoder(fits=8), "x", "cpu", 1, IMAGES, 0.05)
    assert list(found.by_batch) == [1, 2, 4, 8]
    assert list(found.warm_up) == [1, 2, 4, 8, 16]


def test_each_size_is_warmed_up_before_its_first_batch_and_not_again() -> None:
    encoder = _WarmingUp(fits=2)
    measure_encode(encoder, "x", "cpu", 1, IMAGES, 0.05)
    assert encoder.sizes[:6] == [-1, 1, -2, 2, -4, 4]
    assert min(encoder.sizes[6:]) > 0


def test_an_image_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(ModelError, match="not finite"):
        measure_encode(_Encoder(fails=True), "x", "cpu", 1, IMAGES, 0.05)


def test_the_smallest_batch_that_is_about_as_fast_is_recommended() -> None:
    found = measure_encode(_Encoder(fits=4), "x", "cpu", 1, IMAGES, 0.05)
    figure = found.by_batch[1]
    found.by_batch.clear()
    seconds = {1: 2.0, 2: 1.03, 4: 1.0}
    found.by_batch.update({size: replace(figure, median=value) for size, value in seconds.items()})
    assert found.batch_size == 2


def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A PyTorch whose events are told in order, and are 250 ms apart."""
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.name = "end" if told.count("event") % 2 else "begin"
            told.append("event")

        def record(self) -> None:
            told.append(f"{self.name} recorded")

        def synchronize(self) -> None:
            told.append(f"{self.name} waited for")

        def elapsed_time(self, other: Event) -> float:
            assert (self.name, other.name) == ("begin", "end")
            return 250.0

    class Device:
        def __init__(self, name: str) -> None:
            told.append(name)

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(Event=Event, device=Device, synchronize=lambda: told.append("idle"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    return told


def test_a_gpu_is_timed_by_its_events_from_idle_to_done(monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_cuda(monkeypatch)
    assert Stopwatch("cuda:1").seconds(lambda: told.append("work")) == 0.25
    told = [each for each in told if each != "event"]
    assert told == ["cuda:1", "idle", "begin recorded", "work", "end recorded", "end waited for"]


def test_on_a_gpu_the_next_batch_begins_before_the_last_is_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    encoder = _Submitting()
    measure_encode(encoder, "x", "cuda", 1, IMAGES, 0.01)
    assert encoder.order[:6] == ["begin", "begin", "end", "begin", "end", "begin"]
    assert encoder.order.count("begin") == encoder.order.count("end")


def test_captions_are_different_and_as_long_as_cocos() -> None:
    captions = sample_captions(200)
    assert len(set(captions)) == 200
    assert all(7 <= len(caption.split()) <= 15 for caption in captions)


def test_the_time_that_others_had_the_core_is_read(tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("123 2500000000 7\n")
    assert run_delay(tmp_path / "schedstat") == 2.5
    assert run_delay(tmp_path / "none") == 0.0


# make bench


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_pixel_that_differs_ends_the_benchmark_before_a_time_is_told(
    benchmarks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import crops
    import run as command

    name, exact = "center-crop-dhariwal", crops.CROPS["center-crop-dhariwal"]

    def wrong(pixels: Array, width: int, height: int) -> Array:
        found = exact(pixels, width, height).copy()
        found[height // 2, width // 2, 1] ^= 1
        return found

    monkeypatch.setitem(crops.CROPS, name, wrong)
    make_photos(tmp_path / "photos", 2)
    results = tmp_path / "results.md"
    code = command.main(["--only=crop", "--quick", f"--photos={tmp_path / 'photos'}", f"--out={results}"])
    told = capsys.readouterr()
    assert code == 1
    assert "results differ" in told.err and name in told.err and "1 of 196,608 numbers differ" in told.err
    assert " ms" not in told.out
    assert not results.exists()


def test_datasets_that_differ_are_found(benchmarks: None, tmp_path: Path, photos: Path) -> None:
    import converting
    from harness import DifferentError

    import latentmill

    for name in ("ours", "theirs"):
        latentmill.convert(photos, tmp_path / name, resolution="32x32", transform="center-crop-dhariwal", num_workers=1)
    converting.check_same_pngs(tmp_path / "ours", tmp_path / "theirs")
    some = sorted((tmp_path / "ours").rglob("*.png"))[3]
    other = sorted((tmp_path / "ours").rglob("*.png"))[4]
    some.write_bytes(other.read_bytes())
    with pytest.raises(DifferentError, match="img00000003"):
        converting.check_same_pngs(tmp_path / "ours", tmp_path / "theirs")
    some.unlink()
    with pytest.raises(DifferentError, match="11 PNGs"):
        converting.check_same_pngs(tmp_path / "ours", tmp_path / "theirs")


def test_numbers_beyond_the_allowed_difference_are_found(benchmarks: None) -> None:
    from harness import DifferentError, check_same_numbers

    numbers = np.linspace(-4, 4, 100, dtype=np.float32)
    assert check_same_numbers(numbers + np.float32(1e-6), numbers, 1e-5, "x") < 1e-5
    for wrong in (numbers + np.float32(1e-3), np.where(numbers > 3.9, np.nan, numbers), numbers[:-1]):
        with pytest.raises(DifferentError):
            check_same_numbers(wrong, numbers, 1e-5, "x")


def test_fast_beyond_its_documented_levels_is_found(benchmarks: None, tmp_path: Path) -> None:
    import converting
    from harness import DifferentError
    from PIL import Image

    pixels = np.full((64, 64, 3), 100, np.uint8)
    for name in ("exact", "fast"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "img00000000.png")
    assert converting.check_fast(tmp_path / "fast", tmp_path / "exact").most == 0
    for changed, levels in ((1, 26), (64, 15)):  # values beyond the bound of all, and beyond that of 99.9 %
        wrong = pixels.copy()
        wrong.reshape(-1)[:changed] += levels
        Image.fromarray(wrong).save(tmp_path / "fast" / "img00000000.png")
        with pytest.raises(DifferentError, match=f"at most {levels}"):
            converting.check_fast(tmp_path / "fast", tmp_path / "exact")


def test_a_folder_of_the_users_own_is_read_alike_by_all(benchmarks: None, tmp_path: Path) -> None:
    import converting
    import harness

    import latentmill

    make_photos(tmp_path / "made", 4, side=40)
    made = sorted((tmp_path / "made").rglob("*.jpg"))
    for name, path in zip(("a/0.jpg", "a-b/0.jpg", "a.jpg", "b.png"), made, strict=True):
        (target := tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    (tmp_path / "work").mkdir()
    setting = harness.Setting(tmp_path / "work" / "part", 1, True, 1, tmp_path / "own")
    photos, count = converting.source_photos(setting)
    assert count == 3
    latentmill.convert(photos, tmp_path / "ours", resolution="32x32", transform="center-crop-dhariwal", num_workers=1)
    harness.reference("sequential", photos, tmp_path / "theirs", 32)
    converting.check_same_pngs(tmp_path / "ours", tmp_path / "theirs")


def test_a_goal_tells_whether_it_is_met_and_a_section_its_rounds(benchmarks: None) -> None:
    from harness import Section, Took, in_turn, judged

    assert judged([1.0, 1.05, 9.0], 1.1) == "at most 1.1x: met"
    assert judged([1.2, 1.2, 0.1], 1.1) == "at most 1.1x: MISSED"
    section = Section("title", "nothing", ("program",))
    in_turn({"one": lambda: Took(1.0, 1.0)}, 3)
    section.add("one")
    assert "- rounds: 3\n" in section.markdown()


def test_the_reference_loops_give_what_the_crops_give(benchmarks: None, tmp_path: Path, photos: Path) -> None:
    import harness
    from converting import check_same_pngs

    import latentmill

    latentmill.convert(photos, tmp_path / "ours", resolution="32x32", transform="center-crop-dhariwal", num_workers=1)
    for name in ("sequential", "pool"):
        took = harness.reference(name, photos, tmp_path / name, 32)
        check_same_pngs(tmp_path / "ours", tmp_path / name)
        assert took.wall > 0 and took.cpu > 0 and 10_000_000 < took.peak < 400_000_000


def test_a_program_that_fails_ends_the_benchmark(benchmarks: None) -> None:
    import subprocess

    import harness

    with pytest.raises(subprocess.CalledProcessError):
        harness.process(sys.executable, "-c", "raise SystemExit(3)")


def test_results_are_a_table_with_the_machine(benchmarks: None, tmp_path: Path) -> None:
    import run as command

    make_photos(tmp_path / "photos", 2, side=280)
    results = tmp_path / "results.md"
    code = command.main(["--only=crop", "--quick", "--rounds=1", f"--photos={tmp_path / 'photos'}", f"--out={results}"])
    told = results.read_text()
    assert code == 0
    for part in ("usable cores", "numpy ", "load average", "pixel for pixel", "| center-crop-dhariwal | 500x375 |"):
        assert part in told
