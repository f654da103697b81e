"""Screening: with a cheap model that is off by bounded gaps the dear model's own front is found, and every plan is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from costmodels.metrics import Metrics
from search.constraint import Constraint
from search.exact import search
from search.front import Objective
from search.screening import Fidelity, Screened, screen
from search.store import Remembered
from spaces.architecture import find
from spaces.columns import Columns
from spaces.problem import Problem
from spaces.space import Axis, Space

PROBLEM = Problem(architecture=find("llama-3.1-8b"), stack="none")
SPACE = Space(tuple(Axis(name=name, symbols={name: np.arange(1, 31)}) for name in ("a", "b")))
OBJECTIVES = [Objective(name=name, metric=name) for name in ("time", "price")]


@dataclass(frozen=True)
class Curved:
    """Time falls and price grows with `a`; `b` wastes both; times are `noise` off, differently at every point."""

    noise: float = 0.0

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"a", "b"})

    def bound(self, _: Problem, points: Columns) -> Metrics:
        return Metrics(n=points.n, value={})

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        at = problem.at(points)
        a, b = np.asarray(at["a"], np.float64), np.asarray(at["b"], np.float64)
        off = 1.0 + self.noise * np.sin(12.9898 * a + 78.233 * b)
        return Metrics(n=points.n, value={"time": (100.0 / a + b) * off, "price": a + 0.5 * b})


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("limits", [(), (Constraint(metric="time", limit=30.0),)])
def test_the_dear_front_is_found_and_every_plan_counted(noise: float, limits: tuple[Constraint, ...]) -> None:
    exact = search(SPACE, Curved(), PROBLEM, OBJECTIVES, limits)
    found = screen(
        SPACE,
        Fidelity(name="cheap", model=Curved(noise)),
        Fidelity(name="dear", model=Curved(), agrees=frozenset({"price"})),
        PROBLEM,
        OBJECTIVES,
        limits,
    )
    assert found.left == 0
    assert np.array_equal(found.result.front.points.costs, exact.front.points.costs)
    assert [stage.saw for stage in found.stages] == [SPACE.size(), found.stages[1].saw]
    assert found.stages[1].saw < SPACE.size()
    assert found.result.certificate.complete
    assert found.unchallenged.all()
    assert found.proven.any() == (not limits)  # the cheapest plan is, for price is known of all; not of those that are too slow


def test_a_budget_that_runs_out_says_how_many_are_left() -> None:
    dear = Fidelity(name="dear", model=Curved(), most=5)
    found = screen(SPACE, Fidelity(name="cheap", model=Curved(0.05)), dear, PROBLEM, OBJECTIVES)
    assert found.stages[1].saw == 5
    assert found.left > 0
    assert len(found.proven) == len(found.unchallenged) == len(found.result.front)
    whole = {tuple(cost) for cost in search(SPACE, Curved(), PROBLEM, OBJECTIVES).front.points.costs.tolist()}
    for cost, unchallenged in zip(found.result.front.points.costs.tolist(), found.unchallenged, strict=True):
        assert not unchallenged or tuple(cost) in whole


def test_what_is_proven_stands_whatever_the_dear_model_says_of_the_plans_it_did_not_see() -> None:
    """A second dear model agrees with the first where that was asked, and finds no time at all in every other plan."""
    first = Counted([], 0.02)
    agreeing = {"most": 40, "agrees": frozenset({"price"})}
    found = screen(
        SPACE,
        Fidelity(name="cheap", model=Curved(0.05)),
        Fidelity(name="dear", model=first, **agreeing),
        PROBLEM,
        OBJECTIVES,
    )
    assert 0 < found.proven.sum() < len(found.proven)
    points = SPACE.columns(np.stack([code.ravel() for code in np.indices((30, 30))]))
    metrics = Curved().evaluate(PROBLEM, points)
    unseen = [pair not in set(first.asked) for pair in zip(points["a"].tolist(), points["b"].tolist(), strict=True)]
    for (_, price), proven in zip(found.result.front.points.costs, found.proven, strict=True):
        assert proven == (metrics.value["price"][unseen] > price).all()


def test_nothing_feasible_names_the_closest_by_the_dear_model() -> None:
    limits = [Constraint(metric="time", limit=4.0)]
    found = screen(
        SPACE, Fidelity(name="cheap", model=Curved(0.05)), Fidelity(name="dear", model=Curved()), PROBLEM, OBJECTIVES, limits
    )
    assert len(found.result.front) == 0
    assert found.result.closest is not None
    assert "time <= 4" in found.result.closest.lacks


@dataclass(frozen=True)
class Counted:
    """A model with a note of every point that it was asked; without noise it raises for one and does not know another."""

    asked: list[tuple[int, int]]
    noise: float = 0.0

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"a", "b"})

    def bound(self, _: Problem, points: Columns) -> Metrics:
        return Metrics(n=points.n, value={})

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        if not self.noise and np.any((points["a"] == 3) & (points["b"] == 1)):
            raise ZeroDivisionError("three")
        self.asked.extend(zip(points["a"].tolist(), points["b"].tolist(), strict=True))
        metrics = Curved(self.noise).evaluate(problem, points)
        time = np.where((points["a"] == 5) & (points["b"] == 1) & (self.noise == 0), np.nan, metrics.value["time"])
        return Metrics(n=points.n, value={**metrics.value, "time": time})


def test_simulations_on_record_are_not_done_again_and_failures_are_told() -> None:
    ledger, first, second = Remembered(), Counted([]), Counted([])
    looked, screened = iter(range(100)), Counted([], 0.05)
    cheap = Fidelity(name="cheap", model=screened)

    def look(dear: Counted, **more: Any) -> Screened:
        return screen(SPACE, cheap, Fidelity(name="dear", model=dear), PROBLEM, OBJECTIVES, **more)

    cut = look(first, ledger=ledger, cancelled=lambda: bool(first.asked) and next(looked) > 0)
    assert cut.result.stopped == "cancelled"
    assert cut.left > 0
    again = look(second, ledger=ledger)
    assert len(screened.asked) == SPACE.size()  # nor is the cheap stage
    whole = look(Counted([]))
    assert first.asked
    assert second.asked
    assert not set(first.asked) & set(second.asked)
    for found in (again.result, whole.result):
        assert found.failed_by_reason == {"ZeroDivisionError: three": 1, "not a finite number: time": 1}
        assert found.certificate.failed == 2
        assert found.certificate.evaluated == SPACE.size() - 2
        assert not found.stopped
    assert np.array_equal(again.result.front.points.costs, whole.result.front.points.costs)
    assert {name: again.result.top[name].ordinals.tolist() for name in again.result.top} == {
        name: whole.result.top[name].ordinals.tolist() for name in whole.result.top
    }
    assert (again.stages, again.left, again.gaps) == (whole.stages, whole.left, whole.gaps)
