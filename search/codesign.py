"""Machines judged by what they do best: for every design and every workload the best plan, exactly, and what all of it costs.

A `CodesignModel` is a cost model whose design points are machines: its axes are parameters of an accelerator, and inside each
point stands an exact search over the plans of every workload (search/inner.py). It is searched as any other model is.
Performance, energy and latency are weighted geometric means over the workloads, relative to the part the designs descend
from (which scores 1), so that no workload's unit outweighs another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.machines.area import reticle_violation, silicon_area, total_area
from costmodels.machines.carbon import embodied_carbon
from costmodels.machines.checks import held_out_ratio
from costmodels.machines.designs import capital_per_device, design_symbols, hourly_price
from costmodels.machines.power import design_power, static_power, sustained_share
from costmodels.machines.price import cluster_capital, device_price, ownership_per_hour
from costmodels.metrics import CostModel, Evidence, Metrics
from search.inner import Best, best_plans
from spaces.columns import Columns, FloatArray
from spaces.hardware.accelerators import CATEGORIES, Accelerator, names_of
from spaces.hardware.formulas import Formulas
from spaces.problem import Problem

SCORES = ("performance", "performance_per_dollar", "performance_per_watt", "latency")
"""Relative to the base part; of the first three more is better."""
ABSOLUTE = ("capital", "device_price", "hourly_price", "die_area", "design_power", "sustained_clock", "embodied_carbon")
"""USD a device (system, then package), USD an hour, mm², W, share of the boost clock, kg."""
MADE = ("reticle", "static_power")
"""Constraints of the package, whatever it is used for."""
SURE = 0.9
"""Share of new parts that an interval is to hold."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Something the machine is to do, with all the plans it may be done by.

    `own` are the symbols of the device that designs descend from; `metric` ranks plans; `throughput` is what performance
    counts, tokens a second and device; `latency` the metric that latency counts; `limits` the most of some metrics.
    """

    name: str
    weight: float
    model: CostModel
    problem: Problem
    plans: Columns
    own: Mapping[str, float]
    devices: float
    metric: str
    throughput: str
    latency: str
    limits: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodesignModel:
    """Cost model over designs. `axes` are the parameters that points bind, `fixed` those that differ from `base` in all."""

    base: Accelerator
    workloads: tuple[Workload, ...]
    axes: tuple[str, ...]
    fixed: Mapping[str, float]
    formulas: Formulas | None = None

    @property
    def reads(self) -> frozenset[str]:
        """The parameters that vary."""
        return frozenset(self.axes)

    def bound(self, problem: Problem, points: Columns) -> Metrics:  # noqa: ARG002
        """What needs no plan: area, power and price, exactly; and whether such a package can be made and powered."""
        at = self.designs(points)
        return Metrics(n=points.n, value=self._absolute(at), violation=_made(at))

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:  # noqa: ARG002
        """All metrics of the n machines, each with its best plans."""
        at = self.designs(points)
        value = self._absolute(at)
        if points.n == 0:
            names = [*SCORES, *(f"{w.name}.{what}" for w in self.workloads for what in ("throughput", "latency", "energy"))]
            return self._metrics(at, value | {name: np.empty(0) for name in names}, {})
        found = self.best(at)
        reference = self.best({name: values[:1] for name, values in self.base.columns().items()})
        scores = {name: np.zeros(points.n) for name in SCORES}
        total = sum(w.weight for w in self.workloads)
        price = hourly_price(at, self.workloads[0].devices) / hourly_price(self.base.columns(), self.workloads[0].devices)
        violation: dict[str, FloatArray] = {}
        for w in self.workloads:
            own, base = _figures(w, found[w.name]), _figures(w, reference[w.name])
            relative = {name: np.log(own[name]) - np.log(base[name]) for name in own}
            scores["performance"] += w.weight / total * relative["throughput"]
            scores["performance_per_watt"] -= w.weight / total * relative["energy"]
            scores["latency"] += w.weight / total * relative["latency"]
            violation |= _broken(w, found[w.name])
            value |= {f"{w.name}.{name}": figure for name, figure in own.items()}
        scores["performance_per_dollar"] = scores["performance"] - np.log(price)
        return self._metrics(at, value | {name: np.exp(score) for name, score in scores.items()}, violation)

    def designs(self, points: Columns) -> dict[str, FloatArray]:
        """`chip.*` and `device.*` of the machines; categorical axes hold positions."""
        changes: dict[str, Any] = dict(self.fixed)
        changes |= {name: np.asarray(points[name], np.float64) for name in self.axes}
        if points.n == 0:
            whole = self.base.columns({}, self.formulas)
            return {name: values[:0] for name, values in whole.items()}
        return self.base.columns(changes, self.formulas)

    def best(self, at: Mapping[str, FloatArray]) -> dict[str, Best]:
        """The best plans of some designs, by workload."""
        found = {}
        for w in self.workloads:
            symbols = design_symbols(self.base, w.own, at, w.devices)
            symbols = symbols or {"device.power": at["device.power"]}
            found[w.name] = best_plans(w.model, w.problem, w.plans, symbols, w.metric, w.limits)
        return found

    def _absolute(self, at: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        devices = self.workloads[0].devices
        return {
            "capital": capital_per_device(at, devices),
            "device_price": device_price(at),
            "hourly_price": hourly_price(at, devices),
            "die_area": total_area(at),
            "design_power": np.asarray(sum(design_power(at).values())),
            "sustained_clock": sustained_share(at),
            "embodied_carbon": np.asarray(sum(embodied_carbon(at).values()), np.float64) + np.zeros_like(at["device.power"]),
        }

    def _metrics(
        self, at: Mapping[str, FloatArray], value: Mapping[str, FloatArray], violation: Mapping[str, FloatArray]
    ) -> Metrics:
        devices = self.workloads[0].devices
        capital = cluster_capital(at, device_price(at), devices)
        hour = ownership_per_hour(at, value["capital"] * devices, at["device.power"], devices)
        n = len(value["capital"])
        return Metrics(
            n=n,
            value=value,
            low={name: figure / _spread(name) for name, figure in value.items()},
            high={name: figure * _spread(name) for name, figure in value.items()},
            parts={
                "capital": {name: part / devices for name, part in capital.items()},
                "hourly_price": {name: part / devices for name, part in hour.items()},
                "die_area": silicon_area(at),
                "design_power": design_power(at),
            },
            violation={**_made(at), **violation},
            evidence=np.full(n, int(Evidence.FIRST_PRINCIPLES), np.int8),
        )


def _broken(w: Workload, best: Best) -> dict[str, FloatArray]:
    """How far the best plans pass what the workload must keep, by what that is: `serve: memory`, `serve: tpot`."""
    value, own = best.metrics.value, best.metrics.violation
    limits = {name: value[name] / most - 1.0 for name, most in w.limits.items()}
    return {f"{w.name}: {name}": np.broadcast_to(v, (best.metrics.n,)) for name, v in {**own, **limits}.items()}


def _made(at: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Whether a reticle exposes the dies, and whether the cap leaves anything of the watts that they draw at rest."""
    return {"reticle": reticle_violation(at), "static_power": static_power(at) * (1 + 1e-9) / at["device.power"] - 1.0}


def _spread(name: str) -> float:
    """Ratio of a figure to either end of its interval, by the errors of held-out parts.

    Silicon, and what is made and paid by its area, errs as area does; watts as power does; what needs both, as the worse.
    """
    if name == "sustained_clock":
        return 1.0
    figures = _ERRS_AS.get(name, ("area", "power"))
    return max(held_out_ratio(figure, SURE) for figure in figures)


_ERRS_AS: Mapping[str, tuple[str, ...]] = {
    "die_area": ("area",),
    "device_price": ("area",),
    "capital": ("area",),
    "embodied_carbon": ("area",),
    "design_power": ("power",),
}


def _figures(workload: Workload, best: Best) -> dict[str, FloatArray]:
    """Throughput a device, latency and joules a token of the best plans."""
    value = best.metrics.value
    return {
        "throughput": value[workload.throughput],
        "latency": value[workload.latency],
        "energy": value["energy_per_token"],
    }


def axis_values(name: str, values: Sequence[object]) -> list[float]:
    """The levels of a design axis as its symbol holds them."""
    from spaces.hardware.accelerators import parameter_value

    return [parameter_value(name, value) for value in values]


def spelled_value(name: str, value: float) -> str | float:
    """A parameter's value as people write it."""
    return names_of(name)[int(value)] if name in CATEGORIES else value
