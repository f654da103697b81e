"""How wrong a prediction is likely to be: multiplicative pairs from errors on held-out sources, by stack and generation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels import matrix_rate, sixteen_bit_rate
from costmodels.metrics import MAXIMISED, Evidence
from spaces.columns import Bindings, FloatArray
from spaces.facts import facts_in
from spaces.problem import Problem

EXACT = frozenset({"devices"})
MEMORY = frozenset({"memory", "peak_memory"})


@cache
def table() -> dict[str, Any]:
    """Pairs by stack and generation (costmodels/data/intervals.yaml)."""
    with (Path(__file__).parent / "data" / "intervals.yaml").open(encoding="utf-8") as file:
        return dict(facts_in(file.read()))


def pair(stack: str, generation: str) -> tuple[float, float, Evidence]:
    """(low, high) factors of a time and what they rest on; the default doubled where nothing was held out."""
    entry = table()["time"].get(stack, {}).get(generation)
    if entry is None:
        entry = table()["time"]["default"]
    return float(entry["low"]), float(entry["high"]), Evidence[entry["evidence"].upper()]


@dataclass(frozen=True, slots=True, eq=False)
class Around(Mapping[str, FloatArray]):
    """One side of the intervals of every metric, computed when asked for: value · factor.

    `time` (n,) is the factor of times and all that grows with them; a maximised metric is divided by `inverse` (n,).
    """

    value: Mapping[str, FloatArray]
    time: FloatArray
    inverse: FloatArray
    memory: float

    def __getitem__(self, metric: str) -> FloatArray:
        value = self.value[metric]
        if metric in EXACT:
            return value
        if metric in MEMORY:
            return value * self.memory
        return value / self.inverse if metric in MAXIMISED else value * self.time

    def __iter__(self) -> Iterator[str]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def take(self, rows: NDArray[Any] | slice, value: Mapping[str, FloatArray]) -> Around:
        """The same side for some rows, whose values are given."""
        return Around(value, self.time[rows], self.inverse[rows], self.memory)


def interval(problem: Problem, at: Bindings, value: Mapping[str, FloatArray]) -> tuple[Around, Around, NDArray[np.int8]]:
    """(low, high) sides of the 90 % intervals of every metric, and the evidence code of every point."""
    names = problem.labels.get("generation", ("unknown",))
    generation = np.broadcast_to(np.asarray(at.get("generation", 0)), (at.n,)).astype(np.int64)
    pairs = [pair(problem.stack, name) for name in names]
    low = np.array([p[0] for p in pairs])[generation]
    high = np.array([p[1] for p in pairs])[generation]
    evidence = np.array([int(p[2]) for p in pairs], np.int8)[generation]
    around = table()["memory"]
    if "mfu_causal" in value:
        low = np.maximum(low, np.minimum(_fastest(at, value), 1.0))
    return Around(value, low, high, float(around["low"])), Around(value, high, low, float(around["high"])), evidence


def _fastest(at: Bindings, value: Mapping[str, FloatArray]) -> FloatArray:
    """The shortest time a step can take over the predicted: its executed FLOPs, masked attention left out, at the datasheet's
    rate of the plan's format."""
    format_rate = matrix_rate(at, True)[0] / sixteen_bit_rate(at)
    return np.asarray(value["mfu_causal"] * value["hfu"] / value["mfu"] / format_rate, np.float64)
