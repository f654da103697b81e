"""How much a search may spend: points evaluated, a share of the space, or seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """At most `points` evaluations, at most `share` of the space's points, at most `seconds` of wall time; None is no limit.

    Raises ValueError for limits that are not positive, and for a share above 1.
    """

    points: int | None = None
    share: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("points", self.points), ("share", self.share), ("seconds", self.seconds)):
            if value is not None and not value > 0:
                raise ValueError(f"a budget of {name} must be positive, got {value}")
        if self.share is not None and self.share > 1:
            raise ValueError(f"a budget is a share of the space, at most 1, got {self.share:g}")

    def most(self, size: int) -> int:
        """Points of a space of `size` that may be evaluated, at least one when the space has any."""
        limits = [size]
        if self.points is not None:
            limits.append(self.points)
        if self.share is not None:
            limits.append(max(1, math.floor(self.share * size + 1e-9)))
        return min(limits)

    @property
    def limits_points(self) -> bool:
        """Whether evaluations are counted, not time alone."""
        return self.points is not None or self.share is not None
