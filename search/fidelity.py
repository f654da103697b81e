"""Refinement by fidelity with proof: a cheap model whose error has a known band decides what a dear model need not see.

The band says how far the dear figure may lie from the cheap one, as a factor: `band[metric] = (0.9, 1.2)` means dear figures
between 0.9 and 1.2 times the cheap ones. Every point is evaluated with the cheap model; the dear one sees a point only while
the best that the band allows could still enter the front. When none is left, every front member is proven under the band;
when the budget ends first, members that a point left unseen might still beat are told apart. For bands that are learnt
rather than known, see search/screening.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import CostModel
from search.budget import Budget
from search.certificate import Certificate
from search.constraint import Constraint
from search.front import Front, Objective, Points, beaten, non_dominated
from search.visiting import Task
from spaces.columns import Columns, FloatArray, IntArray
from spaces.problem import Problem
from spaces.space import Space

Band = tuple[float, float]
"""Least and greatest ratio of the dear figure to the cheap one."""

CHUNK = 64
"""Points that the dear model sees at a time."""
CHEAP = "bound by the cheap model"
"""The certificate's reason for points that the dear model did not have to see."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Refined:
    """A front by the dear model. `proven[i]` says whether no point left unseen can beat or match member i, shape (front,).

    `certificate` counts points of the space: `pruned` by the models' bounds and by the band, `evaluated` by the dear model,
    `unvisited` those that might still change the front. Complete means that all of the front is proven.
    """

    front: Front
    proven: NDArray[np.bool_]
    certificate: Certificate
    cheap_evaluated: int
    wall_s: float


def refine(
    space: Space,
    cheap: CostModel,
    dear: CostModel,
    problem: Problem,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint] = (),
    *,
    band: Mapping[str, Band],
    budget: Budget | None = None,
    rows: int = 1 << 17,
) -> Refined:
    """The front by the dear model, proven under the band; metrics absent from `band` agree exactly in both models.

    Violations of the models themselves (a memory that does not fit) must agree in both; limits on metrics with a band are
    judged by the dear model, where the cheap one cannot rule a point out. Raises ValueError for a band that is not
    0 < least ≤ greatest, and what `search.exact.search` raises.
    """
    clock = time.perf_counter()
    for metric, (least, greatest) in band.items():
        if not 0 < least <= greatest:
            raise ValueError(f"the band of {metric} must be 0 < least ≤ greatest, got ({least}, {greatest})")
    first = Task(cheap, problem, tuple(objectives), tuple(constraints))
    second = Task(dear, problem, tuple(objectives), tuple(constraints))
    first.none(space)
    front = Front(points=second.none(space), ties=np.empty(0, np.int64))
    found = _Screened.of(space, first, band, rows)
    most = (budget or Budget()).most(max(len(found.ordinals), 1))
    waiting = np.arange(len(found.ordinals))
    evaluated = failed = 0
    while len(waiting) and evaluated + failed < most:
        chosen = _next(found.best[waiting], min(CHUNK, most - evaluated - failed))
        seen = waiting[chosen]
        points, worst, lost = second.evaluated(found.columns(space, seen), found.ordinals[seen])
        front = front.extended(points, np.flatnonzero(worst <= 0))
        evaluated, failed = evaluated + len(points), failed + len(lost)
        waiting = np.delete(waiting, chosen)
        waiting = waiting[~beaten(found.best[waiting], front.points.costs)]
    front = front.ordered()
    proven = _proven(front.points, found.best[waiting])
    pruned = dict(found.pruned)
    pruned[CHEAP] = len(found.ordinals) - evaluated - failed - len(waiting)
    certificate = Certificate(
        space=found.space,
        pruned={name: count for name, count in pruned.items() if count},
        evaluated=evaluated,
        failed=failed + found.failed,
        unvisited=len(waiting),
    )
    return Refined(
        front=front,
        proven=proven,
        certificate=certificate,
        cheap_evaluated=found.evaluated,
        wall_s=time.perf_counter() - clock,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Screened:
    """Points that the cheap model leaves: where they are and the best that the band allows, costs (n, objectives)."""

    codes: NDArray[np.int32]
    ordinals: IntArray
    best: FloatArray
    pruned: dict[str, int]
    evaluated: int
    failed: int
    space: int

    @classmethod
    def of(cls, space: Space, task: Task, band: Mapping[str, Band], rows: int) -> _Screened:
        """Every point of the space by the cheap model."""
        codes, ordinals, best = [np.empty((len(space.axes), 0), np.int32)], [np.empty(0, np.int64)], []
        best.append(np.empty((0, len(task.objectives))))
        pruned: dict[str, int] = {}
        start = evaluated = failed = 0
        for batch in space.batches(rows):
            out = np.zeros(batch.n, np.bool_)
            for name, violation in task.proven(batch, {}).items():
                pruned[name] = pruned.get(name, 0) + int(np.count_nonzero((violation > 0) & ~out))
                out |= violation > 0
            alive = np.flatnonzero(~out)
            points, _, lost = task.evaluated(batch.take(alive), start + alive)
            evaluated, failed = evaluated + len(points), failed + len(lost)
            own = np.zeros(len(points), np.bool_)
            for name, violation in _optimistic(task, points, band).items():
                pruned[name] = pruned.get(name, 0) + int(np.count_nonzero((violation > 0) & ~own))
                own |= violation > 0
            kept = np.flatnonzero(~own)
            codes.append(np.stack([points.columns.codes[axis.name][kept].astype(np.int32) for axis in space.axes]))
            ordinals.append(points.ordinals[kept])
            best.append(_best(points.costs[kept], task.objectives, band))
            start += batch.n
        return cls(
            np.concatenate(codes, axis=1), np.concatenate(ordinals), np.concatenate(best), pruned, evaluated, failed, start
        )

    def columns(self, space: Space, rows: IntArray) -> Columns:
        """Some of the points."""
        return space.columns(self.codes[:, rows])


def _optimistic(task: Task, points: Points, band: Mapping[str, Band]) -> dict[str, FloatArray]:
    """Violations that no dear figure within the band can escape."""
    found = dict(points.metrics.violation)
    at = task.problem.at(points.columns)
    for constraint in task.constraints:
        value = points.metrics.value.get(constraint.metric)
        exact = value is None
        figure = np.broadcast_to(np.asarray(at[constraint.metric] if exact else value, np.float64), (len(points),))
        factor = 1.0 if exact else band.get(constraint.metric, (1.0, 1.0))[0 if constraint.upper else 1]
        found[constraint.name] = constraint.violation(figure * factor)
    return found


def _best(costs: FloatArray, objectives: Sequence[Objective], band: Mapping[str, Band]) -> FloatArray:
    """The least costs that the band allows: figures of positive metrics times the better end."""
    least = np.array([band.get(o.metric, (1.0, 1.0))[1 if o.maximize else 0] for o in objectives])
    return np.asarray(costs * least, np.float64)


def _next(best: FloatArray, count: int) -> IntArray:
    """Rows to look at next: of those whose best nothing else's best beats, spread over the first objective."""
    edge = np.flatnonzero(non_dominated(best))
    edge = edge[np.argsort(best[edge, 0], kind="stable")]
    return edge[np.unique(np.linspace(0, len(edge) - 1, min(count, len(edge))).round().astype(np.int64))]


def _proven(points: Points, waiting: FloatArray) -> NDArray[np.bool_]:
    """Which members no waiting point can beat even at its best."""
    if not len(waiting):
        return np.ones(len(points), np.bool_)
    return np.array([not (waiting <= cost).all(axis=1).any() for cost in points.costs], np.bool_).reshape(len(points))
