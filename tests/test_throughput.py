"""The model of throughput: what limits, and what one would buy next."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmill.throughput import (
    CORES,
    DEVICES,
    WRITING,
    Demand,
    Machine,
    company_of,
    contention_of,
    cores_for,
    enough_cores,
    forecast,
    next_purchase,
)

DEMAND = Demand({"decode": 0.002, "crop": 0.001}, device=0.005, written=200_000, serial=1e-5, fixed=0.5)


def test_the_least_capacity_limits() -> None:
    cores = forecast(DEMAND, Machine(cores=1, devices=4))
    assert (cores.limit, round(cores.rate, 6)) == (CORES, round(1 / 0.003, 6))
    device = forecast(DEMAND, Machine(cores=8, devices=1))
    assert (device.limit, device.rate) == (DEVICES, 200.0)
    disk = forecast(DEMAND, Machine(cores=8, devices=4, write_rate=20_000_000))
    assert (disk.limit, disk.rate) == (WRITING, 100.0)
    assert disk.busy(DEVICES) == pytest.approx(1 / 8)


def test_a_whole_job_counts_what_nothing_runs_beside() -> None:
    found = forecast(DEMAND, Machine(cores=8, devices=1))
    assert found.seconds(1000) == pytest.approx(0.5 + 1000 * (1e-5 + 0.005))


def test_the_next_purchase_moves_the_limit_or_doubles_the_rate() -> None:
    bought = next_purchase(forecast(DEMAND, Machine(cores=2, devices=4)))
    assert bought is not None
    assert (bought.resource, bought.count) == (CORES, 3)  # 800/s of the devices would take 2.4 cores
    assert bought.gives.limit == DEVICES
    doubled = next_purchase(forecast(Demand({"decode": 0.002}), Machine(cores=4)))
    assert doubled is not None
    assert (doubled.count, doubled.gives.rate) == (8, 4000.0)
    assert next_purchase(forecast(Demand({"decode": 0.002}), Machine(cores=40, contention=5.0))) is None


def test_company_slows_every_core_and_the_lock_those_of_one_group() -> None:
    alone, together = 100.0, 150.0
    company = company_of(alone, together, 2)
    assert forecast(Demand({"x": 0.01}), Machine(2, company=company)).rate == pytest.approx(together)
    threads = company_of(alone, 120.0, 2)
    machine = Machine(2, company=company, contention=contention_of(threads, company, 2))
    assert forecast(Demand({"x": 0.01}), machine).rate == pytest.approx(120.0)
    assert forecast(Demand({"x": 0.01}), Machine(2, company=company, contention=9.0, groups=2)).rate == pytest.approx(
        150
    )
    assert company_of(alone, 300.0, 2) == 1.0  # noise of a machine that was busy with one and not with the other


def test_workers_that_would_wait_are_not_recommended() -> None:
    assert enough_cores(forecast(DEMAND, Machine(cores=64, devices=1))) == 1
    assert enough_cores(forecast(DEMAND, Machine(cores=2, devices=64))) == 2


def test_what_cannot_be_forecast_is_refused() -> None:
    with pytest.raises(ValueError, match="a device: machine must have at least 1"):
        forecast(DEMAND, Machine(cores=2))
    with pytest.raises(ValueError, match="must take something"):
        forecast(Demand({}), Machine(cores=2))


@given(st.floats(1e-5, 1.0), st.floats(1.0, 3.0), st.floats(0.0, 0.05), st.integers(1, 4), st.floats(1.0, 2000.0))
def test_the_cores_for_a_rate_are_the_fewest_that_reach_it(
    seconds: float, company: float, contention: float, groups: int, rate: float
) -> None:
    demand = Demand({"x": seconds})
    machine = Machine(groups, company=company, contention=contention, groups=groups)
    cores = cores_for(rate, demand, machine)
    if cores is None:
        return
    rates = [
        forecast(demand, Machine(count, company=company, contention=contention, groups=groups)).rate
        for count in (max(1, cores - 1), cores)
    ]
    assert rates[1] >= rate * (1 - 1e-6)
    assert cores == 1 or rates[0] < rate * (1 + 1e-6)
    assert all(first <= second for first, second in pairwise(rates))
