"""Units on this machine: in this process, or in as many worker processes as asked for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from latentmill.careful import Doing
from latentmill.devices import show_only
from latentmill.errors import LatentmillError
from latentmill.runners.scheduler import Death, schedule
from latentmill.runners.work import Message, Order, work
from latentmill.supervising import die_with, killed_before, told_ending
from latentmill.system import share_memory
from latentmill.worker import Emit, Task, Unit, run_units

_POLL_SECONDS = 0.5
_JOIN_SECONDS = 5.0
# Elsewhere a worker may outlive its parent by a batch, and write to a place that the next run has given to another.
_DIE_TOGETHER = sys.platform == "linux"


def run_local(task: Task, units: Sequence[Unit], workers: int, emit: Emit) -> None:
    """Run `units` with at most `workers` processes (1: this one). Raises the first failure of any of them.

    A process that dies is replaced (see `scheduler`); in this process, an image that kills it kills the job: a job that
    asked for several has none of its units run here, be there only one of them. Nor has one whose process was killed
    before (see `supervising`).
    """
    if workers <= 1 and killed_before() is None:
        run_units(task, units, emit)
        return
    workers = max(1, min(workers, len(units)))
    shared = replace(task.shared(workers), placed=_DIE_TOGETHER)
    schedule(shared, units, workers, emit, _Processes(shared, workers))


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


@dataclass
class _Member:
    """A worker process, this side of its pipe, and which of the devices it has."""

    process: BaseProcess
    pipe: Connection[Any, Any]
    slot: int


class _Processes:
    """Worker processes, each with a pipe of its own: one that is killed while it writes hinders no other."""

    def __init__(self, task: Task, workers: int) -> None:
        self.task, self.workers = task, workers
        self.members: dict[int, _Member] = {}
        self.started = 0

    def start(self) -> int:
        context: Any = multiprocessing.get_context(_start_method())
        slot = min(set(range(len(self.members) + 1)) - {member.slot for member in self.members.values()})
        several = len(self.task.devices) > 1  # a single one is what the encoder was told, among all that are there
        device = self.task.devices[slot % len(self.task.devices)] if several else ""
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self.task, theirs, os.getpid(), device, self.workers))
        try:
            with _without_main():
                process.start()
        except OSError as error:
            raise LatentmillError(
                f"a worker process cannot be started: {error.strerror or error}. Use fewer --num-workers or --device"
            ) from error
        theirs.close()
        self.started += 1
        self.members[self.started] = _Member(process, ours, slot)
        return self.started

    def wait(self) -> list[tuple[int, Message | Death]]:
        pipes = {member.pipe: number for number, member in self.members.items()}
        return [found for pipe in wait(list(pipes), _POLL_SECONDS) for found in self._received(pipes[pipe])]  # type: ignore[index]

    def _received(self, number: int) -> Iterator[tuple[int, Message | Death]]:
        """One message; at the end of the pipe, how its process ended."""
        member = self.members[number]
        try:
            yield number, member.pipe.recv()
        except (EOFError, OSError):
            del self.members[number]
            member.process.join(_JOIN_SECONDS)
            member.process.kill()
            member.process.join()
            member.pipe.close()
            yield number, Death(told_ending(member.process.exitcode))

    def answer(self, worker: int, order: Order | None) -> None:
        if worker in self.members:
            if order is not None and self.task.placed:
                self._reserve(order.unit)
            with suppress(OSError):
                self.members[worker].pipe.send(order)

    def _reserve(self, unit: Unit) -> None:
        for part, shards in zip(self.task.parts, unit, strict=True):
            for output in part.outputs:
                for shard in shards:
                    output.reserve(part.plan, shard)

    def close(self) -> None:
        """What they have not committed must not go on; nothing of it counts."""
        for member in self.members.values():
            member.process.kill()
        for member in self.members.values():
            member.process.join(_JOIN_SECONDS)
            member.pipe.close()


class _Pipe:
    """A worker's end of its pipe. What is sent lies with the system at once, and outlives the process."""

    def __init__(self, pipe: Connection[Any, Any], parent: int) -> None:
        self.pipe, self.parent, self.lock = pipe, parent, threading.Lock()

    def send(self, message: Message) -> None:
        _check_parent(self.parent)
        try:
            with self.lock:
                self.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(1)  # nobody is left to work for

    def announce(self, doing: Doing) -> None:
        self.send(doing)

    def order(self) -> Order | None:
        while not self.pipe.poll(_POLL_SECONDS):
            _check_parent(self.parent)
        try:
            order: Order | None = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(1)
        return order


def _work(task: Task, pipe: Connection[Any, Any], parent: int, device: str, workers: int) -> None:
    """A worker process: works until there is nothing left to do, and dies when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)
    show_only(device)
    share_memory(workers)
    work(task, _Pipe(pipe, parent))


def _check_parent(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)
