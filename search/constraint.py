"""Constraints of the asker: limits on metrics or symbols, as dimensionless violations."""

from __future__ import annotations

from dataclasses import dataclass

from costmodels.metrics import MAXIMISED
from spaces.columns import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A limit on a metric or symbol: at most `limit` when `upper`, else at least."""

    metric: str
    limit: float
    upper: bool = True

    @property
    def name(self) -> str:
        """How the certificate and reports call it."""
        return f"{self.metric} {'<=' if self.upper else '>='} {self.limit:g}"

    def violation(self, value: FloatArray) -> FloatArray:
        """By how much of the limit the value oversteps it, at most 0 when it holds; dimensionless, shape (n,)."""
        scale = abs(self.limit) or 1.0
        return (value - self.limit if self.upper else self.limit - value) / scale

    def bounded_by(self, metric_is_exact: bool) -> bool:
        """Whether an optimistic value proves a violation: limits on the good side of a metric are beyond its reach."""
        return metric_is_exact or self.upper != (self.metric in MAXIMISED)
