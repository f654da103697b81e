"""Exact search: every legal point is pruned by a bound, evaluated or reported, and the certificate adds them up.

Points come from the space in batches. The model's bound removes those that cannot fit (before any time is computed) and,
when asked, those that cannot reach the front or a top list; the rest are evaluated once. What is kept is bounded: the
front, the top lists, a sample, and tallies.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import MAXIMISED, CostModel, Metrics
from search.executors import Executor
from search.front import Front, Objective, Points, TopList, beaten, join
from spaces.columns import Columns, FloatArray, IntArray, UnboundSymbol
from spaces.problem import Problem
from spaces.space import Slice, Space, slices

_GRAIN = 1 << 17  # bounds are compared with the front as it was at multiples of this ordinal, whatever the batch size
_NEAREST = 64  # pruned points that are evaluated when nothing is feasible
_HOPELESS = 1000  # points that may fail without one success before the search gives up
_FIRST = 1 << 14  # points of a slice before the cost of one is known
_LARGEST = 1 << 21  # points of a slice
_CHUNK_S = 1.0  # seconds of work in a slice
_TOLD = 20  # failed points that are kept to be shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A limit on a metric or symbol: at most `limit` when `upper`, else at least."""

    metric: str
    limit: float
    upper: bool = True

    @property
    def name(self) -> str:
        """How the certificate and reports call it."""
        return f"{self.metric} {'<=' if self.upper else '>='} {self.limit:g}"

    def violation(self, value: FloatArray) -> FloatArray:
        """By how much of the limit the value oversteps it, at most 0 when it holds; dimensionless, shape (n,)."""
        scale = abs(self.limit) or 1.0
        return (value - self.limit if self.upper else self.limit - value) / scale

    def bounded_by(self, metric_is_exact: bool) -> bool:
        """Whether an optimistic value proves a violation: limits on the good side of a metric are beyond its reach."""
        return metric_is_exact or self.upper != (self.metric in MAXIMISED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How much of the space an answer covers: `space` = Σ `pruned` + `evaluated` + `failed` + `unvisited`.

    Raises ValueError when the identity does not hold.
    """

    space: int
    pruned: dict[str, int]
    evaluated: int
    failed: int
    unvisited: int

    def __post_init__(self) -> None:
        parts = sum(self.pruned.values()) + self.evaluated + self.failed + self.unvisited
        if self.space != parts or self.unvisited < 0:
            raise ValueError(f"the certificate does not add up: space {self.space}, parts {parts}: {self}")

    @property
    def complete(self) -> bool:
        """Whether the answer is proved for the whole space."""
        return self.failed == 0 and self.unvisited == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Partial choices that one structural rule ruled out."""

    axis: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A point the model could not predict, and why."""

    point: dict[str, Any]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """A uniform sample of the evaluated points, in the order of the space.

    `values` are the objectives as people read them, shape (n, objectives); `feasible` has shape (n,).
    """

    columns: Columns
    values: FloatArray
    feasible: NDArray[np.bool_]
    ordinals: IntArray

    def __len__(self) -> int:
        return len(self.ordinals)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Closest:
    """Where nothing is feasible: the point whose worst violation is least, and every constraint it violates.

    Exact among evaluated points; of the pruned ones the few with the least bounds were looked at.
    """

    points: Points
    lacks: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a search is."""

    space: int
    visited: int
    evaluated: int
    pruned: int
    failed: int
    feasible: int
    front: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a search found. `values` of a front or list are its `points.values(objectives)`.

    `top[name]` holds the best points by the objective of that name, best first. `failures` are the first few of the failed
    points; `stopped` says why points are unvisited ("" when none is). Times are seconds of this process.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    front: Front
    top: dict[str, Points]
    certificate: Certificate
    removed: tuple[Removal, ...]
    sample: Sample
    closest: Closest | None
    feasible: int
    failures: tuple[Failure, ...]
    failed_by_reason: dict[str, int]
    stopped: str
    seed: int
    wall_s: float
    cpu_s: float


def search(
    space: Space,
    model: CostModel,
    problem: Problem,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint] = (),
    *,
    top: int = 10,
    sample: int = 100_000,
    seed: int = 0,
    rows: int = 1 << 18,
    prune_dominated: bool = False,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    executor: Executor | None = None,
) -> Result:
    """The exact front, the `top` feasible points by each objective, and the certificate.

    A point is feasible when no violation of the model or of `constraints` is above 0. With `prune_dominated` a point is
    also dropped (reason `dominated`) when its bounds prove that it can reach neither the front nor a top list; that needs
    bounds of every objective and changes neither. `rows` (at most 131,072 are used at a time) changes speed and memory
    only. Ctrl-C or `cancelled()` ends the search with what was found so far; the rest is `unvisited`.

    With an `executor` slices of the space are searched elsewhere and joined in order: the answer is the same whatever the
    executor and its workers, but `prune_dominated` is refused (what it prunes would hang on the slices) and `cpu_s` counts
    the workers too.

    A point that makes the model raise, or whose objectives or violations are not finite, is `failed` and the search goes
    on. Raises ValueError for no objectives, or for objectives and constraints that neither the model nor the space knows;
    `UnboundSymbol` when the model reads a symbol that nothing binds.
    """
    clock, processor = time.perf_counter(), time.process_time()
    task = _Task(model, problem, tuple(objectives), tuple(constraints))
    none = task.none(space)
    size = space.size()
    state = _State.empty(none, len(task.objectives), top, sample)
    random = np.random.default_rng(seed)
    stopped = ""
    elsewhere = 0.0
    screen: _Screen | None = None
    try:
        if executor is not None:
            if prune_dominated:
                raise ValueError("prune_dominated needs a search in one process: leave the executor out")
            state, stopped, elsewhere = _spread(space, task, state, executor, (seed, rows), progress, cancelled)
        for batch in () if executor is not None else _pieces(space.batches(min(rows, _GRAIN))):
            if cancelled is not None and cancelled():
                stopped = "cancelled"
                break
            if prune_dominated and state.visited % _GRAIN == 0:
                screen = _Screen.of(state)
            keys = random.random(batch.n)
            state = state.after(task.visit(batch, state, screen), keys)  # one assignment: Ctrl-C finds a whole state
            if progress is not None:
                progress(state.progress(size, time.perf_counter() - clock))
    except KeyboardInterrupt:
        stopped = "interrupted"
    except _Hopeless as hopeless:
        stopped = str(hopeless)
    return Result(
        objectives=task.objectives,
        constraints=task.constraints,
        front=state.front.ordered(),
        top={objective.name: kept.points for objective, kept in zip(task.objectives, state.tops, strict=True)},
        certificate=Certificate(
            space=size,
            pruned=dict(state.pruned),
            evaluated=state.evaluated,
            failed=state.failed,
            unvisited=size - state.visited,
        ),
        removed=tuple(Removal(axis=axis, reason=reason, count=count) for (axis, reason), count in space.removed().items()),
        sample=state.reservoir.sample(task.objectives),
        closest=None if state.feasible else task.closest(state),
        feasible=state.feasible,
        failures=state.failures,
        failed_by_reason=dict(state.reasons),
        stopped=stopped,
        seed=seed,
        wall_s=time.perf_counter() - clock,
        cpu_s=time.process_time() - processor + elsewhere,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Errand:
    """What a worker does with a slice; it travels to each worker once."""

    task: _Task
    none: Points
    axes: tuple[str, ...]
    top: int
    sample: int
    seed: int
    rows: int

    def __call__(self, chunk: tuple[Slice, float]) -> _Found:
        """The state after the slice alone; sample keys from the given one on are known to be of no use."""
        part, below = chunk
        processor = time.process_time()
        state = _State.empty(self.none, len(self.task.objectives), self.top, self.sample)
        state = replace(state, reservoir=replace(state.reservoir, below=below))
        bits = np.random.PCG64(self.seed)
        bits.advance(part.start)
        random = np.random.Generator(bits)
        offset = part.start
        hopeless = ""
        try:
            for batch in part.batches(self.none.columns.levels, self.axes, self.rows):
                patient = part.start > 0  # only who starts the space may give up
                state = state.after(self.task.visit(batch, state, None, offset, patient), random.random(batch.n))
        except _Hopeless as error:
            hopeless = str(error)
        return _Found(state, time.process_time() - processor, hopeless)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What a worker found in a slice, and the CPU seconds it took."""

    state: _State
    cpu_s: float
    hopeless: str


def _spread(
    space: Space,
    task: _Task,
    state: _State,
    executor: Executor,
    how: tuple[int, int],
    progress: Callable[[Progress], None] | None,
    cancelled: Callable[[], bool] | None,
) -> tuple[_State, str, float]:
    """Search slices of a space with an executor: the state, why it stopped, and the CPU seconds spent elsewhere."""
    clock = time.perf_counter()
    none = state.front.points
    seed, rows = how
    names = tuple(axis.name for axis in space.axes)
    errand = _Errand(task, none, names, state.tops[0].limit, state.reservoir.limit, seed, min(rows, _GRAIN))
    size, cost, spent = space.size(), 0.0, 0.0
    below = np.inf

    def chunks() -> Iterator[tuple[Slice, float]]:
        for part in slices(space, lambda _: _chunk(cost)):
            yield part, below

    waiting: dict[int, _Found] = {}
    turn = 0
    results = executor.map(errand, chunks())
    try:
        for index, found in results:
            waiting[index] = found
            cost = found.cpu_s / max(found.state.visited, 1)
            spent += found.cpu_s if executor.apart else 0.0
            while turn in waiting:
                ready = waiting.pop(turn)
                turn += 1
                state = state.then(ready.state)
                if ready.hopeless:
                    return state, ready.hopeless, spent
            below = state.reservoir.trimmed().below
            if progress is not None:
                progress(state.progress(size, time.perf_counter() - clock))
            if cancelled is not None and cancelled():
                return state, "cancelled", spent
    except KeyboardInterrupt:
        return state, "interrupted", spent
    finally:
        results.close()
    return state, "", spent


def _chunk(cost: float) -> int:
    """Points of the next slice, by the measured seconds a point: about one second, in whole grains where that is many."""
    if not cost:
        return _FIRST
    points = int(_CHUNK_S / cost)
    return min(points - points % _GRAIN, _LARGEST) if points >= _GRAIN else max(1, points)


class _Hopeless(Exception):
    """Every point failed so far, and there were many."""


def _pieces(batches: Iterator[Columns]) -> Iterator[Columns]:
    """The batches, cut where the ordinal passes a multiple of the grain."""
    ordinal = 0
    for batch in batches:
        cut = _GRAIN - ordinal % _GRAIN
        ordinal += batch.n
        if cut >= batch.n:
            yield batch
        else:
            yield batch.take(slice(0, cut))
            yield batch.take(slice(cut, batch.n))


def _least(values: FloatArray, rows: IntArray, count: int) -> IntArray:
    """The `count` rows with the least values, least first; of equal ones the first."""
    if len(rows) > count:
        rows = rows[values[rows] <= np.partition(values[rows], count - 1)[count - 1]]
    return rows[np.argsort(values[rows], kind="stable")[:count]]


@dataclass(frozen=True, slots=True, eq=False)
class _Visit:
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


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What is asked of every point."""

    model: CostModel
    problem: Problem
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]

    def none(self, space: Space) -> Points:
        """A batch of none, which tells which metrics there are; ValueError for names that are not among them."""
        if not self.objectives:
            raise ValueError("a search needs at least one objective")
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"an objective is named twice: {', '.join(names)}")
        none = space.columns(np.zeros((len(space.axes), 0), np.int16))
        metrics = self.model.evaluate(self.problem, none)
        known = {*metrics.value, *none.levels, *self.problem.scalars}
        faults = []
        for kind, metric in (
            *(("objective", objective.metric) for objective in self.objectives),
            *(("constraint", constraint.metric) for constraint in self.constraints),
        ):
            if metric not in known:
                near = difflib.get_close_matches(metric, sorted(known), n=3, cutoff=0.4) or sorted(metrics.value)
                faults.append(f"{kind} '{metric}' does not exist; the nearest are {', '.join(near)}")
        if faults:
            raise ValueError("; ".join(faults))
        costs = np.empty((0, len(self.objectives)))
        return Points(columns=none, metrics=metrics, costs=costs, ordinals=np.empty(0, np.int64))

    def violations(self, metrics: Metrics, points: Columns, *, bound: bool = False) -> dict[str, FloatArray]:
        """Violation of each constraint by name, (n,); of a bound only those that it proves."""
        found = dict(metrics.violation)
        at = self.problem.at(points)
        for constraint in self.constraints:
            exact = constraint.metric not in metrics.value and constraint.metric in at
            if constraint.metric not in metrics.value and not exact:
                continue
            if bound and not constraint.bounded_by(exact):
                continue
            value = at[constraint.metric] if exact else metrics.value[constraint.metric]
            found[constraint.name] = constraint.violation(np.broadcast_to(np.asarray(value, np.float64), (points.n,)))
        return found

    def bounds_all(self, bound: Metrics, points: Columns) -> bool:
        """Whether a bound is one of every objective, in the direction that is optimised."""
        at = self.problem.at(points)
        return all(
            objective.natural if objective.metric in bound.value else objective.metric in at for objective in self.objectives
        )

    def costs(self, metrics: Metrics, points: Columns) -> FloatArray:
        """Costs of the objectives, (n, objectives)."""
        at = self.problem.at(points)
        costs = np.empty((len(self.objectives), points.n))
        for row, objective in zip(costs, self.objectives, strict=True):
            row[:] = objective.cost(metrics, at)
        return costs.T

    def visit(
        self, batch: Columns, state: _State, screen: _Screen | None, offset: int = 0, patient: bool = False
    ) -> _Visit:
        """Prune, evaluate and sort out the batch that comes after a state, which began at the ordinal `offset`."""
        start = offset + state.visited
        rows, pruned, bounds = self._bounded(batch, screen)
        near = np.empty(0, np.int64) if state.feasible else _least(bounds, np.flatnonzero(bounds > 0), _NEAREST)
        alive = batch if len(rows) == batch.n else batch.take(rows)
        patience = np.inf if patient or state.evaluated else _HOPELESS
        points, worst, failed = self._evaluated(alive, start + rows, patience)
        return _Visit(
            n=batch.n,
            start=start,
            points=points,
            worst=worst,
            pruned=pruned,
            near=batch.take(near) if len(near) else None,
            near_bounds=bounds[near],
            near_ordinals=start + near,
            failed=failed,
        )

    def _bounded(self, batch: Columns, screen: _Screen | None) -> tuple[IntArray, dict[str, int], FloatArray]:
        """Rows that the bound cannot rule out, how many each reason took, and the greatest bound of any violation (n,)."""
        everything = np.arange(batch.n)
        worst = np.full(batch.n, -np.inf)
        try:
            bound = self.model.bound(self.problem, batch)
        except UnboundSymbol:
            raise
        except Exception:  # evaluating will tell which point is at fault
            return everything, {}, worst
        pruned: dict[str, int] = {}
        alive = np.ones(batch.n, np.bool_)
        for name, violation in self.violations(bound, batch, bound=True).items():
            over = violation > 0
            worst = np.fmax(worst, violation)
            pruned[name] = int(np.count_nonzero(over & alive))
            alive &= ~over
        if screen is not None and self.bounds_all(bound, batch):
            rows = np.flatnonzero(alive)
            hopeless = rows[screen.hopeless(self.costs(bound, batch)[rows])]
            pruned["dominated"] = len(hopeless)
            alive[hopeless] = False
        return np.flatnonzero(alive), {name: count for name, count in pruned.items() if count}, worst

    def _evaluated(
        self, batch: Columns, ordinals: IntArray, patience: float = np.inf
    ) -> tuple[Points, FloatArray, list[tuple[Columns, str]]]:
        """Evaluate every point once; the evaluated ones, their greatest violation (n,), and the failed with reasons.

        Where the model raises, both halves are tried by themselves. Raises `_Hopeless` when more than `patience` points
        raised and none was evaluated.
        """
        points = Points(
            columns=batch.take(slice(0, 0)),
            metrics=Metrics(n=0, value={}),
            costs=np.empty((0, len(self.objectives))),
            ordinals=ordinals[:0],
        )
        worst = np.empty(0)
        failed: list[tuple[Columns, str]] = []
        waiting = [(batch, ordinals)] if batch.n else []
        while waiting:
            part, places = waiting.pop()
            try:
                metrics = self.model.evaluate(self.problem, part)
                costs = self.costs(metrics, part)
                violations = self.violations(metrics, part)
            except UnboundSymbol:
                raise
            except Exception as error:
                half = part.n // 2
                if half:
                    waiting.append((part.take(slice(half, part.n)), places[half:]))
                    waiting.append((part.take(slice(0, half)), places[:half]))
                    continue
                failed.append((part, f"{type(error).__name__}: {error}"))
                if len(failed) > patience and not len(points):
                    raise _Hopeless(f"the first {len(failed)} points all failed, the last with {failed[-1][1]}") from error
                continue
            more = Points(columns=part, metrics=metrics, costs=costs, ordinals=places)
            over = np.max(np.array([*violations.values()]), axis=0) if violations else np.full(part.n, -np.inf)
            sound = np.isfinite(costs).all(axis=1) & ~np.isnan(over)
            if not sound.all():
                for row in np.flatnonzero(~sound).tolist():
                    failed.append((part.take(np.array([row])), self._unsound(costs[row], violations, row)))
                kept = np.flatnonzero(sound)
                more, over = more.take(kept), over[kept]
            points, worst = join(points, more), np.concatenate([worst, over])
        return points, worst, failed

    def _unsound(self, costs: FloatArray, violations: dict[str, FloatArray], row: int) -> str:
        """Which figures of a point are not finite."""
        names = [objective.metric for objective, cost in zip(self.objectives, costs, strict=True) if not np.isfinite(cost)]
        names += [name for name, violation in violations.items() if np.isnan(violation[row])]
        return f"not a finite number: {', '.join(names)}"

    def closest(self, state: _State) -> Closest | None:
        """The point nearest to feasible, of the evaluated ones and of the pruned ones with the least bounds."""
        best, worst = state.closest, state.closest_worst
        if state.near is not None:
            points, violations, _ = self._evaluated(state.near, state.near_ordinals)
            if len(points) and violations.min() < worst:
                best = points.take(np.array([np.argmin(violations)]))
        if best is None:
            return None
        lacks = {name: float(over[0]) for name, over in self.violations(best.metrics, best.columns).items() if over[0] > 0}
        return Closest(points=best, lacks=lacks)


@dataclass(frozen=True, slots=True, eq=False)
class _Screen:
    """What a bound is compared with to prove a point useless."""

    front: FloatArray
    lasts: FloatArray

    @classmethod
    def of(cls, state: _State) -> _Screen:
        return cls(state.front.screens(), np.array([kept.last() if kept.limit > 0 else -np.inf for kept in state.tops]))

    def hopeless(self, bounds: FloatArray) -> IntArray:
        """Rows of optimistic costs (n, k) that can reach neither the front nor a top list."""
        rows = np.flatnonzero((bounds > self.lasts).all(axis=1))
        return rows[beaten(bounds[rows], self.front)] if len(rows) else rows


@dataclass(frozen=True, slots=True, eq=False)
class _Reservoir:
    """The evaluated points with the smallest random keys: a uniform sample that does not depend on the batches."""

    limit: int
    columns: Columns
    costs: FloatArray
    feasible: NDArray[np.bool_]
    ordinals: IntArray
    keys: FloatArray
    below: float = np.inf  # no key from here on can be among the smallest

    def extended(self, points: Points, feasible: NDArray[np.bool_], keys: FloatArray) -> _Reservoir:
        """The reservoir after later points with their keys, all of shape (n,)."""
        rows = np.flatnonzero(keys < self.below) if self.limit > 0 else np.empty(0, np.int64)
        if not len(rows):
            return self
        codes = {
            axis: np.concatenate([held, points.columns.codes[axis][rows]]) for axis, held in self.columns.codes.items()
        }
        grown = _Reservoir(
            self.limit,
            Columns(n=len(self.keys) + len(rows), codes=codes, levels=self.columns.levels),
            np.concatenate([self.costs, points.costs[rows]]),
            np.concatenate([self.feasible, feasible[rows]]),
            np.concatenate([self.ordinals, points.ordinals[rows]]),
            np.concatenate([self.keys, keys[rows]]),
            self.below,
        )
        return grown.trimmed() if len(grown.keys) > 2 * self.limit else grown

    def trimmed(self) -> _Reservoir:
        """The smallest `limit` keys only, in the order of the space."""
        if len(self.keys) <= self.limit:
            return self
        last = np.partition(self.keys, self.limit - 1)[self.limit - 1]
        kept = self.keys < last
        kept[np.flatnonzero(self.keys == last)[: self.limit - np.count_nonzero(kept)]] = True
        rows = np.flatnonzero(kept)
        return _Reservoir(
            self.limit,
            self.columns.take(rows),
            self.costs[rows],
            self.feasible[rows],
            self.ordinals[rows],
            self.keys[rows],
            float(last),
        )

    def sample(self, objectives: tuple[Objective, ...]) -> Sample:
        """The sample as people read it."""
        kept = self.trimmed()
        signs = np.array([-1.0 if objective.maximize else 1.0 for objective in objectives])
        return Sample(columns=kept.columns, values=kept.costs * signs, feasible=kept.feasible, ordinals=kept.ordinals)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _State:
    """All that a search remembers between batches; `after` returns the next one whole."""

    front: Front
    tops: tuple[TopList, ...]
    reservoir: _Reservoir
    visited: int = 0
    evaluated: int = 0
    feasible: int = 0
    failed: int = 0
    pruned: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    closest: Points | None = None
    closest_worst: float = np.inf
    near: Columns | None = None
    near_bounds: FloatArray = field(default_factory=lambda: np.empty(0))
    near_ordinals: IntArray = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def empty(cls, none: Points, objectives: int, top: int, sample: int) -> _State:
        """Before the first batch; `none` are no points."""
        return cls(
            front=Front(points=none, ties=np.empty(0, np.int64)),
            tops=tuple(TopList(objective=j, limit=top, points=none) for j in range(objectives)),
            reservoir=_Reservoir(
                sample, none.columns, none.costs, np.empty(0, np.bool_), none.ordinals, np.empty(0)
            ),
        )

    def after(self, visit: _Visit, keys: FloatArray) -> _State:
        """The state after one more batch; `keys` (n,) are the random keys of all its points, pruned ones included."""
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
            reservoir=self.reservoir.extended(visit.points, fits, keys[visit.points.ordinals - visit.start]),
            visited=self.visited + visit.n,
            evaluated=self.evaluated + len(visit.points),
            feasible=feasible,
            failed=self.failed + len(visit.failed),
            pruned={name: self.pruned.get(name, 0) + visit.pruned.get(name, 0) for name in self.pruned | visit.pruned},
            reasons=reasons,
            failures=self.failures + tuple(Failure(point=point.row(0), reason=reason) for point, reason in told),
        )
        if feasible:
            return state
        if len(visit.points) and visit.worst.min() < self.closest_worst:
            row = int(np.argmin(visit.worst))
            state = replace(
                state, closest=visit.points.take(np.array([row])), closest_worst=float(visit.worst[row])
            )
        return state._nearer(visit.near, visit.near_bounds, visit.near_ordinals)

    def then(self, later: _State) -> _State:
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
            pruned={name: self.pruned.get(name, 0) + later.pruned.get(name, 0) for name in self.pruned | later.pruned},
            reasons=reasons,
            failures=(self.failures + later.failures)[:_TOLD],
        )
        if state.feasible:
            return state
        if later.closest is not None and later.closest_worst < self.closest_worst:
            state = replace(state, closest=later.closest, closest_worst=later.closest_worst)
        return state._nearer(later.near, later.near_bounds, later.near_ordinals)

    def _nearer(self, columns: Columns | None, bounds: FloatArray, ordinals: IntArray) -> _State:
        """The state with pruned points that may come closest to feasible, their bounds and ordinals."""
        state = self
        if columns is None:
            return state
        if self.near is not None:
            codes = {axis: np.concatenate([code, columns.codes[axis]]) for axis, code in self.near.codes.items()}
            columns = Columns(n=self.near.n + columns.n, codes=codes, levels=columns.levels)
            bounds = np.concatenate([self.near_bounds, bounds])
            ordinals = np.concatenate([self.near_ordinals, ordinals])
        rows = _least(bounds, np.arange(len(bounds)), _NEAREST)
        return replace(state, near=columns.take(rows), near_bounds=bounds[rows], near_ordinals=ordinals[rows])

    def progress(self, space: int, wall_s: float) -> Progress:
        """What to show of it."""
        return Progress(
            space=space,
            visited=self.visited,
            evaluated=self.evaluated,
            pruned=sum(self.pruned.values()),
            failed=self.failed,
            feasible=self.feasible,
            front=len(self.front),
            wall_s=wall_s,
        )
