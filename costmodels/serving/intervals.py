"""How wrong a serving prediction is likely to be: pairs of factors from errors on held-out results, by stack and generation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.constants import DATA
from costmodels.metrics import MAXIMISED, Evidence
from spaces.columns import Bindings, FloatArray
from spaces.facts import facts_in
from spaces.problem import Problem

EXACT = frozenset({"devices", "rated_power", "kv_capacity", "kv_headroom", "running_requests", "request_rate", "highest_rate"})
_OVER_RATE = frozenset({"price_per_million_tokens", "energy_per_token"})
_MEMORY = (0.97, 1.05)


@cache
def table() -> dict[str, Any]:
    """Pairs by stack and generation (costmodels/data/serving_intervals.yaml)."""
    with (DATA / "serving_intervals.yaml").open(encoding="utf-8") as file:
        return dict(facts_in(file.read()))


def pairs(stack: str, generation: str) -> dict[str, Any]:
    """`low`, `high` of times, `first_...` of times to first token, `rate_...` of one over rates, and their evidence."""
    found = table().get(stack, {}).get(generation) or table()["default"]
    entry = dict(found)
    return {"rate_low": entry["low"], "rate_high": entry["high"], **entry}


def sides(around: Mapping[str, Any], prefix: str) -> tuple[float, float]:
    """(low, high) factors of a figure whose names begin with `prefix`: of a rate itself, where that is `rate_`."""
    low, high = float(around[f"{prefix}low"]), float(around[f"{prefix}high"])
    return (1.0 / high, 1.0 / low) if prefix == "rate_" else (low, high)


def interval(
    problem: Problem, at: Bindings, value: Mapping[str, FloatArray]
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], NDArray[np.int8]]:
    """(low, high) sides of the 90 % intervals of every metric, and the evidence code of every point."""
    names = problem.labels.get("generation", ("unknown",))
    generation = np.broadcast_to(np.asarray(at.get("generation", 0)), (at.n,)).astype(np.int64)
    found = [pairs(problem.stack, name) for name in names]
    factor = {
        prefix: np.array([sides(p, prefix) for p in found]).reshape(-1, 2)[generation].T for prefix in ("", "first_", "rate_")
    }
    low: dict[str, FloatArray] = {}
    high: dict[str, FloatArray] = {}
    for metric, array in value.items():
        if metric in EXACT:
            low[metric], high[metric] = array, array
        elif metric == "memory":
            low[metric], high[metric] = array * _MEMORY[0], array * _MEMORY[1]
        elif metric in _OVER_RATE:
            below, above = factor["rate_"]
            low[metric], high[metric] = array / above, array / below
        else:
            prefix = "rate_" if metric in MAXIMISED else "first_" if metric == "ttft" else ""
            below, above = factor[prefix]
            low[metric], high[metric] = array * below, array * above
    evidence = np.array([int(Evidence[str(p["evidence"]).upper()]) for p in found], np.int8)[generation]
    return low, high, evidence
