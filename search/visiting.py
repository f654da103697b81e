"""What is asked of every point of a batch: pruned by a bound, evaluated, or failed with a reason."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from costmodels.metrics import BrokenContract, CostModel, Metrics, require_metrics, required_metrics
from search.constraint import Constraint
from search.front import Objective, Points, join
from search.keeping import NEAREST, Screen, State, Visit, least
from search.result import Closest
from spaces.columns import Columns, FloatArray, IntArray, UnboundSymbol
from spaces.problem import Problem
from spaces.space import Space

_HOPELESS = 1000  # points that may fail without one success before the search gives up


class Hopeless(Exception):
    """Every point failed so far, and there were many."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
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
        try:
            metrics = self.model.evaluate(self.problem, none)
        except UnboundSymbol:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            who = f"the cost model {type(self.model).__name__}"
            raise BrokenContract(f"{who} raised for a batch of no points, which tells what it predicts: {told}") from error
        require_metrics(metrics, 0, self.model)
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
        self, batch: Columns, state: State, screen: Screen | None, offset: int = 0, patient: bool = False
    ) -> Visit:
        """Prune, evaluate and sort out the batch that comes after a state, which began at the ordinal `offset`."""
        (visit,) = self.visits(batch, state, screen, max(batch.n, 1), offset, patient)
        return visit

    def visits(
        self, batch: Columns, state: State, screen: Screen | None, most: int, offset: int = 0, patient: bool = False
    ) -> Iterator[Visit]:
        """The same, evaluated `most` points at a time; the first of the visits counts the whole batch."""
        start = offset + state.visited
        broken: dict[str, int] = {}
        rows, pruned, bounds = self._alive(batch, screen, broken)
        near = np.empty(0, np.int64) if state.feasible else least(bounds, np.flatnonzero(bounds > 0), NEAREST)
        patience = np.inf if patient or state.evaluated else _HOPELESS
        for first in range(0, max(len(rows), 1), most):
            own, told = rows[first : first + most], first == 0
            points, worst, failed = self.evaluated(batch if len(own) == batch.n else batch.take(own), start + own, patience)
            yield Visit(
                n=batch.n if told else 0,
                start=start,
                points=points,
                worst=worst,
                pruned=pruned if told else {},
                near=batch.take(near) if told and len(near) else None,
                near_bounds=bounds[near],
                near_ordinals=start + near,
                failed=failed,
                broken=broken if told else {},
            )
            patience = np.inf if len(points) else patience

    def proven(self, points: Columns, broken: dict[str, int]) -> dict[str, FloatArray]:
        """Violations that the model's bounds prove, each (n,), minus infinity where they say nothing.

        `broken` counts by reason the points for which the bound raised: nothing is proven of those.
        """
        found: dict[str, FloatArray] = {}
        for start, part, bound in self._bounds(points, broken):
            for name, violation in self.violations(bound, part, bound=True).items():
                if part.n == points.n:
                    found[name] = violation
                else:
                    found.setdefault(name, np.full(points.n, -np.inf))[start : start + part.n] = violation
        return found

    def _bounds(self, points: Columns, broken: dict[str, int]) -> Iterator[tuple[int, Columns, Metrics]]:
        """The model's bounds of consecutive points, with the row where they begin: all at once, or where the model raises both
        halves by themselves, so that a point at fault costs the pruning of no other. Where the first thousand all are at fault
        no other is asked."""
        waiting, alone = [(0, points)], 0
        while waiting:
            start, part = waiting.pop()
            try:
                bound = required_metrics(self.model.bound(self.problem, part), self.model)
            except (UnboundSymbol, BrokenContract):
                raise
            except Exception as error:
                half = part.n // 2
                if half and alone <= _HOPELESS:
                    waiting.append((start + half, part.take(slice(half, part.n))))
                    waiting.append((start, part.take(slice(0, half))))
                    continue
                reason = f"{type(error).__name__}: {error}"
                broken[reason] = broken.get(reason, 0) + part.n
                alone += part.n
                continue
            alone = -points.n
            yield start, part, bound

    def _alive(
        self, batch: Columns, screen: Screen | None, broken: dict[str, int]
    ) -> tuple[IntArray, dict[str, int], FloatArray]:
        """Rows that the bound cannot rule out, how many each reason took, and the greatest bound of any violation (n,)."""
        worst = np.full(batch.n, -np.inf)
        pruned: dict[str, int] = {}
        alive = np.ones(batch.n, np.bool_)
        for start, part, bound in self._bounds(batch, broken):
            own = alive[start : start + part.n]
            for name, violation in self.violations(bound, part, bound=True).items():
                over = violation > 0
                worst[start : start + part.n] = np.fmax(worst[start : start + part.n], violation)
                pruned[name] = pruned.get(name, 0) + int(np.count_nonzero(over & own))
                own &= ~over
            if screen is not None and self.bounds_all(bound, part):
                rows = np.flatnonzero(own)
                hopeless = rows[screen.hopeless(self.costs(bound, part)[rows])]
                pruned["dominated"] = pruned.get("dominated", 0) + len(hopeless)
                own[hopeless] = False
        return np.flatnonzero(alive), {name: count for name, count in pruned.items() if count}, worst

    def evaluated(
        self, batch: Columns, ordinals: IntArray, patience: float = np.inf
    ) -> tuple[Points, FloatArray, list[tuple[Columns, str]]]:
        """Evaluate every point once; the evaluated ones, their greatest violation (n,), and the failed with reasons.

        Where the model raises, both halves are tried by themselves. Raises `Hopeless` when more than `patience` points
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
                require_metrics(metrics, part.n, self.model)
                costs = self.costs(metrics, part)
                violations = self.violations(metrics, part)
            except (UnboundSymbol, BrokenContract):
                raise
            except Exception as error:
                half = part.n // 2
                if half:
                    waiting.append((part.take(slice(half, part.n)), places[half:]))
                    waiting.append((part.take(slice(0, half)), places[:half]))
                    continue
                failed.append((part, f"{type(error).__name__}: {error}"))
                if len(failed) > patience and not len(points):
                    raise Hopeless(f"the first {len(failed)} points all failed, the last with {failed[-1][1]}") from error
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

    def closest(self, state: State) -> Closest | None:
        """The point nearest to feasible, of the evaluated ones and of the pruned ones with the least bounds."""
        best, worst = state.closest, state.closest_worst
        if state.near is not None:
            points, violations, _ = self.evaluated(state.near, state.near_ordinals)
            if len(points) and violations.min() < worst:
                best = points.take(np.array([np.argmin(violations)]))
        if best is None:
            return None
        lacks = {name: float(over[0]) for name, over in self.violations(best.metrics, best.columns).items() if over[0] > 0}
        return Closest(points=best, lacks=lacks)
