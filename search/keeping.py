"""What an exact search keeps between batches: the front, the top lists, a uniform sample, tallies.

All of it is bounded, and none depends on how the space was cut: states of consecutive slices join to the state of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import Metrics
from search.certificate import Failure
from search.front import Front, Objective, Points, TopList, beaten
from search.result import Progress, Sample
from spaces.columns import Columns, FloatArray, IntArray

NEAREST = 64  # pruned points that are evaluated when nothing is feasible
_TOLD = 20  # failed points that are kept to be shown


def least(values: FloatArray, rows: IntArray, count: int) -> IntArray:
    """The `count` rows with the least values, least first; of equal ones the first."""
    if len(rows) > count:
        rows = rows[values[rows] <= np.partition(values[rows], count - 1)[count - 1]]
    return rows[np.argsort(values[rows], kind="stable")[:count]]


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """What became of one batch. `evaluated` and the rest hold ordinals of the space where they hold rows."""

    n: int
    start: int
    points: Points
    worst: FloatArray  # (evaluated,) greatest violation
    pruned: dict[str, int]
    near: Columns | None  # pruned points, their bounds and ordinals
    near_bounds: FloatArray
    near_ordinals: IntArray
    failed: list[tuple[Columns, str]]
    broken: dict[str, int] = field(default_factory=dict)  # points whose bound raised, by reason

    @property
    def places(self) -> IntArray:
        """Where in the batch the points evaluated stand, (evaluated,)."""
        return self.points.ordinals - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Reservoir:
    """The evaluated points with the smallest random keys: a uniform sample that does not depend on the batches."""

    limit: int
    columns: Columns
    costs: FloatArray
    feasible: NDArray[np.bool_]
    ordinals: IntArray
    keys: FloatArray
    below: float = np.inf  # no key from here on can be among the smallest

    def extended(self, points: Points, feasible: NDArray[np.bool_], keys: FloatArray) -> Reservoir:
        """The reservoir after later points with their keys, all of shape (n,)."""
        rows = np.flatnonzero(keys < self.below) if self.limit > 0 else np.empty(0, np.int64)
        if not len(rows):
            return self
        codes = {axis: np.concatenate([held, points.columns.codes[axis][rows]]) for axis, held in self.columns.codes.items()}
        grown = Reservoir(
            self.limit,
            Columns(n=len(self.keys) + len(rows), codes=codes, levels=self.columns.levels),
            np.concatenate([self.costs, points.costs[rows]]),
            np.concatenate([self.feasible, feasible[rows]]),
            np.concatenate([self.ordinals, points.ordinals[rows]]),
            np.concatenate([self.keys, keys[rows]]),
            self.below,
        )
        return grown.trimmed() if len(grown.keys) > 2 * self.limit else grown

    def trimmed(self) -> Reservoir:
        """The smallest `limit` keys only, in the order of the space."""
        if len(self.keys) <= self.limit:
            return self
        last = np.partition(self.keys, self.limit - 1)[self.limit - 1]
        kept = self.keys < last
        kept[np.flatnonzero(self.keys == last)[: self.limit - np.count_nonzero(kept)]] = True
        return self._taken(np.flatnonzero(kept), float(last))

    def under(self, below: float) -> Reservoir:
        """The keys up to one only."""
        return self if below == np.inf else self._taken(np.flatnonzero(self.keys <= below), below)

    def _taken(self, rows: IntArray, below: float) -> Reservoir:
        return Reservoir(
            self.limit,
            self.columns.take(rows),
            self.costs[rows],
            self.feasible[rows],
            self.ordinals[rows],
            self.keys[rows],
            below,
        )

    def sample(self, objectives: tuple[Objective, ...]) -> Sample:
        """The sample as people read it."""
        kept = self.trimmed()
        signs = np.array([-1.0 if objective.maximize else 1.0 for objective in objectives])
        return Sample(columns=kept.columns, values=kept.costs * signs, feasible=kept.feasible, ordinals=kept.ordinals)


@final
class Samples:
    """The reservoirs of consecutive slices, put together only when many rows wait: each row is moved once or twice.

    `below` is the key from which on no other point can be in the sample; it is kept from keys alone, which may be seen before
    the reservoir that they are of has its turn.
    """

    def __init__(self, first: Reservoir) -> None:
        self.below = first.below
        self._parts = [first]
        self._limit = first.limit
        self._keys = first.keys
        self._rows = len(first.keys)

    def add(self, later: Reservoir) -> None:
        """The reservoir of the slice that comes next; its keys have been seen."""
        self._parts.append(later)
        self._rows += len(later.keys)
        if self._rows > 3 * later.limit:
            self._parts = [self.joined()]
            self._rows = len(self._parts[0].keys)

    def see(self, keys: FloatArray) -> None:
        """The keys of some slice, each slice once."""
        limit = self._limit
        self._keys = np.concatenate([self._keys, keys[keys <= self.below]])
        if len(self._keys) > limit + limit // 8:
            if limit > 0:
                self.below = float(np.partition(self._keys, limit - 1)[limit - 1])
            self._keys = self._keys[self._keys <= self.below][:limit]

    def joined(self) -> Reservoir:
        """One reservoir of all of them."""
        parts = [part.under(self.below) for part in self._parts]
        first = parts[0]
        codes = {axis: np.concatenate([part.columns.codes[axis] for part in parts]) for axis in first.columns.codes}
        keys = np.concatenate([part.keys for part in parts])
        return Reservoir(
            first.limit,
            Columns(n=len(keys), codes=codes, levels=first.columns.levels),
            np.concatenate([part.costs for part in parts]),
            np.concatenate([part.feasible for part in parts]),
            np.concatenate([part.ordinals for part in parts]),
            keys,
            self.below,
        ).trimmed()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class State:
    """All that a search remembers between batches; `after` returns the next one whole."""

    front: Front
    tops: tuple[TopList, ...]
    reservoir: Reservoir
    visited: int = 0
    evaluated: int = 0
    feasible: int = 0
    failed: int = 0
    pruned: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    closest: Points | None = None
    closest_worst: float = np.inf
    near: Columns | None = None
    near_bounds: FloatArray = field(default_factory=lambda: np.empty(0))
    near_ordinals: IntArray = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def empty(cls, none: Points, objectives: int, top: int, sample: int) -> State:
        """Before the first batch; `none` are no points."""
        return cls(
            front=Front(points=none, ties=np.empty(0, np.int64)),
            tops=tuple(TopList(objective=j, limit=top, points=none) for j in range(objectives)),
            reservoir=Reservoir(sample, none.columns, none.costs, np.empty(0, np.bool_), none.ordinals, np.empty(0)),
        )

    def after(self, visit: Visit, keys: FloatArray) -> State:
        """The state after one more batch; `keys` (evaluated,) are the random keys of the points evaluated."""
        fits = visit.worst <= 0
        rows = np.flatnonzero(fits)
        feasible = self.feasible + len(rows)
        reasons = dict(self.reasons)
        for _, reason in visit.failed:
            reasons[reason] = reasons.pop(reason, 0) + 1
        told = visit.failed[: max(0, _TOLD - len(self.failures))]
        state = replace(
            self,
            front=self.front.extended(visit.points, rows),
            tops=tuple(kept.extended(visit.points, rows) for kept in self.tops),
            reservoir=self.reservoir.extended(visit.points, fits, keys),
            visited=self.visited + visit.n,
            evaluated=self.evaluated + len(visit.points),
            feasible=feasible,
            failed=self.failed + len(visit.failed),
            pruned=_summed(self.pruned, visit.pruned),
            reasons=reasons,
            broken=_summed(self.broken, visit.broken),
            failures=self.failures + tuple(Failure(point=point.row(0), reason=reason) for point, reason in told),
        )
        if feasible:
            return state
        if len(visit.points) and visit.worst.min() < self.closest_worst:
            row = int(np.argmin(visit.worst))
            state = replace(state, closest=visit.points.take(np.array([row])), closest_worst=float(visit.worst[row]))
        return state._nearer(visit.near, visit.near_bounds, visit.near_ordinals)

    def then(self, later: State) -> State:
        """The state after what another search found in the points that come next."""
        kept = later.reservoir
        sampled = Points(
            columns=kept.columns, metrics=Metrics(n=len(kept.keys), value={}), costs=kept.costs, ordinals=kept.ordinals
        )
        reasons = dict(self.reasons)
        for reason, count in later.reasons.items():
            reasons[reason] = reasons.pop(reason, 0) + count
        state = replace(
            self,
            front=self.front.joined(later.front),
            tops=tuple(a.extended(b.points, np.arange(len(b.points))) for a, b in zip(self.tops, later.tops, strict=True)),
            reservoir=self.reservoir.extended(sampled, kept.feasible, kept.keys),
            visited=self.visited + later.visited,
            evaluated=self.evaluated + later.evaluated,
            feasible=self.feasible + later.feasible,
            failed=self.failed + later.failed,
            pruned=_summed(self.pruned, later.pruned),
            reasons=reasons,
            broken=_summed(self.broken, later.broken),
            failures=(self.failures + later.failures)[:_TOLD],
        )
        if state.feasible:
            return state
        if later.closest is not None and later.closest_worst < self.closest_worst:
            state = replace(state, closest=later.closest, closest_worst=later.closest_worst)
        return state._nearer(later.near, later.near_bounds, later.near_ordinals)

    def _nearer(self, columns: Columns | None, bounds: FloatArray, ordinals: IntArray) -> State:
        """The state with pruned points that may come closest to feasible, their bounds and ordinals."""
        state = self
        if columns is None:
            return state
        if self.near is not None:
            codes = {axis: np.concatenate([code, columns.codes[axis]]) for axis, code in self.near.codes.items()}
            columns = Columns(n=self.near.n + columns.n, codes=codes, levels=columns.levels)
            bounds = np.concatenate([self.near_bounds, bounds])
            ordinals = np.concatenate([self.near_ordinals, ordinals])
        rows = least(bounds, np.arange(len(bounds)), NEAREST)
        return replace(state, near=columns.take(rows), near_bounds=bounds[rows], near_ordinals=ordinals[rows])

    def progress(self, space: int, wall_s: float) -> Progress:
        """What to show of it."""
        return Progress(
            space=space,
            most=space,
            visited=self.visited,
            evaluated=self.evaluated,
            pruned=sum(self.pruned.values()),
            failed=self.failed,
            feasible=self.feasible,
            front=len(self.front),
            wall_s=wall_s,
        )


def _summed(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    """Counts of both."""
    return {name: first.get(name, 0) + second.get(name, 0) for name in first | second}


@dataclass(frozen=True, slots=True, eq=False)
class Screen:
    """What a bound is compared with to prove a point useless."""

    front: FloatArray
    lasts: FloatArray

    @classmethod
    def of(cls, state: State) -> Screen:
        return cls(state.front.screens(), np.array([kept.last() if kept.limit > 0 else -np.inf for kept in state.tops]))

    def hopeless(self, bounds: FloatArray) -> IntArray:
        """Rows of optimistic costs (n, k) that can reach neither the front nor a top list."""
        rows = np.flatnonzero((bounds > self.lasts).all(axis=1))
        return rows[beaten(bounds[rows], self.front)] if len(rows) else rows
