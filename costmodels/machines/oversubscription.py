"""How many servers a power budget feeds when few of them peak at once (POLCA, Patel et al., ASPLOS 2024), in closed form.

Inference draws near its peak while prompts are read and far less while tokens are generated. A row that is sized by rated power
stands half idle; one that is sized by the power its load really draws, with a cap for the rare moment, holds more servers.
"""

from __future__ import annotations

import numpy as np

from spaces.columns import FloatArray, Value


def phase_power(share: Value, prompt: Value, token: Value) -> tuple[FloatArray, FloatArray]:
    """(mean, standard deviation) in W of a server that draws `prompt` for a `share` of its time and `token` otherwise."""
    s = np.clip(np.asarray(share, np.float64), 0.0, 1.0)
    spread = np.abs(np.asarray(prompt, np.float64) - token)
    return np.asarray(s * prompt + (1 - s) * token), np.asarray(np.sqrt(s * (1 - s)) * spread)


def row_power(servers: Value, mean: Value, deviation: Value, correlation: Value = 0.0, risk: Value = 1e-3) -> FloatArray:
    """W that a row of servers exceeds for a share `risk` of the time: m·μ + z·σ·√(m·(1 − ρ) + m²·ρ), a normal sum.

    `correlation` ρ is that between two servers' power: 0 for loads of their own, 1 for all in step.
    """
    from scipy.special import ndtri  # a quarter of a second to import, and most runs need none

    m, rho = np.asarray(servers, np.float64), np.asarray(correlation, np.float64)
    together = np.sqrt(m * (1 - rho) + m**2 * rho)
    return np.asarray(m * mean + ndtri(1 - np.asarray(risk, np.float64)) * deviation * together)


def servers_within(
    budget: Value, mean: Value, deviation: Value, rated: Value, correlation: Value = 0.0, risk: Value = 1e-3
) -> FloatArray:
    """The most servers whose row stays within `budget` W but for a share `risk` of the time; at least what rated power allows.

    `row_power` grows with the servers, so the largest m is found by halving between the two trivial counts: all at their
    rated power, all at their mean. Raises ValueError for a mean above the rated power.
    """
    if np.any(np.asarray(mean) > rated):
        raise ValueError("servers cannot draw more in the mean than they are rated for")
    low = np.floor(np.asarray(budget, np.float64) / rated)
    high = np.maximum(np.floor(np.asarray(budget, np.float64) / mean), low)
    for _ in range(64):
        middle = np.ceil((low + high) / 2)
        fits = row_power(middle, mean, deviation, correlation, risk) <= budget
        low, high = np.where(fits, middle, low), np.where(fits, high, np.maximum(middle - 1, low))
        if np.all(low >= high):
            break
    return np.asarray(low)


def extra_servers(
    budget: Value, mean: Value, deviation: Value, rated: Value, correlation: Value = 0.0, risk: Value = 1e-3
) -> FloatArray:
    """Share of servers gained over a row sized by rated power: 0.3 is 30 % more."""
    by_rating = np.maximum(np.floor(np.asarray(budget, np.float64) / rated), 1.0)
    return np.asarray(servers_within(budget, mean, deviation, rated, correlation, risk) / by_rating - 1.0)
