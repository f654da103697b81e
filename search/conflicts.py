"""Constraints that cannot hold together: the smallest set of them that no design point satisfies."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray


def smallest_conflict(holds: NDArray[np.bool_]) -> tuple[int, ...] | None:
    """The fewest constraints that no point satisfies at once, first in order; None where some point satisfies all.

    `holds` (n, c): whether a point satisfies a constraint. Points that satisfy the same constraints count once, so the cost is
    that of the distinct rows, not of the points.
    """
    rows = np.unique(np.asarray(holds, np.bool_), axis=0)
    if len(rows) == 0 or rows.all(axis=1).any():
        return None
    for size in range(1, rows.shape[1] + 1):
        for chosen in combinations(range(rows.shape[1]), size):
            if not rows[:, chosen].all(axis=1).any():
                return chosen
    return None
