"""Objectives, the non-dominated front over them, and the best points by each.

A front grows batch by batch and holds only its own points. Costs are the objectives turned so that less is better.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import MAXIMISED, Metrics
from spaces.columns import Bindings, Columns, FloatArray, IntArray

_SCREENS = 16  # front points that a batch is screened against before it is sorted
_FEW = 256  # front points that are all compared with another front before the two are sorted
_ROUNDS = 8  # times a batch is screened against its own best


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is to be made small or large: a metric of the cost model or a symbol of the design point (`devices`)."""

    name: str
    metric: str
    maximize: bool = False

    @property
    def natural(self) -> bool:
        """Whether the direction is the one in which a cost model's bounds of the metric are optimistic."""
        return self.maximize == (self.metric in MAXIMISED)

    def cost(self, metrics: Metrics, at: Bindings) -> FloatArray:
        """The objective turned so that less is better, shape (n,). KeyError when it is neither a metric nor a symbol."""
        value = metrics.value[self.metric] if self.metric in metrics.value else at[self.metric]
        array = np.broadcast_to(np.asarray(value, np.float64), (at.n,))
        return -array if self.maximize else array


def parse_objective(text: str, known: Collection[str] | None = None) -> Objective:
    """An objective from its name in a file: `step_time`, `mfu`, `max:x` or `-x` to maximise x, `min:x` to minimise it.

    A bare name is maximised when it is in `MAXIMISED`. With `known` metrics and symbols given, ValueError names the nearest
    of them for a name that is not there.
    """
    name = text.strip()
    direction = "max" if name.startswith("-") else None
    name = name.removeprefix("-")
    if direction is None and name.startswith(("max:", "min:")):
        direction, name = name[:3], name[4:]
    name = name.strip()
    if known is not None and name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4) or sorted(known)
        raise ValueError(f"objective '{name}' does not exist; the nearest are {', '.join(near)}")
    return Objective(name=name, metric=name, maximize=direction == "max" or (direction is None and name in MAXIMISED))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """n evaluated design points: where they are, what they cost, and their place in the order of the space.

    `costs` has shape (n, objectives), less is better; `ordinals` has shape (n,).
    """

    columns: Columns
    metrics: Metrics
    costs: FloatArray
    ordinals: IntArray

    def __len__(self) -> int:
        return len(self.ordinals)

    def take(self, rows: IntArray) -> Points:
        """The given rows."""
        return Points(
            columns=self.columns.take(rows),
            metrics=self.metrics.take(rows),
            costs=self.costs[rows],
            ordinals=self.ordinals[rows],
        )

    def values(self, objectives: Sequence[Objective]) -> FloatArray:
        """The objectives as people read them, shape (n, objectives)."""
        signs = np.array([-1.0 if objective.maximize else 1.0 for objective in objectives], np.float64)
        return np.asarray(self.costs * signs, np.float64)


def join(first: Points, second: Points) -> Points:
    """The rows of both, in order; their columns have the same levels."""
    if not len(first):
        return second
    if not len(second):
        return first
    return Points(
        columns=_join_columns(first.columns, second.columns),
        metrics=_join_metrics(first.metrics, second.metrics),
        costs=np.concatenate([first.costs, second.costs]),
        ordinals=np.concatenate([first.ordinals, second.ordinals]),
    )


def _join_columns(first: Columns, second: Columns) -> Columns:
    codes = {axis: np.concatenate([code, second.codes[axis]]) for axis, code in first.codes.items()}
    return Columns(n=first.n + second.n, codes=codes, levels=first.levels)


def _join_metrics(first: Metrics, second: Metrics) -> Metrics:
    """Metrics of both; a part that one of them lacks is 0 there, a metric that one lacks is NaN."""

    def rows(a: Any, b: Any, missing: float) -> dict[str, FloatArray]:
        return {
            name: np.concatenate(
                [side[name] if name in side else np.full(n, missing) for side, n in ((a, first.n), (b, second.n))]
            )
            for name in (*a, *(name for name in b if name not in a))
        }

    parts = {
        metric: rows(first.parts.get(metric, {}), second.parts.get(metric, {}), 0.0)
        for metric in (*first.parts, *(metric for metric in second.parts if metric not in first.parts))
    }
    evidence = [part for part in (first.evidence, second.evidence) if part is not None]
    return Metrics(
        n=first.n + second.n,
        value=rows(first.value, second.value, np.nan),
        low=rows(first.low, second.low, np.nan),
        high=rows(first.high, second.high, np.nan),
        parts=parts,
        violation=rows(first.violation, second.violation, np.nan),
        evidence=np.concatenate(evidence) if len(evidence) == 2 else None,
    )


def non_dominated(costs: FloatArray) -> NDArray[np.bool_]:
    """Which rows of costs (n, k), all to be minimised, no other row dominates, shape (n,).

    A row dominates another when it is nowhere larger and somewhere smaller. Of rows that are exactly equal the first is
    kept. Raises ValueError for NaN, which compares with nothing.
    """
    if np.isnan(costs).any():
        raise ValueError("costs hold NaN: a point whose objective is unknown can be neither on a front nor off it")
    candidates = _screened(costs, np.arange(len(costs)))
    kept = candidates[_unbeaten(costs[candidates])]
    first, _ = _first_of_ties(costs[kept])
    mask = np.zeros(len(costs), np.bool_)
    mask[kept[first]] = True
    return mask


def _unbeaten(costs: FloatArray) -> NDArray[np.bool_]:
    """Rows that nothing dominates, all of exact ties included."""
    if costs.shape[1] == 1 or len(costs) < 2:
        return np.asarray((costs == costs.min(axis=0, initial=np.inf)).all(axis=1))
    import moocore

    return np.asarray(moocore.is_nondominated(np.ascontiguousarray(costs), keep_weakly=True), np.bool_)


def _first_of_ties(costs: FloatArray) -> tuple[IntArray, IntArray]:
    """First row of each distinct row (ascending), and the group each row belongs to, numbered in that order."""
    if not len(costs):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.lexsort(costs.T[::-1])  # stable: within a group the rows keep their order
    starts = np.r_[True, (np.diff(costs[order], axis=0) != 0).any(axis=1)]
    by_value = order[starts]
    rank = np.argsort(np.argsort(by_value))
    group = np.empty(len(costs), np.int64)
    group[order] = rank[np.cumsum(starts) - 1]
    return np.sort(by_value), group


def beaten(costs: FloatArray, by: FloatArray) -> NDArray[np.bool_]:
    """Which rows of costs (n, k) some row of `by` (m, k) dominates, shape (n,)."""
    alive = np.arange(len(costs))
    for rival in by:
        if not len(alive):
            break
        alive = alive[~_dominated(costs[alive], rival)]
    mask = np.ones(len(costs), np.bool_)
    mask[alive] = False
    return mask


def _dominated(costs: FloatArray, rival: FloatArray) -> NDArray[np.bool_]:
    """Which rows of costs (n, k) one rival (k,) dominates."""
    nowhere_smaller = np.ones(len(costs), np.bool_)
    somewhere_larger = np.zeros(len(costs), np.bool_)
    for column, value in zip(costs.T, rival, strict=True):
        nowhere_smaller &= column >= value
        somewhere_larger |= column > value
    return nowhere_smaller & somewhere_larger


def _screened(costs: FloatArray, rows: IntArray) -> IntArray:
    """The rows less some that others of them dominate: a cheap pass that leaves little to sort."""
    left = costs[rows]
    low, span = _scale(left)
    score = ((left - low) / span).sum(axis=1)
    for _ in range(_ROUNDS):
        if len(rows) < _SCREENS:
            break
        rival = left[np.argmin(score)]
        score[(left == rival).all(axis=1)] = np.inf  # each rival is asked once
        keep = ~_dominated(left, rival)
        rows, left, score = rows[keep], left[keep], score[keep]
        if keep.mean() > 0.95:
            break
    return rows


def _scale(costs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Smallest value and range of each column; a range of 0 counts as 1."""
    if not len(costs):
        return np.zeros(costs.shape[1]), np.ones(costs.shape[1])
    low = costs.min(axis=0)
    span = costs.max(axis=0) - low
    return low, np.where(span > 0, span, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Front:
    """Points that no feasible point seen so far dominates, in the order of the space.

    `ties[i]` counts the other points whose objectives are exactly those of point i; the first of them is the one held.
    """

    points: Points
    ties: IntArray

    def __len__(self) -> int:
        return len(self.points)

    def screens(self) -> FloatArray:
        """A few rows of costs that dominate much, (m, k): the best of each objective and the best sums."""
        costs = self.points.costs
        if len(costs) <= _SCREENS:
            return costs
        low, span = _scale(costs)
        chosen = {*costs.argmin(axis=0).tolist(), *np.argsort(((costs - low) / span).sum(axis=1))[:_SCREENS].tolist()}
        return costs[sorted(chosen)]

    def extended(self, points: Points, feasible: IntArray) -> Front:
        """The front after the `feasible` rows of points that come later in the order of the space."""
        rows = feasible[~beaten(points.costs[feasible], self.screens())]
        if not len(rows):
            return self
        return self._with(points, _screened(points.costs, rows), np.zeros(len(points), np.int64))

    def joined(self, later: Front) -> Front:
        """The front of both, where `later` comes from points that come later in the order of the space."""
        rivals = self.points.costs if len(self) <= _FEW else self.screens()
        rows = np.flatnonzero(~beaten(later.points.costs, rivals))
        return self._with(later.points, rows, later.ties) if len(rows) else self

    def _with(self, points: Points, rows: IntArray, tied: IntArray) -> Front:
        """The front after some rows of points; `tied` counts the points that equal each of the points."""
        held = len(self.points)
        costs = np.concatenate([self.points.costs, points.costs[rows]]) if held else points.costs[rows]
        kept = np.flatnonzero(_unbeaten(costs))
        first, group = _first_of_ties(costs[kept])
        counts = np.concatenate([self.ties + 1, tied[rows] + 1])[kept]
        ties = np.bincount(group, counts, len(first)).astype(np.int64) - 1
        survivors = kept[first]
        old, new = survivors[survivors < held], survivors[survivors >= held] - held
        if not len(new):
            return Front(points=self.points.take(old), ties=ties)
        return Front(points=join(self.points.take(old), points.take(rows[new])), ties=ties)

    def ordered(self) -> Front:
        """The same front by ascending cost of the first objective, then the others."""
        order = np.lexsort(self.points.costs.T[::-1])
        return Front(points=self.points.take(order), ties=self.ties[order])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopList:
    """The `limit` feasible points best by one objective; ties go by the other objectives, then by order in the space."""

    objective: int
    limit: int
    points: Points

    def last(self) -> float:
        """The cost that a point must not exceed to enter; infinite while the list is not full."""
        return float(self.points.costs[-1, self.objective]) if len(self.points) == self.limit > 0 else np.inf

    def extended(self, points: Points, feasible: IntArray) -> TopList:
        """The list after the `feasible` rows of points that come later in the order of the space."""
        cost = points.costs[feasible, self.objective]
        rows = feasible[cost <= self.last()]
        if len(rows) > self.limit > 0:
            near = points.costs[rows, self.objective]
            rows = rows[near <= np.partition(near, self.limit - 1)[self.limit - 1]]
        if not len(rows) or self.limit <= 0:
            return self
        rows = rows[self._order(points.costs[rows])[: self.limit]]
        both = join(self.points, points.take(rows))
        order = np.lexsort((both.ordinals, *self._keys(both.costs)))[: self.limit]
        return TopList(objective=self.objective, limit=self.limit, points=both.take(order))

    def _order(self, costs: FloatArray) -> IntArray:
        return np.lexsort(self._keys(costs))

    def _keys(self, costs: FloatArray) -> tuple[FloatArray, ...]:
        """Sort keys for lexsort, the most important last."""
        others = [j for j in range(costs.shape[1]) if j != self.objective]
        return tuple(costs[:, j] for j in (*reversed(others), self.objective))


def hypervolume(costs: FloatArray, reference: FloatArray) -> float:
    """Volume that costs (n, k) dominate below a reference point (k,); points beyond it count nothing."""
    inside = costs[(costs < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if costs.shape[1] == 1:
        return float(reference[0] - inside.min())
    import moocore

    return float(moocore.hypervolume(np.ascontiguousarray(inside), ref=reference))


def hypervolume_share(values: FloatArray, exact: FloatArray, objectives: Sequence[Objective]) -> float:
    """Hypervolume of objective values (n, k) as a share of that of the exact front (m, k).

    Against the exact front's worst value of each objective plus 10 % of its range; logarithmic where its largest value is
    more than ten times the smallest. Raises ValueError for an exact front of no points.
    """
    if not len(exact):
        raise ValueError("an exact front of no points has no hypervolume to compare with")
    found, best = np.array(values, np.float64), np.array(exact, np.float64)
    for j, objective in enumerate(objectives):
        low, high = float(best[:, j].min()), float(best[:, j].max())
        if low > 0 and high > 10 * low:
            found[:, j], best[:, j] = np.log(np.maximum(found[:, j], np.finfo(float).tiny)), np.log(best[:, j])
        if objective.maximize:
            found[:, j], best[:, j] = -found[:, j], -best[:, j]
    _, span = _scale(best)
    reference = best.max(axis=0) + 0.1 * span
    return hypervolume(found, reference) / hypervolume(best, reference)
