"""The best plan of every design, exactly: designs and plans as one batch of columns, with bounds that spare most of them.

A design binds symbols (`device.memory_bandwidth`, …), a plan binds others; a point is one of each. Where less time is what is
wanted, a group of like designs is bounded by an ideal one that has the best of each of their symbols: no plan is slower on
the ideal than on any of them, so a plan whose ideal time is beyond a design's best so far is never evaluated there. Designs
share an ideal only where they have the same of what moves times either way (arrays and buffers, a domain's size).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from costmodels.machines.relative import ON_CHIP
from costmodels.metrics import MAXIMISED, CostModel, Metrics, Selective
from spaces.columns import Columns, FloatArray, IntArray
from spaces.problem import Problem

GROUP = 32
"""Designs that share an ideal."""
FIRST = 8
"""Plans of least ideal time that every design tries first."""
ROWS = 1 << 16
"""Points evaluated at a time."""
TIMES = frozenset({"step_time"})
"""Metrics that no symbol of RISING makes worse when it grows, and none of FALLING when it shrinks."""
RISING = ("device.matrix_flops.", "device.vector_flops", "device.memory_", "device.near_memory_", "device.scale_up_bandwidth",
          "device.peer_bandwidth", "device.package_bandwidth", "device.nic_bandwidth", "device.host_link_bandwidth",
          "device.cache_bytes", "kernel.gemm.share", "kernel.attention")  # fmt: skip
FALLING = ("device.scale_up_latency", "device.nic_latency")
APART = ("device.power", "device.idle_power", "device.price_per_hour", "device.compute_units", "energy.", "chip.", "base.")
"""Symbols that times do not read, but for those of ON_CHIPS."""
ON_CHIPS = tuple(f"chip.{name}" for name in ON_CHIP)
"""Symbols of how a chip is made that times do read."""
WORTH = 4
"""Designs an ideal must speak for, in the mean, to be worth its own evaluation."""


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The best plan of each of n designs.

    `plan` (n,) is its row among the plans, `value` (n,) its metric (NaN where no plan is feasible), `violation` (n,) the
    least violation of any plan. `metrics` are those of the best plans, one row a design (of the least violating plan where
    none is feasible). `evaluated` counts the points that were evaluated, of `points` in all.
    """

    plan: IntArray
    value: FloatArray
    violation: FloatArray
    metrics: Metrics
    evaluated: int
    points: int


def best_plans(
    model: CostModel,
    problem: Problem,
    plans: Columns,
    designs: Mapping[str, NDArray[Any]],
    metric: str,
    limits: Mapping[str, float],
) -> Best:
    """The feasible plan with the best `metric` for each design, exactly.

    `designs` binds symbols to arrays (n,); `limits` are greatest values of metrics beside what the model itself calls a
    violation. Raises ValueError for no plans, no designs, or designs that disagree in number.
    """
    sizes = {len(values) for values in designs.values()}
    if len(sizes) != 1 or plans.n == 0:
        raise ValueError(
            f"a co-design wants plans and designs of one number, got {plans.n} plans and designs of {sorted(sizes)}"
        )
    asked = _Asked(model, problem, plans, designs, sizes.pop(), metric, limits)
    fits = asked.fitting()
    table = _Table.empty(asked)
    rows, columns = np.nonzero(fits)
    if metric in TIMES and not limits and asked.n > 1 and asked.n >= WORTH * len(asked.alike):
        ideal = asked.ideal(fits)
        order = np.argsort(np.where(fits, ideal, np.inf), axis=1, kind="stable")[:, :FIRST]
        first = np.repeat(np.arange(asked.n), order.shape[1]), order.ravel()
        some = fits[first]
        asked.fill(table, first[0][some], first[1][some])
        left = fits & (ideal <= table.best()[:, None]) & ~table.seen
        rows, columns = np.nonzero(left)
    asked.fill(table, rows, columns)
    return asked.answer(table, fits)


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Of each (design, plan): its cost (infinite where infeasible or not looked at), violation, and whether it was seen."""

    cost: FloatArray
    violation: FloatArray
    seen: NDArray[np.bool_]

    @classmethod
    def empty(cls, asked: _Asked) -> _Table:
        shape = (asked.n, asked.plans.n)
        return cls(np.full(shape, np.inf), np.full(shape, np.inf), np.zeros(shape, np.bool_))

    def best(self) -> FloatArray:
        """The least cost of each design so far."""
        return np.asarray(self.cost.min(axis=1))


@dataclass(frozen=True, eq=False)  # a cached property needs a dictionary
class _Asked:
    """The question, and points of it."""

    model: CostModel
    problem: Problem
    plans: Columns
    designs: Mapping[str, NDArray[Any]]
    n: int
    metric: str
    limits: Mapping[str, float]

    def points(self, rows: IntArray, plans: IntArray, designs: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """Columns of the given designs on the given plans; `rows` numbers the designs."""
        codes = {axis: code[plans] for axis, code in self.plans.codes.items()}
        levels = dict(self.plans.levels)
        for axis, (code, values) in (self.axes if designs is None else _axes(designs)).items():
            codes[axis] = code[rows]
            levels |= {symbol: (axis, found) for symbol, found in values.items()}
        return Columns(n=len(rows), codes=codes, levels=levels)

    @cached_property
    def axes(self) -> Mapping[str, _Axis]:
        """The designs' symbols by axis."""
        return _axes(self.designs)

    def fitting(self) -> NDArray[np.bool_]:
        """Which plans the model's bound does not rule out on which design, (n, plans).

        Memory in use is a matter of the plan where the bound says it in bytes: then it is counted once and compared.
        """
        alone = self.model.bound(self.problem, self.points(np.zeros(self.plans.n, np.int64), np.arange(self.plans.n)))
        if set(alone.violation) == {"memory"} and "memory" in alone.value:
            room = np.broadcast_to(np.asarray(self._bound_to("device.memory_capacity"), np.float64), (self.n,))
            return np.asarray(alone.value["memory"][None, :] <= room[:, None])
        rows, plans = (index.ravel() for index in np.indices((self.n, self.plans.n)))
        worst = np.full(len(rows), -np.inf)
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            bound = self.model.bound(self.problem, self.points(rows[part], plans[part]))
            worst[part] = _worst(bound.violation, len(rows[part]))
        return (worst <= 0).reshape(self.n, self.plans.n)

    def _bound_to(self, symbol: str) -> object:
        return self.designs[symbol] if symbol in self.designs else self.problem.scalars[symbol]

    @cached_property
    def alike(self) -> list[IntArray]:
        """The designs apart by every symbol whose name does not say which way is faster: a domain, what a chip is made of."""
        told = (*RISING, *FALLING, *APART)
        either = [v for name, v in self.designs.items() if name in ON_CHIPS or not name.startswith(told)]
        if not either:
            return [np.arange(self.n)]
        _, kind = np.unique(np.stack([np.asarray(v, np.float64) for v in either], axis=1), axis=0, return_inverse=True)
        return [np.flatnonzero(kind == one) for one in range(int(kind.max()) + 1)]

    def ideal(self, fits: NDArray[np.bool_]) -> FloatArray:
        """A time that no design beats on each plan, (n, plans): of the best of each symbol among GROUP like designs."""
        groups, count = np.empty(self.n, np.int64), 0
        for rows in self.alike:
            like = rows[self._nearest(rows, fits)]
            groups[like] = count + np.arange(len(like)) // GROUP
            count = int(groups[like].max()) + 1
        best: dict[str, NDArray[Any]] = {}
        for name, values in self.designs.items():
            extreme = np.full(count, np.inf if name.startswith(FALLING) else -np.inf)
            (np.minimum if name.startswith(FALLING) else np.maximum).at(extreme, groups, values)
            best[name] = extreme
        some = np.zeros((count, self.plans.n), np.bool_)
        np.logical_or.at(some, groups, fits)
        rows, plans = np.nonzero(some)
        time = np.full((count, self.plans.n), np.inf)
        time[rows, plans] = self._time(best, rows, plans)
        return np.asarray(time[groups] * (1.0 - 1e-9))

    def _nearest(self, rows: IntArray, fits: NDArray[np.bool_]) -> IntArray:
        """Some designs in an order in which neighbours take like times: cut in halves along whatever moves the time most.

        How much a symbol moves it is looked up on one plan: its time with the symbol at either end, all else at its best.
        """
        designs = {name: values[rows] for name, values in self.designs.items()}
        names = [name for name, v in designs.items() if not name.startswith(APART) and np.any(v != v[0])]
        some = np.flatnonzero(fits[rows].any(axis=0))
        if not names or len(rows) <= GROUP or not len(some):
            return np.arange(len(rows))
        best = {n: np.array([v.min() if n.startswith(FALLING) else v.max()]) for n, v in designs.items()}
        fastest = some[np.argmin(self._time(best, np.zeros(len(some), np.int64), some))]
        tried = np.arange(len(names) + 1)
        worse = {name: np.repeat(value, len(tried)) for name, value in best.items()}
        for row, name in enumerate(names):
            values = designs[name]
            worse[name][row] = values.max() if name.startswith(FALLING) else values.min()
        time = np.log(self._time(worse, tried, np.full(len(tried), fastest)))
        effect = np.abs(time[:-1] - time[-1])
        logs = np.stack([np.log(np.maximum(np.asarray(designs[n], np.float64), 1e-30)) for n in names], axis=1)
        span = np.maximum(np.ptp(logs, axis=0), 1e-30)
        return _halved((logs - logs.min(axis=0)) / span * effect, np.arange(len(rows)))

    def _time(self, designs: Mapping[str, NDArray[Any]], rows: IntArray, plans: IntArray) -> FloatArray:
        """The metric of some points of other designs."""
        found = np.empty(len(rows))
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            points = self.points(rows[part], plans[part], designs)
            found[part] = self._evaluated(points).value[self.metric]
        return found

    def _evaluated(self, points: Columns) -> Metrics:
        """What is optimised and limited, of some points."""
        if isinstance(self.model, Selective):
            return self.model.only(self.problem, points, frozenset({self.metric, *self.limits}))
        return self.model.evaluate(self.problem, points)

    def fill(self, table: _Table, rows: IntArray, plans: IntArray) -> None:
        """Evaluate points and write them into the table."""
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            metrics = self._evaluated(self.points(rows[part], plans[part]))
            value = metrics.value[self.metric]
            worst = _worst(metrics.violation, metrics.n)
            for name, most in self.limits.items():
                worst = np.maximum(worst, metrics.value[name] / most - 1.0)
            at = rows[part], plans[part]
            table.seen[at] = True
            table.violation[at] = worst
            table.cost[at] = np.where(worst <= 0, -value if self.metric in MAXIMISED else value, np.inf)

    def answer(self, table: _Table, fits: NDArray[np.bool_]) -> Best:
        """The best plan of each design, with all its metrics."""
        cost = table.best()
        feasible = np.isfinite(cost)
        plan = np.where(feasible, np.argmin(table.cost, axis=1), self._least_bad(table, fits))
        metrics = self.model.evaluate(self.problem, self.points(np.arange(self.n), plan))
        worst = _worst(metrics.violation, self.n)
        for name, most in self.limits.items():
            worst = np.maximum(worst, metrics.value[name] / most - 1.0)
        value = np.where(feasible, metrics.value[self.metric], np.nan)
        count = int(np.count_nonzero(table.seen))
        return Best(plan, value, worst, metrics, count, self.n * self.plans.n)

    def _least_bad(self, table: _Table, fits: NDArray[np.bool_]) -> IntArray:
        """For designs without a feasible plan: the plan that violates least among those evaluated, else that needs least."""
        if fits.any(axis=1).all():
            return np.asarray(np.argmin(table.violation, axis=1))
        alone = self.model.bound(self.problem, self.points(np.zeros(self.plans.n, np.int64), np.arange(self.plans.n)))
        leanest = int(np.argmin(_worst(alone.violation, self.plans.n)))
        return np.where(fits.any(axis=1), np.argmin(table.violation, axis=1), leanest)


_Axis: TypeAlias = tuple[NDArray[np.int32], Mapping[str, NDArray[Any]]]
"""The level of each of n designs, and the values of every symbol of the axis by level."""


def _axes(designs: Mapping[str, NDArray[Any]]) -> dict[str, _Axis]:
    """Axes of designs: symbols that tell the same designs apart share one, so that what reads few symbols is found for few."""
    axes: dict[bytes, tuple[NDArray[np.int32], dict[str, NDArray[Any]]]] = {}
    for name, given in designs.items():
        values = np.asarray(given)
        _, first, kind = np.unique(values, return_index=True, return_inverse=True)
        order = np.argsort(first)  # levels in the order in which designs show them
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        code = place[kind.reshape(-1)]
        axes.setdefault(code.tobytes(), (code, {}))[1][name] = values[first[order]]
    return {f"design {i}": axis for i, axis in enumerate(axes.values())}


def _halved(places: FloatArray, rows: IntArray) -> IntArray:
    """Rows in the order of a k-d tree over `places` (n, k): halved along the widest direction until GROUP or fewer are left."""
    if len(rows) <= GROUP:
        return rows
    widest = int(np.argmax(np.ptp(places[rows], axis=0)))
    ordered = rows[np.argsort(places[rows, widest], kind="stable")]
    half = -(-len(rows) // (2 * GROUP)) * GROUP
    return np.concatenate([_halved(places, ordered[:half]), _halved(places, ordered[half:])])


def _worst(violation: Mapping[str, FloatArray], n: int) -> FloatArray:
    return np.maximum.reduce([np.broadcast_to(v, (n,)) for v in violation.values()]) if violation else np.full(n, -1.0)
