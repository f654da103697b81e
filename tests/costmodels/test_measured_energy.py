"""Joules against an H200 whose energy was counted: what the engine is held to, and what must be true of rows and constants."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from training_points import TINY, evaluate, one, problem

from benchmarks import energy as counted
from benchmarks.energy import Reading
from costmodels.constants import host_link_shares
from costmodels.energy import held_share, prices
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.measurements import rows_of
from spaces.hardware import find_device


@cache
def readings() -> tuple[Reading, ...]:
    """Steps; kernels are not held to anything."""
    return (*counted.steps(), *counted.served())


def errors(what: str, *halves: str) -> tuple[np.ndarray, np.ndarray]:
    """Signed relative errors of watts in the measured time, and of joules in the predicted one."""
    some = [r for r in readings() if r.what == what and r.half in halves]
    assert len(some) >= 7
    watts = np.array([r.joules(r.time) / r.time / r.watts - 1.0 for r in some])
    return watts, np.array([r.joules(r.predicted) / (r.time * r.watts) - 1.0 for r in some])


@pytest.mark.parametrize(
    ("what", "half", "watts", "joules"),
    [
        ("training step", "held", 0.015, 0.05),
        ("training step", "new", 0.08, 0.11),
        ("decode step", "held", 0.07, 0.08),
        ("prefill step", "held", 0.02, 0.07),
    ],
)
def test_models_that_gave_no_constant(what: str, half: str, watts: float, joules: float) -> None:
    drawn, used = errors(what, half)
    assert float(np.abs(drawn).mean()) < watts
    assert float(np.abs(used).mean()) < joules


def test_no_reading_is_below_idle_or_far_above_the_cap_and_no_prediction_is() -> None:
    device = find_device("H200")
    for r in readings():
        assert device.idle_power < r.watts < 1.01 * device.power
        assert device.idle_power * r.time <= r.joules(r.time) <= device.power * r.time


def test_constants_are_those_of_the_half_that_gave_them() -> None:
    flop, byte = counted.constants([r for r in readings() if r.half == "fit" and r.what.endswith("step")])
    device = find_device("H200")
    share = flop * device.matrix_flops["bf16"] / (device.power - device.idle_power)
    assert share == pytest.approx(prices()["compute_share"], rel=0.05)
    assert byte == pytest.approx(prices()["memory"], rel=0.05)


def test_no_model_is_in_two_halves() -> None:
    halves: dict[tuple[str, ...], set[str]] = {}
    for name in ("steps", "serving"):
        for row in rows_of(counted.ROOT, name):
            shape = tuple(row[c] for c in ("style", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab"))
            halves.setdefault((name, *shape), set()).add(row["half"])
    assert all(len(found) == 1 for found in halves.values())


def test_more_work_takes_more_joules() -> None:
    """As measured and as predicted, in the predicted time: a larger batch of one model and length."""
    work: dict[tuple[str, ...], list[tuple[float, Reading]]] = {}
    served = [r for r in readings() if r.what in ("decode step", "prefill step")]
    for row, r in zip(rows_of(counted.ROOT, "serving"), served, strict=True):
        key = tuple(row[c] for c in ("op", "hidden", "layers", "seq", "dtype"))
        work.setdefault(key, []).append((float(row["batch"]), r))
    pairs = [sorted(found, key=lambda pair: pair[0]) for found in work.values() if len(found) > 1]
    assert pairs
    for pair in pairs:
        for less, more in pairwise(pair):
            assert less[1].watts * less[1].time < more[1].watts * more[1].time
            assert less[1].joules(less[1].predicted) < more[1].joules(more[1].predicted)


def test_the_update_reads_and_writes_memory_that_is_paid_for() -> None:
    """Twice the optimizer's bytes cost what they say, a parameter each; below the cap."""
    asked = problem(TINY, energy__memory=1e-30, energy__flop=1e-30)
    twice = problem(TINY, energy__memory=1e-30, energy__flop=1e-30, optimizer__traffic=2.0 * asked.scalars["optimizer.traffic"])
    bytes_of = [float(evaluate(p, {}).parts["energy"]["memory"][0]) / 1e-30 for p in (asked, twice)]
    added = asked.scalars["parameters"] * asked.scalars["optimizer.traffic"]
    assert bytes_of[1] - bytes_of[0] == pytest.approx(added, rel=1e-6)


def test_bubbles_are_idle() -> None:
    """However much it computes, a device that waits a share of the step draws idle power there."""
    plan = {"pipeline": 2, "devices": 2, "micro_batch": 1}
    metrics = evaluate(problem(TINY, energy__flop=1.0), plan)
    at = problem(TINY).scalars
    waits = float(metrics.parts["step_time"]["bubble"][0]) / one(metrics, "step_time")
    assert waits > 0
    held = prices()["held"] * at["device.power"] - at["device.idle_power"]
    watts = one(metrics, "energy") / one(metrics, "step_time") / 2
    assert watts == pytest.approx(at["device.idle_power"] + held * (1.0 - waits), rel=1e-9)


def test_long_products_cost_what_the_cap_leaves_them() -> None:
    at = kernel_symbols(find_device("H200"))
    assert 0.5 < float(held_share(at)) < 1.0
    assert float(held_share({**at, "device.power": 1e5, "energy.flop": 1e-12})) == 1.0


def test_a_host_link_carries_what_was_measured() -> None:
    link = find_device("H200").host_link_bandwidth
    rows = rows_of(counted.ROOT, "link")
    rate = {(row["way"], row["bytes"]): float(row["bytes"]) / float(row["time_s"]) / link for row in rows}
    shares = host_link_shares()
    for way in ("h2d", "d2h"):
        for size in (2**26, 2**28, 2**30):
            assert rate[way, str(size)] == pytest.approx(shares["link.host.copy"], rel=0.02)
    assert rate["read", str(2**28)] == pytest.approx(shares["link.host.read"], rel=0.02)
    assert max(rate.values()) < 1.0


@pytest.mark.slow
def test_steps_measured_before_drew_what_is_said_of_them() -> None:
    """Of H100s, of which nothing was fitted, and of H200s: one device that never waits for its processor."""
    found = {line["device"]: line for line in counted.older() if (line["parallel"], line["waits for"]) == ("one", "device")}
    assert set(found) == {"H100-80GB-SXM", "H200-141GB-SXM"}
    for line in found.values():
        assert int(line["steps"]) > 80
        assert float(line["median"]) < 1.5
        assert float(line["mean"]) < 4.0
