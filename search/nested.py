"""Nested search: an outer study over machines, workloads or shapes, and for each of them every plan, exactly.

The space is one `Space` whose first axes are the outer ones (a hardware axis binds `device.memory_bandwidth`, …; a thousand
levels of it cost nothing), the plan's axes follow, and their rules may read the outer symbols. An outer point is then a run
of consecutive points of the space, so nothing is built twice: the plans of a whole generation of outer points are evaluated
together, as columns. The outer points are chosen by any method of search/methods.py, or all of them are taken.

    result = nested_search(
        space, model, problem, objectives, constraints,
        outer=("device", "device.memory_bandwidth"),    # the first axes of the space, in order
        method="evolutionary",                          # "exact" takes every outer point
        budget=Budget(points=200),                      # counted in outer points
    )
    result.result    # front, top lists and certificate over plans on machines, as of any other search
    result.outer     # one row per outer point looked at: its symbols, its best of each objective, how many plans

What guides the outer study is, for each objective, the best value among the feasible plans of the outer point; with several
objectives also the best plan by the sum of their logarithms, so that a machine with a good compromise is not lost. A machine
on which no plan is feasible is as bad as the least violation that one of its plans has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from costmodels.metrics import CostModel, Metrics
from search.archive import Archive
from search.budget import Budget
from search.certificate import Certificate, Removal
from search.constraint import Constraint
from search.elsewhere import Elsewhere, cpu_elsewhere, evaluating
from search.execution import Executor
from search.front import Objective, Points
from search.keeping import State, Visit
from search.methods import method as method_named
from search.methods import require_name
from search.packing import packed, packed_arrays, unpacked, unpacked_arrays
from search.result import Progress, Result
from search.sampled import GAVE_UP, closest
from search.store import Ledger
from search.visiting import Task
from spaces.columns import Columns, FloatArray, IntArray
from spaces.problem import Problem
from spaces.ranking import Ranking, ranking
from spaces.space import Space

_ROWS = 1 << 17  # plans evaluated at a time
_TOGETHER = 256  # outer points looked at together where all are


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OuterPoints:
    """The m outer points looked at, in the order in which they were chosen.

    `columns` binds the outer symbols; `best` (m, objectives) is the best value of each objective among the feasible plans, NaN
    where none is; `plans`, `feasible` (m,) count the plans there are and those that are feasible; `front` (m,) how many
    members of the whole front stand on it; `violation` (m,) is the least violation of any of its plans.
    """

    columns: Columns
    best: FloatArray
    plans: IntArray
    feasible: IntArray
    front: IntArray
    violation: FloatArray

    def __len__(self) -> int:
        return len(self.plans)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NestedResult:
    """The folded front and certificate, and the outer points it comes from."""

    result: Result
    outer: OuterPoints


def nested_search(
    space: Space,
    model: CostModel,
    problem: Problem,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint] = (),
    *,
    outer: Sequence[str],
    method: str = "evolutionary",
    budget: Budget | None = None,
    top: int = 10,
    sample: int = 100_000,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    executor: Executor | None = None,
    ledger: Ledger | None = None,
) -> NestedResult:
    """The front over plans on outer points: outer points by `method` within `budget` (in outer points), plans exactly.

    `outer` names the first axes of the space, in order. Points of outer points never looked at are `unvisited`; when none is
    left the certificate is complete. With a `ledger` every batch of outer points is put on record there, and taken from it when
    the same search is asked again. An `executor` evaluates the plans of a dear model. Raises ValueError when `outer` is not
    a proper beginning of the space's axes, for an unknown method, and what `search.exact.search` raises.
    """
    clock, processor = time.perf_counter(), time.process_time()
    depth = _depth(space, outer)
    propose = _everything if require_name(method) in ("exact", "auto") else method_named(method)
    task = Task(model, problem, tuple(objectives), tuple(constraints))
    plans = ranking(space)
    machines = ranking(_reachable(space, depth))
    limit = budget or Budget()
    kept = np.random.default_rng(seed).spawn(2)
    with evaluating(task, executor) as question:
        folded = _Folded(
            task=task, question=question, plans=plans, depth=depth, top=top, sample=sample, random=kept[1], ledger=ledger
        )

        def told(_: Archive) -> None:
            if progress is not None:
                progress(folded.progress(time.perf_counter() - clock))

        archive = Archive(
            ranking=machines,
            question=folded,
            most=limit.most(machines.size),
            deadline=None if limit.seconds is None else clock + limit.seconds,
            cancelled=cancelled,
            told=told,
        )
        try:
            propose(archive, kept[0])
            if not archive.stopped and len(archive) < archive.most:
                archive.stopped = GAVE_UP
        except KeyboardInterrupt:
            archive.stopped = "interrupted"
        result = folded.result(archive.stopped, seed, clock, processor)
    return NestedResult(result=result, outer=folded.outer(machines))


def _depth(space: Space, outer: Sequence[str]) -> int:
    """How many axes are outer. Raises ValueError when they are not the first ones."""
    names = [axis.name for axis in space.axes]
    depth = len(outer)
    if not 0 < depth < len(names) or list(outer) != names[:depth]:
        raise ValueError(
            f"the outer axes must be the first of the space, in order, and leave some for the plans: "
            f"got {', '.join(outer) or 'none'}; the space's axes are {', '.join(names)}"
        )
    return depth


def _reachable(space: Space, depth: int) -> Space:
    """The space of outer points."""
    return Space(space.axes[:depth], space.labels)


def _everything(archive: Archive, random: np.random.Generator) -> None:  # noqa: ARG001
    """Every outer point, in order."""
    for start in range(0, archive.most, _TOGETHER):
        if archive.left <= 0:
            return
        archive.evaluate(np.arange(start, min(start + _TOGETHER, archive.most)))


@final
class _Folded:
    """The outer question: an outer point costs what its best plans cost. Folds every inner front into one."""

    def __init__(
        self,
        *,
        task: Task,
        question: Task | Elsewhere,
        plans: Ranking,
        depth: int,
        top: int,
        sample: int,
        random: np.random.Generator,
        ledger: Ledger | None = None,
    ) -> None:
        self._question = question
        self._task, self._plans, self._depth, self._random, self._ledger = task, plans, depth, random, ledger
        self._none = task.none(plans.space)
        self._empty = self._state = State.empty(self._none, len(task.objectives), top, sample)
        self._known = {} if ledger is None else ledger.slices()
        self._looked = 0
        self._rows: list[_Rows] = []

    def none(self, space: Space) -> Points:
        """A batch of no outer points; one more cost than objectives when there are several."""
        k = len(self._task.objectives)
        return Points(
            columns=space.columns(np.zeros((len(space.axes), 0), np.int16)),
            metrics=Metrics(n=0, value={}),
            costs=np.empty((0, k + (k > 1))),
            ordinals=np.empty(0, np.int64),
        )

    def proven(self, points: Columns, broken: dict[str, int]) -> dict[str, FloatArray]:  # noqa: ARG002
        """Nothing is known of an outer point before its plans are looked at."""
        return {}

    def evaluated(self, batch: Columns, ordinals: IntArray) -> tuple[Points, FloatArray, list[tuple[Columns, str]]]:
        """Look at every plan of some outer points, in one batch of columns (or in few, where there are many plans)."""
        codes = np.stack([np.asarray(batch.codes[axis.name], np.int64) for axis in self._plans.space.axes[: self._depth]])
        start, count = self._plans.spans(codes)
        place, k = self._looked, len(self._task.objectives)
        if self._ledger is not None and self._known.get(place) == len(ordinals):
            inner, best, least, feasible = self._remembered(self._ledger.found(place)[0], ordinals)
        else:
            inner, best, least, feasible = self._inner(start, count)
            if self._ledger is not None:
                arrays = {"ordinals": ordinals, "best": best, "least": least, "feasible": feasible}
                arrays["state"] = np.frombuffer(packed(inner), np.uint8)
                self._ledger.keep(place, len(ordinals), packed_arrays(arrays), 0.0)
        self._state = self._state.then(inner)
        self._looked += len(ordinals)
        self._rows.append(_Rows(ordinals, best[:, :k], start, count, feasible, least))
        none = ~np.isfinite(least)
        failed = [(batch.take(np.array([row])), "none of its plans could be evaluated") for row in np.flatnonzero(none)]
        kept = np.flatnonzero(~none)
        points = Points(
            columns=batch.take(kept), metrics=Metrics(n=len(kept), value={}), costs=best[kept], ordinals=ordinals[kept]
        )
        return points, least[kept], failed

    def _inner(self, start: IntArray, count: IntArray) -> tuple[State, FloatArray, FloatArray, IntArray]:
        """Every plan of outer points, runs (start, count): what is kept of them; best guides, least violation and number of
        feasible plans by outer point."""
        m, k = len(start), len(self._task.objectives)
        best = np.full((m, k + (k > 1)), np.inf)
        least = np.full(m, np.inf)
        feasible = np.zeros(m, np.int64)
        below = self._state.reservoir.trimmed().below
        state = replace(self._empty, reservoir=replace(self._empty.reservoir, below=below))
        for owner, plans in _chunks(start, count):
            state, points, worst, bounds = self._look(state, plans)
            np.minimum.at(least, owner, bounds)
            whose = owner[_positions(plans, points.ordinals)]
            np.minimum.at(least, whose, worst)
            fits = worst <= 0
            np.add.at(feasible, whose[fits], 1)
            np.minimum.at(best, whose[fits], _guides(points.costs[fits]))
        return state, best, least, feasible

    def _remembered(self, data: bytes, ordinals: IntArray) -> tuple[State, FloatArray, FloatArray, IntArray]:
        """What is on record of the same outer points. Raises ValueError when it is of others."""
        arrays, _ = unpacked_arrays(data)
        if not np.array_equal(arrays["ordinals"], ordinals):
            raise ValueError("what is on record is of another search: other outer points were looked at")
        inner = unpacked(arrays["state"].tobytes(), self._none)
        self._random.random(inner.evaluated)  # the keys of their sample were drawn then
        return inner, arrays["best"], arrays["least"], arrays["feasible"]

    def _look(self, state: State, plans: IntArray) -> tuple[State, Points, FloatArray, FloatArray]:
        """Bound and evaluate plans and keep what counts: the evaluated, their greatest violation, all plans' proven violation.

        A plan that no bound rules out has a proven violation of infinity here: evaluating it says more.
        """
        columns = self._plans.columns(plans)
        ruled_out = np.zeros(len(plans), np.bool_)
        bounds = np.full(len(plans), np.inf)
        pruned: dict[str, int] = {}
        broken: dict[str, int] = {}
        for name, violation in self._question.proven(columns, broken).items():
            over = violation > 0
            pruned[name] = int(np.count_nonzero(over & ~ruled_out))
            bounds[over] = np.where(ruled_out[over], np.maximum(bounds[over], violation[over]), violation[over])
            ruled_out |= over
        alive = np.flatnonzero(~ruled_out)
        points, worst, failed = self._question.evaluated(columns.take(alive), plans[alive])
        none = np.empty(0, np.int64)
        visit = Visit(
            n=len(plans),
            start=0,
            points=points,
            worst=worst,
            pruned=pruned,
            near=None,
            near_bounds=np.empty(0),
            near_ordinals=none,
            failed=failed,
            broken=broken,
        )
        return state.after(visit, self._random.random(len(points))), points, worst, bounds

    def progress(self, wall_s: float) -> Progress:
        """What to show of it."""
        return self._state.progress(self._plans.size, wall_s)

    def result(self, stopped: str, seed: int, clock: float, processor: float) -> Result:
        """The folded front, as of any other search."""
        task, space, state = self._task, self._plans.space, self._state
        certificate = Certificate(
            space=self._plans.size,
            pruned={name: count for name, count in state.pruned.items() if count},
            evaluated=state.evaluated,
            failed=state.failed,
            unvisited=self._plans.size - state.visited,
        )
        return Result(
            objectives=task.objectives,
            constraints=task.constraints,
            front=state.front.ordered(),
            top={objective.name: kept.points for objective, kept in zip(task.objectives, state.tops, strict=True)},
            certificate=certificate,
            removed=tuple(Removal(axis=a, reason=r, count=count) for (a, r), count in space.removed().items()),
            sample=state.reservoir.sample(task.objectives),
            closest=None if state.feasible or state.closest is None else closest(task, state.closest),
            feasible=state.feasible,
            failures=state.failures,
            failed_by_reason=dict(state.reasons),
            bound_failed=dict(state.broken),
            stopped="" if not certificate.unvisited else stopped or "sampled",
            seed=seed,
            wall_s=time.perf_counter() - clock,
            cpu_s=time.process_time() - processor + cpu_elsewhere(self._question),
        )

    def outer(self, machines: Ranking) -> OuterPoints:
        """Every outer point looked at."""
        none = np.empty(0, np.int64)
        rows = self._rows or [_Rows(none, np.empty((0, len(self._task.objectives))), none, none, none, np.empty(0))]
        start, count = np.concatenate([r.start for r in rows]), np.concatenate([r.count for r in rows])
        members = self._state.front.points.ordinals[None, :]
        on_front = ((members >= start[:, None]) & (members < (start + count)[:, None])).sum(axis=1)
        signs = np.array([-1.0 if objective.maximize else 1.0 for objective in self._task.objectives])
        best = np.concatenate([r.best for r in rows])
        return OuterPoints(
            columns=machines.columns(np.concatenate([r.ordinals for r in rows])),
            best=np.where(np.isfinite(best), best * signs, np.nan),
            plans=count,
            feasible=np.concatenate([r.feasible for r in rows]),
            front=on_front,
            violation=np.concatenate([r.violation for r in rows]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Outer points looked at together: their numbers, best costs, and the run of plans that each is."""

    ordinals: IntArray
    best: FloatArray
    start: IntArray
    count: IntArray
    feasible: IntArray
    violation: FloatArray


def _guides(costs: FloatArray) -> FloatArray:
    """What an outer point is judged by, from plans' costs (n, k): each cost, and with several their sum of logarithms."""
    if costs.shape[1] == 1:
        return costs
    with np.errstate(divide="ignore"):
        logs = np.where(costs > 0, np.log(np.abs(costs)), -np.log(np.abs(costs)))
    return np.column_stack([costs, np.where(costs == 0, 0.0, logs).sum(axis=1)])


def _chunks(start: IntArray, count: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """The plans of outer points, runs (start, count), in pieces of at most so many rows: (whose it is, its number)."""
    ends = np.cumsum(count)
    begins = ends - count
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, _ROWS):
        rows = np.arange(first, min(first + _ROWS, total))
        owner = np.searchsorted(ends, rows, side="right")
        yield owner, start[owner] + rows - begins[owner]


def _positions(among: IntArray, wanted: IntArray) -> IntArray:
    """Where each wanted number stands among distinct numbers."""
    order = np.argsort(among)
    return np.asarray(order[np.searchsorted(among, wanted, sorter=order)], np.int64)
