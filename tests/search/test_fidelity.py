"""Refinement by fidelity against exact search by the dear model, which sees all of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.metrics import Metrics
from search.budget import Budget
from search.constraint import Constraint
from search.exact import search
from search.fidelity import CHEAP, refine
from search.front import Objective
from search.testing import MEMORY, PROBLEM, SPEED, TIME, Toy, toy_space
from spaces.columns import Columns
from spaces.problem import Problem


@dataclass(frozen=True, slots=True, eq=False)
class Dear:
    """The toy with a time that is wrong by a factor within ±`error`, drawn by point."""

    error: float
    toy: Toy = field(default_factory=Toy)

    @property
    def reads(self) -> frozenset[str]:
        return self.toy.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        return self.toy.bound(problem, points)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        found = self.toy.evaluate(problem, points)
        mixed = sum((i + 3) * np.asarray(points[name], np.int64) ** 2 for i, name in enumerate("abcd"))
        factor = 1.0 + self.error * (2.0 * (mixed * 7919 % 1000) / 999.0 - 1.0)
        time = found.value["step_time"] * factor
        return dataclasses.replace(found, value={**found.value, "step_time": time, "tokens_per_second": 1000.0 / time})


def band(error: float) -> dict[str, tuple[float, float]]:
    low, high = 1.0 - error, 1.0 + error
    return {"step_time": (low, high), "tokens_per_second": (1.0 / high, 1.0 / low)}


@settings(max_examples=15)
@given(st.floats(0.0, 0.4), st.sampled_from([(TIME,), (TIME, MEMORY), (SPEED, MEMORY)]), st.floats(30, 80))
def test_the_front_is_that_of_the_dear_model_alone(error: float, objectives: tuple[Objective, ...], limit: float) -> None:
    space = toy_space((6, 8, 8, 2))
    dear = Dear(error, Toy(limit=limit))
    refined = refine(space, Toy(limit=limit), dear, PROBLEM, objectives, band=band(error))
    whole = search(space, Dear(error, Toy(limit=limit)), PROBLEM, objectives)
    assert np.array_equal(refined.front.points.costs, whole.front.points.costs)
    assert refined.proven.all()
    assert refined.certificate.complete
    assert refined.certificate.space == space.size()
    assert set(dear.toy.asked().values()) <= {1}


def test_an_exact_cheap_model_leaves_the_dear_one_little_more_than_the_front() -> None:
    dear = Dear(0.0)
    refined = refine(toy_space(), Toy(), dear, PROBLEM, (TIME, MEMORY), band=band(0.0))
    wide = Dear(0.0)
    refine(toy_space(), Toy(), wide, PROBLEM, (TIME, MEMORY), band=band(0.3))
    assert refined.certificate.evaluated == sum(dear.toy.asked().values())
    assert len(refined.front) <= refined.certificate.evaluated < sum(wide.toy.asked().values()) < refined.cheap_evaluated
    assert refined.certificate.pruned[CHEAP] > 0


def test_limits_on_a_metric_with_a_band_are_judged_by_the_dear_model() -> None:
    limit = Constraint(metric="step_time", limit=20.0)
    refined = refine(toy_space(), Toy(), Dear(0.3), PROBLEM, (MEMORY, TIME), [limit], band=band(0.3))
    whole = search(toy_space(), Dear(0.3), PROBLEM, (MEMORY, TIME), [limit])
    assert np.array_equal(refined.front.points.costs, whole.front.points.costs)


def test_a_budget_that_ends_first_tells_the_proven_from_the_sampled() -> None:
    whole = search(toy_space(), Dear(0.3), PROBLEM, (TIME, MEMORY)).front.points.costs
    refined = refine(toy_space(), Toy(), Dear(0.3), PROBLEM, (TIME, MEMORY), band=band(0.3), budget=Budget(points=80))
    assert refined.certificate.evaluated == 80
    assert refined.certificate.unvisited > 0
    assert not refined.certificate.complete
    assert not refined.proven.all()
    exact = {tuple(cost) for cost in whole.tolist()}
    for cost, proven in zip(refined.front.points.costs.tolist(), refined.proven, strict=True):
        assert not proven or tuple(cost) in exact


def test_a_band_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="band of step_time"):
        refine(toy_space(), Toy(), Dear(0.1), PROBLEM, (TIME,), band={"step_time": (1.2, 0.9)})
