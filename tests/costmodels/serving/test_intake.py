"""The way in: what waits for what before the scheduler sees it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_tables import imagined_tables

from costmodels.serving.intake import held_up, intake_seconds, since_sent, waits
from costmodels.serving.problem import serving_problem
from costmodels.serving.waiting import front
from costmodels.simulation import Limits, simulate
from spaces.architecture import find
from spaces.hardware import find_device
from spaces.workload import Requests


def arriving(times: list[float]) -> Requests:
    n = len(times)
    return Requests(arrival=np.sort(np.array(times)), prompt=np.full(n, 10), output=np.full(n, 2))


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=30), st.floats(1e-3, 0.2))
def test_nobody_is_ready_before_the_work_ahead_is_done(times: list[float], each: float) -> None:
    requests = arriving(times)
    ready = requests.arrival + waits(requests, np.full(len(requests), each), 1) + each
    assert np.all(np.diff(ready) >= -1e-9)
    busy_from, done = 0.0, 0.0
    for i, arrival in enumerate(requests.arrival):  # by hand: one after another
        busy_from = max(done, arrival)
        done = busy_from + each
        assert ready[i] >= done - 1e-9
    assert ready[-1] == pytest.approx(done)


def test_what_came_together_leaves_together() -> None:
    waited = waits(arriving([0.0] * 100), np.full(100, 5e-3), 1)
    assert waited == pytest.approx(np.full(100, 0.495))
    assert np.all(waits(arriving([0.0, 1.0, 2.0]), np.full(3, 5e-3), 1) == 0)


def test_a_closed_loop_waits_at_its_start_alone() -> None:
    requests = Requests(arrival=np.zeros(40), prompt=np.full(40, 10), output=np.full(40, 2), concurrency=8)
    waited = waits(requests, np.full(40, 1e-2), 1)
    assert waited[:8] == pytest.approx(np.full(8, 0.07))
    assert np.all(waited[8:] == 0)


def test_the_mean_wait_is_that_of_m_d_1() -> None:
    gaps = np.random.default_rng(1).exponential(1.0, 200_000)
    n = len(gaps)
    requests = Requests(arrival=np.cumsum(gaps), prompt=np.full(n, 1), output=np.full(n, 1))
    expected = float(front(np.array([1.0]), np.array([0.6]))[0])
    assert waits(requests, np.full(n, 0.6), 1).mean() == pytest.approx(expected, rel=0.02)


def test_the_wait_is_part_of_the_time_to_first_token_and_of_the_run() -> None:
    tables = imagined_tables()
    requests = Requests(arrival=np.zeros(20), prompt=np.full(20, 10), output=np.full(20, 3), concurrency=4)
    limits = Limits(max_batch=4, max_tokens=100)
    plain = simulate(tables, 0, requests, limits)
    waited = waits(requests, np.full(20, 0.5), 1)
    late = since_sent(simulate(tables, 0, held_up(requests, waited), limits), waited)
    assert late.ttft.sum() == pytest.approx(plain.ttft.sum() + 4 * 1.5)
    assert 1 / late.token_throughput() == pytest.approx(1 / plain.token_throughput() + 1.5 / 60)


def test_younger_hosts_take_requests_in_sooner() -> None:
    times = [
        float(intake_seconds(serving_problem(find("llama-3.1-8b"), "vllm", find_device(name)).scalars, 1000.0))
        for name in ("A100-80GB", "H100", "H200")
    ]
    assert times[0] > times[1] == times[2] > 0
