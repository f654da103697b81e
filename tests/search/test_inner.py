"""The best plan of every design: bounds spare plans and change no answer; more of a resource never slows the best plan."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import search.inner
from costmodels.constants import device_symbols, find_stack
from costmodels.kernel_models.dataflow import Dataflow
from costmodels.machines.designs import design_symbols
from costmodels.serving.problem import serving_problem, serving_symbols
from costmodels.serving.steady_state import ServingModel
from costmodels.training import TrainingModel, training_problem
from search.inner import best_plans
from spaces.architecture import Architecture
from spaces.columns import Columns
from spaces.hardware import find_accelerator, find_device
from spaces.problem import Problem
from spaces.serving_space import serving_space
from spaces.training import training_space

MODEL = Architecture(
    name="small", layers=16, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=64_000, max_sequence=8192
)
BASE = find_accelerator("H100")
DEVICE = find_device("H100")
OWN = device_symbols(DEVICE, "megatron")


def case(count: int = 64) -> tuple[Problem, Columns]:
    """A problem and all plans of a small space."""
    asked = {**find_stack("megatron").legal, "zero_stage": (1,), "recompute": (0, 2), "micro_batch": (1, 2)}
    space = training_space(architecture=MODEL, devices=(DEVICE,), count=count, global_batch=64, sequence=8192, options=asked)
    problem = training_problem(MODEL, "megatron", DEVICE, {"sequence": 8192, "global_batch": 64})
    problem = Problem(
        architecture=problem.architecture,
        stack=problem.stack,
        scalars=problem.scalars,
        labels={**problem.labels, "reference": (DEVICE.name,)},
    )
    return problem, next(space.batches())


PROBLEM, EVERY = case()
PLANS = EVERY.take(np.sort(np.random.default_rng(0).choice(EVERY.n, 120, replace=False)))


def designs(**changes: object) -> dict[str, np.ndarray]:
    return design_symbols(BASE, OWN, BASE.columns(changes), 64.0)


@settings(max_examples=3)
@given(st.integers(0, 10_000), st.sampled_from([2, 40, 90]))
def test_bounds_change_no_answer(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    symbols = designs(
        memory_stacks=rng.integers(2, 12, n).astype(float),
        scale_up_bandwidth=rng.uniform(1e11, 2e12, n),
        clock=rng.uniform(1e9, 2.2e9, n),
        nic_bandwidth=rng.choice([1e10, 5e10, 2e11], n),
        nic_latency=rng.uniform(2e-6, 1e-5, n),
        scale_up_domain=rng.choice([8.0, 32.0], n),
        cores=rng.choice([100.0, 132.0], n),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.inner, "FIRST", 1)  # so that bounds, and not what is tried first, decide
        pruned = best_plans(TrainingModel(), PROBLEM, PLANS, symbols, "step_time", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.inner, "TIMES", frozenset())
        whole = best_plans(TrainingModel(), PROBLEM, PLANS, symbols, "step_time", {})
    np.testing.assert_array_equal(pruned.value, whole.value)
    np.testing.assert_array_equal(pruned.violation <= 0, whole.violation <= 0)
    assert pruned.evaluated <= whole.evaluated + n


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 5, 40]))
def test_no_plan_is_quicker_on_a_design_than_on_its_ideal(seed: int, n: int) -> None:
    """Of one design its ideal is itself; of many it is a bound, also where they differ in cores and domains."""
    rng = np.random.default_rng(seed)
    symbols = designs(
        memory_stacks=rng.integers(2, 12, n).astype(float),
        clock=rng.uniform(1e9, 2.2e9, n),
        nic_bandwidth=rng.choice([1e10, 2e11], n),
        nic_latency=rng.uniform(2e-6, 1e-5, n),
        scale_up_domain=rng.choice([8.0, 32.0], n),
        cores=rng.choice([100.0, 132.0], n),
    )
    asked = search.inner._Asked(TrainingModel(), PROBLEM, PLANS.take(slice(0, 20)), symbols, n, "step_time", {})
    rows, plans = (index.ravel() for index in np.indices((n, 20)))
    time = asked._time(symbols, rows, plans).reshape(n, 20)
    ideal = asked.ideal(np.ones((n, 20), np.bool_))
    assert (ideal <= time).all()
    if n == 1:
        np.testing.assert_allclose(ideal, time, rtol=1e-8)


def test_memory_in_use_is_looked_up_by_what_it_depends_on_and_is_that_of_the_evaluation() -> None:
    """Designs that differ in how quick they are share it; those that differ in what they hold do not."""
    limits = {"max_batch": 64.0, "token_budget": 2048.0, "kv_fraction": 0.9}
    fixed = {"devices": 8, "input_tokens": 2000, "output_tokens": 500, "concurrency": 64, **limits}
    problem = serving_problem(MODEL, "vllm", DEVICE, fixed)
    plans = next(serving_space(architecture=MODEL, count=8, options={"kv_offload": (0.0, 0.5)}, defaults=limits).batches())
    rng = np.random.default_rng(0)
    changes = {
        "memory_stacks": [1.0, 2.0, 5.0] * 4, "stack_capacity": rng.choice([1e9, 4e9, 1.6e10], 12),
        "host_memory": rng.choice([1e9, 1e12], 12), "clock": rng.uniform(1e9, 2e9, 12),
        "nic_bandwidth": rng.uniform(1e10, 1e11, 12),
    }  # fmt: skip
    symbols = design_symbols(BASE, serving_symbols(DEVICE), BASE.columns(changes), 8.0)
    rows = np.repeat(np.arange(12), plans.n)
    points = Columns.from_values(
        {name: plans[name][np.tile(np.arange(plans.n), 12)] for name in plans.levels}
        | {name: values[rows] for name, values in symbols.items()}
    )
    model = ServingModel(Dataflow())
    quick, exact = model.bound(problem, points).violation["memory"], model.evaluate(problem, points).violation["memory"]
    np.testing.assert_allclose(quick, exact, rtol=1e-12)
    assert 0 < np.count_nonzero(quick > 0) < len(quick)


def test_designs_share_what_they_agree_in() -> None:
    """Symbols that tell the same designs apart are one axis, and every design keeps its own values."""
    chosen = {"a": np.array([3.0, 1.0, 3.0]), "b": np.array([5.0, 9.0, 5.0]), "c": np.array([1.0, 2.0, 3.0])}
    axes = search.inner._axes(chosen)
    assert sorted(sorted(values) for _, values in axes.values()) == [["a", "b"], ["c"]]
    for code, values in axes.values():
        for name, levels in values.items():
            np.testing.assert_array_equal(levels[code], chosen[name])


def test_designs_that_agree_in_little_are_looked_at_one_by_one() -> None:
    """An ideal that speaks for hardly more than one design costs more than it spares; answers stay what they are."""
    symbols = designs(cores=np.arange(100.0, 106.0))
    found = best_plans(TrainingModel(), PROBLEM, PLANS, symbols, "step_time", {})
    for i in (0, 5):
        one = {name: values[[i]] for name, values in symbols.items()}
        assert found.value[i] == best_plans(TrainingModel(), PROBLEM, PLANS, one, "step_time", {}).value[0]


@settings(max_examples=6)
@given(
    st.sampled_from(
        ["device.memory_bandwidth", "device.memory_capacity", "device.scale_up_bandwidth", "device.nic_bandwidth",
         "device.matrix_flops.bf16", "device.domain"]
    ),
    st.floats(min_value=0.3, max_value=1.0),
)  # fmt: skip
def test_more_of_a_resource_never_slows_the_best_plan(symbol: str, start: float) -> None:
    """Other things equal: power and price included."""
    ladder = OWN[symbol] * (np.array([1, 2, 4]) if symbol == "device.domain" else start * np.array([1.0, 1.3, 2.0, 4.0]))
    also = {"device.peer_bandwidth": ladder} if symbol == "device.scale_up_bandwidth" else {}
    found = best_plans(TrainingModel(), PROBLEM, PLANS, {symbol: ladder, **also}, "step_time", {})
    time = np.where(np.isnan(found.value), np.inf, found.value)
    assert (time[1:] <= time[:-1] * (1 + 1e-9)).all()


SERVED = serving_problem(
    MODEL, "vllm", DEVICE, {"devices": 8, "input_tokens": 2000, "output_tokens": 200, "concurrency": 64, "kv_fraction": 0.9}
)
ENGINES = next(
    serving_space(
        architecture=MODEL, count=8, options={"max_batch": (16, 64), "token_budget": (2048,)},
        defaults={"max_batch": 64, "token_budget": 2048, "kv_fraction": 0.9},
    ).batches()
)  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(
        ["device.memory_bandwidth", "device.memory_capacity", "device.scale_up_bandwidth", "device.nic_bandwidth",
         "device.host_link_bandwidth", "device.matrix_flops.bf16"]
    ),
    st.floats(min_value=0.3, max_value=1.0),
    st.sampled_from(["tokens_per_second_per_device", "tpot"]),
)  # fmt: skip
def test_more_of_a_resource_never_slows_the_best_server(symbol: str, start: float, metric: str) -> None:
    ladder = SERVED.scalars[symbol] * start * np.array([1.0, 1.3, 2.0, 4.0])
    also = {"device.peer_bandwidth": ladder} if symbol == "device.scale_up_bandwidth" else {}
    found = best_plans(ServingModel(Dataflow()), SERVED, ENGINES, {symbol: ladder, **also}, metric, {})
    best = np.where(np.isnan(found.value), np.inf if metric == "tpot" else 0.0, found.value)
    cost = best if metric == "tpot" else -best
    assert (cost[1:] <= cost[:-1] + np.abs(cost[:-1]) * 1e-9).all()


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 72), min_size=2, max_size=3, unique=True).map(sorted))
@example([12, 13])
def test_more_devices_under_at_most_never_slow_the_best_plan(counts: list[int]) -> None:
    asked = {**find_stack("megatron").legal, "zero_stage": (1,), "recompute": (0,), "micro_batch": (1,)}
    best = []
    for most in counts:
        space = training_space(
            architecture=MODEL, devices=(DEVICE,), count=most, at_most=True, global_batch=64, sequence=8192, options=asked
        )
        metrics = TrainingModel().evaluate(PROBLEM, next(space.batches()))
        fits = metrics.violation["memory"] <= 0
        best.append(metrics.value["step_time"][fits].min(initial=np.inf))
    assert all(few >= many for few, many in itertools.pairwise(best))


def test_a_design_too_small_for_any_plan_says_how_far() -> None:
    symbols = designs(memory_stacks=np.array([1.0, 5.0]), stack_capacity=1e9 * np.array([1, 17]))
    found = best_plans(TrainingModel(), PROBLEM, PLANS, symbols, "step_time", {})
    assert np.isnan(found.value[0])
    assert found.violation[0] > 0 >= found.violation[1]


def test_limits_rule_plans_out() -> None:
    free = best_plans(TrainingModel(), PROBLEM, PLANS, designs(clock=np.array([1.5e9, 1.8e9])), "step_time", {})
    held = best_plans(
        TrainingModel(), PROBLEM, PLANS, designs(clock=np.array([1.5e9, 1.8e9])), "step_time", {"memory": 30 * 2**30}
    )
    assert (held.value >= free.value).all()
    assert (held.metrics.value["memory"] <= 30 * 2**30).all()


def test_no_plans_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="0 plans"):
        best_plans(TrainingModel(), PROBLEM, PLANS.take(slice(0, 0)), designs(clock=[1e9]), "step_time", {})
