"""How an answer leans on each parameter: elasticities, where one stops to pay, and what would make it pay again.

A model is asked about neighbours of a point, all of them in one batch of columns; parameters that are not perturbed keep
their value. Whole-number parameters move by whole steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spaces.columns import FloatArray

STEP = 0.05
"""Relative step of an elasticity."""
PAYS = 0.02
"""An elasticity below this is nothing."""
GROWTH = tuple(float(x) for x in np.round(2.0 ** np.arange(0.0, 3.01, 0.25), 6))
"""Factors by which a parameter is grown to see where it stops to pay."""

Figures = Callable[[Mapping[str, FloatArray]], Mapping[str, FloatArray]]
"""Metrics (n,) of n points given as parameters (n,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elasticity:
    """d log(metric) / d log(parameter) at a point, upwards and downwards; they differ at a corner."""

    parameter: str
    metric: str
    up: float
    down: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """Beyond `value` of `parameter` the metric gains nothing, until `other` grows to `at` (None: none that was tried helps)."""

    parameter: str
    metric: str
    value: float
    other: str | None
    at: float | None


def elasticities(
    figures: Figures, here: Mapping[str, float], parameters: Sequence[str], metrics: Sequence[str], whole: frozenset[str]
) -> tuple[Elasticity, ...]:
    """Of every metric to every parameter, around `here`; `whole` names parameters of whole numbers."""
    moved = {name: _stepped(here[name], name in whole) for name in parameters}
    points = [dict(here)]
    for name in parameters:
        points += [{**here, name: value} for value in moved[name]]
    found = figures({name: np.array([point[name] for point in points]) for name in here})
    rows = []
    for metric in metrics:
        value = np.log(np.maximum(np.asarray(found[metric], np.float64), 1e-300))
        for i, name in enumerate(parameters):
            low, high = moved[name]
            down = _slope(value[0] - value[1 + 2 * i], here[name], low)
            up = _slope(value[2 + 2 * i] - value[0], high, here[name])
            rows.append(Elasticity(parameter=name, metric=metric, up=up, down=down))
    return tuple(rows)


def next_bottleneck(found: Sequence[Elasticity], metric: str, *, maximise: bool = True) -> str | None:
    """The parameter whose growth improves the metric most; None where none pays."""
    sign = 1.0 if maximise else -1.0
    best = max((e for e in found if e.metric == metric), key=lambda e: sign * e.up, default=None)
    return None if best is None or sign * best.up < PAYS else best.parameter


def break_even(
    figures: Figures,
    here: Mapping[str, float],
    parameter: str,
    others: Sequence[str],
    metric: str,
    whole: frozenset[str],
    *,
    maximise: bool = True,
) -> BreakEven | None:
    """Where growing `parameter` stops to pay, and the least growth of one other that makes it pay there again.

    None where it still pays at the largest factor of GROWTH. An other is tried at every factor of GROWTH, alone.
    """
    sign = 1.0 if maximise else -1.0
    ladder = sorted({_rounded(here[parameter] * factor, parameter in whole) for factor in GROWTH})
    gains = sign * _gains(figures, here, parameter, ladder, metric)
    paying = np.flatnonzero(gains >= PAYS)
    last = 0 if len(paying) == 0 else int(paying[-1]) + 1
    if last >= len(ladder) - 1:
        return None
    value, beyond = ladder[last], ladder[-1]
    span = np.log(beyond / value)
    points, keys = [], []
    for other in others:
        for factor in GROWTH[1:]:
            grown = {**here, other: _rounded(here[other] * factor, other in whole)}
            points += [{**grown, parameter: value}, {**grown, parameter: beyond}]
            keys.append((factor, other, grown[other]))
    if points:
        found = figures({name: np.array([point[name] for point in points]) for name in here})
        log = np.log(np.maximum(np.asarray(found[metric], np.float64), 1e-300))
        again = sign * (log[1::2] - log[0::2]) / span
        for j in np.argsort([key[0] for key in keys], kind="stable"):
            if again[j] >= PAYS:
                return BreakEven(parameter=parameter, metric=metric, value=value, other=keys[j][1], at=keys[j][2])
    return BreakEven(parameter=parameter, metric=metric, value=value, other=None, at=None)


def _gains(figures: Figures, here: Mapping[str, float], parameter: str, ladder: Sequence[float], metric: str) -> FloatArray:
    points = {name: np.full(len(ladder), value) for name, value in here.items()} | {parameter: np.array(ladder)}
    log = np.log(np.maximum(np.asarray(figures(points)[metric], np.float64), 1e-300))
    return np.asarray(np.diff(log) / np.diff(np.log(ladder)))


def _stepped(value: float, whole: bool) -> tuple[float, float]:
    """The neighbours below and above."""
    if not whole:
        return value * (1 - STEP), value * (1 + STEP)
    step = max(round(value * STEP), 1)
    return max(value - step, min(value, 1.0)), value + step


def _slope(change: float, high: float, low: float) -> float:
    return 0.0 if high <= low or low <= 0 else float(change / np.log(high / low))


def _rounded(value: float, whole: bool) -> float:
    return float(round(value)) if whole else float(value)
