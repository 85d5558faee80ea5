"""What a job says that it will need, and how it fits itself into the memory that there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import latentmill
from latentmill.estimate import Estimate, fitted, human, probe_sizes
from latentmill.outcome import Event
from latentmill.sources.images import ImageSource
from support import contents

SAFE_SHARE = 0.8  # of the memory that is available
ESTIMATE = Estimate(images=1000, largest=500 * 375, result_bytes=3 * 256 * 256, output_bytes=1, dest=Path())


def texts(events: list[Event], kind: str) -> list[str]:
    return [event.text for event in events if event.kind == kind]


@given(
    available=st.one_of(st.none(), st.integers(1, 1 << 40)),
    workers=st.integers(1, 64),
    batch_size=st.integers(1, 512),
    pixels=st.integers(1, 1 << 28),
)
def test_it_is_reduced_until_it_fits_and_no_further(
    available: int | None, workers: int, batch_size: int, pixels: int
) -> None:
    estimate = Estimate(1000, pixels, 3 * 512 * 512, 1, Path())
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentmill.estimate.available_memory", lambda: available)
        fewer = fitted(estimate, workers, batch_size, events.append)
    assert 1 <= fewer[0] <= workers
    assert 1 <= fewer[1] <= batch_size
    warned = any("fewer images in flight" in text for text in texts(events, "warning"))
    assert warned == (fewer != (workers, batch_size))
    halved = [batch_size >> times for times in range(batch_size.bit_length())]
    steps = [(workers, size) for size in halved] + [(count, 1) for count in range(workers - 1, 0, -1)]
    limit = float("inf") if available is None else SAFE_SHARE * available
    assert fewer == next((step for step in steps if estimate.memory(*step) <= limit), (1, 1))


def test_batches_are_reduced_before_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.estimate.available_memory", lambda: int(ESTIMATE.memory(4, 8) / SAFE_SHARE))
    assert fitted(ESTIMATE, 4, 64, lambda event: None) == (4, 8)
    monkeypatch.setattr("latentmill.estimate.available_memory", lambda: int(ESTIMATE.memory(2, 1) / SAFE_SHARE))
    assert fitted(ESTIMATE, 4, 64, lambda event: None) == (2, 1)


def test_a_conversion_in_little_memory(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"resolution": "32x32", "num_workers": 3, "batch_size": 8}
    plenty = latentmill.convert(photos, tmp_path / "plenty", **settings)
    monkeypatch.setattr("latentmill.estimate.available_memory", lambda: 250 << 20)
    events: list[Event] = []
    little = latentmill.convert(photos, tmp_path / "little", **settings, tell=events.append)
    assert any("3 workers, batches of 8 became" in text for text in texts(events, "warning"))
    assert any("available" in text for text in texts(events, "plan"))
    assert json.loads(little.report.read_text())["workers"] == 1
    assert contents(little.dest) == contents(plenty.dest)


def test_the_memory_that_is_needed_and_available_is_told(photos: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    latentmill.convert(photos, tmp_path / "out", resolution="32x32", num_workers=1, tell=events.append)
    told = " ".join(texts(events, "plan"))
    assert "12 images, output about" in told
    assert "memory about" in told
    assert not texts(events, "warning")


@pytest.mark.parametrize("with_images", [False, True])
def test_the_size_of_the_output_is_told_within_a_fifth(photos: Path, tmp_path: Path, with_images: bool) -> None:
    events: list[Event] = []
    settings = {"resolution": "64x64", "model_url": "fake", "tell": events.append}
    places = [tmp_path / "out"] + ([tmp_path / "images"] if with_images else [])
    latentmill.encode(photos, places[0], **settings, **({"images": places[1]} if with_images else {}))
    told = next(text for text in texts(events, "plan") if "output about" in text)
    number, unit = told.partition("output about ")[2].split()[:2]
    made = sum(len(data) for place in places for name, data in contents(place).items() if "json" not in name)
    index = sum(len(data) for place in places for name, data in contents(place).items() if "jsonl" in name)
    size = float(number) * {"kB": 1e3, "MB": 1e6}[unit]
    assert 0.8 < size / (made + index) < 1.25


def test_an_output_that_does_not_fit_is_told(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.estimate.free_disk", lambda dest: 1000)
    events: list[Event] = []
    latentmill.convert(photos, tmp_path / "out", resolution="32x32", num_workers=1, tell=events.append)
    assert any("may not fit: 1.0 kB are free" in text for text in texts(events, "warning"))


def test_images_that_cannot_be_read_do_not_spoil_the_estimate(photos: Path) -> None:
    for photo in sorted(photos.rglob("*.jpg"))[::2]:
        photo.write_bytes(b"no picture")
    (photos / "c0" / "dangling.jpg").symlink_to(photos / "nothing")
    source = ImageSource(photos)
    assert probe_sizes(source, source.listing()) == [(64, 48)] * 6


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345, "12.3 kB"), (123_456, "123 kB"), (2.5e9, "2.5 GB"),
     (3e13, "30.0 TB")],
)  # fmt: skip
def test_sizes_as_a_person_reads_them(count: float, shown: str) -> None:
    assert human(count) == shown
