"""When requests arrive in an open loop: Poisson, or gamma gaps that come in bursts. A closed loop has no times of its own."""

from __future__ import annotations

import math

import numpy as np

from spaces.columns import FloatArray


def poisson_arrivals(generator: np.random.Generator, n: int, rate: float) -> FloatArray:
    """n times of a Poisson process of `rate` requests a second, ascending, (n,)."""
    return gamma_arrivals(generator, n, rate, burstiness=1.0)


def gamma_arrivals(generator: np.random.Generator, n: int, rate: float, *, burstiness: float) -> FloatArray:
    """n times whose gaps are gamma distributed with mean 1/rate and coefficient of variation `burstiness`, (n,).

    1 is Poisson, above 1 comes in bursts, 0 is a metronome. The gamma's shape is 1/burstiness². Raises ValueError.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate is {rate}: requests a second must be positive and finite")
    if not 0 <= burstiness <= 30:
        raise ValueError(f"burstiness is {burstiness}: a coefficient of variation lies between 0 (even gaps) and about 10")
    if burstiness == 0:
        return np.arange(1, n + 1) / rate
    shape = 1.0 / burstiness**2
    return np.asarray(np.cumsum(generator.gamma(shape, 1.0 / (shape * rate), n)), np.float64)
