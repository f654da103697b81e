"""Energy and price: parts that sum, power that a device can draw, money in proportion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_points import TINY, evaluate, legal_plans, one, problem

from costmodels.energy import PARTS, energy, prices
from spaces.hardware import device_names, find_device


@given(legal_plans())
def test_parts_sum_and_power_lies_between_idle_and_cap(plan: dict[str, int]) -> None:
    device = find_device("H100")
    metrics = evaluate(problem(TINY), plan)
    parts = metrics.parts["energy"]
    assert tuple(parts) == PARTS
    assert all(values[0] >= 0 for values in parts.values())
    assert sum(values[0] for values in parts.values()) == pytest.approx(one(metrics, "energy"), rel=1e-12)
    watts = one(metrics, "energy") / one(metrics, "step_time") / one(metrics, "devices")
    assert device.idle_power <= watts <= device.power * (1 + 1e-12)


@given(legal_plans())
def test_price_is_devices_times_hours(plan: dict[str, int]) -> None:
    metrics = evaluate(problem(TINY, device__price_per_hour=3.0), plan)
    hours = one(metrics, "step_time") / 3600
    assert one(metrics, "price") == pytest.approx(3.0 * one(metrics, "devices") * hours, rel=1e-12)
    tokens = 64 * 2048
    assert one(metrics, "price_per_million_tokens") == pytest.approx(one(metrics, "price") / tokens * 1e6)
    assert one(metrics, "energy_per_token") == pytest.approx(one(metrics, "energy") / tokens)


def test_a_busy_step_draws_most_of_the_cap_and_an_idle_one_next_to_nothing() -> None:
    at = problem(TINY).scalars | {"devices": 1}
    second, busy, idle = np.ones(1), np.array([at["device.matrix_flops.bf16"] * 0.7]), np.zeros(1)

    def watts(flops: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return float(sum(energy(at, second, flops, 2e12 * (flops > 0), idle, idle).values())[0])  # type: ignore[arg-type, index]

    assert watts(idle) == pytest.approx(at["device.idle_power"])
    assert 0.6 * at["device.power"] < watts(busy) <= at["device.power"]


@pytest.mark.parametrize("part", ["compute", "memory", "scale_up", "scale_out"])
def test_each_part_grows_with_what_it_pays_for(part: str) -> None:
    """Doubling one of FLOPs, traffic and bytes doubles its part and no other (below the cap)."""
    at = problem(TINY).scalars | {"devices": 4}
    amounts = {"compute": 1e13, "memory": 1e10, "scale_up": 1e9, "scale_out": 1e9}

    def joules(scale: float) -> dict[str, float]:
        given = {name: np.array([amount * (scale if name == part else 1.0)]) for name, amount in amounts.items()}
        return {name: float(v[0]) for name, v in energy(at, np.ones(1), *given.values()).items()}

    once, twice = joules(1.0), joules(2.0)
    for name in PARTS:
        assert twice[name] == pytest.approx(once[name] * (2 if name == part else 1)), name


work = st.floats(min_value=0.0, max_value=20.0)


@given(st.floats(1e-6, 1e3), work, work, work, work, st.integers(1, 100_000))
def test_no_work_draws_more_than_the_cap(
    seconds: float, compute: float, memory: float, inner: float, outer: float, devices: int
) -> None:
    """Up to twenty times what a device could do in the time; what stays below the cap is what the parts cost, all of it."""
    at = problem(TINY).scalars | {"devices": devices}
    peaks = [at["device.matrix_flops.bf16"], at["device.memory_bandwidth"], at["device.scale_up_bandwidth"], 5e10]
    done = [np.array([share * peak * seconds]) for share, peak in zip((compute, memory, inner, outer), peaks, strict=True)]
    drawn = float(sum(energy(at, np.array([seconds]), *done).values())[0]) / seconds / devices  # type: ignore[arg-type, index]
    costs = prices()
    rates = [costs["compute_share"] * (at["device.power"] - at["device.idle_power"]) / peaks[0]]
    rates += [costs["memory"], costs["scale_up"], costs["scale_out"]]
    asked = at["device.idle_power"] + sum(float(d[0]) / seconds * rate for d, rate in zip(done, rates, strict=True))
    assert drawn == pytest.approx(min(asked, costs["held"] * at["device.power"]), rel=1e-9)


def test_every_device_of_the_catalogue_draws_no_more_than_its_cap() -> None:
    for name in device_names():
        device = find_device(name)
        metrics = evaluate(problem(TINY, device=device), {})
        watts = one(metrics, "energy") / one(metrics, "step_time")
        assert device.idle_power <= watts <= device.power * (1 + 1e-9), name
