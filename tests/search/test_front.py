"""Objectives, fronts and top lists against enumeration in O(n²)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.metrics import Metrics
from search.front import (
    Front,
    Objective,
    Points,
    TopList,
    beaten,
    hypervolume,
    hypervolume_share,
    join,
    non_dominated,
    parse_objective,
)
from spaces.columns import Columns, FloatArray


def dominates(a: FloatArray, b: FloatArray) -> bool:
    return bool((a <= b).all() and (a < b).any())


def enumerated(costs: FloatArray) -> list[int]:
    """Rows that no other dominates, the first of equal ones."""
    return [
        i
        for i, row in enumerate(costs)
        if not any(dominates(other, row) for other in costs) and not any((other == row).all() for other in costs[:i])
    ]


def tables(columns: int | None = None) -> st.SearchStrategy[FloatArray]:
    """Costs with many ties: few distinct numbers, 1 to 5 objectives."""
    width = st.just(columns) if columns else st.integers(1, 5)
    rows = width.flatmap(lambda k: st.lists(st.lists(st.integers(-2, 4), min_size=k, max_size=k), min_size=1, max_size=60))
    return rows.map(lambda values: np.array(values, np.float64))


def batches(costs: FloatArray, size: int) -> list[Points]:
    ordinals = np.arange(len(costs))
    every = Points(
        columns=Columns(n=len(costs), codes={"tensor": ordinals}, levels={"tensor": ("tensor", ordinals)}),
        metrics=Metrics(n=len(costs), value={"cost": costs[:, 0]}, parts={"cost": {"all": costs[:, 0]}}),
        costs=costs,
        ordinals=ordinals,
    )
    return [every.take(ordinals[start : start + size]) for start in range(0, len(costs), size)]


@given(tables())
def test_non_dominated_is_what_enumeration_finds(costs: FloatArray) -> None:
    assert np.flatnonzero(non_dominated(costs)).tolist() == enumerated(costs)


def test_non_dominated_of_many_random_points_is_what_enumeration_finds() -> None:
    for k in (2, 3, 4):
        costs = np.random.default_rng(k).normal(size=(400, k))
        assert np.flatnonzero(non_dominated(costs)).tolist() == enumerated(costs)


def test_an_unknown_cost_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        non_dominated(np.array([[1.0, np.nan]]))


@given(tables(3), tables(3))
def test_beaten_asks_for_strict_dominance(costs: FloatArray, by: FloatArray) -> None:
    assert beaten(costs, by).tolist() == [any(dominates(other, row) for other in by) for row in costs]


@given(tables(), st.integers(1, 30), st.data())
def test_a_front_grown_by_batches_is_the_front_of_all(costs: FloatArray, size: int, data: st.DataObject) -> None:
    feasible = np.array(data.draw(st.lists(st.booleans(), min_size=len(costs), max_size=len(costs))), np.bool_)
    front = Front(points=batches(costs, len(costs))[0].take(np.empty(0, np.int64)), ties=np.empty(0, np.int64))
    for batch in batches(costs, size):
        front = front.extended(batch, np.flatnonzero(feasible[batch.ordinals]))
    allowed = np.flatnonzero(feasible)
    expected = allowed[enumerated(costs[allowed])] if len(allowed) else allowed
    assert front.points.ordinals.tolist() == expected.tolist()
    assert front.points.columns["tensor"].tolist() == expected.tolist()
    ties = [int((costs[allowed] == costs[row]).all(axis=1).sum()) - 1 for row in expected]
    assert front.ties.tolist() == ties
    in_order = front.ordered().points.costs.tolist()
    assert in_order == sorted(in_order)


@given(tables(), st.integers(1, 30), st.integers(0, 12))
def test_a_top_list_grown_by_batches_is_the_sorted_beginning(costs: FloatArray, size: int, limit: int) -> None:
    for objective in range(costs.shape[1]):
        empty = batches(costs, len(costs))[0].take(np.empty(0, np.int64))
        best = TopList(objective=objective, limit=limit, points=empty)
        for batch in batches(costs, size):
            best = best.extended(batch, np.arange(len(batch)))
        others = [j for j in range(costs.shape[1]) if j != objective]
        order = sorted(range(len(costs)), key=lambda i: (costs[i, objective], *costs[i, others].tolist(), i))
        assert best.points.ordinals.tolist() == order[:limit]


def test_joined_points_keep_every_metric_and_part() -> None:
    (points,) = batches(np.arange(5.0)[:, None], 5)
    none, first, second = (points.take(np.arange(*ends)) for ends in ((0, 0), (0, 3), (3, 5)))
    assert join(first, none) is join(none, first) is first
    both = join(first, second)
    assert both.columns["tensor"].tolist() == [0, 1, 2, 3, 4]
    assert both.metrics.value["cost"].tolist() == both.metrics.parts["cost"]["all"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("text", "metric", "maximize"),
    [
        ("step_time", "step_time", False),
        ("tokens_per_second", "tokens_per_second", True),
        ("-memory", "memory", True),
        ("max:memory", "memory", True),
        ("min:mfu", "mfu", False),
        (" devices ", "devices", False),
    ],
)
def test_an_objective_is_read_from_its_name(text: str, metric: str, maximize: bool) -> None:
    assert parse_objective(text) == Objective(name=metric, metric=metric, maximize=maximize)


def test_an_objective_that_does_not_exist_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'step_tme' does not exist; the nearest are step_time"):
        parse_objective("step_tme", ["step_time", "memory"])



def test_hypervolume_is_the_dominated_volume() -> None:
    assert hypervolume(np.array([[1.0, 2.0], [2.0, 1.0], [9.0, 0.0]]), np.array([3.0, 3.0])) == pytest.approx(3.0)
    assert hypervolume(np.array([[2.0], [1.0]]), np.array([4.0])) == pytest.approx(3.0)
    assert hypervolume(np.empty((0, 2)), np.array([1.0, 1.0])) == 0.0


def test_the_exact_front_has_all_of_its_own_hypervolume() -> None:
    objectives = [Objective(name="a", metric="a"), Objective(name="b", metric="b", maximize=True)]
    exact = np.array([[1.0, 5.0], [2.0, 50.0], [30.0, 700.0]])
    assert hypervolume_share(exact, exact, objectives) == pytest.approx(1.0)
    assert 0 < hypervolume_share(exact[:1], exact, objectives) < 1
    assert hypervolume_share(np.array([[100.0, 1.0]]), exact, objectives) == 0.0
