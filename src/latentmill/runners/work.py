"""A worker's side of a run, the same wherever it runs: it asks for units, runs them, and tells what becomes of them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from latentmill.careful import Care, Doing, Findings
from latentmill.errors import LatentmillError
from latentmill.records import Progress, ShardReport
from latentmill.stages import Encoder, EncoderSpec
from latentmill.worker import Task, Unit, run_units


@dataclass(frozen=True)
class Order:
    """A unit to run. alone: none is taken beside it. findings: it is run with care, since it killed before."""

    unit: Unit
    alone: bool = False
    findings: Findings | None = None


class Ask(NamedTuple):
    """A worker asks for an order. waits: it has nothing left to do; else it takes one more only if there is one."""

    waits: bool


class Told(NamedTuple):
    """What `run_units` emits."""

    part: int
    event: Progress | ShardReport


class Failed(NamedTuple):
    """The end of a worker by an error, which ends the run."""

    error: BaseException


Message = Ask | Told | Doing | Failed


class Link(Protocol):
    """A worker's way to the scheduler. `send` may be called from several threads."""

    def send(self, message: Message) -> None: ...

    def order(self) -> Order | None:
        """The answer to what was asked last, waited for; None where there is nothing to do."""
        ...

    def announce(self, doing: Doing) -> None:
        """Returns when it is known even if this process dies now."""
        ...


def work(task: Task, link: Link) -> None:
    """Open the encoders, then run orders until there are none. What fails is sent, not raised."""
    try:
        task = _opened(task)
        while True:
            link.send(Ask(waits=True))
            order = link.order()
            if order is None:
                return
            _carry_out(task, order, link)
    except LatentmillError as error:
        link.send(Failed(error))
    except Exception as error:  # noqa: BLE001 - a fault of ours: told by the scheduler, with this process's traceback
        failed = RuntimeError(f"a worker process failed: {type(error).__name__}: {error}")
        for note in (*getattr(error, "__notes__", ()), "".join(traceback.format_exception(error))):
            failed.add_note(note)
        link.send(Failed(failed))


class _Opened:
    """An encoder that is open: a worker loads it once, however many runs it makes."""

    def __init__(self, spec: EncoderSpec) -> None:
        self.threads: int | None = getattr(spec, "threads", None)
        self._encoder = spec.open()

    def open(self) -> Encoder:
        return self._encoder


def _opened(task: Task) -> Task:
    specs = {id(part.encoder): part.encoder for part in task.parts if part.encoder is not None}
    opened = {key: _Opened(spec) for key, spec in specs.items()}
    return replace(task, parts=tuple(replace(part, encoder=opened.get(id(part.encoder))) for part in task.parts))


def _carry_out(task: Task, order: Order, link: Link) -> None:
    def emit(part: int, event: Progress | ShardReport) -> None:
        link.send(Told(part, event))

    if order.findings is not None:
        run_units(task, [order.unit], emit, Care(order.findings, link.announce))
    elif order.alone:
        run_units(task, [order.unit], emit)
    else:
        run_units(task, _one_after_the_other(order, link), emit)


def _one_after_the_other(order: Order | None, link: Link) -> Iterator[Unit]:
    """Units as long as there are more: loading runs on into the next one."""
    while order is not None:
        yield order.unit
        link.send(Ask(waits=False))
        order = link.order()
