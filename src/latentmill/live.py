"""A running job as it goes: progress told, a zip's shards gathered in order, a job that fails too much stopped."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Sequence

from latentmill.config_types import FailureLimit
from latentmill.errors import TooManyFailuresError
from latentmill.manifest import Plan
from latentmill.outcome import Event, Tell
from latentmill.records import Progress, ShardReport
from latentmill.worker import Output

_POINTS = 200  # of a timeline, at most
_REASONS = 3  # that are told where a job fails too much


class Timeline:
    """Images committed over the seconds since it began; however long a run is, a few hundred points of it."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.points: list[tuple[float, int]] = []
        self._step, self._left = 1, 0

    def add(self, committed: int) -> None:
        """What is committed by now; where there is no room for each, the last of every few."""
        point = round(time.monotonic() - self.began, 3), committed
        if self._left:
            self.points[-1] = point
        else:
            self.points.append(point)
        self._left = (self._left or self._step) - 1
        if len(self.points) > _POINTS:
            self.points, self._step, self._left = self.points[1::2], 2 * self._step, 0


class Live:
    """Follows a running job: tells progress, gathers a zip's shards in order, and stops a job that fails too much."""

    def __init__(
        self, plan: Plan, done: set[int], outputs: Sequence[Output], max_failures: FailureLimit, tell: Tell
    ) -> None:
        self.plan, self.outputs, self.max_failures, self.tell = plan, outputs, max_failures, tell
        self.next = unbroken(done)
        self.ahead = sorted(shard for shard in done if shard > self.next)
        self.timeline = Timeline()
        reports = [plan.report(shard) for shard in done]
        self.images = self.committed = self.before = sum(report.images for report in reports)
        self.rejected = sum(report.rejected for report in reports)
        self.skipped = sum(report.skipped for report in reports)
        self.seconds: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._tell()

    def take(self, event: Progress | ShardReport) -> None:
        if isinstance(event, ShardReport):
            self.committed += event.images
            self.timeline.add(self.committed - self.before)
            self.seconds.update(event.seconds)
            heapq.heappush(self.ahead, event.shard)
            while self.ahead and self.ahead[0] == self.next:
                heapq.heappop(self.ahead)
                self.next += 1
            for output in self.outputs:
                output.container.absorb(self.next)
            self._tell()
            return
        self.images += event.done
        self.rejected += event.rejected
        self.skipped += event.skipped
        for key, reason in event.reasons:
            self._reasons[reason] += 1
            self._examples.setdefault(reason, key)
        self._tell()
        if event.done > 0 and self.max_failures.exceeded(self.rejected, self.images):
            raise TooManyFailuresError(
                f"{self.rejected:,} of {self.images:,} images were rejected, over --max-failures "
                f"{self.max_failures}{self._why()}. What is committed stays; run again with a higher limit to go on"
            )

    def _why(self) -> str:
        """The commonest reasons, each with an image that has it."""
        told = (f"{self._examples[reason]} ({reason})" for reason, _ in self._reasons.most_common(_REASONS))
        return f", as {'; '.join(told)}" if self._reasons else ""

    def _tell(self) -> None:
        counts = (self.plan.images, self.images, self.committed, self.rejected, self.skipped)
        self.tell(Event("progress", "", *counts, dict(self.seconds)))


def unbroken(done: set[int]) -> int:
    """How many shards from the first on are done without a gap."""
    count = 0
    while count in done:
        count += 1
    return count
