"""A running job as it goes: progress told, a zip's shards gathered in order, a job that fails too much stopped."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from latentmill.config_types import FailureLimit
from latentmill.errors import TooManyFailuresError
from latentmill.manifest import Plan
from latentmill.outcome import Event, Tell
from latentmill.records import Progress, ShardReport
from latentmill.worker import Output


class Live:
    """Follows a running job: tells progress, gathers a zip's shards in order, and stops a job that fails too much."""

    def __init__(
        self, plan: Plan, done: set[int], outputs: Sequence[Output], max_failures: FailureLimit, tell: Tell
    ) -> None:
        self.plan, self.outputs, self.max_failures, self.tell = plan, outputs, max_failures, tell
        self.next = unbroken(done)
        self.ahead = sorted(shard for shard in done if shard > self.next)
        reports = [plan.report(shard) for shard in done]
        self.images = self.committed = sum(report.images for report in reports)
        self.rejected = sum(report.rejected for report in reports)
        self.skipped = sum(report.skipped for report in reports)
        self._tell()

    def take(self, event: Progress | ShardReport) -> None:
        if isinstance(event, ShardReport):
            self.committed += event.images
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
        self._tell()
        if event.done > 0 and self.max_failures.exceeded(self.rejected, self.images):
            raise TooManyFailuresError(
                f"{self.rejected:,} of {self.images:,} images were rejected, over --max-failures "
                f"{self.max_failures}. What is committed stays; run again with a higher limit to go on"
            )

    def _tell(self) -> None:
        self.tell(Event("progress", "", self.plan.images, self.images, self.committed, self.rejected, self.skipped))


def unbroken(done: set[int]) -> int:
    """How many shards from the first on are done without a gap."""
    count = 0
    while count in done:
        count += 1
    return count
