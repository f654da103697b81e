"""What any search method must hold, as a class of tests to join.

    from search.testing import MethodContract

    class TestMine(MethodContract):
        def method(self):
            return my_method          # (archive, generator) -> None

Run by pytest. The toy model counts what it is asked, so that a method that cheats is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from costmodels.metrics import Metrics
from search.budget import Budget
from search.front import Objective, hypervolume_share
from search.methods import Method
from search.result import Result
from search.sampled import GAVE_UP, sampled_search
from spaces.architecture import Architecture
from spaces.columns import Columns, FloatArray
from spaces.problem import Problem
from spaces.space import Axis, Space

PROBLEM = Problem(
    architecture=Architecture(
        name="toy", layers=4, hidden=64, heads=4, kv_heads=4, head_dim=16, ffn=128, vocab=256, max_sequence=64
    ),
    stack="megatron",
)
TIME = Objective(name="step_time", metric="step_time")
MEMORY = Objective(name="memory", metric="memory")
SPEED = Objective(name="tokens_per_second", metric="tokens_per_second", maximize=True)


def toy_space(sizes: Sequence[int] = (12, 10, 8, 3)) -> Space:
    """Axes a, b, c, … of these many levels from 1; from the third on each divides the product of the first two."""
    axes: list[Axis] = []
    for i, size in enumerate(sizes):
        name = chr(ord("a") + i)
        rules = () if i < 2 else (("does not divide a·b", lambda x, v: (x["a"] * x["b"]) % v == 0),)
        axes.append(Axis(name=name, symbols={name: np.arange(1, size + 1)}, rules=rules))
    return Space(tuple(axes))


@dataclass(frozen=True, slots=True, eq=False)
class Toy:
    """A smooth model with a trade: `b` buys time for memory. Counts every point evaluated.

    Memory above `limit` is a violation; points where (a + b + c) % `raises` is 0 raise, those where it is 1 give NaN.
    `bounds` says whether memory is bounded exactly before evaluation.
    """

    limit: float = 60.0
    raises: int = 0
    bounds: bool = True
    calls: list[list[tuple[float, ...]]] = field(default_factory=list)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset("abcdefgh")

    def bound(self, problem: Problem, points: Columns) -> Metrics:  # noqa: ARG002
        memory = self._memory(points)
        violation = {"memory": memory / self.limit - 1.0} if self.bounds else {}
        return Metrics(n=points.n, value={"memory": memory} if self.bounds else {}, violation=violation)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:  # noqa: ARG002
        self.calls.append([tuple(points.row(i).values()) for i in range(points.n)])
        a, b, c = (np.asarray(points[name], np.float64) for name in "abc")
        time = 100.0 / (b * np.sqrt(c)) + 2.0 * a + 0.5 * np.abs(c - 4)
        mixed = a + b + c
        if self.raises and (mixed % self.raises == 0).any():
            raise ZeroDivisionError("no time here")
        if self.raises:
            time = np.where(mixed % self.raises == 1, np.nan, time)
        memory = self._memory(points)
        return Metrics(
            n=points.n,
            value={"step_time": time, "memory": memory, "tokens_per_second": 1000.0 / time},
            violation={"memory": memory / self.limit - 1.0},
        )

    def _memory(self, points: Columns) -> FloatArray:
        a, b, c = (np.asarray(points[name], np.float64) for name in "abc")
        return np.asarray(4.0 * b + 6.0 * c + 30.0 / a, np.float64)

    def asked(self) -> Counter[tuple[float, ...]]:
        """How often each point was evaluated, calls that raised for the batch of one they ended in included."""
        return Counter(point for points in self.calls for point in points)


class MethodContract:
    """Tests of a search method; subclass it and give the method."""

    objectives: tuple[Objective, ...] = (TIME, MEMORY)
    share, seeds, quality = 0.1, 5, 0.5
    """With this share of the toy space, the median of so many seeds must reach this share of the exact hypervolume."""

    def method(self) -> Method:
        """The method under test."""
        raise NotImplementedError

    def look(self, model: Toy, budget: Budget, seed: int = 0, space: Space | None = None) -> Result:
        """One search of the toy."""
        return sampled_search(
            space or toy_space(), model, PROBLEM, self.objectives, method=self.method(), budget=budget, seed=seed
        )

    def test_spends_no_more_than_the_budget_and_asks_no_point_twice(self) -> None:
        model = Toy()
        result = self.look(model, Budget(points=40))
        assert set(model.asked().values()) == {1}
        assert sum(model.asked().values()) == result.certificate.evaluated <= 40
        assert result.certificate.evaluated >= 20  # it does not give up on a space it has hardly seen
        assert result.certificate.unvisited > 0
        assert result.stopped in ("sampled", GAVE_UP)

    def test_the_same_seed_asks_the_same_points(self) -> None:
        first, second, other = Toy(), Toy(), Toy()
        for model, seed in ((first, 3), (second, 3), (other, 4)):
            self.look(model, Budget(points=30), seed)
        assert first.calls == second.calls
        assert first.asked() != other.asked()

    def test_the_front_holds_no_dominated_and_no_infeasible_point(self) -> None:
        result = self.look(Toy(limit=45.0), Budget(points=60))
        costs = result.front.points.costs
        assert (result.front.points.metrics.value["memory"] <= 45.0).all()
        for i, cost in enumerate(costs):
            others = np.delete(costs, i, axis=0)
            assert not ((others <= cost).all(axis=1) & (others < cost).any(axis=1)).any()

    def test_failed_points_are_recorded_and_the_search_goes_on(self) -> None:
        result = self.look(Toy(raises=5), Budget(points=60))
        assert result.certificate.failed > 0
        assert sum(result.failed_by_reason.values()) == result.certificate.failed
        assert result.certificate.evaluated > 0
        assert {"ZeroDivisionError: no time here", "not a finite number: step_time"} >= {
            reason.split(",")[0] for reason in result.failed_by_reason
        }

    def test_where_nothing_is_feasible_the_closest_point_is_told(self) -> None:
        result = self.look(Toy(limit=1.0, bounds=False), Budget(points=30))
        assert result.feasible == len(result.front) == 0
        assert result.closest is not None
        assert result.closest.lacks["memory"] > 0

    def test_a_space_of_one_point_and_one_of_none(self) -> None:
        assert self.look(Toy(), Budget(points=5), space=toy_space((1, 1, 1, 1))).certificate.evaluated == 1
        assert self.look(Toy(), Budget(points=5), space=toy_space((0, 1, 1, 1))).certificate.space == 0

    def test_finds_much_of_the_front(self) -> None:
        whole = self.exact()
        budget = Budget(share=self.share)
        shares = [
            hypervolume_share(found.front.points.values(self.objectives), whole, self.objectives)
            for found in (self.look(Toy(), budget, seed) for seed in range(self.seeds))
        ]
        assert float(np.median(shares)) >= self.quality

    def exact(self) -> FloatArray:
        """Values of the exact front."""
        from search.exact import search

        found: Any = search(toy_space(), Toy(), PROBLEM, self.objectives)
        return np.asarray(found.front.points.values(self.objectives), np.float64)
