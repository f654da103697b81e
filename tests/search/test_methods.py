"""Every search method joins the contract; the registry names the nearest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.archive import Archive
from search.budget import Budget
from search.evolutionary import crowding, fronts, neighbours, offspring
from search.front import non_dominated
from search.methods import Method, method
from search.sampled import sampled_search
from search.testing import MEMORY, PROBLEM, SPEED, TIME, MethodContract, Toy, toy_space
from spaces.ranking import ranking


class TestEvolutionary(MethodContract):
    quality = 0.97

    def method(self) -> Method:
        return method("evolutionary")


class TestEvolutionaryWithOneObjective(TestEvolutionary):
    objectives = (TIME,)


class TestEvolutionaryWithThreeObjectives(TestEvolutionary):
    objectives = (TIME, MEMORY, SPEED)
    quality = 0.9


class TestGuided(MethodContract):
    quality, seeds = 0.99, 1

    def method(self) -> Method:
        return method("guided")


class TestGuidedWithThreeObjectives(TestGuided):
    objectives = (TIME, MEMORY, SPEED)
    quality = 0.95


def test_an_unknown_method_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'evolutionry'.*evolutionary"):
        method("evolutionry")
    with pytest.raises(ValueError, match="does not sample"):
        method("exact")


@pytest.mark.parametrize(
    ("wrong", "said"), [({"points": 0}, "positive"), ({"share": 1.5}, "at most 1"), ({"seconds": -1.0}, "positive")]
)
def test_a_budget_that_buys_nothing_is_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Budget(**wrong)  # type: ignore[arg-type]


@given(st.integers(1, 10**6), st.floats(1e-6, 1), st.integers(1, 10**6))
def test_the_tightest_limit_counts(size: int, share: float, points: int) -> None:
    most = Budget(points=points, share=share).most(size)
    assert 1 <= most <= min(points, size)
    assert most <= max(1, share * size * (1 + 1e-9))


def test_seconds_end_a_search() -> None:
    result = sampled_search(
        toy_space(), Toy(), PROBLEM, (TIME,), method=method("evolutionary"), budget=Budget(seconds=1e-9), seed=0
    )
    assert (result.stopped, result.certificate.evaluated) == ("out of time", 0)


def test_a_budget_of_everything_proves_the_front() -> None:
    result = sampled_search(
        toy_space(), Toy(), PROBLEM, (TIME, MEMORY), method=method("evolutionary"), budget=Budget(share=1.0), seed=0
    )
    assert result.certificate.complete
    assert result.stopped == ""
    assert result.certificate.pruned["memory"] > 0


def test_a_method_that_cheats_is_held_to_the_budget() -> None:
    def greedy(archive: Archive, random: np.random.Generator) -> None:  # noqa: ARG001
        rows = archive.evaluate(np.arange(archive.ranking.size))
        assert (rows >= 0).sum() == 7
        assert (archive.evaluate(np.array([0, 0])) == rows[0]).all()

    model = Toy()
    result = sampled_search(toy_space(), model, PROBLEM, (TIME,), method=greedy, budget=Budget(points=7))
    assert result.certificate.evaluated == sum(model.asked().values()) == 7


@given(st.integers(0, 99), st.integers(1, 3))
def test_fronts_peel_like_enumeration_and_ends_are_least_crowded(seed: int, k: int) -> None:
    costs = np.random.default_rng(seed).integers(0, 6, (25, k)).astype(float)
    rank = fronts(costs, 25)
    assert (rank >= 0).all()
    assert np.array_equal(rank == 0, non_dominated(costs))
    for i in range(25):
        beats = (costs <= costs[i]).all(axis=1) & (costs < costs[i]).any(axis=1)
        assert (rank[beats] < rank[i]).all()
    distance = crowding(costs)
    assert np.isinf(distance[[costs[:, 0].argmin(), costs[:, 0].argmax()]]).any()


@given(st.integers(0, 99))
def test_children_and_neighbours_are_legal(seed: int) -> None:
    numbered, random = ranking(toy_space()), np.random.default_rng(seed)
    parents = numbered.unrank(numbered.draw(random, 5))
    assert (offspring(numbered, parents, random, 50) >= 0).all()
    near = neighbours(numbered, parents[:, :1])
    assert (near >= 0).all()
    assert numbered.rank(parents[:, :1])[0] not in near
    changed = numbered.unrank(near) != parents[:, :1]
    assert (changed.sum(axis=0) >= 1).all()
    for axis, layer in enumerate(numbered.layers[:2]):  # a and b are ruled by nothing: each of their levels is reached
        assert len(np.unique(numbered.unrank(near)[axis])) == layer.levels
