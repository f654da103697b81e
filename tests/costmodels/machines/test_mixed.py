"""Machines of more than one kind: pools, power budgets, near-memory units and tiers, against brute force and sampling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.machines.mixed_pools import best_kinds, best_split, whole_split
from costmodels.machines.near_memory import (
    attention_intensity,
    chosen_time,
    crossover_intensity,
    expert_intensity,
    shared_time,
    unit_time,
)
from costmodels.machines.oversubscription import extra_servers, phase_power, row_power, servers_within
from costmodels.machines.tiers import miss_share, request_time, spilled_bandwidth, switch_time, tiered_time

rates = st.floats(min_value=0.1, max_value=50.0)
costs = st.floats(min_value=0.5, max_value=20.0)
share = st.floats(min_value=0.0, max_value=1.0)


@given(rates, rates, costs, costs, st.floats(min_value=50.0, max_value=400.0))
def test_whole_machines_are_brute_force_and_never_beat_the_closed_form(
    prefill: float, decode: float, c_p: float, c_d: float, budget: float
) -> None:
    whole, ideal = whole_split(prefill, decode, c_p, c_d, budget), best_split(prefill, decode, c_p, c_d, budget)
    tried = [min(x * prefill, y * decode) for x in range(1, int(budget // c_p) + 1) for y in [int((budget - x * c_p) // c_d)]]
    assert whole.rate == pytest.approx(max(tried, default=0.0))
    assert whole.rate <= ideal.rate * (1 + 1e-12)
    assert whole.prefill * c_p + whole.decode * c_d <= budget * (1 + 1e-9)
    assert ideal.prefill * c_p + ideal.decode * c_d == pytest.approx(budget)


def test_the_phase_that_needs_less_takes_the_cheaper_kind() -> None:
    """H100 three times A100 on prompts, 1.4 times on tokens, 1.9 times its price: prompts on H100, tokens on A100."""
    first, second, table = best_kinds(np.array([3.0, 1.0]), np.array([1.4, 1.0]), np.array([1.9, 1.0]), 100.0)
    assert (first, second) == (0, 1)
    assert table[0, 1] > max(table[0, 0], table[1, 1])


@given(share, st.floats(300, 700), st.floats(100, 300), st.floats(0, 0.5))
def test_the_row_is_the_largest_that_fits(prompt_share: float, prompt: float, token: float, correlation: float) -> None:
    mean, deviation = phase_power(prompt_share, prompt, token)
    m = servers_within(20_000.0, mean, deviation, prompt, correlation)
    by_rating = 20_000 // prompt
    assert m >= by_rating
    if m > by_rating:
        assert row_power(m, mean, deviation, correlation) <= 20_000
        assert row_power(m + 1, mean, deviation, correlation) > 20_000 or mean * (m + 1) > 20_000
    assert extra_servers(20_000.0, mean, deviation, prompt, correlation) >= 0


def test_risk_is_what_sampling_finds() -> None:
    mean, deviation = phase_power(0.3, 600.0, 250.0)
    limit = row_power(60, mean, deviation, risk=0.01)
    drawn = np.random.default_rng(0).binomial(60, 0.3, 200_000) * 350.0 + 60 * 250.0
    assert (drawn > limit).mean() == pytest.approx(0.01, abs=0.006)


def test_loads_in_step_leave_nothing_to_gain() -> None:
    mean, deviation = phase_power(0.5, 600.0, 250.0)
    apart, together = (extra_servers(50_000.0, mean, deviation, 600.0, rho, 1e-3) for rho in (0.0, 1.0))
    assert apart > 0.2
    assert together == 0.0


def test_a_mean_above_the_rating_is_refused() -> None:
    with pytest.raises(ValueError, match="rated"):
        servers_within(1e4, 500.0, 1.0, 400.0)


@given(st.floats(1e6, 1e15), st.floats(1e6, 1e12))
def test_two_units_share_better_than_either_alone(flops: float, moved: float) -> None:
    main, near = (1e15, 3e12), (4e13, 1.2e13)
    alone, _ = chosen_time(flops, moved, main, near)
    both = shared_time(flops, moved, main, near)
    assert both <= alone
    assert both >= alone / 2
    assert alone <= unit_time(flops, moved, *main)


def test_the_crossover_is_where_both_take_equally_long() -> None:
    main, near = (1e15, 3e12), (4e13, 1.2e13)
    at = crossover_intensity(main, near)
    assert unit_time(at * 1e9, 1e9, *main) == pytest.approx(unit_time(at * 1e9, 1e9, *near))
    assert chosen_time(0.5 * at * 1e9, 1e9, main, near)[1]
    assert not chosen_time(2 * at * 1e9, 1e9, main, near)[1]


def test_intensities_of_grouped_attention_and_of_experts() -> None:
    """Grouped heads: the group's size; experts: one token each at batch 1, more with the batch (Duplex's figures)."""
    assert attention_intensity(64, 8) == 8
    assert attention_intensity(32, 8) == 4
    assert expert_intensity(1, 8, 2) == pytest.approx(1.0)
    assert (np.diff(expert_intensity(np.array([1, 8, 64, 512]), 64, 6)) > 0).all()


@given(st.integers(1, 300), st.floats(1e9, 2e11), st.floats(1e9, 1e12))
def test_more_memory_never_misses_more(models: int, size: float, capacity: float) -> None:
    assert miss_share(models, 2 * capacity, size) <= miss_share(models, capacity, size)
    assert 0 <= miss_share(models, capacity, size) <= 1
    assert request_time(1.0, models, size, capacity, 1e12) >= 1.0


def test_tiers_in_closed_form() -> None:
    assert switch_time(14e9, 1e12) == pytest.approx(0.014)
    assert tiered_time((1e9, 4e9), (1e12, 2e11)) == pytest.approx(0.02)
    assert tiered_time((1e9, 4e9), (1e12, 2e11), overlapped=False) == pytest.approx(0.021)
    assert spilled_bandwidth(64e9, (64e9, 1e12), (2e12, 2e11)) == pytest.approx(2e12)
    assert spilled_bandwidth(128e9, (64e9, 1e12), (2e12, 2e11)) == pytest.approx(128e9 / (0.032 + 0.32))
    with pytest.raises(ValueError, match="less than the working set"):
        spilled_bandwidth(2e12, (64e9, 1e12), (2e12, 2e11))
