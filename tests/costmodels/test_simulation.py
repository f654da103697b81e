"""The serving simulator against the tables it reads, queueing theory where it is exact, and what every run must conserve."""

from __future__ import annotations

import numpy as np
import pytest
from serving_tables import constant_tables, imagined_tables

from costmodels.simulation import Limits, simulate
from costmodels.step_tables import Batch, step_time
from spaces.workload import BadRequests, Requests


def one_request(prompt: int, output: int) -> Requests:
    return Requests(arrival=np.zeros(1), prompt=np.array([prompt]), output=np.array([output]))


@pytest.mark.parametrize(("prompt", "output"), [(1, 1), (5, 3), (700, 40), (9000, 2), (30000, 5)])
def test_a_lone_request_takes_the_tables_times(prompt: int, output: int) -> None:
    tables = imagined_tables()
    outcome = simulate(tables, 1, one_request(prompt, output), Limits(max_tokens=40000))
    first = step_time(tables, 1, Batch(prefill_queries=prompt, prefill_pairs=prompt * (prompt + 1) / 2, prompts_finished=1))
    cached = prompt + np.arange(output - 1)
    steps = step_time(tables, 1, Batch(decode_requests=np.ones(output - 1), decode_kv=cached))
    expected = np.cumsum(np.concatenate([np.atleast_1d(first), steps]))
    np.testing.assert_allclose(outcome.tokens.times(0), expected, rtol=1e-12)
    assert outcome.counts["completed"] == 1


def test_a_client_that_comes_back_late_misses_the_step_under_way() -> None:
    """Of two in flight, steps of 10 ms: who ends with a step, and asks again 4 ms later, waits for the end of the next."""
    output = np.array([2, 9, 1, 1])
    requests = Requests(arrival=np.zeros(4), prompt=np.full(4, 7), output=output, concurrency=2, turnaround=4e-3)
    outcome = simulate(constant_tables(0.01), 0, requests, Limits())
    assert outcome.arrival[2] == pytest.approx(0.024)
    assert outcome.ttft[2] == pytest.approx(0.016)
    planned = simulate(constant_tables(0.01), 0, requests, Limits(ahead=True))
    assert planned.ttft[2] == pytest.approx(0.026), "the step after next was planned before it came"


def test_tokens_known_from_before_are_attended_to_though_not_computed() -> None:
    tables, prompt, known = imagined_tables(), 700, 600
    asked = Requests(arrival=np.zeros(1), prompt=np.array([prompt]), output=np.array([3]), known=np.array([known]))
    outcome = simulate(tables, 1, asked, Limits())
    new = prompt - known
    pairs = new * known + new * (new + 1) / 2
    first = step_time(tables, 1, Batch(prefill_queries=new, prefill_pairs=pairs, prefill_cached=known, prompts_finished=1))
    steps = step_time(tables, 1, Batch(decode_requests=np.ones(2), decode_kv=prompt + np.arange(2)))
    np.testing.assert_allclose(outcome.tokens.times(0), np.cumsum([*np.atleast_1d(first), *steps]), rtol=1e-12)


def test_the_wait_for_a_server_of_one_fixed_step_is_that_of_m_d_1() -> None:
    """Mean wait ρ·D / 2(1 − ρ) (Pollaczek–Khinchine for a fixed service time D)."""
    step, load, n = 0.01, 0.7, 400_000
    generator = np.random.default_rng(5)
    arrival = np.cumsum(generator.exponential(step / load, n))
    requests = Requests(arrival=arrival, prompt=np.full(n, 7), output=np.ones(n, np.int64))
    outcome = simulate(constant_tables(step), 0, requests, Limits(max_batch=1, max_tokens=8))
    assert outcome.mean("queueing") == pytest.approx(load * step / (2 * (1 - load)), rel=0.02)
    assert np.max(np.abs(outcome.latency - outcome.queueing - step)) < 1e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": np.array([5, 0])}, "prompt is 0"),
        ({"output": np.array([0, 4])}, "request 1 output is 0"),
        ({"arrival": np.array([2.0, 1.0])}, "sort"),
        ({"arrival": np.array([-1.0, 1.0])}, "not negative"),
        ({"arrival": np.array([0.0, np.nan])}, "finite"),
        ({"prompt": np.array([5, 5, 5])}, "shape"),
        ({"concurrency": 3}, "closed loop"),
    ],
)
def test_requests_that_cannot_be_are_told(change: dict[str, object], said: str) -> None:
    good = {"arrival": np.array([0.0, 1.0]), "prompt": np.array([5, 5]), "output": np.array([4, 4])}
    with pytest.raises(BadRequests, match=said):
        Requests(**(good | change))  # type: ignore[arg-type]


def test_a_run_without_a_log_is_the_same_but_for_single_tokens() -> None:
    requests = Requests(arrival=np.zeros(40), prompt=np.full(40, 90), output=np.arange(1, 41), concurrency=6)
    limits = Limits(max_batch=4, max_tokens=256, kv_blocks=200)
    kept, bare = (simulate(imagined_tables(), 0, requests, limits, log=log) for log in (True, False))
    for name in ("arrival", "admitted", "first", "finish"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(bare, name))
    with pytest.raises(ValueError, match="kept no log"):
        bare.mean("inter_token")


@pytest.mark.parametrize(
    ("patience", "alone", "waits"), [(0, True, 0.015), (7, True, 0.045), (7, False, 0.015), (50, True, 0.405)]
)
def test_groups_hold_a_prompt_until_each_has_one(patience: int, alone: bool, waits: float) -> None:
    """Steps of 10 ms over two groups that decode: what came in the eleventh begins with the next if both groups have a prompt,
    else with the seventh, or fiftieth, since prompts were taken in."""
    late = 1 if alone else 2
    requests = Requests(
        arrival=np.array([0.0, 0.0] + [0.105] * late), prompt=np.full(2 + late, 7), output=np.array([1000, 1000] + [3] * late)
    )
    outcome = simulate(constant_tables(0.01), 0, requests, Limits(attention_dp=2, patience=patience))
    np.testing.assert_allclose(outcome.ttft[2:], waits, rtol=1e-9)


def test_groups_that_wait_for_each_other_do_more() -> None:
    """Every prompt by itself stops all four groups: held for each other, several take one long step."""
    n = 200
    requests = Requests(arrival=np.zeros(n), prompt=np.full(n, 4000), output=50 + np.arange(n) * 37 % 30, concurrency=32)
    rates = [
        simulate(imagined_tables(), 1, requests, Limits(attention_dp=4, patience=patience)).token_throughput()
        for patience in (0, 20)
    ]
    assert rates[1] > 1.1 * rates[0]
