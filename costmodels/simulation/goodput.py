"""Goodput: the largest rate of requests that meets a service-level objective, found by bisection.

Every rate is tried on the same requests with their arrival times stretched (common random numbers), so that attainment falls
with the rate but for the scheduler's own discreteness, and a bracket closes on one rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.simulation.outcome import Outcome, Slo
from spaces.workload import Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """`rate` requests a second that meet the objective (0: no rate tried does), the `attainment` there, and what was tried.

    `tried` holds (rate, attainment) in the order tried; `limited` says whether the highest rate allowed still met it.
    """

    rate: float
    attainment: float
    tried: tuple[tuple[float, float], ...]
    limited: bool

    def per_accelerator(self, accelerators: int) -> float:
        """Requests a second and accelerator."""
        return self.rate / accelerators

    @property
    def best_attainment(self) -> float:
        """The most that any rate reached: what is missing where no rate meets the objective."""
        return max((attainment for _, attainment in self.tried), default=0.0)


def goodput(
    run: Callable[[Requests], Outcome],
    workloads: Sequence[Requests],
    slo: Slo,
    *,
    share: float = 0.9,
    guess: float = 1.0,
    tolerance: float = 0.01,
    lowest: float = 1e-6,
    highest: float = 1e9,
    steady: bool = False,
) -> Goodput:
    """The largest rate at which at least `share` of the requests meet `slo`, on average over the workloads (one a seed).

    `run` simulates one workload; it is called at each rate with every workload stretched to that rate. From `guess` the rate
    doubles or halves until it brackets the answer, then is bisected (geometrically) to `tolerance`. Raises ValueError.
    """
    if not workloads:
        raise ValueError("goodput needs at least one workload")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}: the part of the requests that must meet the objective, above 0 and at most 1")
    tried: list[tuple[float, float]] = []

    def attained(rate: float) -> float:
        found = float(np.mean([run(one.at_rate(rate)).attainment(slo, steady=steady) for one in workloads]))
        tried.append((rate, found))
        return found

    rate = float(np.clip(guess, lowest, highest))
    low, high, reached = 0.0, np.inf, 0.0
    while not (low > 0 and np.isfinite(high)):
        found = attained(rate)
        if found >= share:
            low, reached = rate, found
            if rate >= highest:
                return Goodput(rate=rate, attainment=found, tried=tuple(tried), limited=True)
            rate = min(2 * rate, highest) if not np.isfinite(high) else rate
        else:
            high = rate
            if rate <= lowest or _hopeless(tried, share):
                return Goodput(rate=0.0, attainment=0.0, tried=tuple(tried), limited=False)
            rate = max(rate / 2, lowest) if low == 0 else rate
    while high / low > 1 + tolerance:
        rate = float(np.sqrt(low * high))
        found = attained(rate)
        if found >= share:
            low, reached = rate, found
        else:
            high = rate
    return Goodput(rate=low, attainment=reached, tried=tuple(tried), limited=False)


_UNLOADED = 12
"""Halvings without any gain after which the objective is out of reach of an empty engine."""


def _hopeless(tried: Sequence[tuple[float, float]], share: float) -> bool:
    last = [attainment for _, attainment in tried[-_UNLOADED:]]
    return len(last) == _UNLOADED and max(last) < share and max(last) == min(last)
