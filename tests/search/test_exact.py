"""Exact search against enumeration, on spaces small enough to list and a model that counts its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.metrics import BrokenContract, Metrics
from search.exact import Certificate, Constraint, Progress, Result, search
from search.execution import Serial
from search.front import Objective
from spaces.architecture import Architecture
from spaces.columns import Columns, UnboundSymbol
from spaces.problem import Problem
from spaces.space import Axis, Space

LLAMA = Architecture(
    name="toy", layers=4, hidden=64, heads=4, kv_heads=4, head_dim=16, ffn=128, vocab=256, max_sequence=64
)
PROBLEM = Problem(architecture=LLAMA, stack="megatron", scalars={"sequence": 64})
TIME = Objective(name="step_time", metric="step_time")
MEMORY = Objective(name="memory", metric="memory")
SPEED = Objective(name="tokens_per_second", metric="tokens_per_second", maximize=True)
DEVICES = Objective(name="devices", metric="devices")


def space_of(a: int = 6, b: int = 5, c: int = 7) -> Space:
    """Three axes; the third divides the product of the others."""

    def axis(name: str, k: int, *rules: Any) -> Axis:
        return Axis(name=name, symbols={name: np.arange(1, k + 1)}, rules=rules)

    divides = ("tensor·data not divisible by micro_batch", lambda x, v: (x["devices"] * x["data"]) % v == 0)
    return Space((axis("devices", a), axis("data", b), axis("micro_batch", c, divides)))


@dataclass(frozen=True, slots=True, eq=False)
class Toy:
    """Metrics drawn from a table by point; `raises` and `unknown` are points it cannot predict."""

    seed: int = 0
    limit: float = 9.0
    values: int = 12
    raises: frozenset[tuple[int, ...]] = frozenset()
    unknown: frozenset[tuple[int, ...]] = frozenset()
    slack: float = 0.0
    """How far the bounds lie on the optimistic side."""
    bounds: tuple[str, ...] = ("memory",)
    calls: list[tuple[str, list[tuple[int, ...]]]] = field(default_factory=list)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"devices", "data", "micro_batch"})

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:  # noqa: ARG002
        rows = self._rows("evaluate", points)
        for row in rows:
            if row in self.raises:
                raise ZeroDivisionError(f"no time for {row}")
        time = self._draw(rows, 1)
        time[[row in self.unknown for row in rows]] = np.nan
        memory = self._draw(rows, 2)
        return Metrics(
            n=points.n,
            value={"step_time": time, "memory": memory, "tokens_per_second": self._draw(rows, 3)},
            parts={"step_time": {"compute": time}},
            violation={"memory": memory / self.limit - 1.0},
        )

    def bound(self, problem: Problem, points: Columns) -> Metrics:  # noqa: ARG002
        rows = self._rows("bound", points)
        drawn = {
            "step_time": self._draw(rows, 1) - self.slack,
            "memory": self._draw(rows, 2) - self.slack,
            "tokens_per_second": self._draw(rows, 3) + self.slack,
        }
        violation = {"memory": drawn["memory"] / self.limit - 1.0} if "memory" in self.bounds else {}
        return Metrics(n=points.n, value={name: drawn[name] for name in self.bounds}, violation=violation)

    def _rows(self, verb: str, points: Columns) -> list[tuple[int, ...]]:
        rows = [tuple(points.row(i).values()) for i in range(points.n)]
        self.calls.append((verb, rows))
        return rows

    def _draw(self, rows: list[tuple[int, ...]], which: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        mixed = np.full(len(rows), 1 + self.seed + 1000 * which, np.uint64)
        for column in np.array(rows, np.uint64).reshape(len(rows), 3).T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        return (1 + mixed % np.uint64(self.values - 1)).astype(np.float64)

    def evaluated(self) -> Counter[tuple[int, ...]]:
        """How often each point was evaluated, calls that raised left out."""
        done = [rows for verb, rows in self.calls if verb == "evaluate" and not self.raises & set(rows)]
        return Counter(row for rows in done for row in rows)


def points_of(space: Space) -> list[tuple[int, ...]]:
    return [tuple(batch.row(i).values()) for batch in space.batches() for i in range(batch.n)]


def keys(columns: Columns) -> list[tuple[int, ...]]:
    return [tuple(columns.row(i).values()) for i in range(columns.n)]


def enumerated(
    space: Space, model: Toy, objectives: Sequence[Objective], limit: Callable[[dict[str, float]], bool] = lambda _: True
) -> tuple[dict[tuple[int, ...], tuple[float, ...]], list[tuple[int, ...]]]:
    """Costs of the feasible points, and the front (the first of ties), in O(n²)."""
    every = points_of(space)
    oracle = Toy(seed=model.seed, limit=model.limit, values=model.values)
    metrics = oracle.evaluate(PROBLEM, next(space.batches(len(every))))
    costs: dict[tuple[int, ...], tuple[float, ...]] = {}
    for i, point in enumerate(every):
        row = {name: float(column[i]) for name, column in metrics.value.items()} | {"devices": float(point[0])}
        if point in model.raises | model.unknown or row["memory"] > model.limit or not limit(row):
            continue
        costs[point] = tuple(-row[o.metric] if o.maximize else row[o.metric] for o in objectives)
    front = []
    for i, (point, cost) in enumerate(costs.items()):
        others = list(costs.values())
        if any(all(a <= b for a, b in zip(other, cost, strict=True)) and other != cost for other in others):
            continue
        if cost not in others[:i]:
            front.append(point)
    return costs, front


def found(result: Result) -> list[tuple[int, ...]]:
    return sorted(keys(result.front.points.columns))


OBJECTIVES = st.sampled_from([(TIME,), (TIME, MEMORY), (TIME, SPEED), (DEVICES, TIME), (TIME, MEMORY, SPEED, DEVICES)])


@given(st.integers(0, 50), OBJECTIVES, st.integers(1, 120), st.floats(1, 12))
def test_the_front_is_what_enumeration_finds(
    seed: int, objectives: tuple[Objective, ...], rows: int, limit: float
) -> None:
    space, model = space_of(4, 4, 4), Toy(seed=seed, limit=limit)
    result = search(space, model, PROBLEM, objectives, rows=rows)
    costs, front = enumerated(space, model, objectives)
    assert found(result) == sorted(front)
    assert result.feasible == len(costs)
    assert result.certificate.complete
    for j, objective in enumerate(objectives):
        listed = [costs[point][j] for point in keys(result.top[objective.name].columns)]
        assert listed == sorted(cost[j] for cost in costs.values())[:10]
    for point, ties in zip(keys(result.front.points.columns), result.front.ties.tolist(), strict=True):
        assert ties == sum(cost == costs[point] for cost in costs.values()) - 1


@given(st.integers(0, 50), st.floats(0, 4), st.integers(1, 120), st.integers(0, 3))
def test_pruning_by_bounds_never_changes_front_or_top_lists(seed: int, slack: float, rows: int, top: int) -> None:
    space, objectives = space_of(5, 5, 5), (TIME, MEMORY)
    plain = search(space, Toy(seed=seed, bounds=()), PROBLEM, objectives, rows=rows, top=top)
    model = Toy(seed=seed, slack=slack, bounds=("memory", "step_time"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.exact._GRAIN", 16)  # so that a small space is compared with a front often
        pruned = search(space, model, PROBLEM, objectives, rows=rows, top=top, prune_dominated=True)
    assert keys(pruned.front.points.columns) == keys(plain.front.points.columns)
    assert pruned.front.ties.tolist() == plain.front.ties.tolist()
    for name, points in plain.top.items():
        assert keys(pruned.top[name].columns) == keys(points.columns)
    assert pruned.certificate.complete


def test_dominated_points_are_pruned_once_the_lists_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.exact._GRAIN", 64)
    space, bounds = space_of(9, 9, 9), ("memory", "step_time")
    first = search(space, Toy(bounds=bounds), PROBLEM, (TIME, MEMORY), top=2, prune_dominated=True, rows=50)
    other = search(space, Toy(bounds=bounds), PROBLEM, (TIME, MEMORY), top=2, prune_dominated=True, rows=7)
    plain = search(space, Toy(bounds=()), PROBLEM, (TIME, MEMORY), top=2)
    assert first.certificate.pruned["dominated"] > 0
    assert first.certificate == other.certificate
    assert keys(first.front.points.columns) == keys(plain.front.points.columns)


def test_a_bound_of_the_other_direction_prunes_nothing() -> None:
    slow = Objective(name="slowest", metric="step_time", maximize=True)
    model = Toy(bounds=("memory", "step_time"))
    result = search(space_of(9, 9, 9), model, PROBLEM, (slow,), top=1, prune_dominated=True)
    assert "dominated" not in result.certificate.pruned


@given(st.integers(0, 30), st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_the_batch_size_changes_nothing(seed: int, rows: int, other: int, sample: int) -> None:
    space, model = space_of(4, 4, 4), Toy(seed=seed, raises=frozenset({(2, 2, 1)}), unknown=frozenset({(3, 1, 1)}))
    a, b = (search(space, model, PROBLEM, (TIME, SPEED), rows=n, sample=sample, seed=seed) for n in (rows, other))
    assert a.certificate == b.certificate
    assert a.failures == b.failures
    assert keys(a.front.points.columns) == keys(b.front.points.columns)
    assert a.sample.ordinals.tolist() == b.sample.ordinals.tolist()
    assert np.array_equal(a.sample.values, b.sample.values)
    assert keys(a.sample.columns) == keys(b.sample.columns)


def test_the_sample_is_uniform_over_the_evaluated_points() -> None:
    space, counts = space_of(4, 4, 4), Counter[int]()
    for seed in range(300):
        counts.update(search(space, Toy(limit=99.0), PROBLEM, (TIME,), sample=5, seed=seed).sample.ordinals.tolist())
    expected = 300 * 5 / space.size()
    assert len(counts) == space.size()
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 2 * space.size()


def test_no_point_is_evaluated_twice() -> None:
    space, model = space_of(), Toy(raises=frozenset({(2, 2, 2)}))
    search(space, model, PROBLEM, (TIME, MEMORY), rows=13)
    counts = model.evaluated()
    assert set(counts.values()) == {1}
    assert set(counts) <= set(points_of(space))


def test_memory_is_tested_before_any_time_is_computed() -> None:
    space, model = space_of(), Toy(limit=5.0)
    result = search(space, model, PROBLEM, (TIME,), rows=20)
    oracle = Toy().evaluate(PROBLEM, next(space.batches(1000))).value["memory"]
    fits = {point for point, memory in zip(points_of(space), oracle, strict=True) if memory <= 5.0}
    assert set(model.evaluated()) == fits
    assert result.certificate.pruned == {"memory": space.size() - len(fits)}


def test_one_bad_point_does_not_end_the_search() -> None:
    bad, unknown = (2, 3, 2), (4, 5, 1)
    space, model = space_of(), Toy(limit=99.0, raises=frozenset({bad}), unknown=frozenset({unknown}))
    result = search(space, model, PROBLEM, (TIME, MEMORY), rows=32)
    assert (result.certificate.failed, result.certificate.evaluated) == (2, space.size() - 2)
    assert not result.certificate.complete
    assert {tuple(failure.point.values()): failure.reason for failure in result.failures} == {
        bad: "ZeroDivisionError: no time for (2, 3, 2)",
        unknown: "not a finite number: step_time",
    }
    assert found(result) == sorted(enumerated(space, model, (TIME, MEMORY))[1])


def test_a_model_that_always_raises_is_given_up_on() -> None:
    space = space_of(40, 40, 4)
    model = Toy(raises=frozenset(points_of(space)), bounds=())
    result = search(space, model, PROBLEM, (TIME,))
    assert "all failed, the last with ZeroDivisionError" in result.stopped
    assert result.certificate.unvisited == space.size()


def test_a_symbol_that_nothing_binds_is_an_error_not_a_failed_point() -> None:
    class Unbound(Toy):
        def evaluate(self, problem: Problem, points: Columns) -> Metrics:
            if points.n:
                problem.at(points)["hidden"]
            return Toy.evaluate(self, problem, points)

    with pytest.raises(UnboundSymbol, match="'hidden'"):
        search(space_of(), Unbound(), PROBLEM, (TIME,))


def test_the_reported_objective_is_the_searched_one() -> None:
    result = search(space_of(), Toy(), PROBLEM, (TIME, SPEED, DEVICES))
    points = result.front.points
    reported = np.column_stack(
        [points.metrics.value["step_time"], points.metrics.value["tokens_per_second"], points.columns["devices"]]
    )
    assert np.array_equal(points.values(result.objectives), reported)
    assert np.array_equal(points.metrics.parts["step_time"]["compute"], points.metrics.value["step_time"])


@given(st.integers(0, 20), st.sampled_from([4.0, 7.5]), st.booleans(), st.booleans())
def test_constraints_hold_on_the_front(seed: int, limit: float, upper: bool, bounded: bool) -> None:
    metric = "step_time" if upper else "tokens_per_second"
    model = Toy(seed=seed, bounds=("memory", metric) if bounded else ())
    result = search(space_of(4, 4, 4), model, PROBLEM, (TIME, MEMORY), [Constraint(metric=metric, limit=limit, upper=upper)])
    _, front = enumerated(
        space_of(4, 4, 4), model, (TIME, MEMORY), lambda row: row[metric] <= limit if upper else row[metric] >= limit
    )
    assert found(result) == sorted(front)
    if bounded:
        assert result.certificate.pruned.get(f"{metric} {'<=' if upper else '>='} {limit:g}", 0) > 0


def test_a_limit_on_the_good_side_is_not_proved_by_an_optimistic_bound() -> None:
    model = Toy(slack=3.0, bounds=("step_time",), limit=99.0)
    result = search(space_of(), model, PROBLEM, (MEMORY,), [Constraint(metric="step_time", limit=6.0, upper=False)])
    assert result.certificate.pruned == {}
    assert found(result) == sorted(enumerated(space_of(), model, (MEMORY,), lambda row: row["step_time"] >= 6.0)[1])


def test_when_nothing_fits_the_closest_point_is_told_with_what_it_lacks() -> None:
    for bounds in ((), ("memory",)):
        space, model = space_of(), Toy(limit=0.5, bounds=bounds)
        result = search(space, model, PROBLEM, (TIME,), rows=11)
        least = Toy().evaluate(PROBLEM, next(space.batches(1000))).value["memory"].min()
        assert result.feasible == len(result.front) == 0
        assert result.closest is not None
        assert result.closest.lacks == {"memory": pytest.approx(least / 0.5 - 1.0)}
        assert result.closest.points.metrics.value["memory"].tolist() == [least]
        assert result.certificate.complete


def test_an_empty_space_has_a_complete_certificate_and_no_closest_point() -> None:
    result = search(space_of(0, 1, 1), Toy(), PROBLEM, (TIME,))
    assert result.certificate == Certificate(space=0, pruned={}, evaluated=0, failed=0, unvisited=0)
    assert result.closest is None


def test_cancelling_keeps_what_was_found() -> None:
    seen: list[Progress] = []
    result = search(
        space_of(), Toy(), PROBLEM, (TIME,), rows=10, progress=seen.append, cancelled=lambda: len(seen) == 3
    )
    assert result.stopped == "cancelled"
    assert result.certificate.unvisited == space_of().size() - 30
    assert not result.certificate.complete
    assert len(result.front) > 0
    assert [progress.visited for progress in seen] == [10, 20, 30]


def test_ctrl_c_keeps_what_was_found() -> None:
    class Interrupted(Toy):
        def evaluate(self, problem: Problem, points: Columns) -> Metrics:
            if len(self.calls) > 6:
                raise KeyboardInterrupt
            return Toy.evaluate(self, problem, points)

    result = search(space_of(), Interrupted(), PROBLEM, (TIME,), rows=10)
    assert result.stopped == "interrupted"
    assert result.certificate.unvisited > 0
    assert result.certificate.space == space_of().size()


def test_removals_are_told_by_axis_and_reason() -> None:
    (removal,) = search(space_of(), Toy(), PROBLEM, (TIME,)).removed
    assert (removal.axis, removal.reason) == ("micro_batch", "tensor·data not divisible by micro_batch")
    assert removal.count == 6 * 5 * 7 - space_of().size()


def test_names_that_do_not_exist_are_told_together_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"objective 'step_tme'.*step_time.*constraint 'memry'.*memory"):
        search(
            space_of(),
            Toy(),
            PROBLEM,
            (Objective(name="step_tme", metric="step_tme"),),
            [Constraint(metric="memry", limit=1.0)],
        )
    with pytest.raises(ValueError, match="at least one objective"):
        search(space_of(), Toy(), PROBLEM, ())


def test_a_certificate_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="does not add up"):
        Certificate(space=10, pruned={"memory": 3}, evaluated=5, failed=1, unvisited=0)


@dataclass(frozen=True)
class Boundless:
    """A toy whose bound raises where `data` is one number, or everywhere (0)."""

    toy: Toy
    at: int = 2

    @property
    def reads(self) -> frozenset[str]:
        return self.toy.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        if self.at == 0 or np.any(np.asarray(points["data"]) == self.at):
            raise FloatingPointError("no bound")
        return self.toy.bound(problem, points)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        return self.toy.evaluate(problem, points)


@pytest.mark.parametrize("at", [2, 0])
def test_a_bound_that_raises_is_told_and_loses_no_other_pruning(at: int) -> None:
    asked = (space_of(), Boundless(Toy(limit=4.0), at), PROBLEM, (TIME, MEMORY))
    found, sound = search(*asked), search(space_of(), Toy(limit=4.0), PROBLEM, (TIME, MEMORY))
    whole = next(iter(space_of().batches(10_000)))
    expected = int(np.count_nonzero(whole["data"] == at)) if at else whole.n
    assert found.bound_failed == {"FloatingPointError: no bound": expected}
    assert not sound.bound_failed
    assert np.array_equal(found.front.points.costs, sound.front.points.costs)
    assert bool(found.certificate.pruned) == bool(at)
    again = search(*asked, executor=Serial(), rows=7)
    assert again.bound_failed == found.bound_failed
    assert again.certificate == found.certificate


@dataclass(frozen=True)
class Broken:
    """A toy whose answers somebody got wrong."""

    wrong: Callable[[np.ndarray[Any, np.dtype[np.float64]]], Any]
    reads: frozenset[str] = frozenset({"devices"})

    def bound(self, problem: Problem, points: Columns) -> Metrics:  # noqa: ARG002
        return Metrics(n=points.n, value={})

    def evaluate(self, problem: Problem, points: Columns) -> Any:
        return self.wrong(np.asarray(problem.at(points)["devices"], np.float64))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda at: Metrics(n=len(at), value={"step_time": 3.0}), r"value\['step_time'\] as a float.*shape \(0,\)"),
        (lambda at: Metrics(n=len(at), value={"step_time": at[1:]}), r"as an array of shape \(\d+,\)"),
        (lambda at: Metrics(n=len(at), value={"step_time": at[:, None]}), r"as an array of shape \(0, 1\)"),
        (lambda at: Metrics(n=len(at), value={"step_time": at * 1j}), "an array of complex128"),
        (lambda at: Metrics(n=len(at), value={"step_time": at}, violation={"memory": 1}), r"violation\['memory'\] as an int"),
        (lambda at: Metrics(n=1 + len(at), value={}), "asked about 0 points and gave Metrics of n = 1"),
        (lambda at: {"step_time": at}, "a dict in place of Metrics"),
        (lambda at: at.min(), "Broken raised for a batch of no points.*ValueError"),
    ],
)
def test_a_model_that_breaks_its_contract_is_told_and_not_believed(wrong: Callable[..., Any], said: str) -> None:
    with pytest.raises(BrokenContract, match=said):
        search(space_of(), Broken(wrong), PROBLEM, (TIME,))
