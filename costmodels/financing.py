"""A training run on machines that are bought, beside the same run rented: capital, energy, and the use at which they meet.

Renting pays for the hours of the run. Buying pays for the horizon, used or not (depreciation, interest, site), and for the
energy of the hours used, at the meter. What is bought is worth its undepreciated rest afterwards, which is not counted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from costmodels.machines.price import cluster_capital, energy_per_hour, holding
from costmodels.machines.tables import constants
from costmodels.metrics import CostModel, Metrics
from spaces.columns import Columns, FloatArray
from spaces.problem import Problem

DAY = 24.0  # hours


@dataclass(frozen=True, slots=True, kw_only=True)
class FinancedTraining:
    """A cost model of training with `buying_price`, `cluster_capital` and `break_even_days` beside its own metrics.

    `years` is the horizon, `device_prices` USD of a device by the code of its kind. The model must know the length of the
    whole run (`training_days`, `training_energy`).
    """

    model: CostModel
    years: float
    device_prices: tuple[float, ...]

    @property
    def reads(self) -> frozenset[str]:
        """The symbols of the model."""
        return self.model.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """The model's own bound."""
        return self.model.bound(problem, points)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """The model's metrics and those of buying; an interval holds the market's range of capital and the run's of energy."""
        found = self.model.evaluate(problem, points)
        at = problem.at(points)

        def rows(name: str, default: float | None = None) -> FloatArray:
            value = at[name] if default is None else at.get(name, default)
            return np.broadcast_to(np.asarray(value, np.float64), (points.n,))

        devices, days = found.value["devices"], found.value["training_days"]
        prices = np.array(self.device_prices)[rows("device", 0.0).astype(np.int64)]
        capital = np.asarray(sum(cluster_capital(at, prices, devices).values()), np.float64)
        watts = found.value["training_energy"] / np.maximum(days * DAY * 3600.0 * devices, 1e-300)
        energy = energy_per_hour(at, watts, devices)
        parts = {**holding(capital, self.years), "energy": energy * days * DAY}
        fixed = np.asarray(sum(holding(capital, self.years).values()))
        rent = devices * rows("device.price_per_hour")
        saved = rent - energy
        even = np.where(saved > 0, fixed / np.where(saved > 0, saved, 1.0) / DAY, np.inf)
        market = 1.0 + constants("capital")["market"]
        value, low, high = dict(found.value), dict(found.low), dict(found.high)
        value |= {"cluster_capital": capital, "buying_price": fixed + parts["energy"], "break_even_days": even}
        for side, factor in ((low, 1.0 / market), (high, market)):
            run = side["training_days"] / np.maximum(days, 1e-300)
            side["cluster_capital"] = capital * factor
            side["buying_price"] = fixed * factor + parts["energy"] * run
            side["break_even_days"] = even * factor
        return dataclasses.replace(found, value=value, low=low, high=high, parts={**found.parts, "buying_price": parts})
