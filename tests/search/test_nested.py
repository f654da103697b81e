"""Nested search against exact search of the joint space, and with outer axes too large to list."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.training import TrainingModel, training_problem
from search.budget import Budget
from search.exact import search
from search.front import Objective
from search.nested import NestedResult, nested_search
from search.result import Progress
from search.store import Remembered
from search.testing import MEMORY, PROBLEM, SPEED, TIME, Toy, toy_space
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.space import Axis, Space
from spaces.training import training_space


def points(columns: Columns) -> list[tuple[float, ...]]:
    return sorted(tuple(columns.row(i).values()) for i in range(columns.n))


@given(st.sampled_from([(TIME,), (TIME, MEMORY), (TIME, MEMORY, SPEED)]), st.integers(1, 3), st.floats(20, 80))
def test_every_outer_point_taken_is_exact_search(objectives: tuple[Objective, ...], depth: int, limit: float) -> None:
    space = toy_space()
    nested = nested_search(space, Toy(limit=limit), PROBLEM, objectives, outer="abcd"[:depth], method="exact")
    whole = search(space, Toy(limit=limit), PROBLEM, objectives)
    found = nested.result
    assert np.array_equal(found.front.points.costs, whole.front.points.costs)
    assert found.certificate == whole.certificate
    assert found.certificate.complete
    assert found.feasible == whole.feasible == nested.outer.feasible.sum()
    assert nested.outer.plans.sum() == space.size()
    assert nested.outer.front.sum() == len(found.front)
    for objective in objectives:
        assert np.array_equal(found.top[objective.name].costs, whole.top[objective.name].costs)


def test_the_best_of_an_outer_point_is_that_of_its_own_exact_search() -> None:
    nested = nested_search(toy_space(), Toy(), PROBLEM, (TIME, SPEED), outer=("a",), method="exact")
    for row in range(len(nested.outer)):
        level = int(nested.outer.columns["a"][row])
        axes = toy_space().axes
        alone = Space((Axis(name="a", symbols={"a": np.array([level])}), *axes[1:]))
        own = search(alone, Toy(), PROBLEM, (TIME, SPEED))
        expected = own.front.points.values(own.objectives)
        if own.feasible:
            assert nested.outer.best[row].tolist() == [expected[:, 0].min(), expected[:, 1].max()]
        else:
            assert np.isnan(nested.outer.best[row]).all()
            assert nested.outer.violation[row] > 0


def test_no_plan_is_evaluated_twice_and_the_budget_counts_outer_points() -> None:
    model = Toy()
    nested = nested_search(toy_space(), model, PROBLEM, (TIME, MEMORY), outer=("a", "b"), budget=Budget(points=30), seed=1)
    assert len(nested.outer) == 30
    assert set(model.asked().values()) == {1}
    certificate = nested.result.certificate
    assert certificate.evaluated == sum(model.asked().values())
    assert certificate.unvisited == toy_space().size() - nested.outer.plans.sum() > 0
    assert nested.result.stopped == "sampled"
    again = nested_search(toy_space(), Toy(), PROBLEM, (TIME, MEMORY), outer=("a", "b"), budget=Budget(points=30), seed=1)
    assert points(again.outer.columns) == points(nested.outer.columns)


def test_an_outer_point_without_a_feasible_plan_is_told_by_its_least_violation() -> None:
    nested = nested_search(toy_space(), Toy(limit=1.0), PROBLEM, (TIME,), outer=("a",), method="exact")
    assert nested.result.feasible == 0
    assert (nested.outer.violation > 0).all()
    assert len(nested.result.front) == 0


def test_failed_plans_are_counted_and_the_rest_goes_on() -> None:
    nested = nested_search(toy_space(), Toy(raises=5), PROBLEM, (TIME,), outer=("a",), method="exact")
    certificate = nested.result.certificate
    assert certificate.failed > 0
    assert certificate.unvisited == 0
    assert nested.result.feasible > 0


def test_machines_with_a_thousand_bandwidths_are_searched_with_every_plan() -> None:
    device, architecture = find_device("H100"), find("llama-3.1-8b")
    plans = training_space(
        architecture=architecture,
        devices=(device,),
        count=8,
        global_batch=32,
        sequence=4096,
        options={"context": (1,), "offload": (0,), "recompute": (0, 2), "micro_batch": (1, 2)},
    )
    bandwidth = np.geomspace(1e12, 8e12, 1000)
    network = np.geomspace(1e10, 1e11, 1000)
    outer = (
        Axis(name="device.memory_bandwidth", symbols={"device.memory_bandwidth": bandwidth}),
        Axis(name="device.nic_bandwidth", symbols={"device.nic_bandwidth": network}),
    )
    problem = training_problem(architecture, "megatron", device, {"sequence": 4096, "global_batch": 32})
    nested = nested_search(
        Space((*outer, *plans.axes), plans.labels),
        TrainingModel(),
        problem,
        (Objective(name="step_time", metric="step_time"),),
        outer=tuple(axis.name for axis in outer),
        budget=Budget(points=48),
    )
    assert len(nested.outer) == 48
    assert nested.result.certificate.space == 10**6 * plans.size()
    assert (nested.outer.plans == plans.size()).all()
    at = nested.result.front.points.columns
    own = training_problem(
        architecture,
        "megatron",
        device,
        {
            "sequence": 4096,
            "global_batch": 32,
            "device.memory_bandwidth": float(at["device.memory_bandwidth"][0]),
            "device.nic_bandwidth": float(at["device.nic_bandwidth"][0]),
        },
    )
    alone = search(plans, TrainingModel(), own, (Objective(name="step_time", metric="step_time"),))
    assert alone.front.points.costs[0, 0] == pytest.approx(nested.result.front.points.costs[0, 0], rel=1e-12)
    assert nested.outer.best.min() == nested.result.front.points.costs[0, 0]


@pytest.mark.parametrize("outer", [(), ("b",), ("a", "b", "c", "d"), ("a", "x")])
def test_outer_axes_that_do_not_begin_the_space_are_refused(outer: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must be the first of the space"):
        nested_search(toy_space(), Toy(), PROBLEM, (TIME,), outer=outer)


@pytest.mark.parametrize("limit", [40.0, 1.0])
def test_outer_points_on_record_are_not_looked_at_again(limit: float) -> None:
    ledger, first, second = Remembered(), Toy(limit=limit), Toy(limit=limit)
    seen: list[Progress] = []

    def look(model: Toy, **more: Any) -> NestedResult:
        budget = Budget(points=60)
        return nested_search(
            toy_space(), model, PROBLEM, (TIME, MEMORY), outer=("a", "b"), budget=budget, seed=1, sample=50, **more
        )

    cut = look(first, ledger=ledger, progress=seen.append, cancelled=lambda: len(seen) == 2)
    assert cut.result.stopped == "cancelled"
    assert 0 < len(cut.outer) < 60
    again, whole = look(second, ledger=ledger), look(Toy(limit=limit))
    assert not set(first.asked()) & set(second.asked())
    assert again.result.certificate == whole.result.certificate
    assert np.array_equal(again.result.front.points.costs, whole.result.front.points.costs)
    assert np.array_equal(again.result.front.ties, whole.result.front.ties)
    assert np.array_equal(again.result.sample.ordinals, whole.result.sample.ordinals)
    assert np.array_equal(again.outer.best, whole.outer.best, equal_nan=True)
    assert points(again.outer.columns) == points(whole.outer.columns)
