"""Many models on one machine, of which the stacked memory holds some and a larger, slower tier all (SN40L, MICRO 2024).

A request, or the requests of one model that are served together, finds its model in the stacked memory or waits until it is
brought there from the host's memory over its link. Models are of one size and asked for uniformly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.machines.tiers import miss_share, switch_time
from costmodels.metrics import CostModel, Metrics
from costmodels.serving.capacity import Capacity, capacity
from costmodels.serving.stack import find_serving_stack
from spaces.columns import Columns, FloatArray
from spaces.problem import Problem

SLOWER = ("ttft", "request_latency")
"""Metrics that wait for a model to be brought."""
RATES = ("request_rate", "highest_rate", "tokens_per_second", "tokens_per_second_per_device")
"""Metrics that fall by the time it takes."""
PRICES = ("price_per_million_tokens",)
"""Metrics that grow by it."""
ENERGIES = ("energy_per_token",)
"""Metrics that what is drawn meanwhile is added to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchingModel:
    """A cost model of serving one of `models` models of one size, whose weights all lie in the larger tier.

    `models_held` is how many the stacked memory holds beside the cache of the requests that run. Time per token is that of
    the model itself; first tokens wait for the mean switch, and rates fall by it.
    """

    model: CostModel
    models: float

    @property
    def reads(self) -> frozenset[str]:
        """The symbols of the model."""
        return self.model.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """The model's own bound, and whether the larger tier holds all models."""
        found = self.model.bound(problem, points)
        return dataclasses.replace(found, violation={**found.violation, "far_memory": self._excess(_held(problem, points))})

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """The model's metrics with the mean switch in them."""
        found, memory, at = self.model.evaluate(problem, points), _held(problem, points), problem.at(points)
        value = found.value
        used = (1.0 - value["kv_headroom"]) * memory.tokens * memory.token
        spare = np.maximum(memory.room - memory.fixed - used, 0.0)
        miss = miss_share(self.models, memory.weights + spare, memory.weights)
        wait = miss * switch_time(memory.weights, np.asarray(at["device.host_link_bandwidth"], np.float64))
        stretch = 1.0 + wait / value["request_latency"]
        idle = np.asarray(at["device.idle_power"], np.float64) * value["devices"]
        waiting = idle * (stretch - 1.0) / np.maximum(value["tokens_per_second"], 1e-12)  # joules a token

        def switched(side: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
            changed = {name: side[name] + wait for name in SLOWER if name in side}
            changed |= {name: side[name] / stretch for name in RATES if name in side}
            changed |= {name: side[name] * stretch for name in PRICES if name in side}
            changed |= {name: side[name] + waiting for name in ENERGIES if name in side}
            return {**side, **changed, "models_held": np.round((1.0 - miss) * self.models)}

        value, low, high = (switched(side) for side in (found.value, found.low, found.high))
        violation = {**found.violation, "far_memory": self._excess(memory)}
        return dataclasses.replace(found, value=value, low=low, high=high, violation=violation)

    def _excess(self, memory: Capacity) -> FloatArray:
        """Use over what the larger tier holds − 1, (n,)."""
        return np.asarray(self.models * memory.weights / memory.host_memory - 1.0, np.float64)


def _held(problem: Problem, points: Columns) -> Capacity:
    return capacity(problem.architecture, find_serving_stack(problem.stack), problem.at(points))
