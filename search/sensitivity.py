"""How an answer leans on each parameter: elasticities, where one stops to pay, and what would make it pay again.

A model is asked about neighbours of a point, all of them in one batch of columns; parameters that are not perturbed keep
their value. Parameters of kind `whole` move by whole steps, those of kind `double` (degrees, domains) by doubling.
"""

from __future__ import annotations

import math
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

OTHERS = (1.25, 1.5, 2.0, 4.0, 8.0)
"""Factors by which another parameter is grown to see whether the first pays again."""

BEYOND = "beyond"
"""A figure, where it is given, above 0 for a point that cannot be."""

Figures = Callable[[Mapping[str, FloatArray]], Mapping[str, FloatArray]]
"""Metrics (n,) of n points given as parameters (n,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elasticity:
    """d log(metric) / d log(parameter) at a point, upwards and downwards; they differ at a corner.

    `grows` is False where the step upwards leads to what cannot be.
    """

    parameter: str
    metric: str
    up: float
    down: float
    grows: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """Beyond `value` of `parameter` the metric gains nothing, until `other` grows to `at` (None: none that was tried helps).

    With `beyond` it would gain, but a point with that value cannot be.
    """

    parameter: str
    metric: str
    value: float
    other: str | None
    at: float | None
    beyond: bool = False


def elasticities(
    figures: Figures, here: Mapping[str, float], parameters: Sequence[str], metrics: Sequence[str], kinds: Mapping[str, str]
) -> tuple[Elasticity, ...]:
    """Of every metric to every parameter, around `here`; `kinds` says which are `whole` or `double`."""
    moved = {name: _stepped(here[name], kinds.get(name, "")) for name in parameters}
    points = [dict(here)]
    for name in parameters:
        points += [{**here, name: value} for value in moved[name]]
    found = figures({name: np.array([point[name] for point in points]) for name in here})
    over = _over(found, len(points))
    rows = []
    for metric in metrics:
        value = np.log(np.maximum(np.asarray(found[metric], np.float64), 1e-300))
        for i, name in enumerate(parameters):
            low, high = moved[name]
            down = _slope(value[0] - value[1 + 2 * i], here[name], low)
            up = _slope(value[2 + 2 * i] - value[0], high, here[name])
            rows.append(Elasticity(parameter=name, metric=metric, up=up, down=down, grows=bool(over[2 + 2 * i] <= 0)))
    return tuple(rows)


def next_bottleneck(found: Sequence[Elasticity], metric: str, *, maximise: bool = True) -> str | None:
    """The parameter that can grow and whose growth improves the metric most; None where none pays."""
    sign = 1.0 if maximise else -1.0
    best = max((e for e in found if e.metric == metric and e.grows), key=lambda e: sign * e.up, default=None)
    return None if best is None or sign * best.up < PAYS else best.parameter


def break_evens(
    figures: Figures,
    here: Mapping[str, float],
    parameters: Sequence[str],
    metric: str,
    kinds: Mapping[str, str],
    *,
    maximise: bool = True,
) -> tuple[BreakEven, ...]:
    """Where growing each parameter stops to pay, and the least growth of one other that makes it pay there again.

    A parameter that still pays at the largest factor of GROWTH has none, and one that pays up to what cannot be is told so. An
    other is tried at every factor of OTHERS, alone. The model is asked twice, whatever the number of parameters.
    """
    ladders = {n: sorted({_rounded(here[n] * factor, kinds.get(n, "")) for factor in GROWTH}) for n in parameters}
    asked = _logs(figures, [{**here, n: value} for n in parameters for value in ladders[n]], metric, maximise)
    steps = iter(zip(*asked, strict=True))
    stops: dict[str, float] = {}
    ends: dict[str, BreakEven] = {}
    for name, whole in list(ladders.items()):
        log, over = np.array([next(steps) for _ in whole]).T
        fits = int(np.argmax(over > 0)) if np.any(over > 0) else len(whole)
        ladder, log = whole[:fits], log[:fits]
        ladders[name] = ladder
        if not ladder:
            continue
        paying = np.flatnonzero(np.diff(log) / np.diff(np.log(ladder)) >= PAYS)
        last = int(paying[-1]) + 1 if len(paying) else 0
        if last < len(ladder) - 1:
            stops[name] = ladder[last]
        elif fits < len(whole):
            ends[name] = BreakEven(parameter=name, metric=metric, value=whole[fits], other=None, at=None, beyond=True)
    trials = [
        (factor, name, other, _rounded(here[other] * factor, kinds.get(other, "")))
        for name in stops
        for other in parameters
        for factor in OTHERS
        if other != name
    ]
    tried = [{**here, other: at, name: end} for _, name, other, at in trials for end in (stops[name], ladders[name][-1])]
    log, over = _logs(figures, tried, metric, maximise) if tried else (np.empty(0), np.empty(0))
    found = {name: BreakEven(parameter=name, metric=metric, value=value, other=None, at=None) for name, value in stops.items()}
    for k in np.argsort([-factor for factor, *_ in trials], kind="stable"):  # the least factor is written last
        _, name, other, at = trials[k]
        if (
            max(over[2 * k], over[2 * k + 1]) <= 0
            and (log[2 * k + 1] - log[2 * k]) / np.log(ladders[name][-1] / stops[name]) >= PAYS
        ):
            found[name] = BreakEven(parameter=name, metric=metric, value=stops[name], other=other, at=at)
    return tuple({**found, **ends}[name] for name in parameters if name in found or name in ends)


def _over(found: Mapping[str, FloatArray], n: int) -> FloatArray:
    """How far each of n points is beyond what can be; 0 where nothing says so."""
    return np.asarray(found[BEYOND], np.float64) if BEYOND in found else np.zeros(n)


def _logs(
    figures: Figures, points: Sequence[Mapping[str, float]], metric: str, maximise: bool
) -> tuple[FloatArray, FloatArray]:
    """(logarithms of a metric of some points, turned so that more is better; how far each is beyond what can be)."""
    found = figures({name: np.array([point[name] for point in points]) for name in points[0]})
    log = np.log(np.maximum(np.asarray(found[metric], np.float64), 1e-300))
    return log if maximise else -log, _over(found, len(points))


def _stepped(value: float, kind: str) -> tuple[float, float]:
    """The neighbours below and above."""
    if kind == "double":
        return max(value / 2.0, min(value, 1.0)), value * 2.0
    if kind != "whole":
        return value * (1 - STEP), value * (1 + STEP)
    step = max(round(value * STEP), 1)
    return max(value - step, min(value, 1.0)), value + step


def _slope(change: float, high: float, low: float) -> float:
    return 0.0 if high <= low or low <= 0 else float(change / np.log(high / low))


def _rounded(value: float, kind: str) -> float:
    if kind == "double":
        return float(2.0 ** round(math.log2(value)))
    return float(round(value)) if kind == "whole" else float(value)
