"""Goodput: the bracket closes on the rate where attainment crosses the share asked for."""

from __future__ import annotations

import numpy as np
import pytest
from serving_tables import constant_tables

from costmodels.simulation import Limits, Outcome, Slo, simulate
from costmodels.simulation.goodput import goodput
from spaces.workload import Requests

STEP = 0.01


def workload(seed: int, n: int = 3000) -> Requests:
    arrival = np.cumsum(np.random.default_rng(seed).exponential(1.0, n))
    return Requests(arrival=arrival, prompt=np.full(n, 7), output=np.ones(n, np.int64))


def run(requests: Requests) -> Outcome:
    return simulate(constant_tables(STEP), 0, requests, Limits(max_batch=1, max_tokens=8))


def test_more_rate_than_the_answer_misses_the_objective() -> None:
    slo = Slo(ttft=3.5 * STEP)
    found = goodput(run, [workload(1), workload(2)], slo, share=0.9, guess=3.0)
    assert found.attainment >= 0.9
    missed = [rate for rate, attainment in found.tried if attainment < 0.9]
    assert min(missed) <= found.rate * 1.0101
    assert 0 < found.rate < 1 / STEP
    assert found.per_accelerator(4) == found.rate / 4


def test_a_looser_objective_never_lowers_goodput() -> None:
    rates = [goodput(run, [workload(1)], Slo(ttft=k * STEP), guess=20.0).rate for k in (2, 4, 16)]
    assert rates == sorted(rates)
    assert rates[-1] < 1 / STEP * 1.02


def test_an_objective_below_one_step_is_out_of_reach() -> None:
    found = goodput(run, [workload(1, 200)], Slo(ttft=STEP / 2))
    assert found.rate == 0.0
    assert found.best_attainment == 0.0


def test_the_start_of_the_search_does_not_move_the_answer() -> None:
    rates = [goodput(run, [workload(3)], Slo(ttft=4 * STEP), guess=guess).rate for guess in (0.5, 7.0, 300.0)]
    assert max(rates) / min(rates) == pytest.approx(1.0, abs=0.03)
