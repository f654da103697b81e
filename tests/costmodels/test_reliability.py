"""Progress of a run that fails, against counting and against trying other checkpoint intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_points import TINY, evaluate, one, problem

from costmodels.reliability import STATE_BYTES, checkpoint_interval, effective_share
from spaces.columns import Bindings, Columns, FloatArray

RATES = st.floats(1e-7, 1e-4)
COUNTS = st.sampled_from([1, 8, 512, 16_384])


def run(rate: float, bandwidth: float = 1e11, restart: float = 600.0, parameters: float = 70e9) -> Bindings:
    symbols = {
        "reliability.failures_per_device_hour": rate,
        "reliability.checkpoint_bandwidth": bandwidth,
        "reliability.restart_time": restart,
        "parameters": parameters,
    }
    return Bindings(symbols, Columns(n=1, codes={}, levels={}))


def count(devices: int) -> FloatArray:
    return np.array([float(devices)])


@given(RATES, COUNTS, st.floats(1e9, 1e13), st.floats(0, 3600))
def test_a_share_is_a_share(rate: float, devices: int, bandwidth: float, restart: float) -> None:
    assert 0 < effective_share(run(rate, bandwidth, restart), count(devices))[0] <= 1


@given(RATES, COUNTS)
def test_more_failures_devices_or_restart_time_never_help(rate: float, devices: int) -> None:
    share = effective_share(run(rate), count(devices))
    assert effective_share(run(2 * rate), count(devices)) <= share
    assert effective_share(run(rate), count(2 * devices)) <= share
    assert effective_share(run(rate, restart=1200.0), count(devices)) <= share
    assert effective_share(run(rate, bandwidth=2e11), count(devices)) >= share


@given(st.floats(1e-7, 1e-5), st.sampled_from([64, 1024]), st.floats(0.2, 5.0))
def test_no_other_interval_loses_less(rate: float, devices: int, factor: float) -> None:
    """Young 1974: C/τ + τ/2M is least at τ = √(2CM)."""
    at = run(rate, restart=0.0)
    best = float(checkpoint_interval(at, count(devices))[0])
    cost, between = 70e9 * STATE_BYTES / 1e11, 3600 / (rate * devices)

    def lost(every: float) -> float:
        return cost / every + every / 2 / between

    assert lost(best) <= lost(best * factor) * (1 + 1e-12)
    assert effective_share(at, count(devices))[0] == pytest.approx(max(1 - lost(best), 0.01))


def test_a_run_that_never_fails_loses_next_to_nothing() -> None:
    assert effective_share(run(0.0), count(4096))[0] == pytest.approx(1.0, abs=1e-3)


def test_llama_405b_made_progress_for_nine_tenths_of_the_time() -> None:
    """419 interruptions in 54 days on 16,384 H100s, over 90 % effective (Llama 3 §3.3.4)."""
    rate = 419 / (54 * 24 * 16_384)
    assert 0.85 < effective_share(run(rate, bandwidth=2e12, restart=600.0, parameters=405e9), count(16_384))[0] < 0.99


def test_effective_throughput_is_the_share_of_the_throughput() -> None:
    bare = evaluate(problem(TINY), {"data": 8})
    asked = problem(
        TINY,
        reliability__failures_per_device_hour=1e-4,
        reliability__checkpoint_bandwidth=1e9,
        reliability__restart_time=600.0,
    )
    metrics = evaluate(asked, {"data": 8})
    assert "effective_tokens_per_second" not in bare.value
    assert one(metrics, "tokens_per_second") == one(bare, "tokens_per_second")
    share = one(metrics, "effective_tokens_per_second") / one(metrics, "tokens_per_second")
    symbols = Bindings(asked.scalars, Columns(n=1, codes={}, levels={}))
    assert share == pytest.approx(effective_share(symbols, count(8))[0])
