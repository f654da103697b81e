"""How wrong a prediction is likely to be: multiplicative pairs from errors on held-out sources, by stack and generation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from costmodels.metrics import Evidence
from spaces.columns import Bindings, FloatArray
from spaces.problem import Problem

EXACT = frozenset({"devices"})
MEMORY = frozenset({"memory", "peak_memory"})


@cache
def table() -> dict[str, Any]:
    """Pairs by stack and generation (costmodels/data/intervals.yaml)."""
    with (Path(__file__).parent / "data" / "intervals.yaml").open(encoding="utf-8") as file:
        return dict(yaml.safe_load(file))


def pair(stack: str, generation: str) -> tuple[float, float, Evidence]:
    """(low, high) factors of a time and what they rest on; the default doubled where nothing was held out."""
    entry = table()["time"].get(stack, {}).get(generation)
    if entry is None:
        entry = table()["time"]["default"]
    return float(entry["low"]), float(entry["high"]), Evidence[entry["evidence"].upper()]


def interval(
    problem: Problem, at: Bindings, value: Mapping[str, FloatArray], maximised: frozenset[str]
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], NDArray[np.int8]]:
    """90 % intervals of every metric, and the evidence code of every point."""
    generation = np.broadcast_to(np.asarray(at.get("generation", 0)), (at.n,)).astype(np.int64)
    names = problem.labels.get("generation", ("unknown",))
    pairs = [pair(problem.stack, name) for name in names]
    low = np.array([p[0] for p in pairs])[generation]
    high = np.array([p[1] for p in pairs])[generation]
    evidence = np.array([int(p[2]) for p in pairs], np.int8)[generation]
    around = table()["memory"]
    lows, highs = {}, {}
    for name, array in value.items():
        if name in EXACT:
            lows[name] = highs[name] = array
        elif name in MEMORY:
            lows[name], highs[name] = array * around["low"], array * around["high"]
        elif name in maximised:
            lows[name], highs[name] = array / high, array / low
        else:
            lows[name], highs[name] = array * low, array * high
    return lows, highs, evidence
