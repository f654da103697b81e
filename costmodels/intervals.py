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

    `low`, `high` (n,) are the factors of times and all that grows with them; on the side `above` a time is multiplied by `high`
    and a maximised metric divided by `low`, on the other it is the other way round. No time is below the shortest that a step
    can take: with its executed FLOPs, masked attention left out, at the datasheet's rate of the plan's format, `rate` (n,) of
    the 16-bit one.
    """

    value: Mapping[str, FloatArray]
    low: FloatArray
    high: FloatArray
    rate: FloatArray
    above: bool

    def __getitem__(self, metric: str) -> FloatArray:
        value = self.value[metric]
        if metric in EXACT:
            return value
        if metric in MEMORY:
            return value * float(table()["memory"]["high" if self.above else "low"])
        if metric in MAXIMISED:
            return value / (self._low() if self.above else self.high)
        return value * (self.high if self.above else self._low())

    def _low(self) -> FloatArray:
        """The factor below, no less than the shortest time over the predicted."""
        if "mfu_causal" not in self.value:
            return self.low
        shortest = self.value["mfu_causal"] * self.value["hfu"] / self.value["mfu"] / self.rate
        return np.maximum(self.low, np.minimum(shortest, 1.0))

    def __iter__(self) -> Iterator[str]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def take(self, rows: NDArray[Any] | slice, value: Mapping[str, FloatArray]) -> Around:
        """The same side for some rows, whose values are given."""
        return Around(value, self.low[rows], self.high[rows], self.rate[rows], self.above)


def interval(problem: Problem, at: Bindings, value: Mapping[str, FloatArray]) -> tuple[Around, Around, NDArray[np.int8]]:
    """(low, high) sides of the 90 % intervals of every metric, and the evidence code of every point."""
    names = problem.labels.get("generation", ("unknown",))
    pairs = [pair(problem.stack, name) for name in names]
    generation = np.asarray(at.get("generation", 0), np.int64) if len(names) > 1 else 0
    low, high = (np.broadcast_to(np.array([p[side] for p in pairs])[generation], (at.n,)) for side in (0, 1))
    evidence = np.broadcast_to(np.array([int(p[2]) for p in pairs], np.int8)[generation], (at.n,))
    rate = np.broadcast_to(_format_rate(at), (at.n,))
    return Around(value, low, high, rate, False), Around(value, low, high, rate, True), evidence


def _format_rate(at: Bindings) -> FloatArray:
    """Datasheet FLOP/s of the plan's format over those of the 16-bit ones."""
    return np.asarray(matrix_rate(at, True)[0] / sixteen_bit_rate(at), np.float64)
