"""The best plan of every design, exactly: designs and plans as one batch of columns, with bounds that spare most of them.

A design binds symbols (`device.memory_bandwidth`, …), a plan binds others; a point is one of each. Where less time is what is
wanted, a group of like designs is bounded by an ideal one that has the best of each of their symbols: no plan is slower on
the ideal than on any of them, so a plan whose ideal time is beyond a design's best so far is never evaluated there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import MAXIMISED, CostModel, Metrics
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
APART = ("device.power", "device.idle_power", "device.price_per_hour", "device.compute_units", "energy.")
"""Symbols that times do not read."""


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
    if metric in TIMES and not limits and asked.ordered() and asked.n > 1:
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


@dataclass(frozen=True, slots=True, eq=False)
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
        """Columns of the given designs on the given plans."""
        chosen = self.designs if designs is None else designs
        codes = {axis: code[plans] for axis, code in self.plans.codes.items()} | {"design": rows.astype(np.int32)}
        return Columns(n=len(rows), codes=codes, levels={**self.plans.levels, **{s: ("design", v) for s, v in chosen.items()}})

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

    def ordered(self) -> bool:
        """Whether every symbol of the designs says by its name which way is faster."""
        return all(name.startswith((*RISING, *FALLING, *APART)) or np.all(v == v[0]) for name, v in self.designs.items())

    def ideal(self, fits: NDArray[np.bool_]) -> FloatArray:
        """A time that no design beats on each plan, (n, plans): of the best of each symbol among GROUP like designs."""
        like = self._alike(fits)
        groups = np.empty(self.n, np.int64)
        groups[like] = np.arange(self.n) // GROUP
        count = int(groups.max()) + 1
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

    def _alike(self, fits: NDArray[np.bool_]) -> IntArray:
        """The designs in an order in which neighbours take like times: cut in halves along whatever moves the time most.

        How much a symbol moves it is looked up on one plan: its time with the symbol at either end, all else at its best.
        """
        names = [name for name, v in self.designs.items() if not name.startswith(APART) and np.any(v != v[0])]
        if not names:
            return np.arange(self.n)
        best = {n: np.array([v.min() if n.startswith(FALLING) else v.max()]) for n, v in self.designs.items()}
        some = np.flatnonzero(fits.any(axis=0))
        fastest = some[np.argmin(self._time(best, np.zeros(len(some), np.int64), some))] if len(some) else 0
        rows = np.arange(len(names) + 1)
        worse = {name: np.repeat(value, len(rows)) for name, value in best.items()}
        for row, name in enumerate(names):
            values = self.designs[name]
            worse[name][row] = values.max() if name.startswith(FALLING) else values.min()
        time = np.log(self._time(worse, rows, np.full(len(rows), fastest)))
        effect = np.abs(time[:-1] - time[-1])
        logs = np.stack([np.log(np.maximum(np.asarray(self.designs[n], np.float64), 1e-30)) for n in names], axis=1)
        span = np.maximum(np.ptp(logs, axis=0), 1e-30)
        return _halved((logs - logs.min(axis=0)) / span * effect, np.arange(self.n))

    def _time(self, designs: Mapping[str, NDArray[Any]], rows: IntArray, plans: IntArray) -> FloatArray:
        """The metric of some points of other designs."""
        found = np.empty(len(rows))
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            points = self.points(rows[part], plans[part], designs)
            found[part] = self.model.evaluate(self.problem, points).value[self.metric]
        return found

    def fill(self, table: _Table, rows: IntArray, plans: IntArray) -> None:
        """Evaluate points and write them into the table."""
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            metrics = self.model.evaluate(self.problem, self.points(rows[part], plans[part]))
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
