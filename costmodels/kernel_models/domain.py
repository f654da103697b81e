"""Where a fit was taught: the box of log sizes its rows span, and how far a shape may be from the nearest of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.operations import Shapes, dimensions
from spaces.columns import FloatArray

_ROWS = 256
_REACH = 0.98  # quantile of the distances between a row and its nearest of another group: farther is outside


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Domain:
    """The taught region of one operator variant, in log2 of its dimensions.

    `points` has shape (p, dimensions), `low` and `high` (dimensions,), `reach` is a Euclidean distance.
    """

    points: FloatArray
    low: FloatArray
    high: FloatArray
    reach: float

    def to_json(self) -> dict[str, object]:
        """Plain lists and numbers."""
        return {"points": [[round(float(x), 3) for x in point] for point in self.points], "reach": round(self.reach, 4)}


def domain_of(op: str, at: Shapes, group: NDArray[Any]) -> Domain:
    """The domain of rows whose held-out groups are `group` (n,): the reach is what leaving a group out bridges."""
    points, index = np.unique(np.round(_logs(op, at), 3), axis=0, return_index=True)
    own = group[index]
    distance = np.sqrt(((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2))
    distance[own[:, None] == own[None, :]] = np.inf
    nearest = distance.min(axis=1) if len(points) else np.zeros(0)
    nearest = nearest[np.isfinite(nearest)]
    return _domain(points, float(np.quantile(nearest, _REACH)) if len(nearest) else 0.0)


def from_json(facts: Mapping[str, Any]) -> Domain:
    """What `to_json` wrote."""
    return _domain(np.asarray(facts["points"], dtype=np.float64), float(facts["reach"]))


def _domain(points: FloatArray, reach: float) -> Domain:
    return Domain(points=points, low=points.min(axis=0), high=points.max(axis=0), reach=reach)


def inside(domain: Domain, op: str, at: Shapes) -> NDArray[np.bool_]:
    """Which rows lie in the box and within reach of a taught shape, shape (n,)."""
    logs = _logs(op, at)
    slack = 1e-3
    boxed: NDArray[np.bool_] = np.all((logs >= domain.low - slack) & (logs <= domain.high + slack), axis=1)
    near = np.zeros(len(logs), dtype=np.bool_)
    limit = (domain.reach + slack) ** 2
    own = (domain.points**2).sum(axis=1)
    taught = np.ascontiguousarray(domain.points.T)
    for start in range(0, len(logs), _ROWS):  # |x − p|² = |x|² − 2xp + |p|², rounding far below the slack
        part = logs[start : start + _ROWS]
        product = sum(part[:, i, None] * taught[i] for i in range(len(taught)))  # few columns: a BLAS would wake all cores
        least = (own - 2.0 * product).min(axis=1) + (part**2).sum(axis=1)
        near[start : start + _ROWS] = least <= limit
    return np.asarray(boxed & near)


def clipped(domain: Domain, op: str, at: Shapes) -> dict[str, NDArray[Any]]:
    """The shapes moved to the nearest edge of the box, where they are outside it; sizes stay whole."""
    moved = dict(at)
    for i, name in enumerate(dimensions(op)):
        low, high = np.round(2.0 ** domain.low[i]), np.round(2.0 ** domain.high[i])
        moved[name] = np.clip(at[name], low, high)
    return moved


def _logs(op: str, at: Shapes) -> FloatArray:
    return np.column_stack([np.log2(at[name]) for name in dimensions(op)])
