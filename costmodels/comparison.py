"""Predictions beside published facts: errors by source, coverage of intervals, and the order of plans.

Pure functions of facts (costmodels/published.py) and of prediction rows; nothing here predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median

import numpy as np

from costmodels.published import Fact, Prediction, implied_step_time, predicted_flops, quantity, read_number

REFUSED_ERROR = 1.0
"""What a refused row counts as in error statistics: an error of 100 %, safely over 10 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A published step time beside its prediction, seconds; `refused` holds the reason where there is no prediction."""

    fact: Fact
    published: float
    predicted: float = math.nan
    low: float = math.nan
    high: float = math.nan
    refused: str = ""

    @property
    def error(self) -> float:
        """Relative error in time, predicted / published − 1; positive predicts too slow. NaN when refused."""
        return self.predicted / self.published - 1.0

    @property
    def covered(self) -> bool:
        """Whether the published time lies in the predicted interval."""
        return self.low <= self.published <= self.high

    @property
    def width(self) -> float:
        """Width of the interval relative to the prediction; NaN without one."""
        return (self.high - self.low) / self.predicted


def compare(facts: Sequence[Fact], predictions: Sequence[Prediction]) -> list[Comparison]:
    """Each fact with the prediction row of the same position. Raises `ValueError` on unequal lengths."""
    compared = []
    for fact, row in zip(facts, predictions, strict=True):
        predicted = read_number(row.get("step_time_s"))
        published = implied_step_time(fact, predicted_flops(row, quantity(fact.inputs, "n_gpus")))
        refused = str(row.get("error") or "")
        if not refused and not (math.isfinite(predicted) and predicted > 0.0):
            refused = "no step time"
        if not refused and not (math.isfinite(published) and published > 0.0):
            refused = f"no predicted figure to set beside {fact.metric}"
        if refused:
            compared.append(Comparison(fact=fact, published=published, refused=refused))
            continue
        low, high = read_number(row.get("step_time_s_low")), read_number(row.get("step_time_s_high"))
        compared.append(Comparison(fact=fact, published=published, predicted=predicted, low=low, high=high))
    return compared


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStatistics:
    """Absolute relative errors of a group, percent; a refused row counts as `REFUSED_ERROR`.

    `bias` is the mean signed error of the predicted rows, `within_10` the share of all rows with an error of at most 10 %,
    `coverage` the share of predicted rows inside their interval, `width` the median interval width relative to the
    prediction. NaN where there is nothing to average.
    """

    rows: int
    predicted: int
    refused: int
    median: float
    mean: float
    p90: float
    worst: float
    bias: float
    within_10: float
    coverage: float
    width: float


def error_statistics(compared: Sequence[Comparison]) -> ErrorStatistics:
    """Statistics of a group of comparisons; a group of none is all NaN."""
    answered = [c for c in compared if not c.refused]
    sizes = [REFUSED_ERROR if c.refused else abs(c.error) for c in compared]
    bounded = [c for c in answered if math.isfinite(c.width)]
    return ErrorStatistics(
        rows=len(compared),
        predicted=len(answered),
        refused=len(compared) - len(answered),
        median=_percent(median(sizes)) if sizes else math.nan,
        mean=_percent(fmean(sizes)) if sizes else math.nan,
        p90=_percent(float(np.quantile(sizes, 0.9))) if sizes else math.nan,
        worst=_percent(max(sizes)) if sizes else math.nan,
        bias=_percent(fmean(c.error for c in answered)) if answered else math.nan,
        within_10=_percent(fmean(size <= 0.1 for size in sizes)) if sizes else math.nan,
        coverage=_percent(fmean(c.covered for c in answered)) if answered else math.nan,
        width=_percent(median(c.width for c in bounded)) if bounded else math.nan,
    )


def _percent(share: float) -> float:
    return 100.0 * share


def by_source(compared: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """Comparisons grouped by source, in order of appearance."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in compared:
        groups.setdefault(comparison.fact.source, []).append(comparison)
    return groups


def median_of_source_medians(compared: Iterable[Comparison]) -> float:
    """Median over sources of each source's median absolute error, percent; NaN for none."""
    medians = [error_statistics(group).median for group in by_source(compared).values()]
    return median(medians) if medians else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAgreement:
    """Pairs of plans for the same job whose published times differ enough, and how many were put in the right order."""

    pairs: int
    agreed: int

    @property
    def share(self) -> float:
        """Percent in the right order; NaN without pairs."""
        return 100.0 * self.agreed / self.pairs if self.pairs else math.nan


def _job(fact: Fact) -> tuple[str, ...]:
    return fact.job


def _different_plans(first: Fact, second: Fact) -> bool:
    return first.plan != second.plan


def rank_agreement(
    compared: Iterable[Comparison],
    *,
    least_difference: float = 0.05,
    job: Callable[[Fact], tuple[str, ...]] = _job,
    differ: Callable[[Fact, Fact], bool] = _different_plans,
) -> RankAgreement:
    """Order of plans doing the same `job` (`Fact.job`) in ways that `differ` (by `Fact.plan`).

    A pair counts when the slower published time exceeds the faster by more than `least_difference`; a refused row or a
    tie in the prediction is an order not found.
    """
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for comparison in compared:
        if math.isfinite(comparison.published):
            groups.setdefault(job(comparison.fact), []).append(comparison)
    pairs = agreed = 0
    for group in groups.values():
        for first, second in combinations(group, 2):
            faster, slower = sorted((first, second), key=lambda c: c.published)
            if not differ(first.fact, second.fact) or slower.published <= (1.0 + least_difference) * faster.published:
                continue
            pairs += 1
            agreed += bool(faster.predicted < slower.predicted)
    return RankAgreement(pairs=pairs, agreed=agreed)
