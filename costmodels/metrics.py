"""What a cost model answers, and the protocol it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from spaces.columns import Columns, FloatArray
from spaces.problem import Problem

MAXIMISED = frozenset(
    {
        "tokens_per_second",
        "tokens_per_second_per_device",
        "effective_tokens_per_second",
        "tokens_per_s_per_gpu",
        "samples_per_second",
        "model_flops_per_device",
        "hardware_flops_per_device",
        "model_tflops_per_gpu",
        "hw_tflops_per_gpu",
        "mfu",
        "mfu_causal",
        "hfu",
        "tokens_per_dollar",
        "tokens_per_joule",
        "tokens_per_second_per_user",
        "request_rate",
        "kv_capacity",
        "kv_headroom",
        "goodput",
        "goodput_per_device",
        "requests_per_second",
        "performance",
        "performance_per_dollar",
        "performance_per_watt",
        "sustained_clock",
        "slo_attainment",
    }
)
"""Metrics of which more is better; of all others less is."""


class Evidence(IntEnum):
    """What a figure rests on, strongest first."""

    MEASURED = 0
    INTERPOLATED = 1
    EXTRAPOLATED = 2
    FIRST_PRINCIPLES = 3


@runtime_checkable
class LazySide(Protocol):
    """One side of the intervals that is computed only when a metric is asked for."""

    def take(self, rows: NDArray[Any] | slice, value: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
        """The same side for some rows, whose values are given."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metrics:
    """Predictions for n design points; SI units.

    `value[m]`, `low[m]`, `high[m]` have shape (n,). `parts[m]` maps a part's name to an array of shape (n,), and the parts of
    a metric sum to its value. `violation[c]` is dimensionless, use / limit − 1: at most 0 is feasible. `evidence` is an
    `Evidence` code per point.
    """

    n: int
    value: Mapping[str, FloatArray]
    low: Mapping[str, FloatArray] = field(default_factory=dict)
    high: Mapping[str, FloatArray] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, FloatArray]] = field(default_factory=dict)
    violation: Mapping[str, FloatArray] = field(default_factory=dict)
    evidence: NDArray[np.int8] | None = None

    def take(self, rows: NDArray[Any] | slice) -> Metrics:
        """The given rows."""

        def pick(columns: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
            return {name: array[rows] for name, array in columns.items()}

        def side(around: Mapping[str, FloatArray], value: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
            """Intervals that are computed when asked for stay so."""
            return around.take(rows, value) if isinstance(around, LazySide) else pick(around)

        evidence = None if self.evidence is None else self.evidence[rows]
        value = pick(self.value)
        return Metrics(
            n=len(np.empty(self.n, np.bool_)[rows]),
            value=value,
            low=side(self.low, value),
            high=side(self.high, value),
            parts={metric: pick(parts) for metric, parts in self.parts.items()},
            violation=pick(self.violation),
            evidence=evidence,
        )


class BrokenContract(ValueError):
    """A cost model whose answer is not what `CostModel` promises: nothing it says can be used."""


def require_metrics(answer: object, n: int, model: object) -> None:
    """BrokenContract unless a model's answer about n points holds one real number per point and name."""
    who = f"the cost model {type(model).__name__}"
    answer = required_metrics(answer, model)
    sides: tuple[tuple[str, Mapping[str, object]], ...] = (("value", answer.value), ("violation", answer.violation))
    if answer.n != n:
        raise BrokenContract(f"{who} was asked about {n} points and gave Metrics of n = {answer.n}")
    for side, columns in sides:
        for name, column in columns.items():
            if not isinstance(column, np.ndarray):
                found = _article(column)
            elif column.shape != (n,):
                found = f"an array of shape {column.shape}"
            elif column.dtype.kind not in "biuf":
                found = f"an array of {column.dtype}"
            else:
                continue
            raise BrokenContract(f"{who} gave {side}['{name}'] as {found}; it must be an array of real numbers, shape ({n},)")


def required_metrics(answer: object, model: object) -> Metrics:
    """What a model answered. BrokenContract unless it is Metrics."""
    if not isinstance(answer, Metrics):
        raise BrokenContract(f"the cost model {type(model).__name__} gave {_article(answer)} in place of Metrics")
    return answer


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


@runtime_checkable
class CostModel(Protocol):
    """Predicts metrics for a batch of design points.

    Contract: pure (same problem and columns, same bytes out); accepts n = 0; never raises for an infeasible point (says so
    in `violation`); every symbol of plan and workload it looks at is in `reads` (those of model, device and stack go without
    saying), and whether a symbol is a scalar or a column changes nothing.
    """

    @property
    def reads(self) -> frozenset[str]:
        """The symbols it looks at."""
        ...

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """Cheap and optimistic: never above a minimised metric or a violation, never below a maximised one.

        A metric it does not bound is absent.
        """
        ...

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """All metrics, with parts and violations, for the n points."""
        ...


@runtime_checkable
class Selective(CostModel, Protocol):
    """A cost model that answers more quickly where few metrics are asked for."""

    def only(self, problem: Problem, points: Columns, names: frozenset[str]) -> Metrics:
        """As `evaluate`: the values of the named metrics, and every violation, without intervals and parts."""
        ...
