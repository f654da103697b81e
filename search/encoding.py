"""Any space as integers that always decode to a legal point, and as features for regression.

One integer per axis that has a choice: its level. Levels that no legal point combines decode to the nearest that one does
(`Ranking.nearest`), so every vector means a plan, a legal point's own vector means itself, and ordinals are the memo's key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spaces.columns import CodeArray, FloatArray, IntArray
from spaces.ranking import Ranking
from spaces.space import Axis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoding:
    """Integers for the points of a numbered space: `names` and `levels` of the d axes that have more than one level."""

    ranking: Ranking
    axes: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes, d of them."""
        return tuple(self.ranking.space.axes[i].name for i in self.axes)

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of each, d of them: an integer runs from 0 to one less."""
        return tuple(self.ranking.layers[i].levels for i in self.axes)

    def encode(self, ordinals: IntArray) -> IntArray:
        """Integers of points, shape (n, d)."""
        return self.ranking.unrank(ordinals)[list(self.axes)].T.astype(np.int64)

    def decode(self, integers: IntArray) -> IntArray:
        """Ordinals of the legal points nearest to integers (n, d), shape (n,)."""
        codes: CodeArray = np.zeros((len(self.ranking.layers), len(integers)), np.int32)
        codes[list(self.axes)] = integers.T
        return self.ranking.rank(self.ranking.nearest(codes))

    def features(self, ordinals: IntArray) -> FloatArray:
        """Points as numbers near one another when the points are alike, shape (n, f).

        Of an axis whose values are positive and ordered by size the logarithm, of any other one flag per level (the first
        left out); all scaled to 0 … 1.
        """
        codes = self.ranking.unrank(ordinals)
        found = []
        for i in self.axes:
            axis = self.ranking.space.axes[i]
            found.append(_logarithms(axis)[codes[i]][:, None] if is_quantity(axis, self.labelled) else _flags(axis)[codes[i]])
        return np.concatenate(found, axis=1) if found else np.zeros((len(ordinals), 0))

    @property
    def labelled(self) -> frozenset[str]:
        """Symbols whose values are codes of names."""
        return frozenset(self.ranking.space.labels)


def encoding(ranking: Ranking) -> Encoding:
    """The integers of a numbered space."""
    return Encoding(ranking=ranking, axes=tuple(i for i, layer in enumerate(ranking.layers) if layer.levels > 1))


def is_quantity(axis: Axis, labelled: frozenset[str]) -> bool:
    """Whether an axis is a number with a size, not a name or a switch."""
    return axis.name not in labelled and len(axis.values) > 2 and bool((axis.values >= 0).all())


def _logarithms(axis: Axis) -> FloatArray:
    values = np.log(np.maximum(np.asarray(axis.values, np.float64), 0.5))
    span = values.max() - values.min()
    return np.asarray((values - values.min()) / (span or 1.0), np.float64)


def _flags(axis: Axis) -> FloatArray:
    return np.eye(len(axis.values))[:, 1:]
