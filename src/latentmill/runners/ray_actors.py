"""Units on the machines of a Ray cluster: an actor for each process, which asks for units as local workers do.

Units, counts and reports travel; images and tensors do not: every node reads the source and writes the destination
itself, so both must be on a file system that all nodes share. Actors end with the driver, and a rerun goes on.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from latentmill.careful import Doing
from latentmill.errors import DestinationError, LatentmillError, SourceError
from latentmill.files import digest
from latentmill.runners.ray_cluster import capacity, connect, disconnect, live_nodes
from latentmill.runners.scheduler import Death, schedule
from latentmill.runners.work import Failed, Message, Order, work
from latentmill.system import share_memory
from latentmill.worker import Emit, Task, Unit

_POLL_SECONDS = 1.0
_SETTLED_SECONDS = 5.0
_START_SECONDS = 600.0  # a cluster may start a machine first
_INSTALLED = "The same latentmill, and the packages of what a recipe names, must be installed on every node"
_SEEN_SECONDS = 10.0  # a network file system shows new files late


def run_ray(task: Task, units: Sequence[Unit], workers: int, emit: Emit, address: str | None = None) -> None:
    """Run `units` with at most so many actors: of one GPU each, or of one core or an encoder's threads.

    address: of the cluster; None takes RAY_ADDRESS, else starts one on this machine. An actor that dies is replaced,
    and so is one whose node is lost. Raises the first failure of any of them.
    """
    workers = min(workers, len(units))
    connect(address)
    try:
        schedule(task, units, workers, emit, _Actors(task, workers, address))
    finally:
        disconnect()


class _Actors:
    """Actors, each asked again and again for what it has to tell."""

    def __init__(self, task: Task, workers: int, address: str | None) -> None:
        import ray

        self.actors: dict[int, Any] = {}
        self.polls: dict[Any, int] = {}
        self.works: dict[Any, int] = {}  # calls of `work`, which last as long as their actors have work
        self.nodes: dict[int, str] = {}  # of those that have told anything
        self.started, self.heard = 0, time.monotonic()
        gpus = float(any(device.startswith("cuda") for device in task.devices))
        largest = capacity(address).largest
        threads = max((getattr(part.encoder, "threads", 1) for part in task.parts), default=1)
        cores = 1 if gpus or not task.devices else min(largest, threads)
        sharing = max(1, min(workers, largest // cores))
        seen = tuple(digest((part.plan.folder / "plan.json").read_bytes()) for part in task.parts)
        self.driver = Driver(socket.gethostname(), str(Path.cwd()), tuple(sys.path), seen)
        self.arguments = (ray.put(pickle.dumps(task)), sharing, self.driver)
        remote: Any = ray.remote(Actor)
        self.kind = remote.options(num_cpus=cores, num_gpus=gpus, max_restarts=0, max_concurrency=3)
        self.needs = f"{cores} CPU" + (" and 1 GPU" if gpus else "")

    def start(self) -> int:
        self.started += 1
        actor = self.kind.remote(*self.arguments)
        self.works[actor.work.remote()] = self.started
        self.actors[self.started] = actor
        self._poll(self.started)
        return self.started

    def _poll(self, number: int) -> None:
        self.polls[self.actors[number].poll.remote()] = number

    def wait(self) -> list[tuple[int, Message | Death]]:
        import ray

        calls = [*self.polls, *self.works]
        ready, _ = ray.wait(calls, num_returns=1, timeout=_POLL_SECONDS)
        if ready:
            self.heard = time.monotonic()
            ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        elif not self.nodes and time.monotonic() - self.heard > _START_SECONDS:
            raise LatentmillError(
                f"no machine of the Ray cluster had room for a worker ({self.needs} each) in "
                f"{_START_SECONDS / 60:.0f} minutes. Run the same command again when it has"
            )
        polled = [found for call in ready if call in self.polls for found in self._received(call)]
        return polled + [found for call in ready if call in self.works for found in self._ended(call)]

    def _received(self, poll: Any) -> Iterator[tuple[int, Message | Death]]:
        import ray

        number = self.polls.pop(poll)
        try:
            self.nodes[number], messages = ray.get(poll)
        except ray.exceptions.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                raise LatentmillError(
                    f"no worker can be started on a node: {_last_line(error)}. {_INSTALLED}"
                ) from error
            yield number, self._death(number, error)
            return
        self._poll(number)
        for message in messages:
            yield number, message

    def _ended(self, call: Any) -> Iterator[tuple[int, Death]]:
        """The end of a call of `work`: by an error it is a death; of an actor that is gone, its `poll` tells."""
        import ray

        number = self.works.pop(call)
        try:
            ray.get(call)
        except ray.exceptions.RayTaskError as error:
            if number in self.actors:
                self._forget(number)
                yield number, Death(f"its work ended with an error ({_last_line(error)})")
        except ray.exceptions.RayActorError:
            return

    def _forget(self, number: int) -> None:
        import ray

        self.polls = {poll: other for poll, other in self.polls.items() if other != number}
        self.nodes.pop(number, None)
        with suppress(ray.exceptions.RayError):
            ray.kill(self.actors.pop(number))

    def _death(self, number: int, error: Exception) -> Death:
        import ray

        actor, node = self.actors.pop(number), self.nodes.pop(number, None)
        found = _settled(actor, node, error)
        with suppress(ray.exceptions.RayError):
            ray.kill(actor)  # one that cannot be reached may still run
        if found is None or getattr(found, "preempted", False) or (node is not None and node not in live_nodes()):
            return Death("its machine was lost", blamed=False)
        if "low on memory" in str(found):
            return Death("the process was killed by Ray for want of memory")
        return Death("the process was killed, most likely for want of memory, or crashed")

    def answer(self, worker: int, order: Order | None) -> None:
        if worker in self.actors:
            self.actors[worker].answer.remote(order)

    def close(self) -> None:
        """What they have not committed must not go on; nothing of it counts."""
        import ray

        for actor in self.actors.values():
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300]


def _settled(actor: Any, node: str | None, error: Exception) -> Exception | None:
    """What an actor died of: at first it may only be out of reach; None where it stays so."""
    import ray

    deadline = time.monotonic() + _SETTLED_SECONDS
    while isinstance(error, ray.exceptions.ActorUnavailableError):
        if time.monotonic() > deadline or (node is not None and node not in live_nodes()):
            return None
        time.sleep(0.1)
        try:
            ray.get(actor.poll.remote(), timeout=_POLL_SECONDS)
        except ray.exceptions.GetTimeoutError:
            continue
        except ray.exceptions.RayActorError as later:
            error = later
        else:
            return None  # it is there again, but what it told may be lost
    return error


class Driver(NamedTuple):
    """What workers know of the driver: its host, folder and `sys.path`, and of each part the digest of its plan."""

    host: str
    folder: str
    modules: tuple[str, ...]
    plans: tuple[str, ...]


class Actor:
    """A worker on a node. Three calls go on side by side: `work`, `poll` for what it tells, and `answer`."""

    def __init__(self, task: bytes, sharing: int, driver: Driver) -> None:
        self.task, self.sharing, self.driver = task, sharing, driver
        self.changed = threading.Condition()
        self.messages: list[Message] = []
        self.orders: list[Order | None] = []
        self.sent = self.fetched = self.known = 0
        share_memory(sharing)
        if Path(driver.folder).is_dir():
            os.chdir(driver.folder)  # paths are as the driver has them
        sys.path += [path for path in driver.modules if path not in sys.path]

    def work(self) -> None:
        """Work until there is nothing left to do."""
        try:
            task: Task = pickle.loads(self.task).shared(self.sharing)
            check_shared(task, self.driver)
        except LatentmillError as error:
            self.send(Failed(error))
        except (ImportError, AttributeError) as error:
            self.send(
                Failed(LatentmillError(f"{socket.gethostname()} lacks what the driver has: {error}. {_INSTALLED}"))
            )
        except Exception as error:  # noqa: BLE001 - the driver must hear of it, whatever it is
            text = "".join(traceback.format_exception(error))
            self.send(Failed(RuntimeError(f"a worker on {socket.gethostname()} failed before it began:\n{text}")))
        else:
            work(task, self)

    def poll(self) -> tuple[str, list[Message]]:
        """This node, and what was sent since, waited for a little while. A call tells that the last one's came."""
        import ray

        with self.changed:
            self.known = self.fetched
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.messages, _POLL_SECONDS)
            found, self.messages = self.messages, []
            self.fetched += len(found)
        return ray.get_runtime_context().get_node_id(), found

    def answer(self, order: Order | None) -> None:
        with self.changed:
            self.orders.append(order)
            self.changed.notify_all()

    def send(self, message: Message) -> None:
        with self.changed:
            self.messages.append(message)
            self.sent += 1
            self.changed.notify_all()

    def announce(self, doing: Doing) -> None:
        with self.changed:
            self.send(doing)
            number = self.sent
            self.changed.wait_for(lambda: self.known >= number)

    def order(self) -> Order | None:
        with self.changed:
            self.changed.wait_for(lambda: self.orders)
            return self.orders.pop(0)


def check_shared(task: Task, driver: Driver) -> None:
    """Refuse a machine that does not see the destination, or the source, as the driver does. Raises LatentmillError."""
    here = socket.gethostname()
    for part, expected in zip(task.parts, driver.plans, strict=True):
        if not _sees(part.plan.folder / "plan.json", expected):
            raise DestinationError(
                f"{here} does not see {part.plan.folder}, which {driver.host} has written: with --runner ray the "
                "destination must be on a file system that all nodes share. Choose such a --dest, or --runner local"
            )
        root = getattr(part.source, "root", None)
        if root is not None and not Path(root).exists():
            raise SourceError(
                f"{here} does not see the source {root}: with --runner ray it must be on a file system that all nodes "
                "share. Move it there, or use --runner local"
            )


def _sees(file: Path, expected: str) -> bool:
    deadline = time.monotonic() + _SEEN_SECONDS
    while True:
        with suppress(OSError):
            if digest(file.read_bytes()) == expected:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
