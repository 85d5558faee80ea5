"""The batch size that is found by trying: by rates, within memory and patience; kept, and not sought again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from latentmill.encoders import autobatch
from latentmill.encoders.autobatch import best_batch_size
from latentmill.encoders.fake import FakeSpec
from latentmill.encoders.models import resolve
from latentmill.encoders.vae import VaeSpec
from latentmill.errors import ModelError, SampleError
from latentmill.features import image_features
from latentmill.formats.metadata import Metadata
from latentmill.outcome import Event, Result
from latentmill.recipe import Recipe
from latentmill.records import SMALLER_BATCH, TILED, Encoded, Sample
from support import TINY_VAE, WHOLE, make_photos
from tiny_vision import saved

SIZE = (16, 24)


class Timed:
    """An encoder whose batches take as long as `seconds` says, by a clock that it moves itself."""

    def __init__(self, seconds: Callable[[int], float], notes: Callable[[int], tuple[str, ...]] = lambda n: ()) -> None:
        self.seconds, self.notes = seconds, notes
        self.now, self.tried = 100.0, []

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        assert {sample.array.shape for sample in samples} == {(*SIZE, 3)}
        self.tried.append(len(samples))
        self.now += self.seconds(len(samples))
        return [Encoded(sample.array, self.notes(len(samples))) for sample in samples]


def found(monkeypatch: pytest.MonkeyPatch, encoder: Timed) -> tuple[int, dict[int, float]]:
    monkeypatch.setattr(autobatch.time, "perf_counter", lambda: encoder.now)
    return best_batch_size(encoder, SIZE)


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ([1, 2, 4, 8, 8.1, 8.2, 8.3, 8.39], 8),  # as fast as any, but for a few percent: not worth the memory
        ([5, 5, 5, 5, 5, 5, 5, 5], 1),
        ([1, 2, 4, 8, 16, 32, 64, 128], 128),
        ([3, 9, 6, 5, 4, 3, 2, 1], 2),
        ([10, 10.4, 10.7, 10.7, 10.7, 10.7, 10.7, 10.7], 2),
        ([10, 10.6, 11.1, 11.7, 11.7, 11.7, 11.7, 11.7], 8),
    ],
)
def test_the_smallest_that_is_about_as_fast_as_any(
    monkeypatch: pytest.MonkeyPatch, rates: list[float], best: int
) -> None:
    by_size = {2**power: 100 * rate for power, rate in enumerate(rates)}  # images/s
    encoder = Timed(lambda count: count / by_size[count])
    chosen, told = found(monkeypatch, encoder)
    assert chosen == best
    assert told == pytest.approx(by_size)
    assert encoder.tried == [1, *(size for size in by_size for _ in range(2))]  # short ones twice: the first warms up


@pytest.mark.parametrize("note", [SMALLER_BATCH, TILED])
def test_a_batch_that_did_not_fit_ends_the_trials_and_is_not_chosen(monkeypatch: pytest.MonkeyPatch, note: str) -> None:
    encoder = Timed(lambda count: 1.0, lambda count: (note,) if count > 8 else ())
    best, rates = found(monkeypatch, encoder)
    assert best == 8
    assert list(rates) == [1, 2, 4, 8]
    assert encoder.tried[-1] == 16


def test_where_every_image_is_tiled_one_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, Timed(lambda count: count, lambda count: (TILED,)))[0] == 1


def test_no_trial_is_begun_that_would_take_very_long(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Timed(lambda count: 3.0 * count)
    assert found(monkeypatch, encoder)[0] == 1
    assert encoder.tried == [1, 1, 2, 4]  # 8 would take 24 s


def test_a_real_model_is_cut_to_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    room = 3 * 32 * 32 * 5 * 16 * 4 / 0.8  # three images: tensors of 16 channels in float32, a share of 0.8
    monkeypatch.setattr("latentmill.encoders.vae.available_memory", lambda: int(room) + 1)
    spec = VaeSpec(resolve(str(TINY_VAE)), "cpu", "float32", (-1.0, 1.0), "moments", 0, "float32", WHOLE)
    best, rates = best_batch_size(spec.open(), (32, 32))
    assert list(rates) == [1, 2]
    assert best in rates
    with pytest.raises(ModelError, match="not even one image fits"):
        best_batch_size(replace(spec, tiling="never").open(), (64, 64))


# the option


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what the encoder is given."""
    sizes: list[int] = []
    encode = FakeSpec.encode

    def noted(self: FakeSpec, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        sizes.append(len(samples))
        return encode(self, samples)

    monkeypatch.setattr(FakeSpec, "encode", noted)
    return sizes


def run(source: Path, dest: Path, tell: Callable[[Event], None] = lambda event: None, **settings: object) -> Result:
    small = {"vae": "fake", "resolution": 64, "multi_scale": True, "buckets": "grid:32", "batch_size": "auto"}
    return image_features(source, dest, tell=tell, **{**small, **settings})


def test_auto_is_measured_once_and_kept(
    photos: Path, tmp_path: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another size at resume would give other bytes, and a size that was measured differs from day to day."""
    measured: list[tuple[int, int]] = []

    def measure(encoder: object, size: tuple[int, int]) -> tuple[int, dict[int, float]]:
        measured.append(size)
        return 5, {1: 2.0, 5: 10.0}

    monkeypatch.setattr(autobatch, "best_batch_size", measure)
    told: list[str] = []

    def stop(event: Event) -> None:
        told.append(event.text)
        if event.kind == "progress" and event.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "out", stop)
    (size,) = measured
    assert size[0] * size[1] == 64 * 64  # the largest bucket
    assert f"batch size 5 is best for {size[1]}x{size[0]} (1: 2.00/s, 5: 10.00/s)" in told
    del batches[:]
    result = run(photos, tmp_path / "out")
    assert result.stored == 12
    assert max(batches) == 5
    fingerprint = json.loads((result.dest / "latentmill.json").read_text())["fingerprint"]
    assert fingerprint["batch_size"] == 5
    make_photos(photos / "more", 3, seed=5)
    assert run(photos, tmp_path / "out").computed == 3
    assert run(photos, tmp_path / "out", batch_size=None).already_done
    assert len(measured) == 1
    assert run(photos, tmp_path / "out", overwrite=True).computed == 15
    assert len(measured) == 2


def test_auto_with_a_real_measurement(photos: Path, tmp_path: Path, batches: list[int]) -> None:
    result = run(photos, tmp_path / "out")
    assert result.stored == 12
    assert batches[:4] == [1, 1, 1, 2]
    kept = json.loads((result.dest / "latentmill.json").read_text())["fingerprint"]["batch_size"]
    assert kept in (1, 2, 4, 8, 16, 32, 64, 128)


@pytest.mark.parametrize("kind", ["latents", "vision"])
def test_every_output_of_images_can_ask_for_it(
    kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variants of an output, and outputs of one encoder, are measured once; a rerun takes what was found."""
    asked: list[tuple[int, int]] = []

    def best(encoder: object, size: tuple[int, int]) -> tuple[int, dict[int, float]]:
        asked.append(size)
        return 3, {1: 1.0, 3: 2.0}

    monkeypatch.setattr(autobatch, "best_batch_size", best)
    model = TINY_VAE if kind == "latents" else saved(tmp_path / "model", "dinov2")
    output = {"kind": kind, "model": str(model), "threads": 1, "batch_size": "auto", "flip": "both"}
    crop = {"resolution": "32x32", "transform": "center-crop"}
    for _ in range(2):
        Recipe(source=photos, outputs={"one": output | crop}, dest=tmp_path / "out").run()
    for folder in (tmp_path / "out" / "one", tmp_path / "out" / "one-flip"):
        stored = Metadata.read_beside(folder)
        assert stored is not None
        assert stored.fingerprint["batch_size"] == 3
    assert len(asked) == 1
