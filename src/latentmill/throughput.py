"""A model of throughput: of what an image takes of cores, devices and disks, how many a second, and what limits them.

The bottleneck law of operational analysis (Denning and Buzen, 1978): of resources that work at the same time, the rate
is at most each one's capacity over what an image demands of it, and stages that overlap come close to the least of
these. Cores share caches, memory and, as two threads of one core, its units: while all work, each takes `company` times
as long as alone, measured. Threads of one process also share Python's lock: n of them do the work of
n / (1 + s (n - 1)), with the contention s measured (the universal scalability law without its coherence term). What
nothing runs beside, planning and finishing, is added (Amdahl).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

CORES, DEVICES, READING, WRITING = "cores", "devices", "reading", "writing"
_MOST = 1 << 14  # of cores or devices, beyond which nobody looks
_CLOSE = 0.95  # of a rate, for those who would rather have the cores for something else


@dataclass(frozen=True)
class Demand:
    """What one image takes. cpu: seconds of one core, by part. device: seconds of one device. read, written: bytes.

    serial: seconds an image that nothing else runs beside (planning, finishing). fixed: seconds a job.
    """

    cpu: Mapping[str, float]
    device: float = 0.0
    read: float = 0.0
    written: float = 0.0
    serial: float = 0.0
    fixed: float = 0.0

    @property
    def cpu_seconds(self) -> float:
        return sum(self.cpu.values())


@dataclass(frozen=True)
class Machine:
    """What there is of each resource. read_rate, write_rate: bytes a second; None: not known, and no limit.

    company: see above; 1 where a core does not notice the others. contention: s above; 0 between processes. groups: of
    cores that share a lock, as the threads of each of several devices' processes.
    """

    cores: int
    devices: int = 0
    read_rate: float | None = None
    write_rate: float | None = None
    company: float = 1.0
    contention: float = 0.0
    groups: int = 1

    @property
    def effective_cores(self) -> float:
        """Cores that work alone and do as much as these together."""
        within = self.cores / self.groups
        return self.cores / self.company / (1 + self.contention * max(0.0, within - 1))


@dataclass(frozen=True)
class Forecast:
    """rate: images a second while a job runs. limits: the rate that each resource alone would allow."""

    demand: Demand
    machine: Machine
    limits: Mapping[str, float]

    @property
    def limit(self) -> str:
        """The resource that limits."""
        return min(self.limits, key=self.limits.__getitem__)

    @property
    def rate(self) -> float:
        return self.limits[self.limit]

    def busy(self, resource: str) -> float:
        """The share of its time that a resource works."""
        return self.rate / self.limits[resource]

    def seconds(self, images: int) -> float:
        """Of a whole job."""
        return self.demand.fixed + images * (self.demand.serial + 1 / self.rate)


@dataclass(frozen=True)
class Purchase:
    """What one would buy next: `count` of `resource` in all (of a disk: its bytes a second), and what that gives."""

    resource: str
    count: float
    gives: Forecast


def company_of(alone: float, together: float, workers: int) -> float:
    """How many times as long a worker takes among `workers` as alone, of their rates: one's, and the sum of all."""
    if workers < 2 or together <= 0:
        return 1.0
    return max(1.0, workers * alone / together)


def contention_of(company: float, in_processes: float, workers: int) -> float:
    """s, of the company of threads and that of as many processes, which share all but the lock."""
    return max(0.0, company / in_processes - 1) / max(1, workers - 1)


def forecast(demand: Demand, machine: Machine) -> Forecast:
    """How fast a job runs. Raises ValueError where it takes nothing of any resource, or needs a device without one."""
    limits = {}
    if demand.cpu_seconds > 0:
        limits[CORES] = machine.effective_cores / demand.cpu_seconds
    if demand.device > 0:
        if not machine.devices:
            raise ValueError("the job needs a device: machine must have at least 1. Found: 0")
        limits[DEVICES] = machine.devices / demand.device
    if demand.read > 0 and machine.read_rate:
        limits[READING] = machine.read_rate / demand.read
    if demand.written > 0 and machine.write_rate:
        limits[WRITING] = machine.write_rate / demand.written
    if not limits:
        raise ValueError("demand must take something of a resource that the machine tells")
    return Forecast(demand, machine, limits)


def next_purchase(found: Forecast) -> Purchase | None:
    """The least more of what limits that makes something else the limit, or doubles the rate.

    None where more of it would not help (cores that wait for each other).
    """
    others = [rate for resource, rate in found.limits.items() if resource != found.limit]
    goal = min([*others, 2 * found.rate])
    machine, demand = found.machine, found.demand
    if found.limit == CORES:
        count = cores_for(goal, demand, machine)
        if count is None:
            count = min(2 * machine.cores, _MOST)
        better: float = count
        bought = replace(machine, cores=count)
    elif found.limit == DEVICES:
        better = min(_MOST, math.ceil(round(goal * demand.device, 6)))
        groups = int(better) if machine.groups == machine.devices else machine.groups
        bought = replace(machine, devices=int(better), groups=groups)
    elif found.limit == READING:
        better = goal * demand.read
        bought = replace(machine, read_rate=better)
    else:
        better = goal * demand.written
        bought = replace(machine, write_rate=better)
    gives = forecast(demand, bought)
    return Purchase(found.limit, better, gives) if gives.rate > 1.01 * found.rate else None


def cores_for(rate: float, demand: Demand, machine: Machine) -> int | None:
    """The fewest cores that reach a rate; None where contention keeps any number below it."""
    work = rate * demand.cpu_seconds * machine.company / machine.groups
    room = 1 - work * machine.contention  # N / (1 + s (N - 1)) >= work, solved for N
    if room <= 0:
        return None
    within = max(work, work * (1 - machine.contention) / room)  # less than one core of a group waits for no other
    cores = max(1, math.ceil(round(within * machine.groups, 6)))
    return cores if cores <= _MOST else None


def enough_cores(found: Forecast) -> int:
    """The fewest cores that come within 5 % of what the machine reaches: more would wait for another resource."""
    wanted = cores_for(_CLOSE * found.rate, found.demand, found.machine)
    return min(found.machine.cores, wanted or found.machine.cores)
