"""Shards on this machine: in this process, or in as many worker processes as asked for."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from latentmill.errors import LatentmillError
from latentmill.records import Progress, ShardReport
from latentmill.worker import Emit, Task, Unit, run_units

_POLL_SECONDS = 0.5
_JOIN_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


def run_local(task: Task, units: Sequence[Unit], workers: int, emit: Emit) -> None:
    """Run `units` with `workers` processes (1: this one). Raises the first failure of any of them."""
    if workers <= 1:
        run_units(task, units, emit)
        return
    context: Any = multiprocessing.get_context(_start_method())
    tasks, events = context.Queue(), context.Queue()
    for unit in units:
        tasks.put(unit)
    for _ in range(workers):
        tasks.put(None)
    processes = [context.Process(target=_work, args=(task, tasks, events, os.getpid())) for _ in range(workers)]
    with _without_main():
        for process in processes:
            process.start()
    try:
        _follow(processes, events, emit)
    finally:
        for process in processes:
            process.kill()  # those that ended well are gone; the others must not go on (nothing half-done counts)
        for process in processes:
            process.join(_JOIN_SECONDS)
        tasks.cancel_join_thread()
        events.cancel_join_thread()


def _start_method() -> str:
    """fork where it is safe: it starts a worker in milliseconds. PyTorch's threads do not survive it."""
    return "fork" if sys.platform == "linux" and "torch" not in sys.modules else "spawn"


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a spawned worker from running the caller's script again, of which it needs nothing.

    A script without a `__main__` guard would otherwise start its own job anew in every worker.
    """
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    try:
        if "__file__" in kept:
            del main.__file__
        main.__spec__ = None
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


def _follow(processes: list[BaseProcess], events: Any, emit: Emit) -> None:
    """Pass the workers' events on until all have ended; notices a worker that died while others go on."""
    running = len(processes)
    looked = time.monotonic()
    while running:
        if time.monotonic() - looked > _POLL_SECONDS:
            looked = time.monotonic()
            dead = [process for process in processes if process.exitcode not in (None, 0)]
            if dead:
                raise LatentmillError(_death(dead[0].exitcode))
        try:
            event = events.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if event is None:
            running -= 1
        elif isinstance(event, BaseException):
            raise event
        else:
            emit(*event)


def _death(code: int | None) -> str:
    if code == -getattr(signal, "SIGKILL", 9):
        return (
            "a worker process was killed by the system, most likely for want of memory. Use fewer --num-workers or a "
            "smaller --batch-size, and run the same command again to go on"
        )
    return f"a worker process ended with exit code {code}. Run the same command again to go on"


def _work(task: Task, tasks: Any, events: Any, parent: int) -> None:
    """A worker process: takes units until told to stop, reports by `events`, and dies when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()

    def units() -> Iterator[Unit]:
        while True:
            _check_parent(parent)
            try:
                unit = tasks.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if unit is None:
                return
            yield unit

    def emit(part: int, event: Progress | ShardReport) -> None:
        _check_parent(parent)
        events.put((part, event))

    try:
        run_units(task, units(), emit)
        events.put(None)
    except LatentmillError as error:
        events.put(error)
    except Exception as error:  # noqa: BLE001 - a fault of ours: told in the parent, with this process's traceback
        text = "".join(traceback.format_exception(error))
        events.put(RuntimeError(f"a worker process failed:\n{text}"))


def _check_parent(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
