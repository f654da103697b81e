"""Statistics of requests that objectives name: means, percentiles, shares within an objective; estimated, until simulated.

The closed form knows means alone. For screening, a percentile is the mean stretched as an exponential tail of part of it would:
half of the time to first token is waiting, a twentieth of the time per token. Simulation replaces every one of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.metrics import CostModel, Metrics
from spaces.columns import Columns, FloatArray
from spaces.problem import Problem

_TAIL: Mapping[str, float] = {"ttft": 0.5, "tpot": 0.05, "inter_token": 0.3, "request_latency": 0.1}
"""Share of the mean that waits, by latency: what its tail stretches."""

_NAME = re.compile(r"(\w+)_p(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What is asked of requests beside means: percentiles by name (`ttft_p95`), and an objective, seconds (infinite: none)."""

    percentiles: tuple[str, ...] = ()
    ttft: float = np.inf
    tpot: float = np.inf
    latency: float = np.inf
    goodput: bool = False

    @property
    def objective(self) -> bool:
        """Whether there is an objective to meet."""
        return min(self.ttft, self.tpot, self.latency) < np.inf


def percentile_of(name: str) -> tuple[str, float]:
    """(`ttft`, 95.0) for `ttft_p95`. Raises ValueError for a name of another shape."""
    found = _NAME.fullmatch(name)
    if found is None or found[1] not in _TAIL:
        raise ValueError(f"{name!r} is no percentile of a latency; write for example ttft_p95")
    return found[1], float(found[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedStatistics:
    """A closed form with estimates of the statistics that it does not know."""

    model: CostModel
    asked: Statistics

    @property
    def reads(self) -> frozenset[str]:
        """The symbols of the closed form."""
        return self.model.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """The closed form's own bound."""
        return self.model.bound(problem, points)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """The closed form's metrics and the estimates."""
        found = self.model.evaluate(problem, points)
        value, low, high = dict(found.value), dict(found.low), dict(found.high)
        for side in (value, low, high):
            side["inter_token"] = side["tpot"]
            side["requests_per_second"] = side["request_rate"]
            side["power"] = side["energy_per_token"] * side["tokens_per_second"]
            side["price_per_hour"] = side["price_per_million_tokens"] * side["tokens_per_second"] * (3600.0 / 1e6)
            side |= {name: _stretched(side, name) for name in self.asked.percentiles}
        for end in ("power", "price_per_hour"):  # exact in their parts: no wider than the figure itself
            low[end], high[end] = np.minimum(low[end], value[end]), np.maximum(high[end], value[end])
        low["price_per_hour"] = high["price_per_hour"] = value["price_per_hour"]
        if self.asked.objective:
            highest = value["request_rate"] / np.maximum(1.0 + np.maximum(found.violation["rate"], -0.999), 1e-3)
            value["slo_attainment"] = low["slo_attainment"] = high["slo_attainment"] = self._attained(value)
            meets = (value["tpot"] <= self.asked.tpot) & np.isfinite(highest)
            for side in (value, low, high):
                side["goodput"] = np.where(meets, 0.9, 0.1) * highest
                side["goodput_per_device"] = side["goodput"] / value["devices"]
        return dataclasses.replace(found, value=value, low=low, high=high)

    def _attained(self, value: Mapping[str, FloatArray]) -> FloatArray:
        """Share of requests within the objective, each latency by its stretched mean, (n,)."""
        share = np.ones(len(value["ttft"]))
        for name, limit in (("ttft", self.asked.ttft), ("tpot", self.asked.tpot), ("request_latency", self.asked.latency)):
            if limit < np.inf:
                above = (limit / value[name] - 1.0) / _TAIL[name]
                share *= 1.0 - np.exp(-np.clip(1.0 + above, 0.0, 50.0))
        return share


def _stretched(mean: Mapping[str, FloatArray], name: str) -> FloatArray:
    latency, q = percentile_of(name)
    tail = -np.log(max(1.0 - q / 100.0, 1e-4)) - 1.0
    return np.asarray(mean[latency] * max(1.0 + _TAIL[latency] * tail, 0.1), np.float64)
