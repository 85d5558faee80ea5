"""Who runs which unit: workers ask and are given; what one that died has not committed is given out again.

A unit whose worker died is run again by itself: last, while all other workers wait. When it kills again, it is run with
care (see `careful`), so that the sample that kills is found and rejected, and the rest is done. A death that is not the
work's (a machine was lost) blames nobody. Deaths that lead nowhere end the run with one error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from latentmill.careful import Doing, Findings, Named
from latentmill.errors import LatentmillError
from latentmill.records import Progress, ShardReport
from latentmill.runners.work import Ask, Failed, Message, Order, Told
from latentmill.worker import Emit, Task, Unit

_IN_A_ROW = 5  # images that kill, with none between that does not: then it is hardly theirs
_BATCHES = 3  # of one order, that kill though none of their samples does
_LOST = 8  # machines that were lost with one order: then it may be to blame
_UNEXPLAINED = 3  # deaths of one order with care, while no image was touched
_ShardOf = tuple[int, int]  # part and number


class Death(NamedTuple):
    """A worker is gone. reason: for a person, as a clause. blamed: whether its work may have done it."""

    reason: str
    blamed: bool = True


class Crew(Protocol):
    """The workers of a run, by number, wherever they are."""

    def start(self) -> int:
        """Begin a worker, which will ask for an order. Raises LatentmillError."""
        ...

    def wait(self) -> Iterable[tuple[int, Message | Death]]:
        """What came since; returns after a short while where nothing did. A death comes after all that was sent."""
        ...

    def answer(self, worker: int, order: Order | None) -> None:
        """To what it asked last. One that is dead meanwhile is told of by `wait`."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


@dataclass
class _Work:
    """An order as it goes. passed: what was announced and survived. suspects, unexplained, lost: deaths by kind."""

    unit: Unit
    alone: bool = False
    findings: Findings | None = None
    doing: Doing | None = None
    passed: set[tuple[str, Named]] = field(default_factory=set)
    suspects: int = 0
    unexplained: int = 0
    lost: int = 0

    @property
    def order(self) -> Order:
        return Order(self.unit, self.alone, self.findings)

    @property
    def shards(self) -> list[_ShardOf]:
        return [(part, shard) for part, shards in enumerate(self.unit) for shard in shards]


def schedule(task: Task, units: Sequence[Unit], workers: int, emit: Emit, crew: Crew) -> None:
    """Run units with so many workers. Raises the first error of any of them, and what `emit` raises."""
    try:
        _Schedule(task, units, emit, crew).run(workers)
    finally:
        crew.close()


class _Schedule:
    def __init__(self, task: Task, units: Sequence[Unit], emit: Emit, crew: Crew) -> None:
        self.task, self.crew = task, crew
        self.pending = deque(_Work(unit) for unit in units)
        self.apart: deque[_Work] = deque()  # what is run by itself, once there is nothing else
        self.left = {shard for work in self.pending for shard in work.shards}
        self.held: dict[int, list[_Work]] = {}
        self.new: set[int] = set()  # workers that have not asked yet
        self.waiting: list[int] = []
        self.counts = _Counts(emit)
        self.rows = {"load": 0, "encode": 0}  # images in a row that killed

    def run(self, workers: int) -> None:
        for _ in range(workers):
            self._start()
        while self.left:
            for worker, message in self.crew.wait():
                self._take(worker, message)
            while self.pending and self.waiting:
                self._give(self.waiting.pop(0), self.pending)
            if self.apart and self.waiting and not any(self.held.values()):
                self._give(self.waiting.pop(0), self.apart)
        for worker in self.waiting:
            self.crew.answer(worker, None)

    def _start(self) -> None:
        worker = self.crew.start()
        self.held[worker] = []
        self.new.add(worker)

    def _take(self, worker: int, message: Message | Death) -> None:
        if isinstance(message, Ask):
            self.new.discard(worker)
            self._asked(worker, message)
        elif isinstance(message, Told):
            self._told(worker, message)
        elif isinstance(message, Doing):
            self._announced(self.held[worker][-1], message)
        elif isinstance(message, Failed):
            raise message.error
        else:
            self._died(worker, message)

    def _asked(self, worker: int, message: Ask) -> None:
        if message.waits:
            self.left -= {shard for work in self.held[worker] for shard in work.shards}  # as it says
            self.held[worker] = []
            self.waiting.append(worker)
        elif self.pending:
            self._give(worker, self.pending)
        else:
            self.crew.answer(worker, None)

    def _give(self, worker: int, queue: deque[_Work]) -> None:
        work = queue.popleft()
        self.held[worker].append(work)
        self.crew.answer(worker, work.order)

    def _told(self, worker: int, told: Told) -> None:
        if isinstance(told.event, ShardReport):
            self.left.discard((told.part, told.event.shard))
            self.counts.committed(told.part, told.event)
            return
        stored = told.event.done > told.event.rejected + told.event.skipped
        if stored and any(work.findings is not None for work in self.held[worker]):
            self.rows = dict.fromkeys(self.rows, 0)
        self.counts.add(told.part, told.event)

    def _announced(self, work: _Work, doing: Doing) -> None:
        before, work.doing = work.doing, doing
        if before is not None and before.samples and (passed := (before.what, before.samples[0])) not in work.passed:
            work.passed.add(passed)
            self.rows[_row(before)] = 0

    # deaths

    def _died(self, worker: int, death: Death) -> None:
        held = self.held.pop(worker)
        self.waiting = [other for other in self.waiting if other != worker]
        if worker in self.new:
            self.new.discard(worker)
            if death.blamed:  # it could not even begin: another one could not either, and what others do goes on
                self._check_left(death)
                return
        for work in held:
            self._settle(work)
        for work in reversed([work for work in held if any(work.unit)]):
            work.lost += not death.blamed
            if death.blamed or work.lost > _LOST:
                self._blame(work, death)
            work.doing = None
            (self.apart if work.alone else self.pending).appendleft(work)
        if self.left:
            self._start()

    def _check_left(self, death: Death) -> None:
        if not self.held:
            raise LatentmillError(
                f"no worker process can be started: {death.reason} while it loaded its models. Use fewer --device or "
                "--num-workers, and run the same command again to go on"
            )

    def _settle(self, work: _Work) -> None:
        """Take in what the dead worker committed and has not told; take back what it told and has not committed."""
        for part, shard in work.shards:
            if (part, shard) not in self.left:
                continue
            plan = self.task.parts[part].plan
            if plan.is_done(shard):
                self.left.discard((part, shard))
                self.counts.found(part, plan.report(shard))
            else:
                self.counts.take_back(part, shard)
        work.unit = tuple(
            tuple(shard for shard in shards if (part, shard) in self.left) for part, shards in enumerate(work.unit)
        )

    def _blame(self, work: _Work, death: Death) -> None:
        """Once more by itself, then with care, then with what the last death has told; a commit's tells nothing."""
        if not work.alone:
            work.alone = True
        elif work.findings is None:
            work.findings = Findings()
        elif work.doing is None or not work.doing.samples:
            work.unexplained += 1
            if work.unexplained == _UNEXPLAINED:
                raise LatentmillError(
                    f"worker processes end again and again, and no image is to blame: {death.reason}. "
                    "Run the same command again to go on"
                )
        else:
            self._find(work, work.findings, work.doing, death)

    def _find(self, work: _Work, findings: Findings, doing: Doing, death: Death) -> None:
        work.findings = findings.after(doing, death.reason)
        if work.findings.suspects - findings.suspects:
            work.suspects += 1
            if work.suspects == _BATCHES:
                raise LatentmillError(
                    f"batches kill worker processes, though none of their samples does alone: {death.reason}. Use "
                    "fewer --device, or --overwrite with a smaller --batch-size"
                )
            return
        work.suspects = 0
        self.rows[_row(doing)] += 1
        if self.rows[_row(doing)] == _IN_A_ROW:
            raise LatentmillError(
                f"{_IN_A_ROW} images in a row ended their worker process, so the fault is hardly theirs (the last: "
                f"{doing.key}: {death.reason}). Use fewer --device or --num-workers, and run the same command again "
                "to go on"
            )
        for part in {part for part, _ in doing.samples}:
            plan = self.task.parts[part].plan
            left = {(part, ref.index) for shard in work.unit[part] for ref in plan.refs(shard)}
            if left:
                self.counts.expect(part, work.unit[part][0], len(left & work.findings.culprits.keys()))


def _row(doing: Doing) -> str:
    return "load" if doing.what == "load" else "encode"


class _Counts:
    """What was emitted of each shard that is not committed, so that it can be taken back."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._counted: dict[_ShardOf, tuple[int, int, int]] = {}
        self._expected: dict[_ShardOf, int] = {}

    def add(self, part: int, event: Progress) -> None:
        self._forget(part, event.shard)
        done, rejected, skipped = self._counted.get((part, event.shard), (0, 0, 0))
        counts = (done + event.done, rejected + event.rejected, skipped + event.skipped)
        self._counted[part, event.shard] = counts
        self._emit(part, event)

    def committed(self, part: int, report: ShardReport) -> None:
        self._forget(part, report.shard)
        self._counted.pop((part, report.shard), None)
        self._emit(part, report)

    def found(self, part: int, report: ShardReport) -> None:
        """A shard that was committed, and whose worker died before it could tell."""
        done, rejected, skipped = self._counted.get((part, report.shard), (0, 0, 0))
        rest = (report.images - done, report.rejected - rejected, report.skipped - skipped)
        if any(rest):
            self.add(part, Progress(*rest, report.shard))
        self.committed(part, report)

    def take_back(self, part: int, shard: int) -> None:
        self._forget(part, shard)
        if (part, shard) in self._counted:
            done, rejected, skipped = self._counted.pop((part, shard))
            self._emit(part, Progress(-done, -rejected, -skipped, shard))

    def expect(self, part: int, shard: int, rejects: int) -> None:
        """Count rejects that are known before their shard is run again: there may be too many of them."""
        self._forget(part, shard)
        self._expected[part, shard] = rejects
        self._emit(part, Progress(rejects, rejects, 0, shard))

    def _forget(self, part: int, shard: int) -> None:
        rejects = self._expected.pop((part, shard), 0)
        if rejects:
            self._emit(part, Progress(-rejects, -rejects, 0, shard))
