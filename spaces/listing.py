"""Any run of consecutive points of a space, listed from arrays alone.

Rules stay where the space was made: what travels to other processes is the layered graph of `spaces.ranking`, and a run of
points is two numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.columns import CodeArray, Columns, IntArray
from spaces.ranking import Layer, ranking
from spaces.space import Space, code_type, completed, split_of

_REMEMBERED = 1 << 22  # completions kept from one run to the next


@dataclass(frozen=True, slots=True, eq=False)
class _Branches:
    """Edges of one axis as in `spaces.ranking.Layer`, without what only a search by level needs."""

    first: IntArray
    level: CodeArray
    child: CodeArray
    before: IntArray

    @classmethod
    def of(cls, layer: Layer, levels: type[np.integer[Any]]) -> _Branches:
        return cls(layer.first, layer.level.astype(levels), layer.child.astype(np.int32), layer.before)

    def of_contexts(self, context: IntArray) -> tuple[IntArray, IntArray]:
        """Every edge that leaves some contexts, in order, and the row of the context that it leaves."""
        low = self.first[context]
        count = self.first[context + 1] - low
        parent = np.repeat(np.arange(len(context)), count)
        return np.arange(len(parent)) + np.repeat(low - (np.cumsum(count) - count), count), parent


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The points of a space by number, in the order of `Space.batches`; it holds no rule and can travel.

    Choices of the first axes are walked down to the points asked for, then joined to the completions of the others, which are
    found once per context and remembered while they are few. Raises ValueError as `ranking` does.
    """

    branches: tuple[_Branches, ...]
    split: int
    levels: type[np.integer[Any]]
    _known: _Tails = field(default_factory=lambda: _Tails(), repr=False)

    @classmethod
    def of(cls, space: Space) -> Listing:
        """The listing of a space's points."""
        levels = code_type(space.axes)
        return cls(tuple(_Branches.of(layer, levels) for layer in ranking(space).layers), split_of(space), levels)

    def batches(
        self, start: int, n: int, levels: Mapping[str, tuple[str, NDArray[Any]]], axes: tuple[str, ...], rows: int
    ) -> Iterator[Columns]:
        """The n points from number `start` on, in batches of `rows`; `levels` and the names of the `axes` are the space's."""
        prefixes, context, skipped, kept = self._prefixes(start, start + n)
        offsets, tails = self._completions(context)
        for codes in completed(prefixes, kept, offsets + skipped, tails, rows):
            yield Columns(n=codes.shape[1], codes=dict(zip(axes, codes, strict=True)), levels=levels)

    def _prefixes(self, start: int, stop: int) -> tuple[CodeArray, IntArray, IntArray, IntArray]:
        """Choices of the first axes (split, m) that lead to some of the points, the context of each, and which of its
        completions: how many come before them, and how many they are."""
        codes = np.zeros((0, 1), self.levels)
        context = begin = np.zeros(1, np.int64)
        for layer in self.branches[: self.split]:
            edge, parent = layer.of_contexts(context)
            begin = begin[parent] + layer.before[edge] - layer.before[layer.first[context]][parent]
            inside = (begin < stop) & (begin + (layer.before[edge + 1] - layer.before[edge]) > start)
            if not inside.all():
                edge, parent, begin = edge[inside], parent[inside], begin[inside]
            codes = np.concatenate([codes[:, parent], layer.level[edge][None]])
            context = layer.child[edge].astype(np.int64)
        skipped = np.maximum(start - begin, 0)
        return codes, context, skipped, np.minimum(begin + self._counts(context), stop) - begin - skipped

    def _counts(self, context: IntArray) -> IntArray:
        """Completions of contexts at the split."""
        if self.split == len(self.branches):
            return np.ones(len(context), np.int64)
        layer = self.branches[self.split]
        return layer.before[layer.first[context + 1]] - layer.before[layer.first[context]]

    def _completions(self, context: IntArray) -> tuple[IntArray, CodeArray]:
        """Where the completions of each context begin among the tails, and the tails (axes after the split, k)."""
        known = self._known
        if known.tails is None or known.tails.shape[1] > _REMEMBERED:
            contexts = len(self.branches[self.split].first) - 1 if self.split < len(self.branches) else 1
            known.offsets = np.full(contexts, -1, np.int64)
            known.tails = np.empty((len(self.branches) - self.split, 0), self.levels)
        wanted = np.zeros(len(known.offsets), np.bool_)
        wanted[context] = True
        new = np.flatnonzero(wanted & (known.offsets < 0))
        if len(new):
            counts = self._counts(new)
            known.offsets[new] = known.tails.shape[1] + np.cumsum(counts) - counts
            known.tails = np.concatenate([known.tails, self._tails(new)], axis=1)
        return known.offsets[context], known.tails

    def _tails(self, context: IntArray) -> CodeArray:
        """All completions of contexts at the split, one context after the other."""
        codes = np.zeros((0, len(context)), self.levels)
        for layer in self.branches[self.split :]:
            edge, parent = layer.of_contexts(context)
            codes = np.concatenate([codes[:, parent], layer.level[edge][None]])
            context = layer.child[edge].astype(np.int64)
        return codes


class _Tails:
    """Completions found so far: where those of a context begin, −1 for one not met yet; copies elsewhere start empty."""

    def __init__(self) -> None:
        self.offsets = np.empty(0, np.int64)
        self.tails: CodeArray | None = None

    def __reduce__(self) -> tuple[type[_Tails], tuple[()]]:
        return _Tails, ()
