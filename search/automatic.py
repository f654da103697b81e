"""`auto`: which method for which question, decided from the space and the budget alone, so that a file means one search.

- Exact, when the budget pays for every point that no bound rules out, or when there is no budget and the space can be listed.
- Guided by regression, when the budget is of some thousand points: there each point counts more than the milliseconds that
  choosing it takes.
- Evolutionary otherwise.

No Optuna sampler is chosen: where they were compared (docs/search.md), none found more with as many points.
"""

from __future__ import annotations

import numpy as np

from search.archive import Archive
from search.budget import Budget
from search.evolutionary import evolve
from search.guided import guided

LISTED = 1 << 29
"""Points that exact search lists when nobody set a budget; beyond, `UNASKED` points are sampled."""
UNASKED = 200_000
FEW = 4096
"""Points from which evolution has generations enough, and regression would cost as much as a model does."""


def chosen(method: str, budget: Budget, size: int) -> str:
    """`exact`, `auto` (which then samples) or the method named, for a space of `size` points."""
    if method != "auto":
        return method
    if not listing(method, budget):
        return "exact" if budget.most(size) >= size else "auto"
    return "exact" if size <= LISTED else "auto"


def listing(method: str, budget: Budget) -> bool:
    """Whether the choice is `exact` unless there are more points than can be listed: known before they are counted."""
    return method == "exact" or (method == "auto" and not budget.limits_points)


def automatic(archive: Archive, random: np.random.Generator) -> None:
    """Take everything that is left after the bounds when the budget pays for it, else guided or evolutionary search."""
    everything = _everything_open(archive)
    if everything is not None:
        archive.evaluate(everything)
    elif archive.most < FEW:
        guided(archive, random)
    else:
        evolve(archive, random)


def _everything_open(archive: Archive) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """All points that no bound rules out, when they can be listed and the budget pays for them."""
    if archive.ranking.size > 1 << 20:
        return None
    everything = np.arange(archive.ranking.size)
    left = everything[~archive.rule_out(everything)]
    return left if len(left) <= archive.left else None
