"""What a search gives back: the front, the top lists, the sample, the certificate; and how far it is meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.certificate import Certificate, Failure, Removal
from search.constraint import Constraint
from search.front import Front, Objective, Points
from spaces.columns import Columns, FloatArray, IntArray

_LISTED = 20  # members of a front that are printed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """A uniform sample of the evaluated points, in the order of the space.

    `values` are the objectives as people read them, shape (n, objectives); `feasible` has shape (n,).
    """

    columns: Columns
    values: FloatArray
    feasible: NDArray[np.bool_]
    ordinals: IntArray

    def __len__(self) -> int:
        return len(self.ordinals)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Closest:
    """Where nothing is feasible: the point whose worst violation is least, and every constraint it violates.

    Exact among evaluated points; of the pruned ones the few with the least bounds were looked at.
    """

    points: Points
    lacks: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a search is; `most` is how many of the `space` it may visit: all, or what its budget pays for."""

    space: int
    most: int
    visited: int
    evaluated: int
    pruned: int
    failed: int
    feasible: int
    front: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a search found. `values` of a front or list are its `points.values(objectives)`.

    `top[name]` holds the best points by the objective of that name, best first. `failures` are the first few of the failed
    points; `bound_failed` counts by reason the points whose bound raised, which nothing could rule out; `stopped` says why
    points are unvisited ("" when none is). Times are seconds of this process.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    front: Front
    top: dict[str, Points]
    certificate: Certificate
    removed: tuple[Removal, ...]
    sample: Sample
    closest: Closest | None
    feasible: int
    failures: tuple[Failure, ...]
    failed_by_reason: dict[str, int]
    bound_failed: dict[str, int]
    stopped: str
    seed: int
    wall_s: float
    cpu_s: float

    def __str__(self) -> str:
        """The front, a line a member, and the certificate."""
        costs = self.front.points.values(self.objectives)
        names = [objective.name for objective in self.objectives]
        lines = [f"Front: {len(self.front)} points ({', '.join(names)})"]
        for row, values in enumerate(costs[:_LISTED].tolist()):
            said = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))
            choices = " ".join(f"{symbol}={value}" for symbol, value in self.front.points.columns.row(row).items())
            lines.append(f"  {said}: {choices}")
        lines += ["  …"] if len(costs) > _LISTED else []
        own = self.certificate
        verdict = "complete" if own.complete else "incomplete" + (f" ({self.stopped})" if self.stopped else "")
        counts = f"{sum(own.pruned.values()):,} pruned + {own.evaluated:,} evaluated + {own.failed:,} failed"
        lines.append(f"Certificate: {verdict}; {own.space:,} points = {counts} + {own.unvisited:,} unvisited.")
        lines += [f"  failed: {count:,} with {reason}" for reason, count in self.failed_by_reason.items()]
        return "\n".join(lines)
