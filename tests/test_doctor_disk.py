"""The disk's speed as the doctor measures it: bounded, cleaned up, and what a slow one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentmill.doctor import disk
from latentmill.doctor.disk import Speed

FAST = Speed(1e9, 2e9, 5000, 9000, True)


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_LARGE", (4_000_000, 8_000_000))
    monkeypatch.setattr(disk, "_SMALL", (10, 20))
    monkeypatch.setattr(disk, "_SLOW_WRITE", 0)  # of what is measured here, only that it is counts
    monkeypatch.setattr(disk, "_SLOW_FILES", 0)
    monkeypatch.setattr(disk, "_SLOW_READS", 0)


def test_a_place_that_is_yet_to_be_made_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in disk.findings(tmp_path / "data" / "vae.zip")}
    assert [finding.state for finding in found.values()] == ["ok"] * 4
    assert str(tmp_path) in found["destination"].value
    assert "/s (flushed), read" in found["a large file"].value
    assert "of 32.9 kB by one thread" in found["many small files"].value
    assert "latents" in found["that is"].value
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_measuring_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*told: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "sync_filesystem", full)
    (found,) = disk.findings(tmp_path)
    assert (found.state, "No space left" in found.value) == ("broken", True)
    assert "choose a folder" in found.advice
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_is_not_written_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(disk, "_QUICK", 0.0)
    disk._rate((100, 400, 1600), written.append)
    assert written == [100]
    monkeypatch.setattr(disk, "_QUICK", 10.0)
    disk._rate((100, 400, 1600), written.append)
    assert written == [100, 100, 400, 1600]


def test_a_slow_disk_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_SLOW_WRITE", 60e6)
    monkeypatch.setattr(disk, "_SLOW_FILES", 500)
    monkeypatch.setattr(disk, "_SLOW_READS", 1000)
    for speed, slow in (
        (FAST, set()),
        (FAST._replace(written=2e7), {"a large file"}),
        (FAST._replace(files_written=80), {"many small files"}),
        (FAST._replace(files_read=80, cold=False), {"many small files"}),
    ):
        monkeypatch.setattr(disk, "measured", lambda folder, speed=speed: speed)
        found = {finding.name: finding for finding in disk.findings(tmp_path)}
        assert {name for name, finding in found.items() if finding.state == "warning"} == slow
        assert all(finding.advice for finding in found.values() if finding.state != "ok")
    assert ".zip" in found["many small files"].advice
    assert "from memory" in found["many small files"].value


def test_what_it_means_in_images_follows_from_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "measured", lambda folder: Speed(197_008e2, 1e9, 100.0, 250.0, True))
    told = {finding.name: finding.value for finding in disk.findings(tmp_path)}["that is"]
    png = 1 / (1 / 100 + (197_008 - 32_896) / 197_008e2)
    assert told.startswith(f"at most 100 latents or {png:.2g} PNGs")
    assert "600 or 100 into a .zip" in told
    assert "at most 250 latents" in told


def test_a_network_and_a_full_disk_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "measured", lambda folder: FAST)
    monkeypatch.setattr(disk, "file_system", lambda folder: "nfs4")
    assert [finding.state for finding in disk.findings(tmp_path)][-1] == "warning"
    monkeypatch.setattr(disk, "_ROOM", 10**18)
    (found,) = disk.findings(tmp_path)
    assert found.state == "warning" and "make room" in found.advice
