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
_MEMORY = (0.97, 1.05)


@cache
def table() -> dict[str, Any]:
    """Pairs by stack and generation (costmodels/data/serving_intervals.yaml)."""
    with (DATA / "serving_intervals.yaml").open(encoding="utf-8") as file:
        return dict(facts_in(file.read()))


def pairs(stack: str, generation: str) -> dict[str, Any]:
    """`low`, `high` of times, `first_low`, `first_high` of times to first token, and their evidence."""
    found = table().get(stack, {}).get(generation) or table()["default"]
    return dict(found)


def interval(
    problem: Problem, at: Bindings, value: Mapping[str, FloatArray]
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], NDArray[np.int8]]:
    """(low, high) sides of the 90 % intervals of every metric, and the evidence code of every point."""
    names = problem.labels.get("generation", ("unknown",))
    generation = np.broadcast_to(np.asarray(at.get("generation", 0)), (at.n,)).astype(np.int64)
    found = [pairs(problem.stack, name) for name in names]
    factor = {
        side: np.array([float(p[side]) for p in found])[generation] for side in ("low", "high", "first_low", "first_high")
    }
    low: dict[str, FloatArray] = {}
    high: dict[str, FloatArray] = {}
    for metric, array in value.items():
        if metric in EXACT:
            low[metric], high[metric] = array, array
        elif metric == "memory":
            low[metric], high[metric] = array * _MEMORY[0], array * _MEMORY[1]
        elif metric in MAXIMISED:
            low[metric], high[metric] = array / factor["high"], array / factor["low"]
        else:
            prefix = "first_" if metric == "ttft" else ""
            low[metric], high[metric] = array * factor[f"{prefix}low"], array * factor[f"{prefix}high"]
    evidence = np.array([int(Evidence[str(p["evidence"]).upper()]) for p in found], np.int8)[generation]
    return low, high, evidence
