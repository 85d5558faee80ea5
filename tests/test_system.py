"""The cores and the memory that a container grants are those that are used, whatever the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latentmill import system
from latentmill.system import available_memory, usable_cores

GIB = 1 << 30


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)


def files(root: Path, **contents: object) -> None:
    """Files of a control group, `__` for the dot in their names."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (root / name.replace("__", ".")).write_text(f"{text}\n")


def membership(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "cgroup"
    path.write_text("\n".join(lines) + "\n")
    return path


def meminfo(tmp_path: Path, available: int = 64 * GIB) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal:       99999999 kB\nMemFree:         1000 kB\nMemAvailable:   {available // 1024} kB\n")
    return path


# cores


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [("max 100000", 16), ("400000 100000", 4), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 16)],
)
def test_cgroup_v2_quota(tmp_path: Path, cpu_max: str, cores: int) -> None:
    files(tmp_path / "fs", cpu__max=cpu_max)
    assert usable_cores(tmp_path / "fs", membership(tmp_path, "0::/")) == cores


def test_the_tightest_quota_of_nested_groups_holds(tmp_path: Path) -> None:
    files(tmp_path / "fs" / "user" / "job" / "task", cpu__max="800000 100000")
    files(tmp_path / "fs" / "user" / "job", cpu__max="300000 100000")
    files(tmp_path / "fs" / "user", cpu__max="max 100000")
    assert usable_cores(tmp_path / "fs", membership(tmp_path, "0::/user/job/task")) == 3


@pytest.mark.parametrize(("quota", "period", "cores"), [(-1, 100_000, 16), (250_000, 100_000, 3), (0, 100_000, 16)])
def test_cgroup_v1_quota(tmp_path: Path, quota: int, period: int, cores: int) -> None:
    group = tmp_path / "fs" / "cpu" / "docker" / "abc"
    files(group, cpu__cfs_quota_us=quota, cpu__cfs_period_us=period)
    lines = membership(tmp_path, "4:memory:/docker/abc", "3:cpu,cpuacct:/docker/abc", "1:name=systemd:/docker/abc")
    assert usable_cores(tmp_path / "fs", lines) == cores


def test_a_group_seen_from_inside_a_container(tmp_path: Path) -> None:
    """The path in /proc names the host's folders; only the root of the hierarchy is there."""
    files(tmp_path / "fs" / "cpu", cpu__cfs_quota_us=200_000, cpu__cfs_period_us=100_000)
    assert usable_cores(tmp_path / "fs", membership(tmp_path, "3:cpu,cpuacct:/docker/abc")) == 2
    files(tmp_path / "fs", cpu__max="500000 100000")
    assert usable_cores(tmp_path / "fs", membership(tmp_path, "0::/../../host/abc")) == 5


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "fs", cpu__max="800000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 9}, raising=False)
    assert usable_cores(tmp_path / "fs", membership(tmp_path, "0::/")) == 3


def test_systems_without_affinity_or_groups_use_every_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 16
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 1


@pytest.mark.parametrize("text", ["", "nonsense", "100000", "100000 0", "100000 x"])
def test_a_quota_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    files(tmp_path / "fs", cpu__max=text)
    assert usable_cores(tmp_path / "fs", membership(tmp_path, "0::/")) == 16


# memory


def test_cgroup_v2_memory_leaves_what_is_not_used(tmp_path: Path) -> None:
    files(tmp_path / "fs" / "job", memory__max=8 * GIB, memory__current=3 * GIB)
    lines = membership(tmp_path, "0::/job")
    assert available_memory(tmp_path / "fs", lines, meminfo(tmp_path)) == 5 * GIB


def test_file_cache_of_the_group_is_not_counted_as_used(tmp_path: Path) -> None:
    """A job that has read its photos fills the group with cache that the kernel gives back."""
    stat = f"anon {GIB}\nfile {6 * GIB}\ninactive_file {6 * GIB}\nactive_file 0"
    files(tmp_path / "fs" / "job", memory__max=8 * GIB, memory__current=7 * GIB, memory__stat=stat)
    assert available_memory(tmp_path / "fs", membership(tmp_path, "0::/job"), meminfo(tmp_path)) == 7 * GIB


def test_cgroup_v1_memory(tmp_path: Path) -> None:
    group = tmp_path / "fs" / "memory" / "docker" / "abc"
    stat = f"cache {GIB}\ninactive_file 5\ntotal_inactive_file {GIB}"
    files(
        group,
        memory__limit_in_bytes=4 * GIB,
        memory__usage_in_bytes=3 * GIB,
        memory__stat=stat.replace("ve_file 5", "ve 5"),
    )
    lines = membership(tmp_path, "4:memory:/docker/abc", "3:cpu,cpuacct:/")
    assert available_memory(tmp_path / "fs", lines, meminfo(tmp_path)) == 2 * GIB


def test_no_limit_leaves_the_systems_figure(tmp_path: Path) -> None:
    files(tmp_path / "fs" / "job", memory__max="max", memory__current=GIB)
    files(tmp_path / "v1" / "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=GIB)
    for root, line in (("fs", "0::/job"), ("v1", "4:memory:/"), ("none", "0::/")):
        assert available_memory(tmp_path / root, membership(tmp_path, line), meminfo(tmp_path)) == 64 * GIB


def test_the_tightest_limit_holds(tmp_path: Path) -> None:
    files(tmp_path / "fs" / "a" / "b", memory__max=8 * GIB, memory__current=GIB)
    files(tmp_path / "fs" / "a", memory__max=6 * GIB, memory__current=2 * GIB)
    lines = membership(tmp_path, "0::/a/b")
    assert available_memory(tmp_path / "fs", lines, meminfo(tmp_path)) == 4 * GIB
    assert available_memory(tmp_path / "fs", lines, meminfo(tmp_path, GIB)) == GIB


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files(tmp_path / "fs", memory__max=GIB, memory__current=2 * GIB)
    assert available_memory(tmp_path / "fs", membership(tmp_path, "0::/"), meminfo(tmp_path)) == 0


def test_unknown_memory_is_none(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "none", tmp_path / "none", tmp_path / "none") is None


def test_this_machine_has_cores_and_memory() -> None:
    assert usable_cores() >= 1
    if Path("/proc/meminfo").exists():
        assert system.available_memory() > 1 << 20
