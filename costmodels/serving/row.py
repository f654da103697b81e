"""A row of servers under one power budget, each running the same plan: how many it feeds, and what they deliver together.

A server draws its rated power while it reads prompts and less while it writes answers, so that the mean of the two is what its
energy says (POLCA, Patel et al., ASPLOS 2024). Servers peak apart from one another, as far as their correlation lets them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from costmodels.machines.oversubscription import phase_power, servers_within
from costmodels.machines.price import server_power
from costmodels.metrics import CostModel, Metrics
from spaces.columns import Columns, FloatArray
from spaces.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class RowModel:
    """A cost model of serving with `row_servers`, `rated_row_servers` and `row_tokens_per_second` beside its own metrics.

    `budget` is W at the row's feed; a share `risk` of the time the row may draw more, and is capped; `correlation` is that
    between two servers' power. A server is the plan's devices with their hosts.
    """

    model: CostModel
    budget: float
    risk: float
    correlation: float

    @property
    def reads(self) -> frozenset[str]:
        """The symbols of the model."""
        return self.model.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """The model's own bound."""
        return self.model.bound(problem, points)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """The model's metrics and those of the row; its intervals are those of one server's throughput."""
        found = self.model.evaluate(problem, points)
        mean, deviation, rated = self._power(problem, points, found)
        fed = servers_within(self.budget, mean, deviation, rated, self.correlation, self.risk)
        whole = np.floor(self.budget / rated)
        value, low, high = dict(found.value), dict(found.low), dict(found.high)
        for side in (value, low, high):
            side |= {"row_servers": fed, "rated_row_servers": whole}
            side["row_tokens_per_second"] = fed * side["tokens_per_second"]
        violation = {**found.violation, "row": np.where(fed > 0, -1.0, rated / self.budget - 1.0)}
        return dataclasses.replace(found, value=value, low=low, high=high, violation=violation)

    def _power(self, problem: Problem, points: Columns, found: Metrics) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(mean, standard deviation, rated) W of one server, (n,)."""
        at = problem.at(points)
        devices = found.value["devices"]
        rated = server_power(at, np.asarray(at["device.power"], np.float64), devices)
        mean = np.minimum(server_power(at, found.value["power"] / devices, devices), rated)
        parts = found.parts["tpot"]
        whole = np.asarray(sum(parts.values()))
        share = np.clip(parts["prefill"] / np.where(whole > 0, whole, 1.0), 0.0, 1.0)
        share = np.minimum(share, mean / rated)  # no server draws less than nothing while it writes
        token = np.where(share < 1.0, (mean - share * rated) / np.where(share < 1.0, 1.0 - share, 1.0), rated)
        _, deviation = phase_power(share, rated, token)
        return np.asarray(mean), deviation, np.asarray(rated)
