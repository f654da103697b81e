"""Screen every plan by a cheap model, then evaluate by a dear one those that can still change the front.

The cheap search is exact and certified. Its figures, made better by the gaps seen between both models so far, bound what the
dear model may find: a plan whose bound the front already beats is left alone. Gaps are learnt as the dear figures come in, so
what is left alone is left on evidence, not on proof, and the answer says how many plans each stage saw.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import CostModel
from search.certificate import Failure
from search.constraint import Constraint
from search.elsewhere import Elsewhere, cpu_elsewhere, evaluating
from search.exact import search
from search.execution import Executor
from search.front import Front, Objective, Points, TopList, beaten, join, non_dominated
from search.packing import packed_points, unpacked_points
from search.result import Closest, Progress, Result
from search.store import Ledger, Shelf
from search.visiting import Task
from spaces.columns import Columns, FloatArray, IntArray
from spaces.problem import Problem
from spaces.space import Space

CHUNK = 12
"""Plans that the dear model sees before the gaps are looked at again."""
RELAXED = 0.5
"""Share by which a plan may miss a constraint in the cheap model and still be a contender."""
SHOWN = 20
"""Failed plans that are kept to be shown."""
FIRST_GAP = 0.8
"""Dear figure over cheap figure that is thought possible before any is known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fidelity:
    """A cost model as one stage of an answer: what it is called, how many plans it may see (0: all), and the metrics on which
    it agrees with the stage before."""

    name: str
    model: CostModel
    most: int = 0
    agrees: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One model's part of an answer: how many plans it saw."""

    name: str
    saw: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Screened:
    """What both stages found: a result whose front, lists and closest plan are the dear model's.

    `left` plans might still change the front and were not evaluated, for want of budget; `gaps` are the ratios of dear to cheap
    costs that bounded the rest, by objective. Of each member of the front, (front,): `proven` says whether no plan that the
    dear model did not see can beat or match it whatever that model says of the plan, by the figures on which both models agree;
    `unchallenged` whether none of those left can at the gaps seen, which is evidence and no proof. A member that is neither is
    the best of what was looked at.
    """

    result: Result
    stages: tuple[Stage, ...]
    left: int
    gaps: tuple[float, ...]
    proven: NDArray[np.bool_]
    unchallenged: NDArray[np.bool_]


def screen(
    space: Space,
    cheap: Fidelity,
    dear: Fidelity,
    problem: Problem,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint] = (),
    *,
    top: int = 10,
    sample: int = 100_000,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    executor: Executor | None = None,
    ledger: Ledger | None = None,
) -> Screened:
    """The front by the dear model, of the plans that it may see. Raises what `search.exact.search` raises.

    With a `ledger` the slices of the cheap stage and every batch of the dear model are put on record there, figures included,
    and taken from it when the same search is asked again. An `executor` lists for the cheap model, and evaluates for the dear
    one where that is worth it (search/elsewhere.py). Ctrl-C or `cancelled()` ends it with what was found so far.
    """
    clock, processor = time.perf_counter(), time.process_time()
    relaxed = [_relaxed(constraint, dear.agrees) for constraint in constraints]
    most = dear.most or space.size()
    more: dict[str, Any] = {} if executor is None else {"executor": executor}
    found = search(
        space,
        cheap.model,
        problem,
        objectives,
        relaxed,
        top=top,
        sample=max(sample, 1 << 21),
        seed=seed,
        progress=progress,
        cancelled=cancelled,
        ledger=None if ledger is None else Shelf(ledger, later=False),
        **more,
    )
    ledger = None if ledger is None else Shelf(ledger, later=True)
    contenders = _Contenders.of(found, objectives)
    seen = _Seen.none(found)
    agreed = np.array([objective.metric in dear.agrees for objective in objectives])
    task = Task(dear.model, problem, tuple(objectives), tuple(constraints))
    known = {} if ledger is None else ledger.slices()
    stopped = found.stopped
    with evaluating(task, executor) as question:
        try:
            while len(seen.rows) < most and not stopped:
                rows = contenders.next(seen, min(CHUNK, most - len(seen.rows)))
                if not len(rows):
                    break
                place = len(seen.rows)
                if ledger is not None and known.get(place) == len(rows):
                    judged = unpacked_points(ledger.found(place)[0], seen.points)
                else:
                    judged = contenders.judged(question, rows)
                    if ledger is not None:
                        ledger.keep(place, len(rows), packed_points(*judged), 0.0)
                seen = seen.after(contenders, rows, *judged, agreed)
                if cancelled is not None and cancelled():
                    stopped = "cancelled"
        except KeyboardInterrupt:
            stopped = "interrupted"
    left = contenders.possible(seen)
    result = dataclasses.replace(
        _answer(found, seen, task, top, sample),
        stopped=stopped,
        wall_s=time.perf_counter() - clock,
        cpu_s=time.process_time() - processor + cpu_elsewhere(question),
    )
    looked = found.certificate.evaluated + sum(found.certificate.pruned.values())
    stages = (Stage(name=cheap.name, saw=looked), Stage(name=dear.name, saw=len(seen.rows)))
    rivals = contenders.bounds(seen)[left]
    front = result.front.points.costs
    proven = _proven(found, contenders.ordinals[seen.rows], front, agreed, objectives)
    unchallenged = [not (rivals <= cost).all(axis=1).any() for cost in front]
    return Screened(
        result=result,
        stages=stages,
        left=len(left),
        gaps=tuple(float(gap) for gap in seen.gaps),
        proven=proven,
        unchallenged=proven | np.array(unchallenged, np.bool_),
    )


def _proven(
    found: Result, judged: IntArray, front: FloatArray, agreed: NDArray[np.bool_], objectives: Sequence[Objective]
) -> NDArray[np.bool_]:
    """Which members of a front, costs (m, objectives), no plan can match that the dear model did not judge, shape (m,).

    Of such a plan only the costs on which both models agree are known: the least that can be said of the others is nothing.
    """
    whole = found.certificate.complete and len(found.sample) == found.certificate.evaluated
    if not whole:  # there are plans of which nothing is known
        return np.zeros(len(front), np.bool_)
    signs = np.array([-1.0 if objective.maximize else 1.0 for objective in objectives])
    rivals = (found.sample.values * signs)[~np.isin(found.sample.ordinals, judged)][:, agreed]
    return np.array([not (rivals <= cost).all(axis=1).any() for cost in front[:, agreed]], np.bool_)


def _relaxed(constraint: Constraint, exact: frozenset[str]) -> Constraint:
    """The constraint as the cheap model may judge by it."""
    if constraint.metric in exact:
        return constraint
    factor = 1.0 + RELAXED if constraint.upper else 1.0 / (1.0 + RELAXED)
    return dataclasses.replace(constraint, limit=constraint.limit * factor)


@dataclass(frozen=True, slots=True, eq=False)
class _Contenders:
    """Plans that the cheap model holds feasible, one of those with equal costs; `costs` (n, objectives), less is better."""

    columns: Columns
    costs: FloatArray
    ordinals: IntArray

    @classmethod
    def of(cls, found: Result, objectives: Sequence[Objective]) -> _Contenders:
        signs = np.array([-1.0 if objective.maximize else 1.0 for objective in objectives])
        costs = found.sample.values * signs
        rows = np.flatnonzero(found.sample.feasible)
        _, first = np.unique(np.round(np.log(np.abs(costs[rows]) + 1e-300), 7), axis=0, return_index=True)
        rows = rows[np.sort(first)] if len(rows) else rows
        return cls(found.sample.columns.take(rows), costs[rows], found.sample.ordinals[rows])

    def judged(self, task: Task | Elsewhere, rows: IntArray) -> tuple[Points, FloatArray, dict[int, str]]:
        """Some of them by the dear model: those it can predict, their greatest violations, and by ordinal why others fail."""
        points, worst, failed = task.evaluated(self.columns.take(rows), self.ordinals[rows])
        lost = rows[~np.isin(self.ordinals[rows], points.ordinals)]
        return points, worst, {int(ordinal): why for ordinal, (_, why) in zip(self.ordinals[lost], failed, strict=True)}

    def possible(self, seen: _Seen) -> IntArray:
        """Rows not yet evaluated whose bound no evaluated plan beats."""
        waiting = np.setdiff1d(np.arange(len(self.costs)), seen.rows)
        if not len(waiting) or not len(seen.front):
            return waiting
        return waiting[~beaten(self.bounds(seen)[waiting], seen.front)]

    def bounds(self, seen: _Seen) -> FloatArray:
        """Costs at their best by the gaps seen, (n, objectives)."""
        better = np.where(self.costs >= 0, seen.gaps, 1.0 / seen.gaps)
        return np.asarray(self.costs * better)

    def next(self, seen: _Seen, count: int) -> IntArray:
        """The next rows to evaluate: those that nothing else waiting dominates, spread over the first objective."""
        waiting = self.possible(seen)
        if not len(waiting):
            return waiting
        edge = waiting[non_dominated(self.costs[waiting])]
        edge = edge[np.argsort(self.costs[edge, 0], kind="stable")]
        return edge[np.unique(np.linspace(0, len(edge) - 1, min(count, len(edge))).round().astype(np.int64))]


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What the dear model said: the rows of the contenders it was asked about, the points that it could predict, their greatest
    violations, why it failed for others, and the gaps."""

    rows: IntArray
    points: Points
    worst: FloatArray
    lost: Mapping[int, str]
    ratios: FloatArray
    gaps: FloatArray

    @classmethod
    def none(cls, found: Result) -> _Seen:
        k = len(found.objectives)
        none = np.empty(0, np.int64)
        return cls(none, found.front.points.take(none), np.empty(0), {}, np.empty((0, k)), np.full(k, FIRST_GAP))

    @property
    def front(self) -> FloatArray:
        """Costs of the feasible points, (m, objectives)."""
        return self.points.costs[np.flatnonzero(self.worst <= 0)]

    def after(
        self,
        contenders: _Contenders,
        rows: IntArray,
        points: Points,
        worst: FloatArray,
        lost: Mapping[int, str],
        agreed: NDArray[np.bool_],
    ) -> _Seen:
        """With some more contenders judged."""
        costs = points.costs
        cheap = contenders.costs[rows[np.isin(contenders.ordinals[rows], points.ordinals)]]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(costs >= 0, costs / cheap, cheap / costs)
        ratios = np.concatenate([self.ratios, np.where(np.isfinite(ratio) & (ratio > 0), ratio, 1.0)])
        gaps = np.clip(np.quantile(ratios, 0.1, axis=0), 0.05, 1.0) if len(ratios) else self.gaps
        return _Seen(
            np.concatenate([self.rows, rows]),
            join(self.points, points),
            np.concatenate([self.worst, worst]),
            {**self.lost, **lost},
            ratios,
            np.where(agreed, 1.0, gaps),
        )


def _answer(
    found: Result,
    seen: _Seen,
    task: Task,
    top: int,
    sample: int,
) -> Result:
    """The cheap result with the dear model's front, lists and closest plan in place of its own; plans for which it fails are
    failed."""
    order = np.argsort(seen.points.ordinals, kind="stable")
    points, worst = seen.points.take(order), seen.worst[order]
    none = points.take(np.empty(0, np.int64))
    feasible = np.flatnonzero(worst <= 0)
    front = Front(points=none, ties=np.empty(0, np.int64)).extended(points, feasible).ordered()
    lists = {
        objective.name: TopList(objective=j, limit=top, points=none).extended(points, feasible).points
        for j, objective in enumerate(task.objectives)
    }
    closest = found.closest
    if not len(feasible) and len(points):
        row = np.array([int(np.argmin(worst))])
        closest = Closest(points=points.take(row), lacks=_lacks(points.take(row), task))
    kept = found.sample
    if len(kept) > sample:
        rows = np.linspace(0, len(kept) - 1, sample).astype(np.int64)
        kept = dataclasses.replace(
            kept,
            columns=kept.columns.take(rows),
            values=kept.values[rows],
            feasible=kept.feasible[rows],
            ordinals=kept.ordinals[rows],
        )
    return dataclasses.replace(
        found,
        constraints=task.constraints,
        certificate=dataclasses.replace(
            found.certificate,
            evaluated=found.certificate.evaluated - len(seen.lost),
            failed=found.certificate.failed + len(seen.lost),
        ),
        failures=found.failures + tuple(_failures(found, seen)),
        failed_by_reason=dict(Counter(found.failed_by_reason) + Counter(seen.lost.values())),
        front=front,
        top=lists,
        closest=None if len(feasible) else closest,
        feasible=len(feasible),
        sample=kept,
    )


def _failures(found: Result, seen: _Seen) -> Iterator[Failure]:
    """The first of the plans for which the dear model fails."""
    for ordinal, reason in list(seen.lost.items())[: max(0, SHOWN - len(found.failures))]:
        row = int(np.flatnonzero(found.sample.ordinals == ordinal)[0])
        yield Failure(point=found.sample.columns.row(row), reason=reason)


def _lacks(point: Points, task: Task) -> dict[str, float]:
    """Every constraint that a point breaks, and by how much."""
    return {name: float(over[0]) for name, over in task.violations(point.metrics, point.columns).items() if over[0] > 0}
