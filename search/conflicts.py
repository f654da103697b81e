"""Constraints that cannot hold together: the smallest set of them that no design point satisfies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import CostModel
from search.constraint import Constraint
from spaces.problem import Problem
from spaces.space import Space

LOOKED_AT = 20_000
"""Points at most that are evaluated to say which constraints conflict."""


def conflicting(space: Space, model: CostModel, problem: Problem, constraints: Sequence[Constraint]) -> tuple[str, ...]:
    """Names of the fewest constraints, the model's own (`memory`) among them, that no point keeps together.

    Every point is evaluated, also what bounds would rule out; () for more than LOOKED_AT points, or where some keep all.
    """
    if not 0 < space.size() <= LOOKED_AT:
        return ()
    rows, names = [], []
    for batch in space.batches():
        metrics = model.evaluate(problem, batch)
        violation = {**metrics.violation, **{one.name: one.violation(metrics.value[one.metric]) for one in constraints}}
        names = list(violation)
        rows.append(np.stack([np.broadcast_to(v, (batch.n,)) <= 0 for v in violation.values()], axis=1))
    found = smallest_conflict(np.concatenate(rows))
    return () if found is None else tuple(names[i] for i in found)


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
