"""The Ray cluster that a run joins or starts: what is in it, and how it is begun and left without a word."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from latentmill.devices import cpu_processes, each_device
from latentmill.errors import ConfigError, LatentmillError, ModelError
from latentmill.system import usable_cores

_STORE_BYTES = 100 << 20  # Ray's store of objects, which holds the task alone
_CLIENT = "ray://"
_ours: list[bool] = []  # the connections that this module made; the shown worker logs before each


class Capacity(NamedTuple):
    """Of a cluster: cores and GPUs of all nodes, and the cores of the largest one."""

    cores: int
    gpus: int
    largest: int


def check_installed() -> None:
    """Raises ConfigError where the extra is missing."""
    if find_spec("ray") is None:
        raise ConfigError("--runner ray needs Ray: pip install 'latentmill[ray]'")


def connect(address: str | None) -> None:
    """Join the cluster at an address, else at RAY_ADDRESS, else start one here. Raises ConfigError, LatentmillError.

    A connection that the caller has made is used as it is.
    """
    check_installed()
    import ray

    if ray.is_initialized():
        return
    address = _place(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _signals_kept():
        try:
            if address is None:
                ray.init(
                    "local", num_cpus=usable_cores(), include_dashboard=False, object_store_memory=_STORE_BYTES,
                    log_to_driver=False, logging_level=logging.ERROR,
                )  # fmt: skip
            else:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            why = " ".join(str(error).split())[:300]
            raise LatentmillError(
                f"no Ray cluster can be joined at {address or 'this machine'}: {why}. Start one (ray start --head) and "
                "give its --ray-address, or use --runner local"
            ) from error
    _ours.append(_show_deaths(False))


def _place(address: str | None) -> str | None:
    """Which cluster to join; None to start one here. Raises ConfigError."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(_CLIENT):
        raise ConfigError(
            "ray-address must be of the cluster itself, as HOST:6379 or auto, from one of its machines: the "
            f"destination is written there. Found: {address}"
        )
    return None if address == "local" else address


def disconnect() -> None:
    """Leave the cluster, and end it where it was started here; a connection of the caller's stays."""
    import ray

    while _ours:
        with _signals_kept():
            ray.shutdown()
        _show_deaths(_ours.pop())


def _show_deaths(show: bool) -> bool:
    """Whether Ray prints a paragraph for each worker that dies, as it did before; the scheduler tells of them."""
    worker = getattr(__import__("ray"), "_private").worker  # noqa: B009 - there is no public way
    before = bool(getattr(worker, "_worker_logs_enabled", True))
    worker._worker_logs_enabled = show
    return before


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; the command has its own way of stopping."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if here else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def live_nodes() -> dict[str, dict[str, float]]:
    """Resources of the nodes that are there now, by id."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


@cache
def _capacity(address: str | None, process: int) -> Capacity:
    import ray

    before = ray.is_initialized()
    connect(address)
    nodes = live_nodes().values()
    if not before:
        disconnect()
    cores = [int(node.get("CPU", 0)) for node in nodes]
    return Capacity(max(1, sum(cores)), int(sum(node.get("GPU", 0) for node in nodes)), max(1, *cores))


def _starts_here(address: str | None) -> bool:
    check_installed()
    import ray

    return _place(address) is None and not ray.is_initialized()


def capacity(address: str | None) -> Capacity:
    """What the cluster has, as it was when first asked; of one that is started here, not its GPUs.

    Raises LatentmillError.
    """
    if _starts_here(address):
        return Capacity(usable_cores(), 0, usable_cores())
    return _capacity(address, os.getpid())


def encoders(address: str | None, name: str, device: str, threads: int) -> tuple[str, ...]:
    """The device of each encoder process: every GPU of the cluster; `cpu:N`; one for so many threads' cores.

    device: what `name` stands for here. Raises ModelError.
    """
    kind = device.partition(":")[0]
    if kind == "cuda" and _starts_here(address):
        return each_device(name, device)
    found = capacity(address)
    if kind == "cuda" and not found.gpus:
        raise ModelError("the Ray cluster has no GPU. Use --device cpu, or start its nodes with --num-gpus")
    if kind == "cuda":
        return ("cuda",) * found.gpus
    return (kind,) * (cpu_processes(name) if ":" in name else max(1, found.cores // threads))
